"""The Llama that is trained, in torch; its forward is the engine's (csrc/forward.c).

    x = E[token]
    for each layer:  x += O attention(rope(Q n), rope(K n), V n),  n = rmsnorm(x)
                     x += D (silu(G n) * U n),                     n = rmsnorm(x)
    logits = W rmsnorm(x)

Products of the same input are one product: Q, K and V are rows of one matrix, and so are G and U. `tensors` tells the
weights by GGUF's names. RoPE turns neighbouring pairs, as in the engine and in llama2.c.
"""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from llama2c.training.settings import ModelSettings


class Linear(nn.Linear):
    """y = x W^T. In f32 on a CPU it is oneDNN's product: torch takes MKL's, which is slow on other makers' processors
    (on a Zen 5 core 30 GFLOP/s against 70 to 90).
    """

    def __init__(self, cols: int, rows: int) -> None:
        super().__init__(cols, rows, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [...][cols] @ weight [rows][cols]^T"""
    if ONEDNN is None or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight)
    return cast(Tensor, OneDNNProduct.apply(x.flatten(0, -2), weight)).view(*x.shape[:-1], -1)


# An operator of torch's compiler, without a gradient. Where a version of torch has none, MKL it is.
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


class OneDNNProduct(torch.autograd.Function):
    """y = x W^T, dx = dy W, dW = dy^T x"""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return _times_transposed(x, weight)

    @staticmethod
    def backward(context: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        wants_x, wants_weight = context.needs_input_grad
        dx = _times_transposed(dy, weight.t()) if wants_x else None
        return dx, _times_transposed(dy.t(), x.t()) if wants_weight else None


def _times_transposed(a: Tensor, b: Tensor) -> Tensor:
    return cast(Tensor, cast(Any, ONEDNN)(a, b, None, "none", [], ""))


class Dropout(nn.Module):
    """Zeroes values with a probability, in steps of 1/256, and scales the others up.

    A byte of a random number decides on each value: forty times as fast as torch's on a CPU.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.kept = round(256 * (1 - probability))  # of 256

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.kept == 256:
            return x
        # 56 bits of each number are used: torch draws 63
        numbers = torch.empty(-(-x.numel() // 7), 1, dtype=torch.int64, device=x.device).random_()
        kept = numbers.view(torch.uint8)[:, :7].flatten()[: x.numel()].view(x.shape) < self.kept
        return x * (kept * (256 / self.kept)).type_as(x)


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps)"""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention; n_heads / n_kv_heads query heads share a head of keys and values."""

    def __init__(self, c: ModelSettings, dropout: float) -> None:
        super().__init__()
        self.heads = (c.n_heads, c.n_kv_heads, c.n_kv_heads)
        self.head_dim = c.head_dim
        self.dropout = dropout  # of the probabilities
        self.qkv = Linear(c.dim, sum(self.heads) * c.head_dim)
        self.output = Linear(c.n_heads * c.head_dim, c.dim)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads = self.qkv(x).view(b, t, -1, self.head_dim)
        q, k, v = heads.split(self.heads, dim=2)
        q, k = rope(q, rotation), rope(k, rotation)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.heads[0] != self.heads[1],
        )
        return cast(Tensor, self.output(y.transpose(1, 2).reshape(b, t, -1)))


def rope(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs of x [b][t][heads][head_dim] by rotation [t][1][head_dim / 2], complex."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)


class FeedForward(nn.Module):
    """D (silu(G x) * U x)"""

    def __init__(self, c: ModelSettings) -> None:
        super().__init__()
        self.gate_up = Linear(c.dim, 2 * c.hidden_dim)
        self.down = Linear(c.hidden_dim, c.dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return cast(Tensor, self.down(F.silu(gate) * up))


class Layer(nn.Module):
    """Attention and feed-forward, each added to what came in."""

    def __init__(self, c: ModelSettings, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(c.dim, c.norm_eps)
        self.attn = Attention(c, attention_dropout)
        self.ffn_norm = RMSNorm(c.dim, c.norm_eps)
        self.ffn = FeedForward(c)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.attn_norm(x), rotation))
        return cast(Tensor, x + self.dropout(self.ffn(self.ffn_norm(x))))


class Llama(nn.Module):
    """The model; `forward` gives logits, or with targets the loss."""

    def __init__(self, c: ModelSettings, *, dropout: float = 0.0, attention_dropout: float = 0.0) -> None:
        super().__init__()
        self.settings = c
        self.token_embd = nn.Embedding(c.vocab_size, c.dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(Layer(c, dropout, attention_dropout) for _ in range(c.n_layers))
        self.output_norm = RMSNorm(c.dim, c.norm_eps)
        self.output = None if c.tied else Linear(c.dim, c.vocab_size)
        self.rotation = rotations(c)  # no buffer: several processes need not send it to one another
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # GPT-2: what is added to the residual stream starts smaller, as there are 2 n_layers of it
                into_stream = name.endswith(("attn.output.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * c.n_layers) if into_stream else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """tokens [b][t] -> logits f32 [b][t][vocab_size]; with targets [b][t], the losses in nats [b][t]."""
        x = self.dropout(self.token_embd(tokens))
        self.rotation = self.rotation.to(tokens.device)
        rotation = self.rotation[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, rotation)
        classifier = self.token_embd.weight if self.output is None else self.output.weight
        logits = product(self.output_norm(x), classifier).float()
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The weights by GGUF's names, each a view of a parameter."""
        c = self.settings
        yield "token_embd.weight", self.token_embd.weight
        for i, layer in enumerate(cast("list[Layer]", self.layers)):
            heads = [n * c.head_dim for n in layer.attn.heads]
            q, k, v = layer.attn.qkv.weight.split(heads)
            gate, up = layer.ffn.gate_up.weight.chunk(2)
            for name, tensor in (
                ("attn_norm", layer.attn_norm.weight),
                ("attn_q", q),
                ("attn_k", k),
                ("attn_v", v),
                ("attn_output", layer.attn.output.weight),
                ("ffn_norm", layer.ffn_norm.weight),
                ("ffn_gate", gate),
                ("ffn_up", up),
                ("ffn_down", layer.ffn.down.weight),
            ):
                yield f"blk.{i}.{name}.weight", tensor
        yield "output_norm.weight", self.output_norm.weight
        if self.output is not None:
            yield "output.weight", self.output.weight

    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops(self, tokens: int, length: int) -> float:
        """Floating-point operations of forward and backward over windows of `length`: 6 a weight and token, and
        attention, whose rows see half of their window.
        """
        c = self.settings
        products = self.parameter_count() - (0 if c.tied else self.token_embd.weight.numel())
        attention = c.n_layers * c.n_heads * c.head_dim * length
        return 6.0 * tokens * (products + attention)


def frequencies(c: ModelSettings) -> Tensor:
    """Of RoPE, radians a position: theta^(-2 j / head_dim), f64 [head_dim / 2]."""
    return c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)


def rotations(c: ModelSettings) -> Tensor:
    """exp(i position frequency), complex [context][1][head_dim / 2], computed in f64 as in the engine."""
    angles = torch.outer(torch.arange(c.context, dtype=torch.float64), frequencies(c))
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]
