"""Reader of Hugging Face's `tokenizer.json`, as far as it is a byte-level BPE that the core knows.

The file is a pipeline: normalizer, pre_tokenizer, model, post_processor. Here the pre-tokenizer must be one that
`Tokenizer.from_bpe` has, nothing may be normalised before it, and nothing but one token be put before a text.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama2c import schema
from llama2c._core import FormatError, UnsupportedError

_LONGEST = 100_000_000  # bytes of the file
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What comes before ByteLevel, and whether that cuts words by GPT-2's rule; the name of both together.
_PRE: dict[tuple[str, bool], str] = {
    (_WORDS + r"\p{N}{1,3}" + _REST, False): "llama-bpe",
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    ("", True): "gpt-2",
    ("digits", True): "smollm",
}
_SUPPORTED = "supported are byte-level BPE as Llama 3, GPT-2 and SmolLM have it, and a tokenizer.model in its place"


@dataclass(frozen=True)
class JsonTable:
    """A vocabulary: what `Tokenizer.from_bpe` takes."""

    pieces: list[bytes]  # in GPT-2's alphabet of bytes, but for added tokens
    types: list[int]  # 1 normal, 3 control, 4 user-defined
    merges: list[bytes]
    pre: str
    bos: int  # -1: texts begin without one
    eos: int  # -1: none is told
    ignore_merges: bool


def read_tokenizer_json(path: str | os.PathLike[str]) -> JsonTable:
    """Read a tokenizer.json; which token ends a text is told by the tokenizer_config.json beside it.

    Raises OSError, FormatError naming the file, the key and what was expected, or UnsupportedError for another kind.
    """
    try:
        return _table(_object(Path(path)), Path(path).with_name("tokenizer_config.json"))
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None


def _object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LONGEST:
        raise FormatError(f"{path.stat().st_size} bytes, expected at most {_LONGEST}")
    value = schema.parse(path.read_bytes())
    if not isinstance(value, dict):
        raise FormatError(f"expected an object, got {schema.shown(value)}")
    return value


def _table(value: Mapping[str, Any], config: Path) -> JsonTable:
    model = _of(dict, value, "model")
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte_fallback" if model.get("byte_fallback") else model.get("type")
        raise UnsupportedError(f"model.type is {schema.shown(kind)}; {_SUPPORTED}")
    if value.get("normalizer") is not None:
        raise UnsupportedError(f"normalizer is {schema.shown(value['normalizer'])}; {_SUPPORTED}")
    pre = _pre(value.get("pre_tokenizer"))
    pieces, types = _pieces(_of(dict, model, "vocab", "model."), _of(list, value, "added_tokens"))
    merges = [_merge(item, number) for number, item in enumerate(_of(list, model, "merges", "model."))]
    ids = {piece: number for number, piece in enumerate(pieces)}
    bos, eos = _first(value.get("post_processor")), _eos(config)
    return JsonTable(
        pieces,
        types,
        merges,
        pre,
        -1 if bos is None else ids.get(bos.encode("utf-8", "replace"), -1),
        -1 if eos is None else ids.get(eos.encode("utf-8", "replace"), -1),
        bool(model.get("ignore_merges")),
    )


def _of(kind: type, values: Mapping[str, Any], key: str, prefix: str = "") -> Any:
    value = values.get(key)
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise FormatError(f"{prefix}{key}: expected {wanted}, got {schema.shown(value)}")
    return value


def _steps(value: object, inner: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the one that stands for itself."""
    steps = value.get(inner) if isinstance(value, dict) and value.get("type") == "Sequence" else [value]
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _pre(value: object) -> str:
    steps = _steps(value, "pretokenizers")
    before = ""
    for step in steps[:-1]:
        if before:
            before += " and more"
        elif step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = step.get("pattern")
            before = str(pattern.get("Regex")) if isinstance(pattern, dict) else "another"
        else:
            before = "digits" if step.get("type") == "Digits" and step.get("individual_digits") else "another"
    last = steps[-1] if steps else {}
    name = _PRE.get((before, last.get("use_regex", True) is True))
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True) or name is None:
        raise UnsupportedError(f"pre_tokenizer is {schema.shown(value)}; {_SUPPORTED}")
    return name


def _pieces(vocab: Mapping[str, Any], added: list[Any]) -> tuple[list[bytes], list[int]]:
    """The pieces and their types, by id."""
    tokens: dict[int, tuple[str, int]] = {}
    for text, number in vocab.items():
        if type(number) is not int or number in tokens:
            raise FormatError(
                f"model.vocab: {schema.shown(text)} has id {schema.shown(number)}, expected one of its own"
            )
        tokens[number] = (text, _NORMAL)
    for place, item in enumerate(added):
        if not isinstance(item, dict) or type(item.get("id")) is not int or not isinstance(item.get("content"), str):
            raise FormatError(f"added_tokens[{place}]: expected an id and content, got {schema.shown(item)}")
        number, text = item["id"], item["content"]
        if tokens.get(number, (text, 0))[0] != text:
            raise FormatError(f"added_tokens[{place}]: id {number} is that of another token")
        if any(item.get(key) for key in ("single_word", "lstrip", "rstrip")):
            raise UnsupportedError(
                f"added_tokens[{place}] is {schema.shown(item)}; tokens that take spaces are not known"
            )
        tokens[number] = (text, _CONTROL if item.get("special") else _USER_DEFINED)
    if not tokens or min(tokens) != 0 or max(tokens) != len(tokens) - 1:
        raise FormatError(f"model.vocab and added_tokens: {len(tokens)} ids, expected all from 0 on")
    ordered = [tokens[number] for number in range(len(tokens))]
    return [text.encode("utf-8", "replace") for text, _ in ordered], [kind for _, kind in ordered]


def _merge(item: object, number: int) -> bytes:
    """A merge as GGUF has it: two pieces with a space between."""
    parts = item.split(" ") if isinstance(item, str) else item
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise FormatError(f"model.merges[{number}]: expected two pieces, got {schema.shown(item)}")
    return " ".join(parts).encode("utf-8", "replace")


def _first(value: object) -> str | None:
    """The token that a template puts before a text; None for none."""
    for step in _steps(value, "processors"):
        if step.get("type") == "TemplateProcessing":
            match step.get("single"):
                case [{"Sequence": _}]:
                    return None
                case [{"SpecialToken": {"id": str(token)}}, {"Sequence": _}]:
                    return token
        if step.get("type") != "ByteLevel":
            raise UnsupportedError(f"post_processor is {schema.shown(step)}; {_SUPPORTED}")
    return None


def _eos(config: Path) -> str | None:
    """The token that ends a text; None where none is told."""
    token = _object(config).get("eos_token") if config.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None
