"""Makes run records, and replays them: the same model, settings and seed must give the same tokens."""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama2c import __version__
from llama2c._core import FormatError, available_isas
from llama2c.formats.peft_adapter import adapter_paths
from llama2c.generation import Prompt, Run, pieces_of
from llama2c.records import (
    AdapterFiles,
    FileHash,
    Generated,
    Machine,
    ModelFiles,
    Options,
    Record,
    RecordedPrompt,
    Sampling,
    TokenizerFile,
    hash_of,
)
from llama2c.text import ReplyText, ends_of, stops_of
from llama2c.tokenizers import StrPath
from llama2c.weights import model_paths

if TYPE_CHECKING:
    from llama2c.model import Llama


def record(
    llm: "Llama",
    prompt: Prompt = "",
    *,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
) -> Record:
    """Continue a prompt, as `llm.generate` does, and give the record of it: `.save(path)` keeps it, str() is the text.

    Reads the model's files once to hash them: seconds for gigabytes. Raises what `generate` raises, and OSError.
    """
    run = Run(
        llm, prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, digest=hashlib.sha256()
    )
    stops, ends = stops_of(stop), ends_of(llm.tokenizer, ignore_eos=ignore_eos)
    pieces = list(pieces_of(run, ReplyText(llm.tokenizer, run.ids, stop=stops, ends=ends)))
    tokens = [piece.token for piece in pieces if piece.token is not None]
    text = "".join(piece.text for piece in pieces)
    return record_of(llm, prompt, run, tokens, text=text, stop=stops, ends=ends)


def record_of(
    llm: "Llama",
    prompt: Prompt,
    run: Run,
    tokens: Sequence[int],
    *,
    ends: Collection[int],
    stop: Sequence[str] = (),
    text: str | None = None,
) -> Record:
    """The record of a run that has ended and had a digest. text: by default that of the tokens."""
    if run.digest is None:
        raise ValueError("the run has no digest, expected one of SHA-256")
    if text is None:
        reply = ReplyText(llm.tokenizer, run.ids)
        text = "".join(reply.feed(token)[0] for token in tokens) + reply.flush()[0]
    if isinstance(prompt, bytes):
        prompt = prompt.decode("utf-8", "surrogateescape")
    return Record(
        llama2c=__version__,
        model=ModelFiles(os.path.abspath(llm.path), _hashes(llm.path)),
        tokenizer=_tokenizer_file(llm),
        options=Options(llm.context, llm.options["rope_theta"], llm.options["quantize"], llm.config.kv_type),
        machine=Machine(llm.isa, llm.threads),
        prompt=RecordedPrompt(prompt if isinstance(prompt, str) else None, tuple(run.ids)),
        sampling=Sampling(
            float(run.temperature), float(run.top_p), run.seed, run.max_tokens, tuple(stop), tuple(sorted(ends))
        ),
        generated=Generated(tuple(tokens), text, run.finish_reason, run.digest.hexdigest()),
        lora=tuple(
            AdapterFiles(os.path.abspath(path), scale, tuple(hash_of(part) for part in adapter_paths(path)))
            for path, scale in llm.options["lora"] or ()
        ),
    )


def _hashes(path: StrPath) -> tuple[FileHash, ...]:
    return tuple(hash_of(part) for part in model_paths(path))


def _tokenizer_file(llm: "Llama") -> TokenizerFile | None:
    path = llm.tokenizer_path
    if path is None:
        raise TypeError("a run whose tokenizer is an object, not a path, cannot be recorded")
    if os.path.abspath(path) == os.path.abspath(llm.path):
        return None
    return TokenizerFile(os.path.abspath(path), hash_of(path))


@dataclass(frozen=True)
class Replay:
    """What became of a record that was done again."""

    tokens: int  # equal ones, from the first on
    difference: str | None  # the first one: where, what was expected, what came
    same_logits: bool  # all logits were equal to the bit
    isa: str  # instruction-set level of the replay

    @property
    def identical(self) -> bool:
        """The same tokens, the same text, the same end."""
        return self.difference is None


# Levels whose prompts have bits of their own.
APART = ("avx512vnni", "amx")


def _level(recorded: str) -> str | None:
    """Where a record of that level replays; None: the best level."""
    here = available_isas()
    if recorded in here:
        return recorded
    return None if recorded in APART else [level for level in here if level not in APART][-1]


def replay(
    record: Record | StrPath,
    *,
    model: StrPath | None = None,
    tokenizer: StrPath | None = None,
    isa: str | None = None,
    threads: int | None = None,
    cache: bool = True,
    lora: StrPath | Sequence[StrPath] | None = None,
) -> Replay:
    """Generate again what a record tells of, and compare.

    record: a Record or the path of one.
    model, tokenizer: where the files are now; None: where they were. Their hashes must be those of the record.
    isa: instruction-set level; None: the record's where this machine has it, else the best that gives the same bits, if
        there is one. From or to "amx" and "avx512vnni", whose prompts have their own bits, another token may be chosen.
    threads: see `load`; the record's number does not count, as the text does not depend on it.
    cache: see `load`; for a record with weights that were quantised on loading.
    lora: where the adapters are now, in the order of the record; None: where they were.

    Raises FormatError for a malformed record and for a model, tokenizer or adapter other than the record's, and what
    `load` raises.
    """
    from llama2c.model import Llama

    if not isinstance(record, Record):
        record = Record.load(record)
    path = record.model.path if model is None else os.fspath(model)
    _check(path, model_paths(path), record.model.files, "model")
    if record.tokenizer is not None:
        tokenizer = record.tokenizer.path if tokenizer is None else os.fspath(tokenizer)
        _check(tokenizer, [tokenizer], (record.tokenizer.file,), "tokenizer")
    elif tokenizer is not None:
        raise FormatError(f"{os.fspath(tokenizer)}: not the tokenizer of the record, whose model has its own")
    adapters = _adapters(record, lora)
    if isa is None:
        isa = _level(record.machine.isa)
    with Llama(
        path,
        tokenizer=tokenizer,
        threads=threads,
        isa=isa,
        context=record.options.context,
        rope_theta=record.options.rope_theta,
        quantize=record.options.quantize,
        kv_type=record.options.kv_type,
        cache=cache,
        lora=adapters,
    ) as llm:
        return _compare(llm, record)


def _adapters(record: Record, lora: StrPath | Sequence[StrPath] | None) -> list[tuple[str, float]]:
    """The adapters of a record where they are now, their files checked."""
    given = [lora] if isinstance(lora, str | os.PathLike) else lora
    paths = [adapter.path for adapter in record.lora] if given is None else [os.fspath(path) for path in given]
    if len(paths) != len(record.lora):
        raise FormatError(f"{len(paths)} adapters named, but the record has {len(record.lora)}")
    for path, adapter in zip(paths, record.lora, strict=True):
        _check(path, adapter_paths(path), adapter.files, "adapter")
    return [(path, adapter.scale) for path, adapter in zip(paths, record.lora, strict=True)]


def _check(path: str, paths: Sequence[str], files: Sequence[FileHash], what: str) -> None:
    """Raises FormatError unless the files are those of the record; sizes first, they cost nothing."""
    place = f"not the {what} of the record"
    if len(paths) != len(files):
        raise FormatError(f"{path}: {place}: it has {len(paths)} files, expected {len(files)}")
    for part, file in zip(paths, files, strict=True):
        size = os.stat(part).st_size
        if size != file.bytes:
            raise FormatError(f"{part}: {place}: it has {size} bytes, expected {file.bytes}")
    for part, file in zip(paths, files, strict=True):
        sha256 = hash_of(part).sha256
        if sha256 != file.sha256:
            raise FormatError(f"{part}: {place}: its SHA-256 is {sha256}, expected {file.sha256}")


def _compare(llm: "Llama", record: Record) -> Replay:
    sampling, expected = record.sampling, record.generated
    digest = hashlib.sha256()

    def result(tokens: int, difference: str | None) -> Replay:
        return Replay(tokens, difference, digest.hexdigest() == expected.logits_sha256, llm.isa)

    if record.prompt.text is not None:
        ids = tuple(llm.tokenizer.encode(record.prompt.text))
        if ids != record.prompt.ids:
            at = _first_difference(ids, record.prompt.ids)
            return result(0, f"token {at} of the prompt: {_differ(record.prompt.ids[at:], ids[at:])}")
    run = Run(
        llm,
        record.prompt.ids,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        digest=digest,
    )
    text, count = "", 0
    for piece in pieces_of(run, ReplyText(llm.tokenizer, run.ids, stop=sampling.stop, ends=sampling.ends)):
        text += piece.text
        if piece.token is None:
            break
        if expected.ids[count : count + 1] != (piece.token,):
            return result(count, f"token {count}: {_differ(expected.ids[count:], [piece.token])}")
        count += 1
    if count < len(expected.ids):
        return result(count, f"token {count}: {_differ(expected.ids[count:], [])}")
    if run.finish_reason != expected.finish_reason:
        return result(count, f"finish reason: expected {expected.finish_reason}, got {run.finish_reason}")
    if text != expected.text:
        at = _first_difference(text, expected.text)
        parts = (repr(part[at : at + 20]) for part in (expected.text, text))
        return result(count, "character {} of the text: expected {}, got {}".format(at, *parts))
    return result(count, None)


def _first_difference(one: Sequence[object], other: Sequence[object]) -> int:
    """Where two sequences part, at the end of the shorter one at the latest."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _differ(expected: Sequence[int], got: Sequence[int]) -> str:
    first, second = (str(ids[0]) if ids else "the end" for ids in (expected, got))
    return f"expected {first}, got {second}"
