"""Jobs of tokenising: a file of text, how its documents go to the splits, and the shards that it becomes."""

import hashlib
import json
import math
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama2c._core import Tokenizer
from llama2c.records import FileHash
from llama2c.tokenizers import load_tokenizer
from llama2c.training.documents import BadRecord, read_documents
from llama2c.training.shards import SPLITS, VERSION, Part, Shard, Source, dtype_of, save_shard

FIRST_BAD = 10  # bad records of a file that are named
PART = ".part.json"
_TALLY = 1 << 14  # tokens after which a converter tells of them


@dataclass(frozen=True)
class Piece:
    """How the documents of a file go to the splits."""

    split: str = "train"  # of all of them, unless one of these is set:
    train_documents: int | None = None  # the first so many are for training
    validation: float | None = None  # this share of the characters of the only one is for validation

    def divide(self, documents: Iterator[str]) -> Iterator[tuple[str, str]]:
        """Split and text of each document."""
        for number, document in enumerate(documents):
            if self.validation is not None:
                at = int(len(document) * (1 - self.validation))
                yield from (
                    (split, text) for split, text in zip(SPLITS, (document[:at], document[at:]), strict=True) if text
                )
            elif self.train_documents is not None:
                yield SPLITS[number >= self.train_documents], document
            else:
                yield self.split, document


def divide(counts: Sequence[int], validation: float) -> list[Piece]:
    """Of files with so many documents the last ones for validation."""
    total = sum(counts)
    if total == 1:
        return [Piece(validation=validation) if count else Piece() for count in counts]
    train = int(total * (1 - validation))
    pieces = []
    for count in counts:
        here = min(count, max(train, 0))
        pieces.append(Piece(SPLITS[here < count]) if here in (0, count) else Piece(train_documents=here))
        train -= count
    return pieces


def passages(text: str, size: int | None) -> Iterator[str]:
    """A text cut behind the first blank line of each `size` characters; None: the text. Joined they are the text."""
    begin = 0
    while size is not None and (blank := text.find("\n\n", begin + size)) >= 0:
        end = blank + 2
        while text.startswith("\n", end):
            end += 1
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


@dataclass(frozen=True)
class Job:
    """A file to tokenise."""

    path: str
    size: int
    changed: int  # ns
    piece: Piece
    key: str  # of all that the shards depend on

    def is_as_planned(self) -> bool:
        status = os.stat(self.path)
        return (status.st_size, status.st_mtime_ns) == (self.size, self.changed)


@dataclass(frozen=True)
class Settings:
    """What all jobs have in common."""

    out: str
    tokenizer: str
    record_key: str | None
    strip: bool
    eos: bool
    shard_tokens: int | None
    passage: int | None = None

    def checked_vocab_size(self) -> int:
        """That of the tokenizer, if it can mark where documents begin or end."""
        tokenizer = load_tokenizer(self.tokenizer)
        if self.eos and tokenizer.eos < 0:
            raise ValueError(f"{self.tokenizer}: it has no EOS")
        if tokenizer.bos < 0 and not self.eos:
            raise ValueError(f"{self.tokenizer}: it has no BOS, so documents would run together: ask for EOS")
        return len(tokenizer)

    def job(self, path: Path, piece: Piece, tokenizer: FileHash) -> Job:
        status = path.stat()
        options = (self.record_key, self.strip, self.eos, self.shard_tokens, self.passage)
        division = (piece.split, piece.train_documents, piece.validation)
        file = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
        text = json.dumps([VERSION, tokenizer.sha256, options, division, file])
        digest = hashlib.sha256(text.encode()).hexdigest()
        return Job(os.fspath(path), status.st_size, status.st_mtime_ns, piece, digest)


class Converter:
    """Does jobs. tally: called now and then with the tokens made since; it may raise to stop the work."""

    def __init__(self, settings: Settings, tally: Callable[[int], None]) -> None:
        self._settings = settings
        self._tally = tally
        self._tokenizer: Tokenizer = load_tokenizer(settings.tokenizer)
        self._dtype = dtype_of(len(self._tokenizer))

    def count(self, path: str) -> int:
        """The documents in a file."""
        count = 0
        for _ in self._documents(path, lambda _: None):
            if count % 256 == 0:
                self._tally(0)  # which may stop the work
            count += 1
        return count

    def _documents(self, path: str, bad: Callable[[BadRecord], None]) -> Iterator[str]:
        return read_documents(path, key=self._settings.record_key, strip=self._settings.strip, bad=bad)

    def _none(self) -> "array[int]":
        return array("H" if self._dtype == "uint16" else "I")

    def convert(self, job: Job) -> Part:
        """Write the shards of a file, then what they are as KEY.part.json."""
        bad: list[BadRecord] = []
        shards: list[Shard] = []
        stem = re.sub(r"[^\w.-]", "_", os.path.basename(job.path).split(".")[0])[:40] or "_"
        tokens = self._none()
        documents = characters = untold = 0
        current, most = SPLITS[0], self._settings.shard_tokens or math.inf

        def flush() -> None:
            nonlocal tokens, documents, characters
            if not tokens:
                return
            name = f"{stem}-{job.key[:12]}-{current}-{len(shards):03}.npy"
            save_shard(os.path.join(self._settings.out, name), np.frombuffer(tokens, dtype=self._dtype))
            shards.append(Shard(name, current, len(tokens), documents, characters, job.path))
            tokens, documents, characters = self._none(), 0, 0

        for split, text in job.piece.divide(self._documents(job.path, bad.append)):
            if split != current or len(tokens) >= most:
                flush()
                current = split
            before = len(tokens)
            for passage in passages(text, self._settings.passage):
                tokens.extend(self._tokenizer.encode(passage, bos=True, eos=self._settings.eos))
                documents += 1
            characters += len(text)
            untold += len(tokens) - before
            if untold >= _TALLY:
                self._tally(untold)
                untold = 0
        flush()
        self._tally(untold)
        if not job.is_as_planned():
            raise ValueError(f"{job.path}: it has changed while it was read")
        part = Part(Source(job.path, job.key, len(bad), tuple(bad[:FIRST_BAD])), tuple(shards))
        part.save(os.path.join(self._settings.out, job.key + PART))
        return part
