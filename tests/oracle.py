"""A Llama in float64 NumPy, as the papers have it: the reference that the core's logits are held against.

Weights are a dict of float64 arrays by GGUF's names: "token_embd" [vocab, dim], "blk.0.attn_q" [dim, dim], and so on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """The shape of a model."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    context: int
    tied: bool = True
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    window: int = 0  # positions that a token sees; 0: all

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.n_heads


def rmsnorm(x: Array, weight: Array, eps: float) -> Array:
    """Root mean square normalisation (Zhang and Sennrich, 2019)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope(x: Array, theta: float) -> Array:
    """Rotary embedding of [positions, heads, head_dim] in adjacent pairs (Su et al., 2021)."""
    head_dim = x.shape[-1]
    angles = np.arange(len(x))[:, None] * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turn = np.exp(1j * angles)[:, None, :]
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def attention(q: Array, k: Array, v: Array, window: int = 0) -> Array:
    """Causal attention; each KV head serves heads / kv_heads query heads (Ainslie et al., 2023). A window limits what a
    position sees to so many, itself the last (Beltagy et al., 2020)."""
    positions, heads, head_dim = q.shape
    k = np.repeat(k, heads // k.shape[1], axis=1)
    v = np.repeat(v, heads // v.shape[1], axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_dim)
    seen = np.tri(positions, dtype=bool) & ~np.tri(positions, k=-(window or positions), dtype=bool)
    scores[:, ~seen] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, v).reshape(positions, -1)


def exact(x: Array, w: Array) -> Array:
    """y = x @ W^T."""
    return x @ w.T


def quantized(group_size: int):
    """A product whose activations are int8 with a scale for each group of a row, as llama2.c's version 2 has it."""

    def product(x: Array, w: Array) -> Array:
        rounded = np.empty_like(x)
        for start in range(0, x.shape[1], group_size):
            group = x[:, start : start + group_size].astype(np.float32)
            scale = np.abs(group).max(axis=1, keepdims=True) / np.float32(127)
            units = group / np.where(scale > 0, scale, np.float32(1))
            rounded[:, start : start + group_size] = (
                np.trunc(units + np.copysign(np.float32(0.49999997), units)) * scale
            )
        return rounded @ w.T

    return product


def int8(x: Array) -> Array:
    """Each vector of the last axis rounded to int8 with a scale of its own."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.rint(x / scale) * scale


STORED = {"f32": np.asarray, "f16": lambda x: x.astype(np.float16).astype(np.float64), "q8": int8}


def forward(
    shape: Shape, weights: dict[str, Array], tokens: Sequence[int], product=exact, kv_type: str = "f32"
) -> Array:
    """Logits after each token, float64 [len(tokens), vocab_size]."""
    n, s = len(tokens), shape
    x, stored = weights["token_embd"][list(tokens)], STORED[kv_type]
    for layer in range(s.n_layers):
        w = {name: weights[f"blk.{layer}.{name}"] for name in LAYER}
        h = rmsnorm(x, w["attn_norm"], s.norm_eps)
        q = rope(product(h, w["attn_q"]).reshape(n, s.n_heads, -1), s.rope_theta)
        k = rope(product(h, w["attn_k"]).reshape(n, s.n_kv_heads, -1), s.rope_theta)
        v = product(h, w["attn_v"]).reshape(n, s.n_kv_heads, -1)
        x = x + product(attention(q, stored(k), stored(v), s.window), w["attn_output"])
        h = rmsnorm(x, w["ffn_norm"], s.norm_eps)
        gate, up = product(h, w["ffn_gate"]), product(h, w["ffn_up"])
        x = x + product(gate / (1 + np.exp(-gate)) * up, w["ffn_down"])
    x = rmsnorm(x, weights["output_norm"], s.norm_eps)
    return product(x, weights["token_embd" if s.tied else "output"])


LAYER = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up",
)  # fmt: skip


TILES = ("amx",)  # levels whose prompt rows are products of bf16: near those of the others, which agree to the bit
WORDS = (
    "avx512vnni",
)  # levels whose prompt rows meet integer types in 16 bits; at the others they do as generated rows


def nmse(got: NDArray[np.floating], expected: Array) -> float:
    """Squared error over squared size."""
    return float(np.sum((got - expected) ** 2) / np.sum(expected**2))
