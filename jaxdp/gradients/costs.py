"""What it costs to keep the gradient of a kernel in one form or another, in operations and in bytes.

A gradient [K, O] is the product of [P, K] and [P, O]: P K O multiplications make the gradient of an example, or
the sum over examples from the factors.  Beside these, per example:

| form    | kept        | multiplications more                                                           |
|---------|-------------|--------------------------------------------------------------------------------|
| `kept`  | K O         | writing K O entries, squaring them, summing them over examples                 |
| `gram`  | P (K + O)   | P^2 (K + O): inner products of positions, for the norm                         |
| `built` | P (K + O)   | P K O: the product once more, for the norm, then dropped; its entries squared  |

Kept gradients are the fastest on a CPU where there are many positions, and the first that do not fit into
memory: they are not a choice where the factors are smaller, but for arrays that are small anyway.
"""

import math
from typing import NamedTuple

from jaxdp import platforms

# Writing an entry of a gradient, squaring it and summing it over examples costs about as much time as this many
# multiplications inside a matrix product.
_ENTRY = {"cpu": 16}
_ENTRY_ELSEWHERE = 16
_BUILT_ENTRY = 0.5  # of that: written and squared, for a few examples at a time
_SMALL = 3 * 2**18  # bytes; larger ones are kept only where the factors are larger still


class Sizes(NamedTuple):
    """Of a product, or of a sum of products: G times [K, O] over P positions.

    Attributes:
      groups, positions, rows, columns: G, P, K and O.
      read: T, where T rows are added to the product: a table that is the output too.
    """

    groups: int
    positions: int
    rows: int
    columns: int
    read: int = 0

    @property
    def matrix(self) -> int:
        """Entries of the gradient."""
        return self.groups * self.rows * self.columns

    @property
    def factors(self) -> int:
        """Entries of both factors, and of the rows."""
        return self.groups * self.positions * (self.rows + self.columns) + self.read * self.columns


def multiplications(form: str, sizes: Sizes, platform: str) -> float:
    """What a form costs beside the product that all need, per example."""
    _, positions, rows, columns, read = sizes
    entry = _ENTRY.get(platforms.resolved(platform), _ENTRY_ELSEWHERE)
    of_one = {
        "kept": entry * rows * columns,
        "gram": positions**2 * (rows + columns) + positions * read * columns,
        "built": positions * rows * columns + _BUILT_ENTRY * entry * rows * columns,
    }[form]
    return sizes.groups * of_one


def cheapest(sizes: Sizes, itemsize: int, platform: str) -> str:
    """`kept`, `gram` or `built`: the fewest multiplications among the forms that memory allows.

    Args:
      sizes: of the product.
      itemsize: bytes of an entry, of factors and gradient.
      platform: see `platforms.resolved`.
    """
    if sizes.positions <= 1 or not sizes.matrix:
        return "gram"
    forms = ["gram", "built"]
    if sizes.matrix <= sizes.factors or itemsize * sizes.rows * sizes.columns <= _SMALL:
        forms.append("kept")
    return min(forms, key=lambda form: (multiplications(form, sizes, platform), form))


def read_by_rows(tokens: int, rows: int) -> bool:
    """Whether a table's gradient is kept as the rows of its tokens: where the table has more."""
    return tokens < rows


def readable(size: float) -> str:
    """A number of bytes in a unit that shows three digits at most."""
    power = min(3, int(math.log(size, 1024))) if size >= 1 else 0
    return f"{size / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
