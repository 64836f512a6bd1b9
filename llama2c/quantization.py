"""Quantises model files: opens any format, writes GGUF.

    source rows as float32 --quantize_rows, on several threads--> blocks --in order--> GGUFWriter

A slice of rows is the unit of work; it is cut the same way, and so gives the same bits, whatever the number of threads.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama2c._core import block_types, quantize_error, quantize_rows
from llama2c.formats.gguf_source import Source, SourceTensor, open_source
from llama2c.formats.gguf_writer import GGUFWriter, TensorHeader, encode_value
from llama2c.recipes import QUANTIZATION_VERSION, Recipe, recipe_of, type_of
from llama2c.threads import default_threads
from llama2c.tokenizers import StrPath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SLICE = 1 << 19  # weights


@dataclass(frozen=True)
class QuantizedTensor:
    """What became of a tensor."""

    name: str
    shape: tuple[int, ...]  # rows first
    source_type: str
    type: str
    source_bytes: int
    bytes: int
    error: float  # root of sum (w - x)^2 / sum x^2; 0 for weights that were copied


@dataclass(frozen=True)
class Quantization:
    """What quantize() did."""

    path: str
    tensors: tuple[QuantizedTensor, ...]
    error: float  # that of all converted weights together

    @property
    def source_bytes(self) -> int:
        """Bytes of the weights before."""
        return sum(tensor.source_bytes for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        """Bytes of the weights after."""
        return sum(tensor.bytes for tensor in self.tensors)


# Tensors, each with the type that it shall have.
Plan = list[tuple[SourceTensor, str]]

# Called with the weights done, all weights, and a tensor that has just been completed.
Progress = Callable[[int, int, QuantizedTensor | None], None]


def quantize(
    source: StrPath,
    path: StrPath,
    type: str,
    *,
    threads: int | None = None,
    tokenizer: StrPath | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Write a model with its weights in another type, as a GGUF file.

    source: a GGUF file (of a split one the first part), a llama2.c checkpoint of version 0, 1 or 2, or a Hugging Face
        directory.
    path: the new file, which appears when it is whole; an existing one is replaced only if `overwrite` says so.
    type: "Q8_0", "Q4_K_M", ...: see llama2c.recipes; in upper or lower case.
    threads: None: as for computing. The result does not depend on it.
    tokenizer: a file whose vocabulary goes into the new one; None: the source's own, or what lies beside it.
    progress: called with weights done, all weights, and a QuantizedTensor when one is complete, else None.

    Raises OSError, FormatError, UnsupportedError, TokenizerError or ValueError, whose message names the file; nothing
    is left of the new file then.
    """
    recipe = recipe_of(type)
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads is {threads}, expected at least 1")
    opened = open_source(source, tokenizer=tokenizer)
    if opened.is_file_of(path):
        raise ValueError(f"{os.fspath(path)}: it is the file to read")
    plan = planned(opened, recipe)
    return write_gguf(opened, path, plan, file_type(recipe), threads=threads, overwrite=overwrite, progress=progress)


def file_type(recipe: Recipe) -> dict[str, int]:
    """The metadata of a GGUF file that tell its type."""
    return {"general.file_type": recipe.number, "general.quantization_version": QUANTIZATION_VERSION}


def write_gguf(
    source: Source,
    path: StrPath,
    plan: Plan,
    set_here: Mapping[str, int],
    *,
    threads: int,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Write an open model as a GGUF file: its metadata, with some set here, and its tensors in the types of a plan."""
    entries = [(key, value) for key, value in source.entries if key not in set_here]
    entries += [(key, encode_value(value)) for key, value in set_here.items()]
    headers = [_header(tensor, kind) for tensor, kind in plan]
    with GGUFWriter(path, entries, headers, alignment=source.alignment, overwrite=overwrite) as writer:
        tensors, error = pour(source, plan, writer.write, threads=threads, progress=progress)
    return Quantization(os.fspath(path), tensors, error)


def planned(source: Source, recipe: Recipe) -> Plan:
    """Each tensor with the type that it shall have."""
    config = source.transformer.config
    return [(tensor, type_of(recipe, tensor.name, tensor.shape, config)) for tensor in source.tensors]


def _header(tensor: SourceTensor, kind: str) -> TensorHeader:
    number, values, size = block_types()[kind]
    return TensorHeader(tensor.name, tensor.shape, number, math.prod(tensor.shape) // values * size)


@dataclass(frozen=True)
class _Slice:
    tensor: SourceTensor
    kind: str
    start: int
    stop: int

    @property
    def last(self) -> bool:
        return self.stop == self.tensor.rows

    @property
    def weights(self) -> int:
        return math.prod(self.tensor.shape) // self.tensor.rows * (self.stop - self.start)


def _slices(plan: Plan) -> Iterator[_Slice]:
    for tensor, kind in plan:
        step = max(1, SLICE * tensor.rows // math.prod(tensor.shape))
        for start in range(0, tensor.rows, step):
            yield _Slice(tensor, kind, start, min(start + step, tensor.rows))


# A slice of rows, float32, as a type has them: what is written (of so many .nbytes), its squared error, x squared.
Encode = Callable[["NDArray[np.float32]", str], tuple[Any, float, float]]


def encode_blocks(x: "NDArray[np.float32]", kind: str) -> "tuple[NDArray[np.uint8], float, float]":
    """By GGUF's types."""
    blocks = quantize_rows(x, kind)
    return (blocks, *quantize_error(blocks, kind, x))


def _work(source: Source, part: _Slice, encode: Encode) -> tuple[Any, float, float]:
    """What is to be written of a slice, its squared error, its weights squared (0 if they are copied)."""
    tensor, kind = part.tensor, part.kind
    if tensor.offset is not None and tensor.type == kind:
        return source.stored(tensor, part.start, part.stop), 0.0, 0.0
    try:
        return encode(source.rows(tensor, part.start, part.stop), kind)
    except ValueError as error:
        raise ValueError(f"{source.path}: tensor {tensor.name}, from row {part.start} on: {error}") from None


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[_Slice], Any], parts: Iterator[_Slice], ahead: int
) -> Iterator[Any]:
    """Slices and their results, computed ahead by so many at most."""
    waiting: deque[tuple[_Slice, Future[Any]]] = deque()
    try:
        for part in parts:
            waiting.append((part, pool.submit(work, part)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


class _Sums:
    """Of some weights: their bytes, squared error and squares."""

    def __init__(self) -> None:
        self.bytes = 0
        self.error = self.norm = 0.0

    def add(self, size: int, error: float, norm: float) -> None:
        self.bytes += size
        self.error += error
        self.norm += norm

    @property
    def relative(self) -> float:
        return math.sqrt(self.error / self.norm) if self.norm > 0 else 0.0


def pour(
    source: Source,
    plan: Plan,
    write: Callable[[Any], None],
    *,
    threads: int,
    progress: Progress | None = None,
    encode: Encode = encode_blocks,
) -> tuple[tuple[QuantizedTensor, ...], float]:
    """Write the tensors of a plan slice by slice, in its order; them, and the error of all weights together."""
    tensors = []
    done, total = 0, sum(math.prod(tensor.shape) for tensor, _ in plan)
    own, every = _Sums(), _Sums()
    progress = progress or (lambda *_: None)
    with ThreadPoolExecutor(threads, "quantize") as pool:
        for part, (data, error, norm) in _in_order(
            pool, lambda part: _work(source, part, encode), _slices(plan), 2 * threads
        ):
            write(data)
            done += part.weights
            own.add(data.nbytes, error, norm)
            every.add(data.nbytes, error, norm)
            if not part.last:
                progress(done, total, None)
                continue
            t = part.tensor
            tensors.append(QuantizedTensor(t.name, t.shape, t.type, part.kind, t.bytes, own.bytes, own.relative))
            progress(done, total, tensors[-1])
            own = _Sums()
    return tuple(tensors), every.relative
