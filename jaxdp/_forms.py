"""Documents held against declared types: a frozen dataclass is the form of what JSON holds.

>>> @dataclasses.dataclass(frozen=True)
... class Point:
...     x: float
...     name: str | None = None
>>> parsed(Point, {"x": 1, "more": "is left alone"})
Point(x=1, name=None)
>>> parsed(Point, {"x": "1"})
Traceback (most recent call last):
ValueError: x='1': must be a finite number
"""

import dataclasses
import functools
import reprlib
import sys
import types
import typing
from typing import Any

from jaxdp import _validate

_hints = functools.cache(typing.get_type_hints)
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    dict: "an object",
}


def parsed(declared: type, document: Any, where: str = "") -> Any:
    """An instance of a form, from a document.

    Args:
      declared: a dataclass.
      document: what JSON holds.
      where: the field that holds it, for messages.

    Raises:
      ValueError: naming the first field that is missing, of another type, or refused by the form.
    """
    if not isinstance(document, dict):
        raise ValueError(f"{where}={reprlib.repr(document)}: must be an object with named fields")
    prefix, values = f"{where}." if where else "", {}
    for field in dataclasses.fields(declared):
        if field.name in document:
            values[field.name] = _typed(
                _hints(declared)[field.name], document[field.name], prefix + field.name
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"field {prefix}{field.name} is missing")
    try:
        return declared(**values)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _typed(kind: Any, value: Any, name: str) -> Any:
    """A value of a declared type, forms within it made; refused if it is of another."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        wanted = [part for part in parts if part is not types.NoneType]
        if value is None and len(wanted) < len(parts):
            return None
        fits = [part for part in wanted[1:] if _is(typing.get_origin(part) or part, value)]
        return _typed((fits or wanted)[0], value, name)
    if origin is typing.Literal:
        _validate.one_of(parts, **{name: value})
    elif dataclasses.is_dataclass(kind):
        return parsed(kind, value, name)
    elif origin is list and isinstance(value, list):
        return [_typed(parts[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    elif origin is dict and isinstance(value, dict):
        return {key: _typed(parts[1], item, f"{name}.{key}") for key, item in value.items()}
    elif kind is not Any and not _is(origin or kind, value):
        raise ValueError(f"{name}={reprlib.repr(value)}: must be {_WORDS.get(origin or kind, 'a list')}")
    return value


def _is(kind: type, value: Any) -> bool:
    """Whether a value is of a plain type; whole numbers are numbers, and neither are true and false."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and -sys.float_info.max <= value <= sys.float_info.max
    return isinstance(value, kind)
