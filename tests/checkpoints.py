"""llama2.c checkpoints of versions 0, 1 and 2, written and read in NumPy, and random models of any shape."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from oracle import LAYER, Array, Shape

MAGIC = 0x616B3432
NORMS = ("attn_norm", "ffn_norm")
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up")
V0_LAYER = ("attn_norm", *MATRICES[:4], "ffn_norm", *MATRICES[4:])


def tensor_shapes(s: Shape) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by name."""
    kv_dim = s.n_kv_heads * s.head_dim
    layer = {
        "attn_norm": (s.dim,),
        "attn_q": (s.dim, s.dim),
        "attn_k": (kv_dim, s.dim),
        "attn_v": (kv_dim, s.dim),
        "attn_output": (s.dim, s.dim),
        "ffn_norm": (s.dim,),
        "ffn_gate": (s.hidden_dim, s.dim),
        "ffn_down": (s.dim, s.hidden_dim),
        "ffn_up": (s.hidden_dim, s.dim),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (s.vocab_size, s.dim), "output_norm": (s.dim,)}
    shapes |= {f"blk.{i}.{name}": layer[name] for i in range(s.n_layers) for name in LAYER}
    return shapes if s.tied else shapes | {"output": (s.vocab_size, s.dim)}


def random_weights(rng: np.random.Generator, s: Shape) -> dict[str, Array]:
    """Weights of a healthy size, exactly f32."""
    weights = {}
    for name, shape in tensor_shapes(s).items():
        values = rng.standard_normal(shape) * (0.3 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1]))
        weights[name] = (values + (len(shape) == 1)).astype(np.float32).astype(np.float64)
    return weights


def order(s: Shape, version: int) -> Iterator[str]:
    """Names in the order of the file; "" stands for version 0's RoPE tables."""

    def layers(*names: str) -> Iterator[str]:
        for name in names:
            yield from (f"blk.{i}.{name}" for i in range(s.n_layers))

    if version == 0:
        yield "token_embd"
        yield from layers(*V0_LAYER)
        yield from ("output_norm", "")
    else:
        yield from layers(*NORMS)
        yield from ("output_norm", "token_embd")
        yield from layers(*MATRICES)
    if not s.tied:
        yield "output"


def header(s: Shape, version: int, group_size: int = 0) -> bytes:
    """The bytes before the tensors."""
    vocab = -s.vocab_size if version == 0 and not s.tied else s.vocab_size
    fields = struct.pack("<7i", s.dim, s.hidden_dim, s.n_layers, s.n_heads, s.n_kv_heads, vocab, s.context)
    if version == 0:
        return fields
    head = struct.pack("<Ii", MAGIC, version) + fields + struct.pack("<B", s.tied)
    if version == 2:
        head += struct.pack("<i", group_size)
    return head.ljust(256, b"\0")


def quantize(values: Array, group_size: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 values and scales of groups of the flattened tensor."""
    groups = values.astype(np.float32).reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    return np.round(groups / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8), scales


def write(path: Path, s: Shape, weights: dict[str, Array], *, version: int, group_size: int = 64) -> dict[str, Array]:
    """Write a checkpoint; returns the weights that it then holds (quantised and back for version 2)."""
    held = {}
    with path.open("wb") as file:
        file.write(header(s, version, group_size))
        for name in order(s, version):
            if not name:
                file.write(bytes(4 * s.context * s.head_dim))  # readers skip the RoPE tables
            elif version == 2 and weights[name].ndim == 2:
                values, scales = quantize(weights[name], group_size)
                file.write(values.tobytes() + scales.tobytes())
                held[name] = (values * scales[:, None].astype(np.float64)).reshape(weights[name].shape)
            else:
                file.write(weights[name].astype("<f4").tobytes())
                held[name] = weights[name]
    return held


def read(path: Path) -> tuple[Shape, dict[str, Array], int]:
    """Shape, weights and group size (0: f32) of a checkpoint."""
    data = path.read_bytes()
    version, at, group_size = 0, 28, 0
    if struct.unpack_from("<I", data)[0] == MAGIC:
        version, at = struct.unpack_from("<i", data, 4)[0], 256
        group_size = struct.unpack_from("<i", data, 37)[0] if version == 2 else 0
    fields = struct.unpack_from("<7i", data, 8 if version else 0)
    tied = bool(data[36]) if version else fields[5] > 0
    s = Shape(*fields[:5], abs(fields[5]), fields[6], tied)
    shapes, weights = tensor_shapes(s), {}
    for name in order(s, version):
        if not name:
            at += 4 * s.context * s.head_dim
            continue
        count = int(np.prod(shapes[name]))
        if group_size and len(shapes[name]) == 2:
            values = np.frombuffer(data, np.int8, count, at).reshape(-1, group_size)
            scales = np.frombuffer(data, "<f4", count // group_size, at + count)
            at += count + 4 * len(scales)
            weights[name] = (values * scales[:, None].astype(np.float64)).reshape(shapes[name])
        else:
            weights[name] = np.frombuffer(data, "<f4", count, at).astype(np.float64).reshape(shapes[name])
            at += 4 * count
    assert at == len(data)
    return s, weights, group_size


def write_sparse(path: Path, s: Shape, mark: float) -> None:
    """A version 0 file that is a hole, but for the norms (1) and the last row of every matrix (`mark`)."""
    shapes = tensor_shapes(s)
    with path.open("wb") as file:
        file.write(header(s, 0))
        for name in order(s, 0):
            if not name:
                file.seek(4 * s.context * s.head_dim, 1)
            elif len(shapes[name]) == 1:
                file.write(np.ones(shapes[name], "<f4").tobytes())
            else:
                rows, cols = shapes[name]
                file.seek(4 * (rows - 1) * cols, 1)
                file.write(np.full(cols, mark, "<f4").tobytes())
        file.truncate(file.tell())
