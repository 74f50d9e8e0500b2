"""Pooling in the form that a CPU runs fast.

XLA's `reduce_window` and the scatter behind its derivative take more of a small network's step on a CPU than
its matrix products.  Windows that do not overlap are a reshape, and pooling a reduction over some of its axes;
those that do are shifted slices, combined along one axis after the other.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

WINDOWED = ("reduce_window_max", "reduce_window_sum")


def maximum_by_place(x, axes):
    """The maximum over axes as the entry at its place.

    The derivative of a maximum asks which entries equal it.  On a CPU, XLA computes a cheap operand a second
    time for that question; after a matrix product and a normalisation it rounds differently then, no entry
    is equal, and the gradient is lost.  A place is a whole number, and the same both times.  Where several
    entries are equal the first takes the whole derivative, as in `reduce_window`.
    """
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    rows = x.transpose(*kept, *axes).reshape(*(x.shape[axis] for axis in kept), -1)
    place = jax.lax.stop_gradient(jnp.argmax(rows, axis=-1, keepdims=True))
    chosen = jax.lax.broadcasted_iota(place.dtype, rows.shape, rows.ndim - 1) == place
    return jnp.where(chosen, rows, 0).sum(axis=-1)


def over_windows(equation: JaxprEqn, inputs):
    """The outputs of a maximum or sum over windows of real numbers; None for any other."""
    (x,), p = inputs, equation.params
    window, strides = p["window_dimensions"], p["window_strides"]
    dilated = any(d != 1 for d in (*p["base_dilation"], *p["window_dilation"]))
    empty = any(
        n + low + high < size for n, (low, high), size in zip(x.shape, p["padding"], window, strict=True)
    )
    if dilated or empty or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    largest = equation.primitive.name == "reduce_window_max"
    nothing = jnp.asarray(-jnp.inf if largest else 0, x.dtype)
    x = jax.lax.pad(x, nothing, [(low, high, 0) for low, high in p["padding"]])
    if window == strides:
        return [_over_separate_windows(x, window, largest)]
    for axis in reversed(range(x.ndim)):
        x = _along(x, axis, window[axis], strides[axis], first_larger if largest else jnp.add)
    return [x]


def _over_separate_windows(x, window, largest: bool):
    whole = [n // size for n, size in zip(x.shape, window, strict=True)]
    x = jax.lax.slice(x, [0] * x.ndim, [n * size for n, size in zip(whole, window, strict=True)])
    rows = x.reshape([part for pair in zip(whole, window, strict=True) for part in pair])
    inside = tuple(range(1, rows.ndim, 2))
    return maximum_by_place(rows, inside) if largest else rows.sum(axis=inside)


def _along(x, axis: int, size: int, stride: int, combine):
    """The windows along one axis: those of all axes one after the other are the whole window."""
    length = (x.shape[axis] - size) // stride * stride + 1
    slices = [jax.lax.slice_in_dim(x, k, k + length, stride, axis) for k in range(size)]
    return functools.reduce(combine, slices)


def first_larger(a, b):
    """The larger of two, the first of equal ones, NaN where there is one; it takes the whole derivative."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
