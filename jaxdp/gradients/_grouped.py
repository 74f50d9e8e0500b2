"""Several examples as one: the gradient of a user's examples together, or of all augmentations of one image."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdp import _validate

REDUCTIONS = ("mean", "sum")


def grouped(
    loss_fn: Callable[..., Float[Array, ""]], reduction: str = "mean"
) -> Callable[..., Float[Array, ""]]:
    """The loss of one group from the loss of one example: of `clipped_gradients`, `Plan.gradients` and `train`.

    A group is one row of the batch, so it is drawn, clipped and counted as one example is elsewhere, and what
    the noise protects is the whole group: state it by `Plan(unit="user")`, or what a group stands for.

    Args:
      loss_fn: `(params, example, *shared) -> scalar`.
      reduction: `mean` (a group weighs as much as any other, however many examples it has; copies of one change
        nothing) or `sum`, over the examples of the group, before its gradient is clipped.

    Returns:
      A function `(params, (examples, present), *shared) -> scalar`.  `examples`: a tree of arrays [K, ...];
      `present` [K]: False or 0 for places without an example, whatever stands there.  A group without any has
      the loss 0, and the gradient 0 if that of its first place is finite.

    Formal guarantee: a batch has one clipped gradient a group, whose norm is at most the bound however many
    examples it is of.  It protects whoever has one group, and nobody whose examples stand in several.

    >>> loss = grouped(lambda w, x: (w - x) ** 2)
    >>> float(loss(1.0, (jnp.array([3.0, 3.0, 9.0]), jnp.array([True, True, False]))))
    4.0
    """
    _validate.one_of(REDUCTIONS, reduction=reduction)

    def of_group(params: PyTree, group: Any, *shared: PyTree) -> Float[Array, ""]:
        examples, present = group
        present = jnp.asarray(present) != 0
        first = jnp.argmax(present)

        def filled(x):
            """An example in every place: of what stands in an empty one no gradient need be finite."""
            there = present.reshape(-1, *[1] * (x.ndim - 1))
            return jnp.where(there, x, x[first][None]) if jnp.issubdtype(x.dtype, jnp.number) else x

        examples = jax.tree.map(filled, examples)
        losses = jax.vmap(lambda example: loss_fn(params, example, *shared))(examples)
        total = jnp.sum(losses, where=present)
        return total if reduction == "sum" else total / jnp.maximum(present.sum(), 1)

    return of_group
