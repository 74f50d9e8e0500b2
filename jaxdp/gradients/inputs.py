"""What per-example gradients are taken of: real parameters, batches of arrays, masks of ones and zeros."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from jaxdp.gradients import factored

_NO_PARAMETERS = ("batch_stats", "cache", "intermediates", "perturbations")


def check_real(**trees: PyTree) -> None:
    """Refuses leaves that are not real floats, by name: what bounds a gradient takes it for a real vector."""
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=factored.is_leaf):
            dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)}={dtype}: must be real floats; give anything else to "
                    "the loss as a part of the example or as a shared argument"
                )


def check_parameters(params: PyTree) -> None:
    """Refuses parameters that are not real floats, and collections that no gradient trains.

    Running means and variances of a batch normalisation have no gradient: all that would move them is noise.
    """
    if isinstance(params, Mapping):
        for name in _NO_PARAMETERS:
            if name in params:
                raise ValueError(
                    f"params[{name!r}]: is no collection of parameters; give variables['params'], and a "
                    "normalisation without running statistics (GroupNorm, LayerNorm)"
                )
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is not None:
        is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
        for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_variable):
            if is_variable(leaf) and not isinstance(leaf, nnx.Param):
                raise ValueError(
                    f"params{jax.tree_util.keystr(path)}={type(leaf).__name__}: is no nnx.Param; split the "
                    "model by nnx.split(model, nnx.Param, ...), and use a normalisation without running "
                    "statistics (GroupNorm, LayerNorm)"
                )
    check_real(params=params)


def batch_size(tree: PyTree, name: str = "batch") -> int:
    """The number of examples in a tree of arrays [B, ...].

    Raises:
      ValueError: a leaf that is no array of numbers or keys, has no axis, or another B; its name.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name}={tree!r}: holds no arrays")
    first: int | None = None
    for path, leaf in leaves:
        shape = getattr(leaf, "shape", ())
        kind = getattr(getattr(leaf, "dtype", None), "kind", "")
        if not shape or (kind and kind in "OUSMm"):
            what = f"{type(leaf).__name__} of shape {shape}" if not shape else f"an array of {leaf.dtype}"
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: is {what}; every leaf must be an array of numbers or "
                "keys [B, ...], one row an example"
            )
        first = int(shape[0]) if first is None else first
        if shape[0] != first:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: has {shape[0]} rows where the first leaf has {first}; "
                "every leaf must be [B, ...], one row an example"
            )
    return first or 0


def as_mask(mask: Any, size: int) -> Bool[Array, " b"]:
    """The mask as booleans; None is all ones.

    Args:
      mask: boolean or of the whole numbers 0 and 1, [B]; traced whole numbers count where they are not 0.
      size: B.

    Raises:
      ValueError: another type, shape or known value.
    """
    if mask is None:
        return jnp.ones(size, bool)
    mask = mask if hasattr(mask, "dtype") else np.asarray(mask)
    if mask.shape != (size,):
        raise ValueError(f"mask: has shape {mask.shape}; must be ({size},), one entry a row of the batch")
    if jnp.issubdtype(mask.dtype, jnp.bool):
        return jnp.asarray(mask)
    known = not isinstance(mask, jax.core.Tracer)
    if not jnp.issubdtype(mask.dtype, jnp.integer) or (known and not np.isin(np.asarray(mask), (0, 1)).all()):
        raise ValueError(f"mask: is {mask.dtype}; must be boolean, or whole numbers 0 and 1")
    return jnp.asarray(mask) != 0
