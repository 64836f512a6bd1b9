"""Opens the weights of a model, whatever its format, and tells its files."""

import os
from pathlib import Path
from typing import Any

from llama2c._core import Transformer, is_gguf, read_config, read_gguf
from llama2c.formats.hf import directory_of, is_hf, read_table
from llama2c.formats.table import ModelTable
from llama2c.lora import Lora, adapters_of, read_adapters
from llama2c.tokenizers import StrPath

FORMATS = "a GGUF file, a llama2.c .bin file or a Hugging Face directory"  # in help texts


def open_weights(
    path: StrPath,
    *,
    isa: str | None = None,
    mmap: bool = True,
    rope_theta: float = 0.0,
    kv_type: str | None = None,
    lora: Lora | None = None,
) -> Transformer:
    """A GGUF file (of a split one the first part), a llama2.c checkpoint, or a Hugging Face directory (or the one
    safetensors file in it). The options and errors are those of Transformer."""
    name = os.fspath(path)
    table = read_table(name) if is_hf(name) else None
    return Transformer(
        name,
        isa=isa,
        mmap=mmap,
        rope_theta=rope_theta,
        kv_type=kv_type,
        table=table,
        adapters=_adapters(name, table, lora),
    )


def _adapters(path: str, table: ModelTable | None, lora: Lora | None) -> list[Any]:
    """The adapters as Transformer takes them, rows in the order of the model's own."""
    if not adapters_of(lora):
        return []
    config = read_config(path) if table is None else vars(table)
    matrices = read_adapters(lora, config, halves=table is not None and table.rope_halves)
    return [(matrix.tensor, matrix.layer, matrix.a, matrix.b) for matrix in matrices]


def model_paths(path: StrPath) -> list[str]:
    """The files that make a model what it is: one, the parts of a split GGUF file, or those of a Hugging Face directory
    that are read. Raises OSError and FormatError."""
    name = os.fspath(path)
    if is_hf(name):
        table = read_table(name)
        return [*table.others, *table.paths]
    return part_paths(name, read_gguf(name, longest=1)) if is_gguf(name) else [name]


def part_paths(path: str, header: dict[str, Any]) -> list[str]:
    """All files of a GGUF model, given the first and its header (read_gguf); one unless it is split."""
    count = next((item["value"] for item in header["metadata"] if item["key"] == "split.count"), 1) or 1
    stem = path.removesuffix(f"-00001-of-{count:05}.gguf")
    return [path] + [f"{stem}-{part:05}-of-{count:05}.gguf" for part in range(2, count + 1)]


def model_name(path: StrPath) -> str:
    """What to call a model: the name of its file without the suffix, or that of its Hugging Face directory."""
    return directory_of(path).resolve().name if is_hf(path) else Path(path).stem
