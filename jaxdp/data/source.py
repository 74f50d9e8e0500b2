"""Data of any structure for training: a tree of arrays whose leading axis counts the examples; see `stream` for
those that do not fit.

>>> import numpy as np
>>> source = as_source({"x": np.zeros((6, 4), np.float32), "y": np.arange(6)})
>>> source.examples
6
>>> as_source({"x": np.zeros((6, 4)), "y": np.arange(5)})
Traceback (most recent call last):
ValueError: data['y'] has 5 examples, data['x'] has 6: must be as many
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from jaxdp.data import leaves
from jaxdp.data.dataset import Dataset
from jaxdp.data.stream import Stream, is_read_by_rows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Training examples that a run holds on its device.

    Attributes:
      arrays: a tree of arrays [n, ...] on the host, perhaps memory-mapped: treat as read-only.  As they are
        stored; a model sees `decode` of them.
      decode: `batch -> batch`, traced into the compiled step; a batch is the tree with other leading axes.
      preprocessing: what was done to the examples, for the privacy statement of a run.
      public_preprocessing: whether no constant of it was computed from the examples.
      unit: what a row stands for, where it is said: a plan of another is refused.
      ids: whose each row is, where it is known: no two rows may be one's.

    Raises:
      ValueError: no arrays, no examples, leaves that are not numbers or differ in their leading axis, an id
        that stands twice.
    """

    arrays: PyTree
    decode: Callable[[PyTree], PyTree] = lambda batch: batch
    preprocessing: str = "the arrays as given; what was done to them before is outside this statement"
    public_preprocessing: bool = True
    unit: str | None = None
    ids: Any = None

    def __post_init__(self):
        object.__setattr__(self, "arrays", jax.tree_util.tree_map_with_path(leaves.checked, self.arrays))
        leaves.check_as_many(leaves.named(self.arrays))
        if self.ids is not None:
            leaves.check_ids(self.ids, self.examples, self.unit or "example")

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(jax.tree.leaves(self.arrays)[0])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of structure, types, shapes and bytes, as they are now: whether two runs saw the same.  As
        private as they.
        """
        return leaves.fingerprint(leaves.named(self.arrays))


def as_source(data: Any) -> Source | Stream:
    """Makes a source of what holds training examples.

    Args:
      data: a tree of arrays, or a data set, whose training split it stands for, examples `(x, y)`: held on the
        device.  A tree with a memory-mapped array in it (`np.load(..., mmap_mode="r")`), or an object with
        `__len__` and `__getitem__` (of Grain, of TensorFlow Datasets, of one's own): a `Stream`, read batch by
        batch.

    Raises:
      ValueError: as of `Source` and `Stream`.
    """
    if isinstance(data, Source | Stream):
        return data
    if isinstance(data, Dataset):
        return Source(
            arrays=(data.train_x, data.train_y),
            decode=lambda batch: (data.to_float(batch[0]), batch[1]),
            preprocessing=data.preprocessing,
            public_preprocessing=data.public_preprocessing,
        )
    return Stream(rows=data) if is_read_by_rows(data) else Source(arrays=data)
