"""Datasets of tokens: a directory with shards, the tokenizer that made them, and dataset.json, which describes them.

A shard is a one-dimensional .npy array of uint16, or uint32 if the vocabulary has more than 65536 tokens: documents one
after another, each whole. dataset.json is written last: with it, a dataset is complete.
"""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama2c import schema
from llama2c._core import FormatError
from llama2c.new_file import NewFile
from llama2c.records import FileHash, hash_of
from llama2c.tokenizers import StrPath
from llama2c.training.documents import BadRecord

KIND = "llama2c dataset"
VERSION = 1
MANIFEST = "dataset.json"
SPLITS = ("train", "validation")
_CHUNK = 1 << 24  # tokens that are checked at once

Tokens: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]


def _expect(true: bool, key: str, expected: str, got: object) -> None:
    if not true:
        raise ValueError(f"{key}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    name: str  # within the dataset's directory
    split: str  # "train" or "validation"
    tokens: int
    documents: int
    characters: int  # of the text
    source: str  # the path of the file that it was made from

    def __post_init__(self) -> None:
        plain = self.name == os.path.basename(self.name) and self.name.endswith(".npy")
        _expect(plain, "name", "the name of an .npy file", self.name)
        _expect(self.split in SPLITS, "split", " or ".join(SPLITS), self.split)
        _expect(self.tokens >= 1, "tokens", "at least 1", self.tokens)
        _expect(1 <= self.documents <= self.tokens, "documents", "1 up to the number of tokens", self.documents)
        _expect(self.characters >= 1, "characters", "at least 1", self.characters)


@dataclass(frozen=True)
class Source:
    """A file that shards were made from."""

    path: str
    key: str  # stands for its path, size and time of change, for the tokenizer and all options
    bad_records: int
    first_bad: tuple[BadRecord, ...]  # of them

    def __post_init__(self) -> None:
        _expect(
            self.bad_records >= len(self.first_bad), "bad_records", f"at least {len(self.first_bad)}", self.bad_records
        )


@dataclass(frozen=True)
class Part:
    """What one source gave."""

    source: Source
    shards: tuple[Shard, ...]

    def save(self, path: StrPath) -> None:
        """Write a file, which appears when it is whole."""
        _save(path, asdict(self))

    @classmethod
    def load(cls, path: StrPath) -> "Part":
        """Read a file. Raises OSError, or FormatError."""
        return schema.read(cls, schema.parse(Path(path).read_bytes()))


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json."""

    tokenizer: FileHash  # of the file in the directory
    vocab_size: int
    dtype: str
    eos: bool  # whether documents end with EOS; all begin with BOS if the tokenizer has one
    bad_records: int
    sources: tuple[Source, ...]
    shards: tuple[Shard, ...]  # in the order of the documents

    def __post_init__(self) -> None:
        name = self.tokenizer.name
        _expect(name == os.path.basename(name), "tokenizer.name", "the name of a file", name)
        _expect(1 <= self.vocab_size <= 0x7FFFFFFF, "vocab_size", "1 to 2147483647", self.vocab_size)
        _expect(self.dtype == dtype_of(self.vocab_size), "dtype", dtype_of(self.vocab_size), self.dtype)
        _expect(
            len({shard.name for shard in self.shards}) == len(self.shards), "shards", "different names", "equal ones"
        )
        bad = sum(source.bad_records for source in self.sources)
        _expect(self.bad_records == bad, "bad_records", f"{bad}, the sum of all sources", self.bad_records)

    def parts(self) -> dict[str, Part]:
        """What each source gave, by its key."""
        return {
            source.key: Part(source, tuple(shard for shard in self.shards if shard.source == source.path))
            for source in self.sources
        }

    def save(self, path: StrPath) -> None:
        """Write a file, which appears when it is whole; an existing one is replaced."""
        _save(path, {"format": KIND, "format_version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: StrPath) -> "Manifest":
        """Read a file. Raises OSError, or FormatError naming the file, the key and what was expected."""
        try:
            value = schema.parse(Path(path).read_bytes())
            head = schema.read(_Head, value)
            if head.format != KIND:
                raise FormatError(f'format: expected "{KIND}", got {json.dumps(head.format[:40])}')
            if head.format_version != VERSION:
                raise FormatError(
                    f"format_version: expected {VERSION}, got {head.format_version}: "
                    "a dataset of another version of llama2c, which this one cannot read"
                )
            return schema.read(cls, value)
        except FormatError as error:
            raise type(error)(f"{os.fspath(path)}: {error}") from None


@dataclass(frozen=True)
class _Head:
    format: str
    format_version: int


@dataclass(frozen=True)
class Dataset:
    """An open dataset; open_dataset() makes it."""

    path: str
    manifest: Manifest = field(repr=False)
    splits: Mapping[str, tuple[Tokens, ...]] = field(repr=False, compare=False)  # memory-mapped shards, [tokens] each

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        return self.manifest.vocab_size

    @property
    def tokenizer_path(self) -> str:
        """The tokenizer that made the tokens, in the dataset's directory."""
        return os.path.join(self.path, self.manifest.tokenizer.name)

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split, in the order of splits[split]."""
        if split not in SPLITS:
            raise KeyError(f"no split {split!r}, expected {' or '.join(SPLITS)}")
        return tuple(shard for shard in self.manifest.shards if shard.split == split)

    def tokens(self, split: str) -> int:
        """All tokens of a split."""
        return sum(shard.tokens for shard in self.shards(split))

    def documents(self, split: str) -> int:
        """All documents of a split."""
        return sum(shard.documents for shard in self.shards(split))

    def characters(self, split: str) -> int:
        """All characters of a split's text."""
        return sum(shard.characters for shard in self.shards(split))


def open_dataset(path: StrPath, *, check: bool = False) -> Dataset:
    """Open the dataset in a directory. Both splits are there, "validation" without shards if it has none.

    check: read all tokens, which must be of the vocabulary. Raises OSError if there is no dataset.json, or FormatError
    naming the file that does not fit it.
    """
    folder = os.fspath(path)
    manifest = Manifest.load(os.path.join(folder, MANIFEST))
    tokenizer = os.path.join(folder, manifest.tokenizer.name)
    try:
        found = hash_of(tokenizer)
    except FileNotFoundError:
        raise FormatError(f"{tokenizer}: missing, {MANIFEST} names it") from None
    if found != manifest.tokenizer:
        raise FormatError(f"{tokenizer}: not the tokenizer of {MANIFEST}: its SHA-256 is {found.sha256}")
    splits: dict[str, list[Tokens]] = {split: [] for split in SPLITS}
    for shard in manifest.shards:
        tokens = open_shard(os.path.join(folder, shard.name), manifest.dtype, shard.tokens)
        if check:
            _check(os.path.join(folder, shard.name), tokens, manifest.vocab_size)
        splits[shard.split].append(tokens)
    return Dataset(folder, manifest, {split: tuple(shards) for split, shards in splits.items()})


def dtype_of(vocab_size: int) -> str:
    """The type of tokens of a vocabulary of that size."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def open_shard(path: str, dtype: str, tokens: int) -> Tokens:
    """A shard, memory-mapped. Raises FormatError unless it is as said."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise FormatError(f"{path}: missing, {MANIFEST} names it") from None
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path}: not a whole .npy file: {error}") from None
    if array.dtype.newbyteorder("<") != np.dtype(dtype).newbyteorder("<") or array.ndim != 1:
        shape = " x ".join(map(str, array.shape))
        raise FormatError(f"{path}: expected one dimension of {dtype}, got {array.dtype} {shape}")
    if len(array) != tokens:
        raise FormatError(f"{path}: expected {tokens} tokens, got {len(array)}")
    return array


def save_shard(path: StrPath, tokens: Tokens) -> None:
    """Write a shard, which appears when it is whole; an existing one is replaced."""
    array = np.ascontiguousarray(tokens, dtype=tokens.dtype.newbyteorder("<"))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    with NewFile(path, overwrite=True) as file:
        file.write(header.getvalue())
        file.write(array.data)


def _check(path: str, tokens: Tokens, vocab_size: int) -> None:
    for start in range(0, len(tokens), _CHUNK):
        chunk = tokens[start : start + _CHUNK]
        wrong = chunk >= vocab_size
        if wrong.any():
            at = int(wrong.argmax())
            raise FormatError(f"{path}: token {start + at} is {chunk[at]}, expected less than {vocab_size}")


def _save(path: StrPath, value: object) -> None:
    with NewFile(path, overwrite=True) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())
