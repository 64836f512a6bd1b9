"""Run records: what a generation depended on and what it gave, as JSON; `recording.replay` does it again."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llama2c import schema
from llama2c._core import FormatError
from llama2c.new_file import NewFile
from llama2c.tokenizers import StrPath

KIND = "llama2c run record"
VERSION = 1
_MOST = 0x7FFFFFFF  # of the core's counts


def _expect(true: bool, key: str, expected: str, got: object) -> None:
    if not true:
        raise ValueError(f"{key}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class FileHash:
    """What tells a file from every other one."""

    name: str  # without its directory
    bytes: int
    sha256: str  # of the whole content

    def __post_init__(self) -> None:
        _expect(self.bytes >= 0, "bytes", "0 or more", self.bytes)
        digits = len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
        _expect(digits, "sha256", "64 hexadecimal digits", self.sha256[:80])


@dataclass(frozen=True)
class ModelFiles:
    """A model on the disk."""

    path: str  # absolute
    files: tuple[FileHash, ...]  # see llama2c.weights.model_paths

    def __post_init__(self) -> None:
        _expect(len(self.files) > 0, "files", "at least one", [])


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that is a file beside the model's."""

    path: str  # absolute
    file: FileHash


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA adapter on the disk."""

    path: str  # absolute: of its directory, or of its weights
    scale: float  # that was told to `load`
    files: tuple[FileHash, ...]  # its configuration and its weights

    def __post_init__(self) -> None:
        _expect(len(self.files) == 2, "files", "two", len(self.files))


@dataclass(frozen=True)
class Options:
    """What was told to `load` and changes the text."""

    context: int  # positions
    rope_theta: float | None
    quantize: str | None
    kv_type: str  # that of the session, whether told or chosen

    def __post_init__(self) -> None:
        _expect(1 <= self.context <= _MOST, "context", f"1 to {_MOST}", self.context)


@dataclass(frozen=True)
class Machine:
    """Where it ran. Neither changes the text."""

    isa: str
    threads: int


@dataclass(frozen=True)
class RecordedPrompt:
    """What was continued."""

    text: str | None  # None: given as ids
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _expect(len(self.ids) > 0, "ids", "at least one", [])
        for index, token in enumerate(self.ids):
            _expect(0 <= token <= _MOST, f"ids[{index}]", "a token id", token)


@dataclass(frozen=True)
class Sampling:
    """How the tokens were chosen."""

    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    stop: tuple[str, ...]  # strings
    ends: tuple[int, ...]  # ids that end the text

    def __post_init__(self) -> None:
        _expect(self.temperature >= 0, "temperature", "0 or more", self.temperature)
        _expect(0 <= self.top_p <= 1, "top_p", "0 to 1", self.top_p)
        _expect(0 <= self.seed < 1 << 64, "seed", "0 to 2**64 - 1", self.seed)
        _expect(0 <= self.max_tokens <= _MOST, "max_tokens", f"0 to {_MOST}", self.max_tokens)
        _expect(all(self.stop), "stop", "strings of at least one character", "")


@dataclass(frozen=True)
class Generated:
    """What came out."""

    ids: tuple[int, ...]  # the one that ended the text not among them
    text: str
    finish_reason: str  # as in Generation
    logits_sha256: str  # of all logits that were sampled from, as little-endian f32

    def __post_init__(self) -> None:
        reasons = ("stop", "length")
        _expect(self.finish_reason in reasons, "finish_reason", " or ".join(reasons), self.finish_reason)


@dataclass(frozen=True)
class Record:
    """A generation that can be done again; str() of it is the text. `save` and `Record.load` keep it as JSON."""

    llama2c: str  # version
    model: ModelFiles
    tokenizer: TokenizerFile | None  # None: the model's own
    options: Options
    machine: Machine
    prompt: RecordedPrompt
    sampling: Sampling
    generated: Generated
    lora: tuple[AdapterFiles, ...] = ()  # in the order that they add up in

    def __str__(self) -> str:
        return self.generated.text

    def to_json(self) -> str:
        """The content of a file."""
        text = json.dumps({"format": KIND, "format_version": VERSION, **asdict(self)}, indent=2)
        # Ids on one line. A newline is never within a string: JSON writes it as an escape.
        return re.sub(r"\[\n[\d\s,]+\]", lambda ids: "[" + " ".join(ids[0][1:-1].split()) + "]", text) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Record":
        """The opposite of to_json(). Raises FormatError naming the key and what was expected there."""
        value = schema.parse(text)
        head = schema.read(_Head, value)
        if head.format != KIND:
            raise FormatError(f'format: expected "{KIND}", got {json.dumps(head.format[:40])}')
        if head.format_version != VERSION:
            raise FormatError(
                f"format_version: expected {VERSION}, got {head.format_version}: "
                "a record of another version of llama2c, which this one cannot read"
            )
        return schema.read(cls, value)

    def save(self, path: StrPath, *, overwrite: bool = False) -> None:
        """Write a file, which appears when it is whole. Raises FileExistsError unless overwrite, and OSError."""
        with NewFile(path, overwrite=overwrite) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, path: StrPath) -> "Record":
        """Read a file. Raises OSError, or FormatError naming the file, the key and what was expected."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except FormatError as error:
            raise type(error)(f"{os.fspath(path)}: {error}") from None


@dataclass(frozen=True)
class _Head:
    format: str
    format_version: int


def hash_of(path: StrPath) -> FileHash:
    """The hash of a file, which is read whole; as long as it does not change, once in a process. Raises OSError."""
    status = os.stat(path)
    name = os.path.basename(path)
    return FileHash(
        name, status.st_size, _sha256(os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns)
    )


@lru_cache(maxsize=64)
def _sha256(path: str, *_: Any) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
