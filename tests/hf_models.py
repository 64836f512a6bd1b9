"""Hugging Face directories of random models, and GGUF files of the same weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import checkpoints
import ggufs
import numpy as np
from hf_llama import NAMES
from oracle import Array, Shape

from llama2c.formats.safetensors import BFloat16, write_safetensors

GLOBALS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
THEIRS = {ours: theirs for theirs, ours in NAMES.items()}


@dataclass(frozen=True)
class Model:
    """A random model; its weights are as exact as their type."""

    shape: Shape
    kind: str  # type of the weights: "F32", "F16", "BF16"
    weights: dict[str, Array]  # by GGUF's names
    head_dim: int
    config: dict[str, object] = field(default_factory=dict)  # more keys of config.json
    metadata: dict[str, object] = field(default_factory=dict)  # of GGUF, the same
    freqs: tuple[float, ...] = ()  # rope_freqs of GGUF


def rounded(kind: str, values: Array) -> Array:
    """The nearest that a type has, or one of the two."""
    if kind == "BF16":
        return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    return values.astype({"F32": np.float32, "F16": np.float16}[kind]).astype(np.float64)


def random_model(rng: np.random.Generator, shape: Shape, kind: str = "F32", *, head_dim: int = 0, **more) -> Model:
    """head_dim: another one than that which follows from the shape."""
    weights = checkpoints.random_weights(rng, shape)
    if head_dim:
        q_dim, kv_dim = shape.n_heads * head_dim, shape.n_kv_heads * head_dim
        own = {"attn_q": (q_dim, shape.dim), "attn_output": (shape.dim, q_dim)}
        own |= dict.fromkeys(("attn_k", "attn_v"), (kv_dim, shape.dim))
        for name in weights:
            if (size := own.get(name.rpartition(".")[2])) is not None:
                weights[name] = rng.standard_normal(size) * 1.5 / np.sqrt(size[1])
        more.setdefault("metadata", {}).update(
            {"llama.attention.key_length": head_dim, "llama.attention.value_length": head_dim}
        )
        more.setdefault("config", {})["head_dim"] = head_dim
    exact = {name: rounded(kind, values) for name, values in weights.items()}
    return Model(shape, kind, exact, head_dim or shape.head_dim, **more)


def stretch(rope: dict[str, float], head_dim: int) -> np.ndarray:
    """By what Llama 3.1 divides each frequency: 1 for waves shorter than a fourth of the trained context, `factor` for
    those that are longer than it, and between them a linear passage in the number of waves."""
    waves = rope["original_max_position_embeddings"] * rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    waves /= 2 * np.pi
    share = (waves - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    share = np.clip(share, 0, 1)
    return (1 / (share + (1 - share) / rope["factor"])).astype(np.float32)


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads whose pairs are neighbours, in Hugging Face's order: (i, i + head_dim / 2)."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def stored(kind: str, values: Array) -> "np.ndarray | BFloat16":
    if kind == "BF16":
        return BFloat16((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
    return values.astype({"F32": np.float32, "F16": np.float16}[kind])


def tensors_of(model: Model) -> dict[str, "np.ndarray | BFloat16"]:
    """The tensors under Hugging Face's names."""
    tensors = {}
    for name, values in model.weights.items():
        *block, role = name.split(".")
        if role in ("attn_q", "attn_k"):
            values = halves(values, model.shape.n_heads if role == "attn_q" else model.shape.n_kv_heads)
        theirs = f"model.layers.{block[1]}.{THEIRS[role]}" if block else GLOBALS[role]
        tensors[f"{theirs}.weight"] = stored(model.kind, values)
    return tensors


def config_of(model: Model) -> dict[str, object]:
    """The keys of config.json; None: left out."""
    shape = model.shape
    config = {
        "model_type": "llama",
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden_dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        **model.config,
    }
    return {key: value for key, value in config.items() if value is not None}


def write(folder: Path, model: Model, *, shards: int = 0, tensors: Mapping[str, object] | None = None) -> Path:
    """A directory, its weights in one file or in so many shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(model)))
    tensors = tensors_of(model) if tensors is None else tensors
    if not shards:
        write_safetensors(folder / "model.safetensors", tensors, metadata={"format": "pt"}, overwrite=True)
        return folder
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    for number, name in enumerate(names):
        write_safetensors(folder / name, list(tensors.items())[number::shards], overwrite=True)
    files = {tensor: names[number % shards] for number, tensor in enumerate(tensors)}
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_gguf(path: Path, model: Model) -> Path:
    """The same weights as GGUF; norms in F32, as the format has them."""
    tensors = {}
    for name, values in model.weights.items():
        if values.ndim == 1:
            tensors[f"{name}.weight"] = ("F32", values.astype(np.float32))
        elif model.kind == "BF16":
            bits = stored("BF16", values).bits
            tensors[f"{name}.weight"] = ("BF16", bits.view(np.uint8))
        else:
            tensors[f"{name}.weight"] = (model.kind, stored(model.kind, values))
    if model.freqs:
        tensors["rope_freqs.weight"] = ("F32", np.array(model.freqs, np.float32))
    ggufs.write(path, model.shape, tensors, metadata=model.metadata)
    return path
