"""A model file as what a GGUF writer needs: metadata entries and tensors, whatever format it is of."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama2c._core import FormatError, Tokenizer, Transformer, UnsupportedError, is_gguf, read_gguf, read_gguf_entries
from llama2c.formats.gguf_writer import encode_value
from llama2c.formats.hf import is_hf, read_table
from llama2c.formats.table import ModelTable
from llama2c.tokenizers import StrPath, candidates, checked, load_tokenizer
from llama2c.weights import model_name, part_paths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROPE_FREQS = "rope_freqs.weight"  # where GGUF has the divisors of RoPE's frequencies
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
    rope_freqs: tuple[float, ...] = ()  # the tensor of that name, where no file has it

    def is_file_of(self, path: StrPath) -> bool:
        """Whether the path is that of one of its files, by whatever name."""
        return os.path.exists(path) and any(os.path.samefile(path, own) for own in self.paths)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> "NDArray[np.float32]":
        """Rows [start, stop) as float32."""
        if self.rope_freqs and tensor.name == _ROPE_FREQS:
            import numpy as np

            return np.array([self.rope_freqs], np.float32)[start:stop]
        *block, role = tensor.name.removesuffix(".weight").split(".")
        return self.transformer.weight_rows(role, int(block[1]) if block else 0, start, stop)

    def stored(self, tensor: SourceTensor, start: int, stop: int) -> "NDArray[np.uint8]":
        """The bytes of rows [start, stop) as they are; of GGUF only."""
        import numpy as np

        assert tensor.offset is not None
        row = tensor.bytes // tensor.rows
        return np.fromfile(tensor.path, np.uint8, (stop - start) * row, offset=tensor.offset + start * row)


def open_source(path: StrPath, *, tokenizer: StrPath | None = None) -> Source:
    """A GGUF file (of a split one the first part), a llama2.c checkpoint or a Hugging Face directory.

    tokenizer: whose vocabulary goes into the metadata; None: the file's own, or where it has none the first beside it
    that fits, if there is one. Raises what open_weights and load_tokenizer raise.
    """
    name = os.fspath(path)
    source = _open_gguf(name) if is_gguf(name) else _open_table(name) if is_hf(name) else _open_checkpoint(name)
    vocabulary = _vocabulary(name, tokenizer, source.transformer.config["vocab_size"])
    if vocabulary:
        kept = [(key, value) for key, value in source.entries if not key.startswith("tokenizer.")]
        source.entries[:] = kept + vocabulary
    return source


# ---- GGUF ----


def _open_gguf(path: str) -> Source:
    transformer = Transformer(path)
    header = read_gguf(path, longest=1)
    paths = part_paths(path, header)
    tensors = [
        SourceTensor(item["name"], tuple(item["shape"]), item["type"], item["bytes"], part, item["offset"])
        for part in paths
        for item in (header if part == path else read_gguf(part, longest=0))["tensors"]
    ]
    entries = [(key, value) for key, value in read_gguf_entries(path) if not key.startswith("split.")]
    return Source(path, paths, transformer, entries, tensors, header["alignment"])


# ---- Others ----


def _names(config: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Name in GGUF, role and layer of every tensor."""
    for role in ("token_embd", "output_norm") + (() if config["tied"] else ("output",)):
        yield f"{role}.weight", role, 0
    for layer in range(config["n_layers"]):
        yield from ((f"blk.{layer}.{role}.weight", role, layer) for role in _LAYER)


def _open_table(path: str) -> Source:
    table = read_table(path)
    transformer = Transformer(path, table=table)
    found = {(entry.role, entry.layer): entry for entry in table.entries}
    tensors = []
    for name, role, layer in _names(transformer.config):
        entry = found[role, layer]
        tensors.append(SourceTensor(name, entry.shape, entry.type, entry.bytes, table.paths[entry.file], None))
    if table.rope_freqs:
        pairs = len(table.rope_freqs)
        tensors.append(SourceTensor(_ROPE_FREQS, (pairs,), "F32", 4 * pairs, path, None))
    values = {**_architecture(path, transformer.config), **_more_architecture(table)}
    entries = [(key, encode_value(value)) for key, value in values.items()]
    return Source(path, [*table.others, *table.paths], transformer, entries, tensors, 32, table.rope_freqs)


def _more_architecture(table: ModelTable) -> dict[str, str | int | float]:
    """What llama2.c's models do not have."""
    values: dict[str, str | int | float] = {"llama.attention.layer_norm_rms_epsilon": table.norm_eps}
    if table.head_dim * table.n_heads != table.dim:
        values |= {"llama.attention.key_length": table.head_dim, "llama.attention.value_length": table.head_dim}
    if table.window:
        values["llama.attention.sliding_window"] = table.window
    if table.rope_factor != 1:
        values |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": table.rope_factor}
    return values


def _open_checkpoint(path: str) -> Source:
    transformer = Transformer(path)
    config = transformer.config
    tensors = []
    for name, role, layer in _names(config):
        rows, cols = transformer.weight_shape(role, layer)
        norm = role.endswith("norm")
        kind = "F32" if norm else config["weight_type"]
        groups = 0 if norm or not config["group_size"] else rows * cols // config["group_size"]
        size = rows * cols + 4 * groups if groups else 4 * rows * cols
        tensors.append(SourceTensor(name, (cols,) if norm else (rows, cols), kind, size, path, None))
    entries = [(key, encode_value(value)) for key, value in _architecture(path, config).items()]
    return Source(path, [path], transformer, entries, tensors, 32)


def _architecture(path: str, config: dict[str, Any]) -> dict[str, str | int | float]:
    return {
        "general.architecture": "llama",
        "general.name": model_name(path),
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
    """The entries of a tokenizer that is named, or lies beside a model that is no GGUF file; else none."""
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
    if os.fspath(path).endswith(".json"):
        return [(f"tokenizer.ggml.{key}", encode_value(value)) for key, value in _byte_level(path).items()]
    if os.fspath(path).endswith(".model"):
        from llama2c.formats.tiktoken_model import is_tiktoken

        if is_tiktoken(path):
            raise UnsupportedError(
                f"{os.fspath(path)}: ranks without merges, which GGUF wants; name a GGUF file that has this tokenizer"
            )
    return [(f"tokenizer.ggml.{key}", encode_value(value)) for key, value in _table(tokenizer, vocab_size).items()]


def _byte_level(path: StrPath) -> dict[str, Any]:
    from llama2c.formats.tokenizer_json import read_tokenizer_json

    table = read_tokenizer_json(path)
    if table.ignore_merges != (table.pre == "llama-bpe") or not table.merges:  # for GGUF the one follows from the other
        raise UnsupportedError(f"{os.fspath(path)}: merges that GGUF cannot tell")
    ids = {"bos": table.bos, "eos": table.eos}
    return {
        "model": "gpt2",
        "pre": table.pre,
        "tokens": table.pieces,
        "token_type": table.types,
        "merges": table.merges,
        **{f"{name}_token_id": number for name, number in ids.items() if number >= 0},
        "add_bos_token": table.bos >= 0,
    }


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
