"""PEFT adapters of random matrices, written to files and merged into weights in NumPy."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from oracle import Array, Shape

from llama2c.formats.safetensors import BFloat16, write_safetensors

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
Pairs = dict[str, tuple[Array, Array]]  # "blk.0.attn_q" to A [rank, cols] and B [rows, rank], in the order of PEFT


def sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    kv_dim = shape.n_kv_heads * shape.head_dim
    d, hidden = shape.dim, shape.hidden_dim
    return {
        "attn_q": (d, d),
        "attn_k": (kv_dim, d),
        "attn_v": (kv_dim, d),
        "attn_output": (d, d),
        "ffn_gate": (hidden, d),
        "ffn_up": (hidden, d),
        "ffn_down": (d, hidden),
    }


def random_pairs(
    rng: np.random.Generator, shape: Shape, rank: int = 4, only: Iterable[str] = MODULES, size: float = 1.0
) -> Pairs:
    """Exactly f32; B A is of about the size of the weights of checkpoints.random_weights."""
    pairs = {}
    for layer in range(shape.n_layers):
        for name in only:
            rows, cols = sizes(shape)[name]
            a = rng.standard_normal((rank, cols)) / np.sqrt(cols)
            b = rng.standard_normal((rows, rank)) / np.sqrt(rank) * size
            pairs[f"blk.{layer}.{name}"] = tuple(x.astype(np.float32).astype(np.float64) for x in (a, b))
    return pairs


def stored(values: Array, dtype: str) -> np.ndarray | BFloat16:
    if dtype == "BF16":
        return BFloat16((values.astype("<f4").view("<u4") >> 16).astype("<u2"))
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype])


def rank_of(pairs: Pairs) -> int:
    return len(next(iter(pairs.values()))[0])


def write(folder: Path, pairs: Pairs, *, dtype: str = "F32", **config: object) -> Path:
    """A directory as PEFT writes it; lora_alpha is the rank unless told."""
    folder.mkdir(exist_ok=True)
    names = sorted({MODULES[key.split(".")[2]].split(".")[1] for key in pairs})
    settings = {"peft_type": "LORA", "r": rank_of(pairs), "lora_alpha": rank_of(pairs), "target_modules": names}
    settings |= {"bias": "none", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    tensors = {}
    for key, pair in pairs.items():
        _, layer, name = key.split(".")
        for which, values in zip("AB", pair, strict=True):
            full = f"base_model.model.model.layers.{layer}.{MODULES[name]}.lora_{which}.weight"
            tensors[full] = stored(values, dtype)
    write_safetensors(folder / "adapter_model.safetensors", tensors, overwrite=True)
    return folder


def adjacent(rows: Array, heads: int) -> Array:
    """From Hugging Face's order of the rows of q and k to that of GGUF and llama2.c."""
    order = np.arange(len(rows)).reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1)
    return rows[order]


def merged(shape: Shape, weights: dict[str, Array], pairs: Pairs, scale: float = 1.0) -> dict[str, Array]:
    """W + scale B A in float64."""
    out = dict(weights)
    for key, (a, b) in pairs.items():
        heads = {"attn_q": shape.n_heads, "attn_k": shape.n_kv_heads}.get(key.split(".")[2])
        delta = scale * (b @ a)
        out[key] = out[key] + (delta if heads is None else adjacent(delta, heads))
    return out
