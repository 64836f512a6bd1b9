"""A model file as what a GGUF writer needs: metadata entries and tensors, whatever format it is of."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama2c._core import FormatError, Tokenizer, Transformer, UnsupportedError, is_gguf, read_gguf, read_gguf_entries
from llama2c.formats.gguf_writer import encode_value
from llama2c.tokenizers import StrPath, candidates, checked, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class SourceTensor:
    """A tensor in a model file."""

    name: str  # GGUF's: "blk.0.attn_q.weight"
    shape: tuple[int, ...]  # rows first
    type: str
    bytes: int
    path: str  # of the file that holds it
    offset: int | None  # in that file; None for formats other than GGUF

    @property
    def rows(self) -> int:
        """Rows that conversion may take one by one."""
        return self.shape[0] if len(self.shape) > 1 else 1


@dataclass(frozen=True)
class Source:
    """An open model file."""

    path: str
    paths: list[str]  # of all its parts
    transformer: Transformer
    entries: list[tuple[str, bytes]]
    tensors: list[SourceTensor]
    alignment: int

    def is_file_of(self, path: StrPath) -> bool:
        """Whether the path is that of one of its files, by whatever name."""
        return os.path.exists(path) and any(os.path.samefile(path, own) for own in self.paths)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> "NDArray[np.float32]":
        """Rows [start, stop) as float32."""
        *block, role = tensor.name.removesuffix(".weight").split(".")
        return self.transformer.weight_rows(role, int(block[1]) if block else 0, start, stop)

    def stored(self, tensor: SourceTensor, start: int, stop: int) -> "NDArray[np.uint8]":
        """The bytes of rows [start, stop) as they are; of GGUF only."""
        import numpy as np

        assert tensor.offset is not None
        row = tensor.bytes // tensor.rows
        return np.fromfile(tensor.path, np.uint8, (stop - start) * row, offset=tensor.offset + start * row)


def open_source(path: StrPath, *, tokenizer: StrPath | None = None) -> Source:
    """A GGUF file (of a split one the first part) or a llama2.c checkpoint.

    tokenizer: whose vocabulary goes into the metadata; None: the file's own, or for a llama2.c checkpoint the first
    beside it that fits, if there is one. Raises what Transformer and load_tokenizer raise.
    """
    name = os.fspath(path)
    transformer = Transformer(name)
    source = _open_gguf(name, transformer) if is_gguf(name) else _open_checkpoint(name, transformer)
    vocabulary = _vocabulary(name, tokenizer, transformer.config["vocab_size"])
    if vocabulary:
        kept = [(key, value) for key, value in source.entries if not key.startswith("tokenizer.")]
        source.entries[:] = kept + vocabulary
    return source


# ---- GGUF ----


def part_paths(path: str, header: dict[str, Any]) -> list[str]:
    """All files of a model, given the first and its header (read_gguf); one unless it is split."""
    count = next((item["value"] for item in header["metadata"] if item["key"] == "split.count"), 1) or 1
    stem = path.removesuffix(f"-00001-of-{count:05}.gguf")
    return [path] + [f"{stem}-{part:05}-of-{count:05}.gguf" for part in range(2, count + 1)]


def _open_gguf(path: str, transformer: Transformer) -> Source:
    header = read_gguf(path, longest=1)
    paths = part_paths(path, header)
    tensors = [
        SourceTensor(item["name"], tuple(item["shape"]), item["type"], item["bytes"], part, item["offset"])
        for part in paths
        for item in (header if part == path else read_gguf(part, longest=0))["tensors"]
    ]
    entries = [(key, value) for key, value in read_gguf_entries(path) if not key.startswith("split.")]
    return Source(path, paths, transformer, entries, tensors, header["alignment"])


# ---- llama2.c ----


def _open_checkpoint(path: str, transformer: Transformer) -> Source:
    config = transformer.config
    names = ["token_embd", "output_norm"] + ([] if config["tied"] else ["output"])
    names += [f"blk.{layer}.{role}" for layer in range(config["n_layers"]) for role in _LAYER]
    tensors = []
    for name in names:
        *block, role = name.split(".")
        rows, cols = transformer.weight_shape(role, int(block[1]) if block else 0)
        norm = role.endswith("norm")
        kind = "F32" if norm else config["weight_type"]
        groups = 0 if norm or not config["group_size"] else rows * cols // config["group_size"]
        size = rows * cols + 4 * groups if groups else 4 * rows * cols
        tensors.append(SourceTensor(f"{name}.weight", (cols,) if norm else (rows, cols), kind, size, path, None))
    entries = [(key, encode_value(value)) for key, value in _architecture(path, config).items()]
    return Source(path, [path], transformer, entries, tensors, 32)


def _architecture(path: str, config: dict[str, Any]) -> dict[str, str | int | float]:
    return {
        "general.architecture": "llama",
        "general.name": Path(path).stem,
        "llama.context_length": config["context"],
        "llama.embedding_length": config["dim"],
        "llama.block_count": config["n_layers"],
        "llama.feed_forward_length": config["hidden_dim"],
        "llama.attention.head_count": config["n_heads"],
        "llama.attention.head_count_kv": config["n_kv_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["norm_eps"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": config["rope_theta"],
        "llama.vocab_size": config["vocab_size"],
    }


# ---- Tokenizers ----


def _vocabulary(path: str, named: StrPath | None, vocab_size: int) -> list[tuple[str, bytes]]:
    """The entries of a tokenizer that is named, or lies beside a checkpoint that is no GGUF file; else none."""
    if named is not None:
        return _vocabulary_in(named, vocab_size, path)
    if is_gguf(path):
        return []
    for candidate in dict.fromkeys(candidates(path, vocab_size)):
        if candidate.is_file():
            try:
                return _vocabulary_in(candidate, vocab_size, path)
            except (FormatError, ValueError):  # another model's, or a kind that GGUF cannot take
                continue
    return []


def _vocabulary_in(path: StrPath, vocab_size: int, model: str) -> list[tuple[str, bytes]]:
    tokenizer = checked(load_tokenizer(path), vocab_size, os.fspath(path), model)
    if is_gguf(path):
        return [(key, value) for key, value in read_gguf_entries(path) if key.startswith("tokenizer.")]
    if os.fspath(path).endswith(".model"):
        from llama2c.formats.tiktoken_model import is_tiktoken

        if is_tiktoken(path):
            raise UnsupportedError(
                f"{os.fspath(path)}: ranks without merges, which GGUF wants; name a GGUF file that has this tokenizer"
            )
    return [(f"tokenizer.ggml.{key}", encode_value(value)) for key, value in _table(tokenizer, vocab_size).items()]


def _table(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    pieces, scores, types = zip(*(tokenizer.piece(token) for token in range(size)), strict=True)
    ids = {"unknown": tokenizer.unk, "bos": tokenizer.bos, "eos": tokenizer.eos}
    return {
        "model": "llama",
        "tokens": [piece.replace(b" ", "\u2581".encode()) for piece in pieces],
        "scores": scores,
        "token_type": types,
        **{f"{name}_token_id": number for name, number in ids.items() if number >= 0},
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        "add_space_prefix": tokenizer.add_space_prefix,
    }
