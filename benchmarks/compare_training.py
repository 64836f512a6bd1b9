"""Training steps of llama2c beside those of the same Llama in plain torch, alternating in one process.

    python benchmarks/compare_training.py [--dim 288 ...] [--dropout 0.0] [--threads 2] [--rounds 5]

Plain: the model as it is usually written, one product for each matrix, sines and cosines, torch's dropout and AdamW, in
float32 as llama2.c's train.py computes on a CPU. Beside it llama2c in float32, and in the precision it chooses itself.
The table gives the median of the rounds and the ratio to plain within a round.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from llama2c.training.hardware import hardware
from llama2c.training.model import Llama
from llama2c.training.settings import ModelSettings, TrainSettings
from llama2c.training.trainer import groups


class PlainNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class PlainLayer(nn.Module):
    def __init__(self, c: ModelSettings, dropout: float) -> None:
        super().__init__()
        self.c, self.p = c, dropout
        q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        self.q, self.k, self.v = (nn.Linear(c.dim, size, bias=False) for size in (q, kv, kv))
        self.o = nn.Linear(q, c.dim, bias=False)
        self.gate, self.up = (nn.Linear(c.dim, c.hidden_dim, bias=False) for _ in range(2))
        self.down = nn.Linear(c.hidden_dim, c.dim, bias=False)
        self.norms = nn.ModuleList(PlainNorm(c.dim, c.norm_eps) for _ in range(2))
        self.attention_drop, self.feed_forward_drop = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        c, (b, t, _) = self.c, x.shape
        n = self.norms[0](x)
        q, k, v = (product(n).view(b, t, -1, c.head_dim) for product in (self.q, self.k, self.v))
        q, k = turned(q, cosines, sines), turned(k, cosines, sines)
        if c.n_kv_heads != c.n_heads:
            k, v = (heads.repeat_interleave(c.n_heads // c.n_kv_heads, dim=2) for heads in (k, v))
        y = F.scaled_dot_product_attention(
            *(heads.transpose(1, 2) for heads in (q, k, v)), is_causal=True, dropout_p=self.p if self.training else 0.0
        )
        x = x + self.attention_drop(self.o(y.transpose(1, 2).reshape(b, t, -1)))
        n = self.norms[1](x)
        return x + self.feed_forward_drop(self.down(F.silu(self.gate(n)) * self.up(n)))


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """RoPE of x [b][t][heads][head_dim]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cosines - odd * sines, even * sines + odd * cosines], -1).flatten(-2)


class Plain(nn.Module):
    def __init__(self, c: ModelSettings, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(PlainLayer(c, dropout) for _ in range(c.n_layers))
        self.norm = PlainNorm(c.dim, c.norm_eps)
        frequencies = c.rope_theta ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
        angles = torch.outer(torch.arange(c.context), frequencies)[:, None]
        self.cosines, self.sines = angles.cos(), angles.sin()
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.drop(self.embedding(tokens))
        for layer in self.layers:
            x = layer(x, self.cosines, self.sines)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_step(c: ModelSettings, t: TrainSettings) -> Callable[[Tensor, Tensor], float]:
    model = Plain(c, t.dropout)
    optimizer = torch.optim.AdamW(groups(model.parameters(), t), lr=t.learning_rate, betas=(t.beta1, t.beta2))

    def step(tokens: Tensor, targets: Tensor) -> float:
        loss = model(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), t.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def own_step(c: ModelSettings, t: TrainSettings, precision: str) -> Callable[[Tensor, Tensor], float]:
    """As Trainer.optimize, on one process."""
    model = Llama(c, dropout=t.dropout, attention_dropout=t.attention_dropout)
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW(groups(trained, t), lr=t.learning_rate, betas=(t.beta1, t.beta2), fused=True)

    def step(tokens: Tensor, targets: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(tokens, targets).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, t.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("dim", 288),
        ("layers", 6),
        ("heads", 6),
        ("kv-heads", 6),
        ("vocab", 4096),
        ("context", 256),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("batch", 16), ("threads", 2), ("rounds", 5), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--json", metavar="FILE")
    a = parser.parse_args()
    torch.manual_seed(1)
    c = ModelSettings(
        vocab_size=a.vocab, dim=a.dim, n_layers=a.layers, n_heads=a.heads, n_kv_heads=a.kv_heads, context=a.context
    )
    # both drop the same: llama2.c's train.py drops the attention's probabilities too
    t = TrainSettings(dropout=a.dropout, attention_dropout=a.dropout, threads=a.threads, device="cpu")
    tokens, targets = (torch.randint(0, a.vocab, (a.batch, a.context)) for _ in range(2))
    with hardware(t) as where:
        sides = {"plain f32": plain_step(c, t), "llama2c f32": own_step(c, t, "f32")}
        if where.bf16:
            sides["llama2c bf16"] = own_step(c, t, "bf16")
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for step in sides.values():
            step(tokens, targets)
        for _ in range(a.rounds):
            for name, step in sides.items():
                begun = time.perf_counter()
                for _ in range(a.steps):
                    step(tokens, targets)
                seconds[name].append((time.perf_counter() - begun) / a.steps)
    results = {}
    for name, times in seconds.items():
        ratios = [plain / own for plain, own in zip(seconds["plain f32"], times, strict=True)]
        results[name] = {"tokens_per_second": a.batch * a.context / statistics.median(times)}
        results[name]["ratio"] = statistics.median(ratios)
        print(f"{name:<14} {results[name]['tokens_per_second']:8.0f} tok/s  {results[name]['ratio']:.2f} x plain")
    if a.json:
        with open(a.json, "w") as file:
            json.dump({"arguments": vars(a), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
