"""Per-example gradients of one parameter: an array [B, ...], or the product that it is.

The gradient of a kernel W used as x @ W is x^T d, with d the cotangent of the product.  For one example it is
a large array made of two small ones, and clipping needs only two things of it, both cheap on the operands: the
squared norm of each example's gradient, and the weighted sum over examples, which is one matrix product
x^T (w d).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

# A factor with a larger squared norm counts as not finite: with both factors below, an underflow in one cannot
# hide a large gradient (the error stays below 1e-19 * 1e12 per entry).
_FACTOR_LIMIT = 1e24

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

    def squared_norm(self) -> Float[Array, " b"]:
        """|g_i|^2 by |x|^2 |d|^2 for one position, else by the Gram matrices of the positions.

        The Gram form sums terms that may cancel, so the most that its sums can be off by rounding is added: the
        result is never below the true squared norm by more than a few units in the last place.  Factors out of
        range give inf.
        """
        left, right = (f.astype(_at_least_float32(f.dtype)) for f in (self.left, self.right))
        of_left, of_right = _row_squares(left), _row_squares(right)
        bound = of_left * of_right
        if left.shape[1] > 1:
            (_, positions, rows), columns = left.shape, right.shape[2]
            lengths = [jnp.sqrt(jnp.einsum("bpi,bpi->bp", f, f, precision=_EXACT)) for f in (left, right)]
            bound = jnp.square(jnp.einsum("bp,bp->b", *lengths, precision=_EXACT))  # triangle inequality
            gram_left, gram_right = (
                jnp.einsum("bpi,bqi->bpq", f, f, precision=_EXACT) for f in (left, right)
            )
            summed = (gram_left * gram_right).sum((1, 2))
            rounding = (rows + columns + positions**2) * jnp.finfo(bound.dtype).eps * bound
            bound = jnp.minimum(jnp.maximum(summed, 0) + rounding, bound)
        in_range = (of_left < _FACTOR_LIMIT) & (of_right < _FACTOR_LIMIT)
        return jnp.where(in_range, bound, jnp.inf)

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
        matrices = jnp.einsum("bpk,bpo->bko", self.left, self.right)
        return jax.vmap(lambda matrix: _arranged(matrix, self.arrange))(matrices)


def _at_least_float32(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _row_squares(x: Array) -> Array:
    """Sum of squares over all axes but the first."""
    x = x.reshape(x.shape[0], -1)
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
    flat = leaf.reshape(leaf.shape[0], -1)
    flat = jnp.where(keep[:, None], flat, 0).astype(_at_least_float32(leaf.dtype))
    return (weights.astype(flat.dtype) @ flat).reshape(leaf.shape[1:])


def batch_size(grads: PyTree) -> int:
    """The number of examples in a tree of per-example gradients."""
    return jax.tree.leaves(grads)[0].shape[0]
