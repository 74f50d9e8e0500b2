"""Convolutions of two arrays that both belong to an example, as matrix products.

The gradient of a convolution's kernel is a convolution of the input with the cotangent.  Both differ from
example to example, and `vmap` makes of it one convolution with as many groups as examples, the slowest that
there is on a GPU.  Any convolution is also a sum over windows, so here it is one matrix product for each
example (and group).  Convolutions with a kernel that all examples share stay what the device is fast at.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Shaped

from jaxdp.gradients import jaxprs

NAME = "conv_general_dilated"
_LOOPS = ("scan", "while", "cond")


def shifted(x, starts, counts, steps, apart):
    """Strided pieces of `x`, side by side along its last axis.

    Built one axis after the other, so that a K x K window costs 2 K slices and not K^2.

    Args:
      x: [first, *space, last].
      starts: number of pieces along each axis of space.
      counts: length of a piece along each.
      steps: stride within a piece along each.
      apart: from the start of one piece to the next along each.

    Returns:
      [first, *counts, prod(starts) * last], the last axis ordered as (*starts, last).
    """
    for axis in reversed(range(1, len(starts) + 1)):
        number, count, step, distance = (of[axis - 1] for of in (starts, counts, steps, apart))
        slices = [
            jax.lax.slice_in_dim(x, k * distance, k * distance + (count - 1) * step + 1, step, axis)
            for k in range(number)
        ]
        x = slices[0] if number == 1 else jnp.concatenate(slices, axis=-1)
    return x


class Form:
    """How a convolution is summed: as [groups, K, O] = left^T right, over P.

    Where the output has fewer places than the window (the gradient of a kernel) a row of `left` is all that a
    place of the output sees at one place of the window, and K = (places, batch); else the usual patches, and
    K = (batch, places).

    Attributes:
      rows, columns, positions: K, O and P.
      groups: feature groups or batch groups.
      arrange: how the matrix [K, O] of a convolution without groups becomes its output, as in `Factored`.
    """

    def __init__(self, equation: JaxprEqn):
        self._params = p = equation.params
        operands: Sequence[Any] = [*equation.invars, *equation.outvars]
        lhs, rhs, out = (operand.aval.shape for operand in operands)
        numbers = p["dimension_numbers"]
        self._lhs, self._rhs, self._out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        self._window = tuple(rhs[axis] for axis in self._rhs[2:])
        self._places = tuple(out[axis] for axis in self._out[2:])
        self._batch, features = out[self._out[0]], out[self._out[1]]
        self._of_kernel = math.prod(self._places) < math.prod(self._window)
        self.groups = p["feature_group_count"] * p["batch_group_count"]
        self.positions = math.prod(self._window) * rhs[self._rhs[1]]
        self.rows, self.columns = self._batch * math.prod(self._places), features // self.groups
        self.empty = 0 in (*lhs, *rhs, *out)

    def matrices(self, lhs: Array, rhs: Array) -> tuple[Array, Array]:
        """The operands as [groups, P, K] and [groups, P, O]."""
        return self._windows(lhs), self._kernel(rhs)

    def _windows(self, x):
        p, g, (batch, feature, *space) = self._params, self.groups, self._lhs
        first, last = (feature, batch) if self._of_kernel else (batch, feature)
        x = x.transpose(first, *space, last)
        dilated = [(low, high, d - 1) for (low, high), d in zip(p["padding"], p["lhs_dilation"], strict=True)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *dilated, (0, 0, 0)])
        window, strides = (self._window, p["rhs_dilation"]), (self._places, p["window_strides"])
        (number, apart), (count, step) = (strides, window) if self._of_kernel else (window, strides)
        x = shifted(x, number, count, step, apart)  # (first, counts) x (numbers, last)
        grouped_first = self._of_kernel == (p["feature_group_count"] > 1)
        if grouped_first or g == 1:
            x = x.reshape(g, -1, x.shape[-1])
        else:
            x = x.reshape(math.prod(x.shape[:-1]), math.prod(number), g, -1).transpose(2, 0, 1, 3)
            x = x.reshape(g, x.shape[1], -1)
        return x if self._of_kernel else x.transpose(0, 2, 1)

    def _kernel(self, x):
        features, channel, *space = self._rhs
        x = x.transpose(*((channel, *space) if self._of_kernel else (*space, channel)), features)
        return x.reshape(self.positions, self.groups, self.columns).transpose(1, 0, 2)

    @property
    def arrange(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        axes = len(self._places)
        if self._of_kernel:
            shape, order = (*self._places, self._batch), (axes, *range(axes))
        else:
            shape, order = (self._batch, *self._places), tuple(range(axes + 1))
        order = (*order, axes + 1)  # [batch, *places, features] of `shape` and features
        layout = (self._out[0], *self._out[2:], self._out[1])
        return (
            ("reshape", (*shape, self.columns * self.groups)),
            ("transpose", tuple(order[layout.index(axis)] for axis in range(axes + 2))),
        )

    def product(self, lhs: Array, rhs: Array) -> Array:
        """The convolution."""
        left, right = self.matrices(lhs, rhs)
        p = self._params
        matrix = jax.lax.dot_general(
            left, right, (((1,), (1,)), ((0,), (0,))), precision=p["precision"],
            preferred_element_type=p["preferred_element_type"],
        )  # fmt: skip
        (_, shape), (_, order) = self.arrange
        return matrix.transpose(1, 0, 2).reshape(shape).transpose(order)


def of_an_example(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
    """The outputs of a convolution, under `vmap` as a product where both operands differ; else None.

    A rule for `jaxprs.evaluate`; convolutions in loops and branches too.
    """
    if equation.primitive.name in _LOOPS and _contains(equation):
        return jaxprs.bind_rewritten(equation, inputs, of_an_example)
    if equation.primitive.name != NAME or Form(equation).empty:
        return None

    @jax.custom_batching.custom_vmap
    def convolution(lhs: Shaped[Array, "..."], rhs: Shaped[Array, "..."]):
        return jaxprs.bind(equation, [lhs, rhs])[0]

    @convolution.def_vmap
    def _(axis_size, in_batched, lhs, rhs):
        one = Form(equation).product if all(in_batched) else convolution.fun
        return jax.vmap(one, [0 if batched else None for batched in in_batched])(lhs, rhs), True

    return [convolution(*inputs)]


def _contains(equation: JaxprEqn) -> bool:
    return any(inner.primitive.name == NAME for inner in jaxprs.inside(equation))
