"""Rows that stand for one user, or whatever is protected, with all its examples in them.

>>> source = grouped({"x": np.arange(5.0)}, ["ann", "bob", "ann", "eve", "ann"], size=2)
>>> examples, present = source.arrays
>>> examples["x"].tolist(), present.tolist(), source.unit
([[0.0, 2.0], [1.0, 1.0], [3.0, 3.0]], [[True, True], [True, False], [True, False]], 'user')
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdp import _validate
from jaxdp.data.source import Source


def grouped(
    arrays: PyTree,
    ids: Sequence[Any] | np.ndarray,
    size: int,
    *,
    unit: str = "user",
    **options: Any,
) -> Source:
    """A source whose rows are groups, of each user the first `size` examples: for `gradients.grouped`.

    Args:
      arrays: a tree of arrays [n, ...].
      ids: whose each example is, n names or numbers; exact, since two names of one person are two users.
      size: the places K of a row; of a user with more examples the rest is left out, whoever else there is.
      unit: what an id stands for, see `Plan.unit`.
      **options: of `Source`: `decode` (of the examples, and which are present), `preprocessing`,
        `public_preprocessing`.

    Returns:
      A source of `(examples, present)`: a tree of arrays [users, K, ...] in the order in which users appear
      first, and a mask [users, K].  Empty places hold a user's first example.

    Raises:
      ValueError: not one id for each example, or ids that are missing.
    """
    _validate.whole(size=size)
    given = Source(arrays=arrays)
    names = np.asarray(ids)
    if names.shape != (given.examples,):
        raise ValueError(f"ids={list(names.shape)}: needs one for each of {given.examples} examples")
    if any(name is None or name != name for name in names.tolist()):
        raise ValueError("ids: one is missing; an example without an id would be a user of its own")
    _, first, user = np.unique(names, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[user]  # by first appearance
    order = np.argsort(rank, kind="stable")
    counts = np.bincount(rank)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    place = np.arange(size)
    present = place < counts[:, None]
    rows = order[starts[:, None] + np.where(present, place, 0)]
    examples = jax.tree.map(lambda leaf: leaf[rows], given.arrays)
    return Source(arrays=(examples, present), unit=unit, **options)
