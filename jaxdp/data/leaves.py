"""The arrays of a tree of examples: which are taken, their names, and what identifies them."""

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

_HASHED_AT_ONCE = 1 << 24  # bytes, so that memory-mapped arrays stay on disk


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves by their place in the tree."""
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def name(path) -> str:
    """The place of a leaf in words."""
    return f"data{jax.tree_util.keystr(path)}"


def check_as_many(leaves: dict[str, Any]) -> None:
    """Refuses no arrays, no examples, and arrays that differ in their leading axis."""
    if not leaves:
        raise ValueError("data: holds no arrays; needs a tree of arrays [examples, ...]")
    (first, examples), *others = ((name, len(leaf)) for name, leaf in leaves.items())
    for other, found in others:
        if found != examples:
            raise ValueError(f"{other} has {found} examples, {first} has {examples}: must be as many")
    if not examples:
        raise ValueError(f"{first} has 0 examples: needs at least one example")


def checked(path, leaf: Any) -> np.ndarray:
    """The leaf as an array of numbers in the byte order of this machine."""
    kind = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if not (kind == np.bool_ or jnp.issubdtype(kind, np.number)):
        raise ValueError(f"{name(path)} is {kind}: leaves are arrays of numbers")
    array = np.asarray(leaf)
    if not array.ndim:
        raise ValueError(f"{name(path)} is one number: leaves are arrays [examples, ...]")
    held = jax.dtypes.canonicalize_dtype(array.dtype)
    if np.issubdtype(held, np.integer) and held != array.dtype and array.size:
        low, high = np.iinfo(held).min, np.iinfo(held).max
        if array.min() < low or array.max() > high:  # JAX would cut the upper bits off, without a word
            raise ValueError(f"{name(path)} has values {array.min()}..{array.max()}: JAX holds {low}..{high}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def fingerprint(leaves: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    described = [f"{name} {leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()]
    digest = hashlib.sha256("\n".join([*described, ""]).encode())
    for leaf in leaves.values():
        for part in _pieces(leaf):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            released(leaf)
    return digest.hexdigest()


def _pieces(leaf: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, _HASHED_AT_ONCE // max(1, leaf[:1].nbytes))
    return (leaf[start : start + rows] for start in range(0, len(leaf), rows))


def released(leaf: Any) -> None:
    """Lets the system take the memory back that holds what was read of a memory-mapped file.

    Nothing is lost: what is asked for again is read again, mostly from the system's own cache.  A map whose
    changes go to no file (`mode="c"`) is left alone.
    """
    mapped = leaf
    while isinstance(mapped, np.ndarray) and not isinstance(mapped, np.memmap):
        mapped = mapped.base
    if not isinstance(mapped, np.memmap) or mapped.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    while isinstance(mapped, np.ndarray):
        mapped = mapped.base
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)


def check_ids(ids: Sequence[Any] | np.ndarray, examples: int, unit: str) -> None:
    """Refuses rows of which two belong to one unit: the claim would be for half of it.

    Raises:
      ValueError: not one id a row, or one that stands twice; its rows.
    """
    names = np.asarray(ids)
    if names.shape != (examples,):
        raise ValueError(f"ids={list(names.shape)}: needs one for each of {examples} rows")
    distinct, counts = np.unique(names, return_counts=True)
    if distinct.size < examples:
        twice = distinct[counts > 1][0]
        rows = np.flatnonzero(names == twice)[:2].tolist()
        raise ValueError(
            f"ids: {unit} {twice!r} has the rows {rows[0]} and {rows[1]}; one {unit} must be one row, see "
            "jaxdp.data.grouped"
        )
