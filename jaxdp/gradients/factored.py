"""Per-example gradients of one parameter: an array [B, ...], or the product that it is.

The gradient of a kernel W used as x @ W is x^T d, with d the cotangent of the product.  For one example it is
a large array made of two small ones, and clipping needs only two things of it, both cheap on the operands: the
squared norm of each example's gradient, and the weighted sum over examples, which is one matrix product
x^T (w d).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# What bounds an example's part may not be rounded to the 10 bits that some devices multiply float32 with.
_EXACT = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """Per-example gradients of one kernel: g_i = arrange(sum_p left_i[p] (x) right_i[p]).

    Attributes:
      left: [B, P, K].
      right: [B, P, O].
      arrange: how the [K, O] matrix becomes the kernel's gradient: ("reshape", shape), ("transpose",
        permutation) and ("dtype", name) in order.
    """

    left: Any  # not Float[Array, ...]: as a pytree it may hold anything
    right: Any
    arrange: tuple[tuple[str, Any], ...] = dataclasses.field(metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the gradients themselves, [B, *kernel shape]."""
        kernel = jax.eval_shape(
            lambda: _arranged(jnp.zeros((self.left.shape[2], self.right.shape[2])), self.arrange)
        )
        return (self.left.shape[0], *kernel.shape)

    def squared_norm(self) -> Float[Array, " b"]:
        """|g_i|^2 by |x|^2 |d|^2 for one position, else by the Gram matrices of the positions.

        The Gram form sums terms that may cancel, so the most that its sums can be off by rounding is added: the
        result is never below the true squared norm by more than a few units in the last place.  Every row is
        brought near 1 by a power of two before it is squared, and the powers multiplied in last: a row that is
        small where its partner is large loses nothing.
        """
        (left, of_left), (right, of_right) = (_near_one(f) for f in (self.left, self.right))
        scale = of_left * of_right  # [B, P], of each position
        if left.shape[1] == 1:
            return jnp.square(scale[:, 0]) * (_row_squares(left) * _row_squares(right))
        largest = jnp.maximum(scale.max(axis=1), jnp.finfo(scale.dtype).tiny)
        left = left * (scale / largest[:, None])[..., None]
        lengths = [jnp.sqrt(jnp.einsum("bpi,bpi->bp", f, f, precision=_EXACT)) for f in (left, right)]
        bound = jnp.square(jnp.einsum("bp,bp->b", *lengths, precision=_EXACT))  # triangle inequality
        gram_left, gram_right = (jnp.einsum("bpi,bqi->bpq", f, f, precision=_EXACT) for f in (left, right))
        summed = (gram_left * gram_right).sum((1, 2))
        (_, positions, rows), columns = left.shape, right.shape[2]
        rounding = (rows + columns + positions**2) * jnp.finfo(bound.dtype).eps * bound
        return jnp.square(largest) * jnp.minimum(jnp.maximum(summed, 0) + rounding, bound)

    def weighted_sum(self, weights: Float[Array, " b"], keep: Array) -> Array:
        """sum_i weights_i g_i over the examples to keep, in the kernel's shape."""
        left, right = (
            jnp.where(keep[:, None, None], f, 0).astype(_at_least_float32(f.dtype))
            for f in (self.left, self.right)
        )
        if left.shape[2] < right.shape[2]:
            left = left * weights[:, None, None].astype(left.dtype)
        else:
            right = right * weights[:, None, None].astype(right.dtype)
        matrix = jax.lax.dot_general(left, right, (((0, 1), (0, 1)), ((), ())), precision=_EXACT)
        return _arranged(matrix, self.arrange)

    def dense(self) -> Array:
        """The gradients themselves, [B, *kernel shape]: what this class exists to avoid."""
        matrices = jnp.einsum("bpk,bpo->bko", self.left, self.right, precision=_EXACT)
        return jax.vmap(lambda matrix: _arranged(matrix, self.arrange))(matrices)


def _at_least_float32(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _near_one(x: Array) -> tuple[Array, Array]:
    """`x` [B, P, K] with each row divided by a power of two near its largest entry, and those powers [B, P].

    At least float32.  No power leaves [2^-100, 2^100], so that its inverse and the squares stay in range.
    """
    x = x.astype(_at_least_float32(x.dtype))
    largest = jnp.abs(x).max(axis=2, initial=0)
    power = jax.lax.reduce_precision(largest, jnp.finfo(x.dtype).nexp, 0)
    power = jnp.clip(power, 2.0**-100, 2.0**100)
    return x * (1 / power)[..., None], power


def _row_squares(x: Array) -> Array:
    """Sum of squares over all axes but the first."""
    x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    return jnp.einsum("bi,bi->b", x, x, precision=_EXACT)


def _arranged(matrix: Array, arrange) -> Array:
    for operation, argument in arrange:
        matrix = matrix.reshape(argument) if operation == "reshape" else matrix.transpose(argument)
    return matrix


def is_leaf(x: Any) -> bool:
    """Whether `x` is a factored leaf: for `jax.tree` functions over per-example gradients."""
    return isinstance(x, Factored)


def squared_norm(leaf: Array | Factored) -> Float[Array, " b"]:
    """The squared L2 norm of each example's gradient of one parameter, at least in float32."""
    if isinstance(leaf, Factored):
        return leaf.squared_norm()
    return _row_squares(leaf.astype(_at_least_float32(leaf.dtype)))


def weighted_sum(leaf: Array | Factored, weights: Float[Array, " b"], keep: Array) -> Array:
    """The sum over examples, each times its weight, in the parameter's shape and at least float32.

    Args:
      leaf: per-example gradients of one parameter.
      weights: [B].
      keep: boolean [B]; an example that is not kept adds nothing, whatever it contains (NaN too).
    """
    if isinstance(leaf, Factored):
        return leaf.weighted_sum(weights, keep)
    flat = leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))
    flat = jnp.where(keep[:, None], flat, 0).astype(_at_least_float32(leaf.dtype))
    return jnp.matmul(weights.astype(flat.dtype), flat, precision=_EXACT).reshape(leaf.shape[1:])
