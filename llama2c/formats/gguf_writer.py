"""Writer of GGUF files, version 3 (gguf.h tells the layout)."""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Any

from llama2c.new_file import NewFile

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_FORMATS = {_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}

Scalar = bool | int | float | str | bytes


@dataclass(frozen=True)
class TensorHeader:
    """What the header says of a tensor."""

    name: str
    shape: tuple[int, ...]  # rows first
    type: int  # number of GGUF
    bytes: int


def encode_value(value: Scalar | Sequence[Scalar]) -> bytes:
    """A value of a metadata entry, its type first: BOOL, UINT32, FLOAT32, STRING, or an array of those.

    Integers of arrays are INT32, as tokenizer.ggml.token_type wants them.
    """
    if isinstance(value, Scalar):
        kind = _kind(value)
        return struct.pack("<I", kind) + _element(kind, value)
    kind = _kind(value[0])
    kind = _INT32 if kind == _UINT32 else kind
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_element(kind, item) for item in value)


def _kind(value: Scalar) -> int:
    for python, kind in ((bool, _BOOL), (int, _UINT32), (float, _FLOAT32)):
        if isinstance(value, python):
            return kind
    return _STRING


def _element(kind: int, value: Scalar) -> bytes:
    if isinstance(value, str | bytes):
        return _text(value)
    return struct.pack(_FORMATS[kind], value)


def _text(text: str | bytes) -> bytes:
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


class GGUFWriter:
    """A GGUF file whose tensors' bytes are written one after another; it appears under its name when all are there.

    entries: (key, encoded value) each. Raises OSError naming the file; ValueError when the bytes are not what the
    headers tell.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        entries: Sequence[tuple[str, bytes]],
        tensors: Sequence[TensorHeader],
        *,
        alignment: int = 32,
        overwrite: bool = False,
    ) -> None:
        self._alignment = alignment
        self._sizes = [tensor.bytes for tensor in tensors]
        self._tensor = self._written = 0
        head = _header(entries, tensors, alignment)
        self._file = NewFile(path, overwrite=overwrite)
        try:
            self._file.write(head + bytes(-len(head) % alignment))
        except BaseException:
            self._file.discard()
            raise

    def write(self, data: Any) -> None:
        """The next bytes (any contiguous buffer) of the tensor at hand; the one after it begins when it is complete."""
        view = memoryview(data).cast("B")
        if self._tensor == len(self._sizes) or self._written + view.nbytes > self._sizes[self._tensor]:
            raise ValueError(f"tensor {self._tensor}: more bytes than its header tells")
        self._file.write(view)
        self._written += view.nbytes
        if self._written == self._sizes[self._tensor]:
            self._file.write(bytes(-self._written % self._alignment))
            self._tensor += 1
            self._written = 0

    def __enter__(self) -> "GGUFWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._file.discard()
            return
        if self._tensor < len(self._sizes):
            self._file.discard()
            raise ValueError(f"tensor {self._tensor}: fewer bytes than its header tells")
        self._file.close()


def _header(entries: Sequence[tuple[str, bytes]], tensors: Sequence[TensorHeader], alignment: int) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(entries))]
    parts += [_text(key) + value for key, value in entries]
    offset = 0
    for tensor in tensors:
        assert prod(tensor.shape) > 0
        dims = tensor.shape[::-1]
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type, offset))
        offset += tensor.bytes + -tensor.bytes % alignment
    return b"".join(parts)
