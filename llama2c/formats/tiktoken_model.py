"""Reader of Llama 3's `tokenizer.model`.

The file is text as tiktoken has it: one token a line, its bytes in base64 and its rank, which is its id and the order
of merges. What it leaves out is the same for all of Llama 3 and is told here: the pre-tokenizer and the 256 control
tokens behind the ranks (by the names of Llama 3; 3.1 gives some of the reserved ones a name).
"""

import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path

from llama2c._core import FormatError, UnsupportedError

_RANKS = 128_000
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]+)\r?")
_NORMAL, _CONTROL = 1, 3


def _specials() -> list[bytes]:
    """In the order of their ids, from 128000 on."""
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(251)]
    names = ["<|begin_of_text|>", "<|end_of_text|>", *reserved[:4]]
    names += ["<|start_header_id|>", "<|end_header_id|>", reserved[4], "<|eot_id|>", *reserved[5:]]
    return [name.encode() for name in names]


@dataclass(frozen=True)
class TiktokenTable:
    """A vocabulary: what `Tokenizer.from_bpe` takes, with merges=None and ignore_merges=True."""

    pieces: list[bytes]
    types: list[int]  # 1 normal, 3 control
    pre: str
    bos: int
    eos: int


def is_tiktoken(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins with a token in base64 and its rank, as no protobuf message does."""
    with open(path, "rb") as file:
        return _LINE.fullmatch(file.readline(1000).removesuffix(b"\n")) is not None


def read_tiktoken(path: str | os.PathLike[str]) -> TiktokenTable:
    """Read Llama 3's `tokenizer.model`.

    Raises FormatError, naming the file, the line and what was expected; UnsupportedError for another number of ranks:
    then it is another model's file, whose pre-tokenizer and control tokens are not told in it.
    """
    pieces: list[bytes] = []
    for number, line in enumerate(Path(path).read_bytes().removesuffix(b"\n").split(b"\n")):
        try:
            token, rank = line.split(b" ")
            pieces.append(binascii.a2b_base64(token, strict_mode=True))
            if int(rank) != number:
                raise ValueError
        except ValueError:
            raise FormatError(
                f"{os.fspath(path)}: line {number + 1}: expected a token in base64 and its rank, {number}"
            ) from None
    if len(pieces) != _RANKS:
        raise UnsupportedError(
            f"{os.fspath(path)}: {len(pieces)} tokens, expected {_RANKS}: of tiktoken's files only Llama 3's is known"
        )
    specials = _specials()
    return TiktokenTable(
        pieces=pieces + specials,
        types=[_NORMAL] * _RANKS + [_CONTROL] * len(specials),
        pre="llama3",
        bos=_RANKS,
        eos=_RANKS + 1,
    )
