"""Data of any structure for training: a tree of arrays whose leading axis counts the examples.

>>> source = as_source({"x": np.zeros((6, 4), np.float32), "y": np.arange(6)})
>>> source.examples
6
>>> as_source({"x": np.zeros((6, 4)), "y": np.arange(5)})
Traceback (most recent call last):
ValueError: data['y'] has 5 examples, data['x'] has 6: must be as many
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdp.data.dataset import Dataset

_HASHED_AT_ONCE = 1 << 24  # bytes, so that memory-mapped arrays stay on disk


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Training examples.

    Attributes:
      arrays: a tree of arrays [n, ...] on the host, perhaps memory-mapped: treat as read-only.  As they are
        stored; a model sees `decode` of them.
      decode: `batch -> batch`, traced into the compiled step; a batch is the tree with other leading axes.
      preprocessing: what was done to the examples, for the privacy statement of a run.
      public_preprocessing: whether no constant of it was computed from the examples.

    Raises:
      ValueError: no arrays, no examples, leaves that are not numbers or differ in their leading axis.
    """

    arrays: PyTree
    decode: Callable[[PyTree], PyTree] = lambda batch: batch
    preprocessing: str = "the arrays as given; what was done to them before is outside this statement"
    public_preprocessing: bool = True

    def __post_init__(self):
        object.__setattr__(self, "arrays", jax.tree_util.tree_map_with_path(_checked, self.arrays))
        leaves = self._named()
        if not leaves:
            raise ValueError("data: holds no arrays; needs a tree of arrays [examples, ...]")
        (first, examples), *others = ((name, len(leaf)) for name, leaf in leaves.items())
        for name, found in others:
            if found != examples:
                raise ValueError(f"{name} has {found} examples, {first} has {examples}: must be as many")
        if not examples:
            raise ValueError(f"{first} has 0 examples: needs at least one example")

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(jax.tree.leaves(self.arrays)[0])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of structure, types, shapes and bytes: whether two runs saw the same.  As private as they."""
        leaves = self._named()
        described = [f"{name} {leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()]
        digest = hashlib.sha256("\n".join([*described, ""]).encode())
        for leaf in leaves.values():
            rows = max(1, _HASHED_AT_ONCE // max(1, leaf[:1].nbytes))
            for start in range(0, len(leaf), rows):
                part = np.ascontiguousarray(leaf[start : start + rows])
                digest.update(part.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def _named(self) -> dict[str, np.ndarray]:
        return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(self.arrays)}


def as_source(data: Any) -> Source:
    """Makes a source of a tree of arrays, or of the training split of a data set: examples `(x, y)`.

    Raises:
      ValueError: as of `Source`.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, Dataset):
        return Source(
            arrays=(data.train_x, data.train_y),
            decode=lambda batch: (data.to_float(batch[0]), batch[1]),
            preprocessing=data.preprocessing,
            public_preprocessing=data.public_preprocessing,
        )
    return Source(arrays=data)


def _name(path) -> str:
    return f"data{jax.tree_util.keystr(path)}"


def _checked(path, leaf: Any) -> np.ndarray:
    """The leaf as an array of numbers in the byte order of this machine."""
    kind = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if not (kind == np.bool_ or jnp.issubdtype(kind, np.number)):
        raise ValueError(f"{_name(path)} is {kind}: leaves are arrays of numbers")
    array = np.asarray(leaf)
    if not array.ndim:
        raise ValueError(f"{_name(path)} is one number: leaves are arrays [examples, ...]")
    held = jax.dtypes.canonicalize_dtype(array.dtype)
    if np.issubdtype(held, np.integer) and held != array.dtype and array.size:
        low, high = np.iinfo(held).min, np.iinfo(held).max
        if array.min() < low or array.max() > high:  # JAX would cut the upper bits off, without a word
            raise ValueError(
                f"{_name(path)} has values {array.min()}..{array.max()}: JAX holds {low}..{high}"
            )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
