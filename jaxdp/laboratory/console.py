"""Tables for a console: cells side by side, each as wide as its column."""

from collections.abc import Mapping, Sequence
from typing import Any


def line(widths: Mapping[str, int], cells: Mapping[str, Any] | Sequence[Any]) -> str:
    """One line of a table.

    Args:
      widths: of each column by its name, to the left where negative.
      cells: by name, or in the order of the columns.

    >>> line({"name": -6, "share": 8}, {"name": "a", "share": 0.5})
    'a          0.5'
    """
    shown = cells.values() if isinstance(cells, Mapping) else cells
    each = zip(shown, widths.values(), strict=True)
    return "".join(f"{cell!s:{'<' if width < 0 else '>'}{abs(width)}}" for cell, width in each)
