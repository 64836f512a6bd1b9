"""Frozen dataclasses out of JSON: the annotations of the fields are the schema, and an error names the key.

Types that a field may have: str, int, float, bool, dataclasses, `X | None` and `tuple[X, ...]`, which is JSON's list.
Keys that are no fields are passed over, so that a later version may add some; fields with a default may be missing.
"""

import dataclasses
import json
import math
import types
import typing
from typing import Any, NoReturn, TypeVar

from llama2c._core import FormatError

T = TypeVar("T")

_NAMES: dict[object, str] = {str: "a string", int: "an integer", float: "a finite number", bool: "true or false"}


def parse(text: str | bytes, *, unique: bool = False) -> object:
    """The value of a JSON text. Raises FormatError, for NaN and the infinities too, which JSON does not have.

    unique: a key that an object has twice is an error, too; else the last one counts.
    """
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError among them, and integers of thousands of digits
        raise FormatError(f"not JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {json.dumps(twice)[:100]} is there twice")
    return value


def read(kind: type[T], value: object, key: str = "") -> T:
    """An object of a dataclass. What its __post_init__ raises as ValueError gets the key in front, too.

    key: where the value stands, as in "sampling.stop[2]". Raises FormatError.
    """
    if not isinstance(value, dict):
        raise FormatError(f"{key or 'the file'}: expected an object, got {shown(value)}")
    hints = typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = f"{key}.{field.name}" if key else field.name
        if field.name not in value:
            if field.default is not dataclasses.MISSING:
                continue
            raise FormatError(f"{name}: missing, expected {_described(hints[field.name])}")
        values[field.name] = _value(hints[field.name], value[field.name], name)
    try:
        return kind(**values)
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(f"{key}.{error}" if key else str(error)) from None


def _value(hint: Any, value: object, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        [inner] = [argument for argument in arguments if argument is not type(None)]
        if not dataclasses.is_dataclass(inner) and not _fits(inner, value):
            raise FormatError(f"{key}: expected {_described(hint)}, got {shown(value)}")
        return _value(inner, value, key)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(type[Any], hint), value, key)
    if not _fits(hint, value):
        raise FormatError(f"{key}: expected {_described(hint)}, got {shown(value)}")
    if origin is tuple:
        items = typing.cast(list[object], value)
        return tuple(_value(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(items))
    return float(typing.cast(float, value)) if hint is float else value


def _fits(hint: Any, value: object) -> bool:
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list)
    if isinstance(value, bool):  # which is an int in Python
        return hint is bool
    if hint is float:
        try:
            return isinstance(value, int | float) and math.isfinite(float(value))
        except OverflowError:
            return False
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return " or ".join("null" if argument is type(None) else _described(argument) for argument in arguments)
    if origin is tuple:
        return f"a list, each item {_described(arguments[0])}"
    return _NAMES.get(hint, "an object")


def shown(value: object) -> str:
    """A value as an error tells it: JSON, cut off where it gets long."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
