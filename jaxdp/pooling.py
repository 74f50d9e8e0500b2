"""Pooling in the form that a CPU runs fast.

The backward pass of XLA's windowed maximum takes longer than the convolution before it.  Where windows do not
overlap, they are the blocks of a reshape, and the maximum is one over two axes.  The swap is made in the jaxpr
of the loss, as in `jaxdp.convolution`.

Values are the same.  So are gradients, except where several entries of one window are its maximum: XLA gives
all of the gradient to the first of them, here they share it evenly.  Both are subgradients.  Equal entries
after a relu are zeros, which pass no gradient on; equal entries of equal inputs (an image's plain background)
give the parameters the same gradient either way.
"""

import math

import jax.numpy as jnp
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


def as_blocks(equation: JaxprEqn, inputs):
    """The outputs of pooling over disjoint windows, by a reshape; None for any other equation."""
    if not is_blocks(equation):
        return None
    (x,) = inputs
    shape, axes, kept = [], [], []
    for size, window in zip(x.shape, equation.params["window_dimensions"], strict=True):
        kept.append(slice(0, size // window * window))
        shape.append(size // window)
        if window > 1:
            axes.append(len(shape))
            shape.append(window)
    blocks = x[tuple(kept)].reshape(shape)
    return [blocks.sum(axes) if equation.primitive.name == "reduce_window_sum" else blocks.max(axes)]
