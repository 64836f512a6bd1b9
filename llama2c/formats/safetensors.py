"""Reader and writer of safetensors files.

A file is the size of its header in 8 bytes, the header, and the tensors' bytes; everything is little-endian. The header
is a JSON object: to each name the dtype, the shape and the place of the tensor's bytes, [begin, end) from the header's
end, and to "__metadata__" an object of strings. The tensors fill the rest of the file, without overlaps or holes.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama2c import schema
from llama2c._core import FormatError
from llama2c.new_file import NewFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST_HEADER = 100_000_000  # bytes, as the format has it
_MOST = (1 << 63) - 1  # of every size
_ALIGNMENT = 8  # of the tensors' bytes

# Bits of an element, by dtype.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# What NumPy's types are called here; it has none for BF16.
_DTYPES = {
    "c8": "C64",
    "b1": "BOOL",
    **{f"f{size}": f"F{8 * size}" for size in (2, 4, 8)},
    **{f"{kind}{size}": f"{kind.upper()}{8 * size}" for kind in "iu" for size in (1, 2, 4, 8)},
}


@dataclass(frozen=True)
class SafetensorsTensor:
    """What the header says of a tensor."""

    name: str
    dtype: str  # "F32", "F16", "BF16", ...
    shape: tuple[int, ...]  # rows first
    offset: int  # in the file
    bytes: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file holds."""

    path: str
    metadata: dict[str, str]
    tensors: dict[str, SafetensorsTensor]  # by name, in the order of their bytes


@dataclass(frozen=True)
class BFloat16:
    """A tensor of bfloat16 to write, by its bits: the upper halves of float32."""

    bits: "NDArray[np.uint16]"


# ---- Reader ----


def read_header(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """The header of a file, every statement of which has been checked.

    Raises OSError, or FormatError naming the file, the tensor or offset and what was expected.
    """
    try:
        return _read(os.fspath(path))
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None


def _read(path: str) -> SafetensorsHeader:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        if len(head) < 8:
            raise FormatError(
                f"it has {size} bytes, expected 8 for the size of its header: not safetensors, or cut off"
            )
        [length] = struct.unpack("<Q", head)
        if length > LONGEST_HEADER:
            raise FormatError(
                f"offset 0: a header of {length} bytes, expected at most {LONGEST_HEADER}: not safetensors?"
            )
        if 8 + length > size:
            raise FormatError(f"offset 0: a header of {length} bytes, but the file has {size}: cut off?")
        text = file.read(length)
    if not text.startswith(b"{"):
        raise FormatError(f"offset 8: expected {{, got {text[:8]!r}: not safetensors?")
    try:
        header = schema.parse(text.decode(), unique=True)
    except UnicodeDecodeError as error:
        raise FormatError(f"offset {8 + error.start}: not UTF-8") from None
    except FormatError as error:
        raise FormatError(f"the header at offset 8: {error}") from None
    assert isinstance(header, dict)  # as its first character says
    metadata = _metadata(header.pop("__metadata__", {}))
    tensors = [_tensor(name, value, 8 + length) for name, value in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.bytes))
    _check_places(tensors, 8 + length, size)
    return SafetensorsHeader(path, metadata, {tensor.name: tensor for tensor in tensors})


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise FormatError(f"__metadata__: expected an object, got {schema.shown(value)}")
    for key, item in value.items():
        if not isinstance(item, str):
            raise FormatError(f"__metadata__.{short_name(key)}: expected a string, got {schema.shown(item)}")
    return value


def _tensor(name: str, value: object, start: int) -> SafetensorsTensor:
    place = f"tensor {short_name(name)}"
    if not isinstance(value, dict):
        raise FormatError(f"{place}: expected an object, got {schema.shown(value)}")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in value:
            raise FormatError(f"{place}: no {key}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise FormatError(f"{place}: dtype is {schema.shown(dtype)}, expected one of {', '.join(BITS)}")
    if not _are_sizes(shape):
        raise FormatError(f"{place}: shape is {schema.shown(shape)}, expected a list of integers from 0 to 2**63 - 1")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{place}: data_offsets is {schema.shown(offsets)}, expected [begin, end]")
    begin, end = offsets
    bits = BITS[dtype]
    for size in shape:
        bits *= size
        if bits > 8 * _MOST:  # before the next factor: a number of a million digits takes long
            raise FormatError(f"{place}: shape {schema.shown(shape)} is more than a file can hold")
    if bits != 8 * (end - begin):
        raise FormatError(
            f"{place}: data_offsets [{begin}, {end}] are {end - begin} bytes, "
            f"expected {-(-bits // 8)} for shape {schema.shown(shape)} of {dtype}"
        )
    return SafetensorsTensor(name, dtype, tuple(shape), start + begin, end - begin)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MOST for item in value)


def _check_places(tensors: list[SafetensorsTensor], start: int, size: int) -> None:
    """The tensors, sorted, lie side by side from the header's end to that of the file."""
    end = start
    for tensor in tensors:
        place = (
            f"tensor {short_name(tensor.name)}: it lies at offsets {tensor.offset} to {tensor.offset + tensor.bytes}"
        )
        if tensor.offset + tensor.bytes > size:
            raise FormatError(f"{place}, but the file has {size} bytes: cut off?")
        if tensor.offset != end:
            what = "overlaps the one before it" if tensor.offset < end else "leaves a hole before it"
            raise FormatError(f"{place} and {what}, expected it to begin at {end}")
        end += tensor.bytes
    if end != size:
        raise FormatError(f"offset {end}: the tensors end here, expected the end of the file, which has {size} bytes")


def short_name(name: str) -> str:
    """A tensor's name as it may stand in a message of one line."""
    return name if name.isprintable() and 0 < len(name) <= 100 else schema.shown(name)


# ---- Writer ----


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: "Mapping[str, NDArray[np.generic] | BFloat16] | Iterable[tuple[str, NDArray[np.generic] | BFloat16]]",
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a file, which appears when it is whole.

    tensors: arrays of float32, float16 or another of NumPy's types that the format has, and BFloat16; in the file they
        stand in this order, but wider elements come first, so that each tensor is aligned to its own.
    metadata: the header's "__metadata__".
    overwrite: an existing file is replaced only if this says so.

    Raises ValueError naming the tensor, FileExistsError and OSError; nothing is left of the new file then.
    """
    pairs = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    items = [(name, *_stored(name, value)) for name, value in pairs]
    items.sort(key=lambda item: -item[2].itemsize)
    if not all(isinstance(text, str) for item in (metadata or {}).items() for text in item):
        raise ValueError("metadata: expected strings to strings")
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, dtype, array in items:
        if name in header or name == "__metadata__":
            raise ValueError(
                f"tensor {short_name(name)}: {'a name of the format' if name[:2] == '__' else 'given twice'}"
            )
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > LONGEST_HEADER:
        raise ValueError(f"a header of {len(text)} bytes, the format has at most {LONGEST_HEADER}")
    with NewFile(path, overwrite=overwrite) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, array in items:
            if array.size:
                file.write(_bytes_of(array))


def _stored(name: str, value: "NDArray[np.generic] | BFloat16") -> "tuple[str, NDArray[np.generic]]":
    """The dtype of a tensor and its elements."""
    array: NDArray[np.generic] = value.bits if isinstance(value, BFloat16) else value
    kind = array.dtype.str[1:]
    if isinstance(value, BFloat16):
        if kind != "u2":
            raise ValueError(f"tensor {short_name(name)}: bits of bfloat16 are {array.dtype}, expected uint16")
        return "BF16", array
    if kind not in _DTYPES:
        raise ValueError(f"tensor {short_name(name)}: {array.dtype}, which the format does not have")
    return _DTYPES[kind], array


def _bytes_of(array: "NDArray[np.generic]") -> memoryview:
    """The elements as the file has them; a copy only of what is not so already."""
    import numpy as np

    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
