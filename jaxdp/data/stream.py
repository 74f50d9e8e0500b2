"""Training examples that stay where they are, on disk or behind an object, and are read batch by batch.

>>> stream = Stream(rows=[(np.ones(4, np.float32) * i, i) for i in range(6)].__getitem__)
Traceback (most recent call last):
ValueError: rows=builtin_function_or_method: needs arrays, or an object with __len__ and __getitem__
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree

from jaxdp.data import leaves

_HASHED_AT_ONCE = 256  # examples
_ALIGNMENT = 64  # bytes
_MAPPED_ROWS = 64  # of a file, before its memory is given back: a row may bring 2 MB of surroundings with it


def is_read_by_rows(data: Any) -> bool:
    """Whether data are to be read batch by batch: memory-mapped arrays, and objects that are no arrays."""
    parts = jax.tree.leaves(data)
    if any(isinstance(part, np.memmap) for part in parts):
        return True
    return len(parts) == 1 and parts[0] is data and not hasattr(data, "dtype") and _has_rows(data)


def _has_rows(data: Any) -> bool:
    return hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, str | bytes)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Training examples that are read when a batch of them is drawn.

    Attributes:
      rows: a tree of arrays [n, ...], memory-mapped or with rows by an ascending array of numbers as those of
        HDF5 and Zarr have; or an object with `__len__` and `__getitem__`, number -> example, and, where it has
        it, `__getitems__`, list of numbers -> list of examples.  Examples are trees of arrays and numbers, all
        of one structure, shapes and types, the same each time they are read.
      decode, preprocessing, public_preprocessing, unit, ids: see `Source`.
      digest: what identifies the examples, in the caller's words, where reading all of them would take too
        long; None for the SHA-256 of all of them, for which a run that keeps checkpoints reads them once.

    Raises:
      ValueError: nothing that can be read by rows, no examples, leaves that are not numbers or differ in their
        leading axis.

    Which examples a step takes must stay secret, and shows in what is read: keep a storage's log as private as
    the data.
    """

    rows: Any
    decode: Callable[[PyTree], PyTree] = lambda batch: batch
    preprocessing: str = "the examples as given; what was done to them before is outside this statement"
    public_preprocessing: bool = True
    digest: str | None = None
    unit: str | None = None
    ids: Any = None

    def __post_init__(self):
        parts = leaves.named(self.rows)
        if parts and all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in parts.values()):
            here = lambda path, leaf: leaves.checked(path, leaf) if isinstance(leaf, np.ndarray) else leaf  # noqa: E731
            object.__setattr__(self, "rows", jax.tree_util.tree_map_with_path(here, self.rows))
            leaves.check_as_many(parts)
        elif not (len(parts) == 1 and _has_rows(self.rows)):
            raise ValueError(
                f"rows={type(self.rows).__name__}: needs arrays, or an object with __len__ and __getitem__"
            )
        elif not len(self.rows):
            raise ValueError("data has 0 examples: needs at least one example")
        if self.ids is not None:
            leaves.check_ids(self.ids, self.examples, self.unit or "example")
        _ = self.example  # or an error

    @property
    def _in_arrays(self) -> bool:
        return all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in jax.tree.leaves(self.rows))

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(jax.tree.leaves(self.rows)[0])

    @functools.cached_property
    def example(self) -> PyTree:
        """Shapes and types of one example, as JAX holds it."""
        first = self._read(np.zeros(1, np.int64))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), first)

    @property
    def fingerprint(self) -> str:
        """`digest`, or a SHA-256 of all as they are now: whether two runs saw the same examples.  As private as
        they.
        """
        if self.digest is not None:
            return f"given: {self.digest}"
        if all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(self.rows)):
            return leaves.fingerprint(leaves.named(self.rows))
        digest = hashlib.sha256(f"{self.examples} {self.example}".encode())
        for start in range(0, self.examples, _HASHED_AT_ONCE):
            part = self.read(np.arange(start, min(start + _HASHED_AT_ONCE, self.examples)))
            for leaf in jax.tree.leaves(part):
                digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def read(self, indices: Int[np.ndarray, " b"]) -> PyTree:
        """The examples of these numbers, in this order, each read once: a tree of arrays [b, ...].

        Raises:
          ValueError: an example that is not like the first one.
        """
        found = self._read(indices)
        expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), self.example)
        if jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), found) != expected:
            raise ValueError(f"data: an example is not like the first one, {self.example}")
        return found

    def _read(self, indices: np.ndarray) -> PyTree:
        if self._in_arrays:
            found = jax.tree.map(lambda leaf: _taken(leaf, indices), self.rows)
        else:
            distinct, places = np.unique(indices, return_inverse=True)
            found = jax.tree.map(
                lambda leaf: leaf.take(places, axis=0), _stacked(self._examples(distinct.tolist()))
            )
        return jax.tree_util.tree_map_with_path(_held, found)

    def _examples(self, numbers: list[int]) -> list[PyTree]:
        several = getattr(self.rows, "__getitems__", None)
        return [self.rows[i] for i in numbers] if several is None else list(several(numbers))


def _taken(leaf: Any, indices: np.ndarray) -> np.ndarray:
    if isinstance(leaf, np.ndarray) and leaf.flags.c_contiguous and leaf.flags.aligned:
        out = _aligned((len(indices), *leaf.shape[1:]), leaf.dtype)
        for start in range(0, len(indices), _MAPPED_ROWS):
            part = slice(start, start + _MAPPED_ROWS)
            leaf.take(indices[part], axis=0, out=out[part], mode="clip")  # other modes fill a buffer first
            leaves.released(leaf)
        return out
    distinct, places = np.unique(indices, return_inverse=True)
    return np.asarray(leaf[distinct]).take(places, axis=0)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that JAX takes on a CPU as it is, without copying it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _stacked(examples: list[PyTree]) -> PyTree:
    """Examples as arrays with one more axis."""
    first = jax.tree.structure(examples[0])
    for example in examples:
        if jax.tree.structure(example) != first:
            raise ValueError(f"data: an example is {jax.tree.structure(example)}, another one {first}")
    try:
        return jax.tree.map(lambda *parts: np.stack([np.asarray(part) for part in parts]), *examples)
    except ValueError as error:
        raise ValueError(f"data: examples differ in their shapes ({error})") from error


def _held(path, leaf: np.ndarray) -> np.ndarray:
    """The leaf in the type in which JAX holds it."""
    array = leaves.checked(path, leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
