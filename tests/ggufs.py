"""Writes GGUF files of random weights in any type, with the gguf package."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from oracle import Shape

# Where the f16 scales of a block lie, in bytes: random bits there shall be small finite numbers.
SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ3_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
TYPES = ("F32", "F16", "BF16", *SCALES)

# Files of the real data with logits in float64 and llama.cpp's beside them.
GQA256 = (
    "F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ4_NL IQ4_XS "
    "IQ3_S TQ1_0 TQ2_0 f32"
)
GOLDEN = [f"gqa256-{name}" for name in GQA256.split()] + [f"llama3rope-{n}" for n in "BF16 Q8_0 Q4_K_M f32".split()]


def tiles_bound(kind: str, llama_cpps: float) -> float:
    """What the NMSE of prompt rows may be by tiles of bf16, for a type and llama.cpp's own NMSE."""
    return {"f32": 1e-9, "F16": 4e-5, "BF16": 4e-5}.get(kind, llama_cpps / 4)


def kind(name: str) -> GGMLQuantizationType:
    return GGMLQuantizationType[name]


def random_blocks(rng: np.random.Generator, name: str, rows: int, cols: int) -> np.ndarray:
    """A matrix in its stored form: [rows, bytes of a row], or [rows, cols] of f16 and f32."""
    if name == "F32":
        return (rng.standard_normal((rows, cols)) * 0.05).astype(np.float32)
    if name == "F16":
        return (rng.standard_normal((rows, cols)) * 0.05).astype(np.float16)
    if name == "BF16":
        f32 = (rng.standard_normal((rows, cols)) * 0.05).astype(np.float32)
        return gguf.quants.quantize(f32, kind(name))
    values, size = GGML_QUANT_SIZES[kind(name)]
    blocks = rng.integers(0, 256, (rows * cols // values, size), dtype=np.uint8)
    # weights of about 0.05, whatever the range of the type's integers
    width = {"Q8_0": 70, "IQ4_NL": 70, "IQ4_XS": 2000, "Q6_K": 1500, "Q3_K": 40, "IQ3_S": 100, "Q2_K": 15}.get(name, 8)
    if name in ("Q4_K", "Q5_K"):
        width = 300
    for number, at in enumerate(SCALES[name]):
        scales = rng.uniform(0.03, 0.07, len(blocks)) / width
        if number == 1:
            scales *= -8 if name in ("Q4_1", "Q5_1") else 8
        blocks[:, at : at + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, cols // values * size)


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    head_dim = shape.dim // shape.n_heads
    layer = {
        "attn_norm": (shape.dim,),
        "attn_q": (shape.dim, shape.dim),
        "attn_k": (shape.n_kv_heads * head_dim, shape.dim),
        "attn_v": (shape.n_kv_heads * head_dim, shape.dim),
        "attn_output": (shape.dim, shape.dim),
        "ffn_norm": (shape.dim,),
        "ffn_gate": (shape.hidden_dim, shape.dim),
        "ffn_up": (shape.hidden_dim, shape.dim),
        "ffn_down": (shape.dim, shape.hidden_dim),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.vocab_size, shape.dim),
        "output_norm.weight": (shape.dim,),
        "output.weight": (shape.vocab_size, shape.dim),
    }
    for i in range(shape.n_layers):
        shapes.update({f"blk.{i}.{name}.weight": size for name, size in layer.items()})
    return shapes


def random_tensors(rng: np.random.Generator, shape: Shape, name: str) -> dict[str, tuple[str, np.ndarray]]:
    """(type, stored form) of every tensor; norms in F32."""
    return {
        tensor: ("F32", 1 + 0.1 * rng.standard_normal(size, dtype=np.float32))
        if len(size) == 1
        else (name, random_blocks(rng, name, *size))
        for tensor, size in tensor_shapes(shape).items()
    }


def write(
    path: Path,
    shape: Shape,
    tensors: Mapping[str, tuple[str, np.ndarray]],
    *,
    metadata: Mapping[str, object] = {},
    architecture: str = "llama",
) -> None:
    """metadata: keys to add, or to leave out if their value is None."""
    writer = gguf.GGUFWriter(path, architecture)
    values: dict[str, object] = {
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.dim,
        "llama.block_count": shape.n_layers,
        "llama.feed_forward_length": shape.hidden_dim,
        "llama.attention.head_count": shape.n_heads,
        "llama.attention.head_count_kv": shape.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        **metadata,
    }
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            raise TypeError(type(value))
    for name, (type_name, data) in tensors.items():
        raw = None if data.dtype in (np.float32, np.float16) else kind(type_name)
        writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_byte_level(path: Path, rng: np.random.Generator, **metadata: object) -> None:
    """A random model with the 256 bytes, two control tokens and no merges that matter."""
    used = {*range(33, 127), *range(161, 173), *range(174, 256)}  # GPT-2's alphabet: these bytes stand for themselves
    spare = iter(range(256, 512))
    alphabet = [chr(b) if b in used else chr(next(spare)) for b in range(256)]
    shape = Shape(32, 64, 1, 2, 1, 259, 64)
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*alphabet, "ab", "<|begin|>", "<|end|>"],
        "tokenizer.ggml.token_type": [1] * 257 + [3, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 258,
        **metadata,
    }
    write(path, shape, random_tensors(rng, shape, "F32"), metadata=vocabulary)
