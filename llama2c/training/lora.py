"""LoRA (Hu et al., 2021): W + alpha / rank B A, of which only A and B are trained; saved as PEFT saves them."""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from llama2c.training.model import Layer, Linear, Llama
from llama2c.training.settings import LoraSettings


class Adapter(nn.Module):
    """scale B A, zero at first."""

    def __init__(self, cols: int, rows: int, settings: LoraSettings) -> None:
        super().__init__()
        self.scale = settings.alpha / settings.rank
        self.a = nn.Parameter(torch.empty(settings.rank, cols))
        self.b = nn.Parameter(torch.zeros(rows, settings.rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b) * self.scale


class Adapted(nn.Module):
    """A frozen product whose rows belong to several matrices, with adapters for some of them."""

    def __init__(self, base: nn.Linear, rows: Sequence[int], names: Sequence[str], settings: LoraSettings) -> None:
        super().__init__()
        self.base = base
        self.rows, self.names = list(rows), list(names)
        self.adapters = nn.ModuleDict(
            {
                name: Adapter(base.in_features, count, settings)
                for name, count in zip(names, rows, strict=True)
                if name in settings.targets
            }
        )

    @property
    def weight(self) -> Tensor:
        """Of the base."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.base(x))
        if not self.adapters:
            return y
        parts = [
            self.adapters[name](x) if name in self.adapters else y.new_zeros(*x.shape[:-1], count)
            for name, count in zip(self.names, self.rows, strict=True)
        ]
        return y + torch.cat(parts, dim=-1)


def add_adapters(model: Llama, settings: LoraSettings) -> None:
    """Freeze the model and give it adapters."""
    c = model.settings
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in cast("list[Layer]", model.layers):
        attn, ffn = layer.attn, layer.ffn
        heads = [n * c.head_dim for n in attn.heads]
        attn.qkv = cast(Linear, Adapted(attn.qkv, heads, "q k v".split(), settings))
        attn.output = cast(Linear, Adapted(attn.output, [c.dim], ["o"], settings))
        ffn.gate_up = cast(Linear, Adapted(ffn.gate_up, [c.hidden_dim] * 2, "gate up".split(), settings))
        ffn.down = cast(Linear, Adapted(ffn.down, [c.dim], ["down"], settings))


def adapter_tensors(model: Llama) -> Iterator[tuple[int, str, Tensor, Tensor]]:
    """Layer, matrix (q, k, v, o, gate, up, down), A [rank][cols] and B [rows][rank] of all adapters."""
    for i, layer in enumerate(cast("list[Layer]", model.layers)):
        for module in (layer.attn.qkv, layer.attn.output, layer.ffn.gate_up, layer.ffn.down):
            for name, adapter in cast(Adapted, module).adapters.items():
                yield i, name, cast(Adapter, adapter).a, cast(Adapter, adapter).b
