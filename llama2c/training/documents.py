"""Documents out of files: text, JSON and JSON-lines, each also gzipped.

    bytes --UTF-8--> records --key--> texts; a record that is no document goes to `bad`, with its place

A text file is one document, its line ends as they are. A file is read whole; the records of a JSON list are parsed one
by one, so that memory holds the text of one file and no more.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama2c._core import FormatError
from llama2c.tokenizers import StrPath

KEYS = ("story", "text")  # a record's text is under the first of them that it has
_JSON = (".json", ".jsonl", ".ndjson")
_SUFFIXES = (".txt", *_JSON)
_BLANKS = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class BadRecord:
    """A record that is no document."""

    place: str  # file:line
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def input_files(inputs: Sequence[StrPath]) -> list[Path]:
    """The files that inputs stand for, each once: a file itself, and for a directory the text and JSON files below it.

    These are known by their suffixes and come in the order of their paths. Raises OSError, or ValueError for a
    directory without any.
    """
    files: dict[str, Path] = {}
    for path in map(Path, inputs):
        found = [path]
        if path.is_dir():
            found = sorted(inner for inner in path.rglob("*") if _suffix(inner) in _SUFFIXES and inner.is_file())
            if not found:
                names = ", ".join(f"*{suffix}" for suffix in _SUFFIXES)
                raise ValueError(f"{path}: no file in it is {names} or one of these with .gz")
        for file in found:
            file.stat()  # one that is missing is told of before anything is read
            files.setdefault(os.path.realpath(file), file)
    return list(files.values())


def read_documents(
    path: StrPath, *, key: str | None = None, strip: bool = False, bad: Callable[[BadRecord], None]
) -> Iterator[str]:
    """The documents of a file, in their order.

    JSON is told by the suffix; what begins with "[" is a list of records, all else a record a line.
    key: of a record's text; None: "story" or "text". strip: without white space at both ends.
    bad: called with each record that is no object, lacks the key, or whose text is no string, empty or invalid UTF-8. A
    list that breaks off is one bad record there. Raises OSError, or FormatError for a broken gzip file.
    """
    name = os.fspath(path)
    # Bytes that are no UTF-8 become lone surrogates, so that they spoil the record they are in and no other.
    text = _read(name).decode("utf-8", "surrogateescape")
    lines = _Lines(text)
    if _suffix(path) not in _JSON:
        records: Iterator[tuple[int, object]] = iter([(0, {"text": text})])
        key = "text"
    else:
        start = _skip(text, 1 if text.startswith("\ufeff") else 0)
        records = _list_items(text, start + 1) if text.startswith("[", start) else _line_items(text, start)
    for offset, value in records:
        try:
            document = _text_of(value, key)
            if strip:
                document = document.strip()
            if not document:
                raise _BadError("no text")
            document.encode()
        except UnicodeEncodeError as error:
            at = error.start if document is text else offset
            bad(BadRecord(f"{name}:{lines.number(at)}", "invalid UTF-8"))
        except _BadError as error:
            bad(BadRecord(f"{name}:{lines.number(offset)}", str(error)))
        else:
            yield document


class _BadError(Exception):
    """Why a record is no document."""


class _Lines:
    """Numbers of lines, asked for in rising order."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._offset, self._number = 0, 1

    def number(self, offset: int) -> int:
        self._number += self._text.count("\n", self._offset, offset)
        self._offset = offset
        return self._number


def _suffix(path: StrPath) -> str:
    return os.path.splitext(os.fspath(path).lower().removesuffix(".gz"))[1]


def _read(name: str) -> bytes:
    if not name.lower().endswith(".gz"):
        return Path(name).read_bytes()
    try:
        with gzip.open(name) as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"{name}: broken gzip file: {error}") from None


def _skip(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _list_items(text: str, at: int) -> Iterator[tuple[int, object]]:
    """Offset and value of each item of the list that is open before `at`; a _BadError where it breaks off."""
    decoder = json.JSONDecoder()
    at = _skip(text, at)
    closed = text.startswith("]", at)
    while not closed:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            where = error.pos if isinstance(error, json.JSONDecodeError) else at
            yield where, _BadError(f"not JSON: {_reason(error)}; the file is read no further")
            return
        yield at, value
        at = _skip(text, end)
        closed = text.startswith("]", at)
        if not closed and not text.startswith(",", at):
            yield at, _BadError("not JSON: expected a comma or the list's end; the file is read no further")
            return
        if not closed:
            at = _skip(text, at + 1)
    at = _skip(text, at + 1)
    if at < len(text):
        yield at, _BadError("not JSON: text after the list")


def _line_items(text: str, at: int) -> Iterator[tuple[int, object]]:
    """Offset and value of each line that is not blank; a _BadError for one that is no JSON."""
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end]
        if not line.isspace() and line:
            try:
                yield at, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield at, _BadError(f"not JSON: {_reason(error)}")
        at = end + 1


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _text_of(value: object, key: str | None) -> str:
    if isinstance(value, _BadError):
        raise value
    if not isinstance(value, dict):
        raise _BadError(f"expected an object, got {_kind(value)}")
    names = KEYS if key is None else (key,)
    name = next((name for name in names if name in value), None)
    if name is None:
        raise _BadError(f"no key {' or '.join(map(json.dumps, names))}")
    text = value[name]
    if not isinstance(text, str):
        raise _BadError(f"{name}: expected a string, got {_kind(text)}")
    return text


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
