"""Refusals, each one line with `name=value` and what is possible.

>>> positive(sigma=0.0)
Traceback (most recent call last):
ValueError: sigma=0.0: must be finite and > 0
"""

import math
from collections.abc import Iterable
from typing import Any


def positive(**values: Any) -> None:
    """Refuses what is not a finite number > 0."""
    for name, value in values.items():
        if not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name}={value!r}: must be finite and > 0")


def whole(minimum: int = 1, **values: Any) -> None:
    """Refuses what is not a whole number >= `minimum`."""
    for name, value in values.items():
        if not (_is_number(value) and math.isfinite(value) and value == int(value) and value >= minimum):
            raise ValueError(f"{name}={value!r}: must be a whole number >= {minimum}")


def share(**values: Any) -> None:
    """Refuses what does not lie in (0, 1]."""
    for name, value in values.items():
        if not (_is_number(value) and 0 < value <= 1):
            raise ValueError(f"{name}={value!r}: must lie in (0, 1]")


def between(low: float, high: float, **values: Any) -> None:
    """Refuses what does not lie strictly between two numbers."""
    for name, value in values.items():
        if not (_is_number(value) and low < value < high):
            raise ValueError(f"{name}={value!r}: must lie in ({low:g}, {high:g})")


def one_of(known: Iterable[Any], **values: Any) -> None:
    """Refuses what is not among the known."""
    known = tuple(known)
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name}={value!r}: choose from {', '.join(map(str, known))}")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (bool, str)) and float(value) == float(value)
    except (TypeError, ValueError, OverflowError):
        return False
