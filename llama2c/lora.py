"""LoRA adapters (Hu et al., 2021) for a model: which ones are asked for, and what they add to its matrices."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama2c.formats.peft_adapter import AdapterMatrix, read_adapter
from llama2c.tokenizers import StrPath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# One adapter, or several, each a path or (path, scale).
Lora = StrPath | Sequence[StrPath | tuple[StrPath, float]]


def adapters_of(lora: Lora | None) -> tuple[tuple[str, float], ...]:
    """The adapters as (path, scale) each. Raises TypeError, and ValueError for a scale that is not finite."""
    if lora is None:
        return ()
    items: Sequence[StrPath | tuple[StrPath, float]] = [lora] if isinstance(lora, str | os.PathLike) else lora
    adapters = []
    for item in items:
        path, scale = (item, 1.0) if isinstance(item, str | os.PathLike) else item
        if not math.isfinite(scale):
            raise ValueError(f"{os.fspath(path)}: its scale is {scale}, expected a finite number")
        adapters.append((os.fspath(path), float(scale)))
    return tuple(adapters)


def read_adapters(lora: Lora | None, config: dict[str, Any], *, halves: bool = False) -> list[AdapterMatrix]:
    """What the adapters add to the matrices of a model of that configuration (a Transformer's, or read_config's).

    halves: the rows of its q and k stand in Hugging Face's order, as those of the adapters do, where a rotated pair of
        a head is (i, i + head_dim / 2); else each pair is side by side, as in GGUF and llama2.c's files.

    Raises what adapters_of and read_adapter raise.
    """
    return [
        matrix if halves else replace(matrix, b=_adjacent(matrix, config))
        for path, scale in adapters_of(lora)
        for matrix in read_adapter(path, _shapes(config), config["n_layers"], scale=scale)
    ]


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """[rows, cols] of the matrices of a layer."""
    dim, hidden, head_dim = config["dim"], config["hidden_dim"], config["head_dim"]
    q_dim, kv_dim = config["n_heads"] * head_dim, config["n_kv_heads"] * head_dim
    return {
        "attn_q": (q_dim, dim),
        "attn_k": (kv_dim, dim),
        "attn_v": (kv_dim, dim),
        "attn_output": (dim, q_dim),
        "ffn_gate": (hidden, dim),
        "ffn_up": (hidden, dim),
        "ffn_down": (dim, hidden),
    }


def _adjacent(matrix: AdapterMatrix, config: dict[str, Any]) -> "NDArray[np.float32]":
    """B with the rows of q and k in the order of GGUF and llama2.c."""
    heads = {"attn_q": config["n_heads"], "attn_k": config["n_kv_heads"]}.get(matrix.tensor)
    return matrix.b if heads is None else adjacent_rows(matrix.b, heads)


def adjacent_rows(rows: "NDArray[np.float32]", heads: int) -> "NDArray[np.float32]":
    """Rows of q or k with each rotated pair of a head side by side, from (i, i + head_dim / 2)."""
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def half_rows(rows: "NDArray[np.float32]", heads: int) -> "NDArray[np.float32]":
    """The inverse of adjacent_rows()."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
