"""Reader of SentencePiece's `tokenizer.model`.

The file is one protobuf message, the ModelProto of sentencepiece_model.proto: pieces (field 1),
trainer_spec (2), normalizer_spec (3), denormalizer_spec (5). It is read by hand: the
`sentencepiece` package shows neither these settings nor which pieces are user-defined, and so
nothing has to be installed.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama2c._core import FormatError

_META_SPACE = "\u2581".encode()  # how SentencePiece spells a space
_MODEL_TYPES = {1: "UNIGRAM", 2: "BPE", 3: "WORD", 4: "CHAR"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


@dataclass(frozen=True)
class TokenTable:
    """A vocabulary: what `Tokenizer.from_table` takes."""

    pieces: list[bytes]  # spaces as spaces, not as U+2581
    scores: list[float]  # the higher merges first
    types: list[int]  # 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    unk: int
    bos: int  # -1: none
    eos: int  # -1: none
    add_space_prefix: bool


def read_sentencepiece(path: str | os.PathLike[str]) -> TokenTable:
    """Read a SentencePiece BPE model such as Llama 2's `tokenizer.model`.

    Raises FormatError, naming the file, the field and what was expected, for a file that is broken
    or that treats text in a way `Tokenizer` does not: a model other than BPE, normalisation, spaces
    removed or put behind words.
    """
    try:
        return _read_model(Path(path).read_bytes())
    except _ModelError as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from None


class _ModelError(Exception):
    """What is wrong with a model; the file's name is added where it is known."""


def _read_model(data: bytes) -> TokenTable:
    pieces: list[dict[int, int | bytes]] = []
    specs: dict[int, dict[int, int | bytes]] = {2: {}, 3: {}, 5: {}}
    for number, value, offset in _fields(data, 0):
        if number == 1 or number in specs:
            if isinstance(value, int):
                raise _ModelError(f"offset {offset}: field {number} is a number, expected a message")
            fields = {inner: content for inner, content, _ in _fields(value, offset)}
            if number == 1:
                pieces.append(fields)
            else:
                specs[number].update(fields)
    trainer, normalizer, denormalizer = specs.values()
    _check_settings(trainer, normalizer, denormalizer)
    table = _read_pieces(pieces, trainer, add_space_prefix=_flag(normalizer, 3, default=True))
    bytes_wanted = 256 if _flag(trainer, 35, default=False) else 0
    if table.types.count(_BYTE) != bytes_wanted:
        raise _ModelError(
            f"{table.types.count(_BYTE)} byte pieces, expected {bytes_wanted} as "
            f"trainer_spec.byte_fallback is {'true' if bytes_wanted else 'false'}"
        )
    return table


def _check_settings(
    trainer: dict[int, int | bytes],
    normalizer: dict[int, int | bytes],
    denormalizer: dict[int, int | bytes],
) -> None:
    model_type = trainer.get(3, 1)
    if model_type != 2:
        name = _MODEL_TYPES.get(model_type, model_type) if isinstance(model_type, int) else "text"
        raise _ModelError(f"trainer_spec.model_type is {name}, expected BPE")
    if _flag(trainer, 24, default=False):
        raise _ModelError("trainer_spec.treat_whitespace_as_suffix is true, expected false")
    for spec, fields in ("normalizer_spec", normalizer), ("denormalizer_spec", denormalizer):
        if fields.get(2):
            rule = fields.get(1, b"")
            name = rule.decode(errors="replace") if isinstance(rule, bytes) else rule
            raise _ModelError(f"{spec}.precompiled_charsmap is the rule {name!r}, expected none (identity)")
    if _flag(normalizer, 4, default=True):
        raise _ModelError("normalizer_spec.remove_extra_whitespaces is true, expected false")
    if not _flag(normalizer, 5, default=True):
        raise _ModelError("normalizer_spec.escape_whitespaces is false, expected true")


def _read_pieces(
    messages: list[dict[int, int | bytes]],
    trainer: dict[int, int | bytes],
    *,
    add_space_prefix: bool,
) -> TokenTable:
    pieces: list[bytes] = []
    scores: list[float] = []
    types: list[int] = []
    seen: dict[bytes, int] = {}
    for index, fields in enumerate(messages):
        piece, score, kind = fields.get(1, b""), fields.get(2, bytes(4)), fields.get(3, _NORMAL)
        if not isinstance(piece, bytes) or not piece:
            raise _ModelError(f"pieces[{index}].piece is empty, expected text")
        if not isinstance(score, bytes) or len(score) != 4:
            raise _ModelError(f"pieces[{index}].score is no 32-bit float")
        if not isinstance(kind, int) or not _NORMAL <= kind <= _BYTE:
            raise _ModelError(f"pieces[{index}].type is {kind!r}, expected 1 to 6")
        if kind in (_NORMAL, _USER_DEFINED, _UNUSED) and b" " in piece:
            # SentencePiece never finds it, as spaces are U+2581 by then; here they become equal.
            raise _ModelError(f"pieces[{index}].piece is {piece!r}, expected U+2581 for each space")
        if seen.setdefault(piece, index) != index:
            raise _ModelError(f"pieces[{index}].piece is {piece!r}, which pieces[{seen[piece]}] is already")
        pieces.append(piece.replace(_META_SPACE, b" "))
        scores.append(struct.unpack("<f", score)[0])
        types.append(kind)
    if types.count(_UNKNOWN) != 1:
        raise _ModelError(f"{types.count(_UNKNOWN)} pieces of type UNKNOWN, expected 1")

    def control(number: int, default: bytes) -> int:
        name = trainer.get(number) or default
        index = seen.get(name, -1) if isinstance(name, bytes) else -1
        return index if index >= 0 and types[index] == _CONTROL else -1

    return TokenTable(
        pieces=pieces,
        scores=scores,
        types=types,
        unk=types.index(_UNKNOWN),
        bos=control(46, b"<s>"),
        eos=control(47, b"</s>"),
        add_space_prefix=add_space_prefix,
    )


def _flag(fields: dict[int, int | bytes], number: int, *, default: bool) -> bool:
    return bool(fields.get(number, default))


def _fields(data: bytes, base: int) -> Iterator[tuple[int, int | bytes, int]]:
    """Number, value and offset of each field of the message that begins at offset `base`."""
    at, end = 0, len(data)
    while at < end:
        start = at
        key, at = _varint(data, at, base)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at, base)
            yield number, value, base + start
            continue
        if wire == 2:
            size, at = _varint(data, at, base)
        elif wire in (1, 5):
            size = 4 if wire == 5 else 8
        else:
            raise _ModelError(f"offset {base + start}: expected a protobuf field, found wire type {wire}")
        if size > end - at:
            raise _ModelError(
                f"offset {base + at}: expected {size} bytes of field {number}, the message ends after {end - at}"
            )
        yield number, data[at : at + size], base + at
        at += size


def _varint(data: bytes, at: int, base: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 0x80:  # nearly all: worth 20 ms of a model with 32000 pieces
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _ModelError(f"offset {base + at}: expected the rest of a number, the message ends")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _ModelError(f"offset {base + at}: expected the end of a number within 10 bytes")
