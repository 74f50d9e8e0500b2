"""Pooling in the form that a CPU runs fast.

The backward pass of XLA's windowed maximum takes longer than the convolution before it.  Where windows do not
overlap, they are the blocks of a reshape, and the maximum is one over two axes.  The swap is made in the jaxpr
of the loss, as in `jaxdp.convolution`, and gives the same gradient: where several entries of a window are the
maximum, the first takes all of it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn


def is_blocks(equation: JaxprEqn) -> bool:
    """Whether the equation pools disjoint windows: strides as wide as the window, nothing padded or dilated."""
    if equation.primitive.name not in ("reduce_window_max", "reduce_window_sum"):
        return False
    p = equation.params
    return (
        tuple(p["window_dimensions"]) == tuple(p["window_strides"])
        and all(tuple(pads) == (0, 0) for pads in p["padding"])
        and all(d == 1 for d in (*p["base_dilation"], *p["window_dilation"]))
        and math.prod(p["window_dimensions"]) > 1
        and jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating)
    )


def _block_axes(rank: int) -> tuple[int, ...]:
    return tuple(range(1, 2 * rank, 2))


@jax.custom_jvp
def _maximum(x):
    """The maximum over every second axis."""
    return x.max(axis=_block_axes(x.ndim // 2))


@_maximum.defjvp
def _maximum_jvp(primals, tangents):
    """The tangent of the first entry, in row-major order, that equals the maximum."""
    ((x,), (dx,)) = primals, tangents
    axes = _block_axes(x.ndim // 2)
    y = _maximum(x)
    window = [x.shape[axis] for axis in axes]
    place = np.arange(math.prod(window), 0, -1, dtype=np.float32)
    place = place.reshape([size for block in window for size in (1, block)])
    rank = jnp.where(x == jnp.expand_dims(y, axes), place, 0)
    first = (rank == rank.max(axis=axes, keepdims=True)) & (rank > 0)
    return y, jnp.where(first, dx, 0).sum(axis=axes)


def as_blocks(equation: JaxprEqn, inputs):
    """The outputs of pooling over disjoint windows, by a reshape; None for any other equation."""
    if not is_blocks(equation):
        return None
    (x,) = inputs
    window = equation.params["window_dimensions"]
    counts = [size // block for size, block in zip(x.shape, window, strict=True)]
    x = x[tuple(slice(0, n * block) for n, block in zip(counts, window, strict=True))]
    x = x.reshape([size for pair in zip(counts, window, strict=True) for size in pair])
    if equation.primitive.name == "reduce_window_sum":
        return [x.sum(axis=_block_axes(len(counts)))]
    return [_maximum(x)]
