"""Turns files of text into a dataset: shards of tokens, made by several processes.

    files --plan--> a job a file --worker: documents, tokens--> shards and KEY.part.json --all done--> dataset.json

A job, and with it every shard, depends on its file, the tokenizer and the options alone: not on the number of workers.
Its key stands for all these; whatever ends the process, the next run with the same keys goes on with what is there.
"""

import errno
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from llama2c._core import FormatError
from llama2c.new_file import remove_leftovers
from llama2c.records import FileHash, hash_of
from llama2c.threads import default_threads
from llama2c.tokenizers import StrPath, copy_tokenizer_file, tokenizer_files
from llama2c.training.documents import input_files
from llama2c.training.jobs import PART, Job, Piece, Settings, divide
from llama2c.training.shards import MANIFEST, SPLITS, Dataset, Manifest, Part, dtype_of, open_dataset, open_shard
from llama2c.training.workers import Progress, Workers

_SHARD = re.compile(r".+-[0-9a-f]{12}-(train|validation)-\d{3,}\.npy")


@dataclass(frozen=True)
class Tokenization:
    """What tokenize() did."""

    dataset: Dataset
    made: int  # files tokenised
    kept: int  # files whose shards were there already


def tokenize(
    inputs: Sequence[StrPath],
    out: StrPath,
    *,
    tokenizer: StrPath,
    key: str | None = None,
    strip: bool = False,
    eos: bool = False,
    validation: float = 0.0,
    validation_inputs: Sequence[StrPath] = (),
    shard_tokens: int | None = None,
    passage: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Tokenization:
    """Write a dataset, which shards.open_dataset() opens, into a directory.

    inputs: files and directories, see documents.input_files; key, strip: see documents.read_documents.
    tokenizer: its file; a copy goes into the dataset. Each document is BOS and its tokens, with eos=True also EOS.
    validation: the share of documents, the last ones, that are for validation; of a single document it is the
    characters from int(n * (1 - validation)) on.
    validation_inputs: instead, files that are for it; they are taken out of `inputs`.
    shard_tokens: a shard ends with the document that brings it to so many tokens; None: with its file.
    passage: each document becomes several, cut behind the first blank line of each `passage` characters: a long text
    has one BOS, and a model learns from many how a text may begin.
    workers: processes; None: one a core, but no more than files. They are spawned: a script that calls this needs
    `if __name__ == "__main__":`. 1: this process.
    overwrite: replace a dataset of other files, another tokenizer or options. One of the same is completed in any case.

    Raises OSError, FormatError, or ValueError if a split has no document; bad records are in the dataset's manifest.
    """
    workers = default_threads() if workers is None else workers
    for name, value in ("workers", workers), ("shard_tokens", shard_tokens), ("passage", passage):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if not 0 <= validation < 1:
        raise ValueError(f"validation is {validation}, expected at least 0 and less than 1")
    if validation and validation_inputs:
        raise ValueError("validation and validation_inputs are given, expected one of them")
    settings = Settings(os.fspath(out), os.fspath(tokenizer), key, strip, eos, shard_tokens, passage)
    vocab_size = settings.checked_vocab_size()
    held_out = input_files(validation_inputs)
    others = {os.path.realpath(file) for file in held_out}
    others |= {os.path.realpath(os.path.join(settings.out, MANIFEST))}  # in case that `out` is in a directory of inputs
    files = [
        file for file in input_files(inputs) if os.path.realpath(file) not in others and not file.name.endswith(PART)
    ]
    if not files:
        raise ValueError("nothing to train on: no input that is not for validation")

    own_hash = hash_of(tokenizer)
    with Workers(settings, min(workers, len(files) + len(held_out))) as pool:
        pieces = [Piece() for _ in files]
        if validation:
            pieces = divide(pool.count(files), validation)
        pieces += [Piece("validation") for _ in held_out]
        jobs = [settings.job(file, piece, own_hash) for file, piece in zip(files + held_out, pieces, strict=True)]
        os.makedirs(settings.out, exist_ok=True)
        parts = _parts_there(settings, jobs, vocab_size, overwrite=overwrite)
        copy = _copy_tokenizer(settings, overwrite=overwrite)
        missing = [job for job in jobs if job.key not in parts]
        kept = len(jobs) - len(missing)
        parts |= pool.convert(missing, progress or (lambda *_: None))

    ordered = [parts[job.key] for job in jobs]
    _check_splits(ordered, validation=bool(validation or held_out))
    manifest = Manifest(
        tokenizer=copy,
        vocab_size=vocab_size,
        dtype=dtype_of(vocab_size),
        eos=eos,
        bad_records=sum(part.source.bad_records for part in ordered),
        sources=tuple(part.source for part in ordered),
        shards=tuple(shard for part in ordered for shard in part.shards),
    )
    manifest.save(os.path.join(settings.out, MANIFEST))
    _clear(settings.out, manifest)
    return Tokenization(open_dataset(settings.out), len(missing), kept)


def _parts_there(settings: Settings, jobs: Sequence[Job], vocab_size: int, *, overwrite: bool) -> dict[str, Part]:
    """What earlier runs have made of these jobs and is whole, by their keys.

    A dataset.json that is not of these jobs is taken away, if that is allowed: from now on the directory is no dataset.
    """
    path = os.path.join(settings.out, MANIFEST)
    keys = {job.key for job in jobs}
    parts: dict[str, Part] = {}
    if os.path.lexists(path):
        with suppress(FormatError):
            parts = Manifest.load(path).parts()
        if parts.keys() != keys and not overwrite:
            reason = "it is of other files, options or another tokenizer, and is replaced only if told"
            raise FileExistsError(errno.EEXIST, f"{reason} (overwrite, --force)", path)
        parts = {key: part for key, part in parts.items() if key in keys and _is_whole(settings.out, part, vocab_size)}
        if parts.keys() != keys:
            for part in parts.values():
                part.save(os.path.join(settings.out, part.source.key + PART))
            os.unlink(path)
    for job in jobs:
        if job.key not in parts:
            with suppress(OSError, FormatError):
                part = Part.load(os.path.join(settings.out, job.key + PART))
                if part.source.key == job.key and _is_whole(settings.out, part, vocab_size):
                    parts[job.key] = part
    return parts


def _is_whole(folder: str, part: Part, vocab_size: int) -> bool:
    """Whether all its shards are there."""
    try:
        for shard in part.shards:
            open_shard(os.path.join(folder, shard.name), dtype_of(vocab_size), shard.tokens)
    except (OSError, FormatError):
        return False
    return True


def _copy_tokenizer(settings: Settings, *, overwrite: bool) -> FileHash:
    """Put the tokenizer into the dataset; the hash of its copy."""
    copies = {}
    for name, source in tokenizer_files(settings.tokenizer).items():
        path = os.path.join(settings.out, name)
        with tempfile.TemporaryDirectory(dir=settings.out, prefix="tokenizer-") as folder:
            fresh = os.path.join(folder, name)
            copy_tokenizer_file(source, fresh)
            if not (os.path.exists(path) and hash_of(path).sha256 == hash_of(fresh).sha256):
                copy_tokenizer_file(source, path, overwrite=overwrite)
        copies[name] = hash_of(path)
    return next(iter(copies.values()))


def _check_splits(parts: Sequence[Part], *, validation: bool) -> None:
    """Raise ValueError for a split that has no document though one is expected."""
    sources = [part.source for part in parts if not part.shards]
    bad = [record for source in sources for record in source.first_bad]
    count = sum(source.bad_records for source in sources)
    for split in SPLITS[: 1 + validation]:
        if not any(shard.split == split for part in parts for shard in part.shards):
            text = f"no document for {'training' if split == SPLITS[0] else split}"
            raise ValueError(f"{text}; {count} bad records, the first is {bad[0]}" if bad else text)


def _clear(folder: str, manifest: Manifest) -> None:
    """Remove what earlier runs have left and this dataset does not need."""
    names = {shard.name for shard in manifest.shards}
    for entry in list(os.scandir(folder)):
        name = entry.name.partition(".tmp-")[0]
        if name != entry.name and (_SHARD.fullmatch(name) or name.endswith(PART)):
            remove_leftovers(os.path.join(folder, name))
        elif name == entry.name and (name.endswith(PART) or (_SHARD.fullmatch(name) and name not in names)):
            with suppress(FileNotFoundError):
                os.unlink(entry.path)
