"""Converts model files: opens any format, writes GGUF, llama2.c's files or a Hugging Face directory, as the name says.

    source rows as float32 (+ B A of adapters) --types--> slices --in the order of the format--> writer

Weights stream slice by slice: no more of a model than a few slices for each thread is in memory.
"""

import contextlib
import errno
import math
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llama2c._core import Tokenizer, UnsupportedError, block_types
from llama2c.errors import TokenizerError
from llama2c.formats.bin_writer import BinWriter, encode_int8, group_size_of, tokenizer_bin
from llama2c.formats.gguf_source import Source, SourceTensor, open_source
from llama2c.formats.hf_writer import (
    CONFIG,
    DTYPES,
    WEIGHTS,
    HalvedSource,
    SafetensorsWriter,
    hf_config,
    hf_name,
    rope_scaling,
)
from llama2c.lora import Lora, read_adapters
from llama2c.new_file import NewFile
from llama2c.quantization import (
    Plan,
    Progress,
    Quantization,
    encode_blocks,
    file_type,
    planned,
    pour,
    quantize,
    write_gguf,
)
from llama2c.recipes import recipe_of
from llama2c.threads import default_threads
from llama2c.tokenizers import (
    StrPath,
    checked,
    copy_tokenizer_file,
    find_tokenizer,
    load_tokenizer,
    tokenizer_files,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROPE_FREQS = "rope_freqs.weight"  # of GGUF files; other formats tell frequencies otherwise
_INT8 = "Q8"  # what a llama2.c checkpoint of version 2 calls its type

S = TypeVar("S", bound=Source)


def convert(
    source: StrPath,
    path: StrPath,
    *,
    type: str | None = None,
    version: int | None = None,
    lora: Lora | None = None,
    tokenizer: StrPath | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Write a model in another format.

    source: what `load` opens.
    path: `NAME.gguf`, `NAME.bin` (llama2.c), or a directory in Hugging Face's layout: one that is there, a name without
        a suffix or with a slash behind it. Files appear when they are whole; existing ones are replaced only if
        `overwrite` says so.
    type: of the matrices: for a GGUF file as for `quantize`, for a directory F32, F16 or BF16. None: the source's own;
        a .bin file has but one.
    version: of a .bin file: 0 (the default) or 1, of F32, or 2, of int8 groups.
    lora: adapters to merge into the weights, as for `load`.
    tokenizer: a file whose vocabulary goes along; None: the source's own, or what lies beside it. A GGUF file takes it
        in; beside a .bin file tokenizer.bin is written, into a directory tokenizer.model or .json if it is one.
    threads: None: as for computing. The result does not depend on it.
    progress: see `quantize`.

    Raises OSError, FormatError, UnsupportedError for what the new format cannot hold, TokenizerError or ValueError; the
    message names the file.
    """
    name = os.fspath(path)
    form = _form_of(name)
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads is {threads}, expected at least 1")
    if version is not None and (form != ".bin" or version not in (0, 1, 2)):
        raise ValueError(f"{name}: version is {version}: .bin files have versions, 0, 1 and 2")
    if form == ".gguf" and type is not None and not lora:
        return quantize(
            source, path, type, threads=threads, tokenizer=tokenizer, overwrite=overwrite, progress=progress
        )
    opened = open_source(source, tokenizer=tokenizer if form == ".gguf" else None)
    if opened.is_file_of(path):
        raise ValueError(f"{name}: it is the file to read")
    if form == "" and any(opened.is_file_of(os.path.join(name, own)) for own in (CONFIG, WEIGHTS)):
        raise ValueError(f"{name}: it is the directory to read")
    opened = _merged(opened, lora)
    if form == ".gguf":
        plan = _gguf_plan(opened, type)
        set_here = {} if type is None else file_type(recipe_of(type))
        return write_gguf(opened, path, plan, set_here, threads=threads, overwrite=overwrite, progress=progress)
    job = _Job(opened, name, _tokenizer_of(opened, tokenizer), threads, progress, overwrite)
    return _to_bin(job, type, version or 0) if form == ".bin" else _to_hf(job, type)


def _form_of(path: str) -> str:
    """The suffix of the format that a name asks for, "" for a directory."""
    if not path:
        raise ValueError("the name of the new file or directory is empty")
    suffix = os.path.splitext(path)[1]
    if path.endswith(("/", os.sep)) or os.path.isdir(path) or not suffix:
        return ""
    if suffix not in (".gguf", ".bin"):
        raise ValueError(f"{path}: expected a name that ends in .gguf, .bin or, for a directory, a slash")
    return suffix


# ---- Sources with adapters ----


@dataclass(frozen=True)
class _MergedSource(Source):
    """A model with adapters added to its weights."""

    # A and B by the tensor's name
    deltas: "dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]]" = field(default_factory=dict)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> "NDArray[np.float32]":
        """Rows [start, stop) as float32, B A added in float64."""
        x = super().rows(tensor, start, stop)
        pairs = self.deltas.get(tensor.name)
        if not pairs:
            return x
        total = x.astype("f8")
        for a, b in pairs:
            total += b[start:stop] @ a
        return total.astype("f4")


def _as(kind: type[S], source: Source, **more: Any) -> S:
    """The same model as a source of another class."""
    return kind(**{**{item.name: getattr(source, item.name) for item in fields(source)}, **more})


def _merged(source: Source, lora: Lora | None) -> Source:
    deltas: dict[str, Any] = {}
    for matrix in read_adapters(lora, source.transformer.config):
        name = f"blk.{matrix.layer}.{matrix.tensor}.weight"
        deltas.setdefault(name, []).append((matrix.a.astype("f8"), matrix.b.astype("f8")))
    if not deltas:
        return source
    # without an offset nothing is copied as it is stored
    tensors = [replace(t, offset=None) if t.name in deltas else t for t in source.tensors]
    return _as(_MergedSource, source, tensors=tensors, deltas=deltas)


# ---- GGUF ----


def _gguf_plan(source: Source, type: str | None) -> Plan:
    if type is not None:
        return planned(source, recipe_of(type))
    for tensor in source.tensors:
        if tensor.type not in block_types():
            raise UnsupportedError(
                f"{source.path}: tensor {tensor.name} is of type {tensor.type}, which is not written here: name "
                "another, F32 keeps what the weights are"
            )
    return [(tensor, tensor.type) for tensor in source.tensors]


# ---- llama2.c and Hugging Face ----


@dataclass(frozen=True)
class _Job:
    """What is to be written where."""

    source: Source
    path: str
    tokenizer: tuple[Tokenizer, str | None, bool] | None  # with its file, and whether the caller named it
    threads: int
    progress: Progress | None
    overwrite: bool

    def refuse_to_overwrite(self, path: str) -> None:
        """Before the work: told at once, not after minutes."""
        if not self.overwrite and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "it exists, and is replaced only if told (overwrite, --force)", path)


def _tokenizer_of(source: Source, named: StrPath | None) -> tuple[Tokenizer, str | None, bool] | None:
    """The tokenizer that goes along, if there is one."""
    vocab_size = source.transformer.config["vocab_size"]
    if named is not None:
        path = os.fspath(named)
        return checked(load_tokenizer(path), vocab_size, path, source.path), path, True
    with contextlib.suppress(TokenizerError, ValueError):
        return *find_tokenizer(source.path, vocab_size), False
    return None


def _to_bin(job: _Job, type: str | None, version: int) -> Quantization:
    config, kind = job.source.transformer.config, _INT8 if version == 2 else "F32"
    if type is not None and type.upper() != kind:
        raise ValueError(f"{job.path}: version {version} of llama2.c's files is of type {kind}, not {type}")
    _check_llama2c(job.source)
    vocabulary, beside = _vocabulary_bin(job), os.path.join(os.path.dirname(job.path), "tokenizer.bin")
    if vocabulary is not None and os.path.exists(beside) and Path(beside).read_bytes() == vocabulary:
        vocabulary = None  # it is there already
    if vocabulary is not None:
        job.refuse_to_overwrite(beside)
    tensors = {tensor.name: tensor for tensor in job.source.tensors}
    size = group_size_of(config) if version == 2 else 1

    def encode(x: "NDArray[np.float32]", kind: str) -> tuple[Any, float, float]:
        return encode_int8(x, size) if kind == _INT8 else encode_blocks(x, kind)

    with BinWriter(job.path, config, version, overwrite=job.overwrite) as writer:
        plan = [(tensors[name], kind if len(tensors[name].shape) > 1 else "F32") for name in writer.names]
        done = pour(job.source, plan, writer.write, threads=job.threads, progress=job.progress, encode=encode)
    if vocabulary is not None:
        with NewFile(beside, overwrite=job.overwrite) as file:
            file.write(vocabulary)
    return Quantization(job.path, *done)


def _check_llama2c(source: Source) -> None:
    """Raises UnsupportedError for a model that llama2.c's files cannot tell."""
    c, frequencies = source.transformer.config, source.transformer.rope_frequencies
    plain = [10000.0 ** (-i / len(frequencies)) for i in range(len(frequencies))]
    for wrong, what in (
        (c["n_heads"] * c["head_dim"] != c["dim"], f"{c['n_heads']} heads of {c['head_dim']} for a dim of {c['dim']}"),
        (c["norm_eps"] != 1e-5, f"norm_eps is {c['norm_eps']:g}, expected 1e-05"),
        (0 < c["window"] < c["context"], f"a window of {c['window']} positions in a context of {c['context']}"),
        (
            not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(frequencies, plain, strict=True)),
            f"RoPE's theta is {c['rope_theta']:g} or its frequencies are scaled, expected a theta of 10000 alone",
        ),
    ):
        if wrong:
            raise UnsupportedError(f"{source.path}: {what}: llama2.c's files have no place for it")


def _vocabulary_bin(job: _Job) -> bytes | None:
    """The content of tokenizer.bin, if the vocabulary is of its kind."""
    if job.tokenizer is None:
        return None
    tokenizer, path, named = job.tokenizer
    vocabulary = tokenizer_bin(tokenizer)
    if vocabulary is None and named:
        raise UnsupportedError(f"{path}: not a vocabulary that tokenizer.bin can hold, expected one like Llama 2's")
    return vocabulary


def _to_hf(job: _Job, type: str | None) -> Quantization:
    folder = Path(job.path)
    source = job.source
    if type is not None and type.upper() not in DTYPES:
        raise ValueError(f"{job.path}: type is {type!r}, expected {', '.join(DTYPES)}")
    plan = []
    for tensor in source.tensors:
        if tensor.name == _ROPE_FREQS:
            continue
        kind = "F32" if len(tensor.shape) == 1 else (type or tensor.type).upper()
        if kind not in DTYPES:
            raise UnsupportedError(
                f"{source.path}: tensor {tensor.name} is of type {kind}: name a type, {', '.join(DTYPES)}; "
                "F32 keeps what the weights are"
            )
        plan.append((tensor, kind))
    plan.sort(key=lambda item: -block_types()[item[1]][2])
    most = max(DTYPES, key=lambda kind: sum(math.prod(tensor.shape) for tensor, own in plan if own == kind))
    bos, eos = (-1, -1) if job.tokenizer is None else (job.tokenizer[0].bos, job.tokenizer[0].eos)
    config = hf_config(source.transformer.config, most, bos, eos, scaling=rope_scaling(source))
    vocabulary = tokenizer_files(job.tokenizer[1]) if job.tokenizer and job.tokenizer[1] else {}
    for name in (CONFIG, WEIGHTS, *vocabulary):
        job.refuse_to_overwrite(str(folder / name))
    if any(folder.glob("*.safetensors.index.json")):
        raise ValueError(f"{job.path}: it holds a model in several files, beside which this one would not be read")
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        (hf_name(tensor.name), kind, tensor.shape, math.prod(tensor.shape) * block_types()[kind][2])
        for tensor, kind in plan
    ]
    try:
        (folder / CONFIG).unlink(missing_ok=True)  # without it the directory is no model: it comes last
        with SafetensorsWriter(folder / WEIGHTS, entries, overwrite=job.overwrite) as writer:
            halved = _halved(source)
            done = pour(halved, plan, writer.write, threads=job.threads, progress=job.progress)
        for name, path in vocabulary.items():
            copy_tokenizer_file(path, folder / name, overwrite=job.overwrite)
        with NewFile(folder / CONFIG, overwrite=job.overwrite) as file:
            file.write(config.encode())
    except BaseException:
        if created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return Quantization(job.path, *done)


def _halved(source: Source) -> Source:
    """The source with q and k in Hugging Face's order."""
    if isinstance(source, _MergedSource):
        return _as(_HalvedMergedSource, source)
    return _as(HalvedSource, source)


class _HalvedMergedSource(HalvedSource, _MergedSource):
    """Adapters are added first, then the rows are put in order."""
