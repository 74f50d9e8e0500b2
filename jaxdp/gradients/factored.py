"""Per-example gradients of one parameter: an array [B, ...], or the product that it is.

The gradient of a kernel W used as x @ W is x^T d, with d the cotangent of the product.  For one example it is
a large array made of two small ones, and clipping needs only two things of it, both cheap on the operands: the
squared norm of each example's gradient, and the weighted sum over examples, which is one matrix product
x^T (w d).
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.gradients.positions import Positions, divided, power_of_rows, row_squares
from jaxdp.gradients.precision import EXACT, at_least_float32, in_parts, remainder


class Leaf(abc.ABC):
    """Per-example gradients of one parameter that are not kept as an array [B, ...].

    Formal guarantee: the squared norm is never below that of the exact sums of products of what is kept by more
    than a few units in the last place: whatever rounding may take from it is added.
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the gradients themselves, [B, *parameter shape]."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """Of what is kept of the gradients."""

    @abc.abstractmethod
    def squared_norm(self) -> Float[Array, " b"]:
        """The squared norm of each example's gradient, at least float32."""

    @abc.abstractmethod
    def weighted_sum(self, weights: Float[Array, " b"], keep: Array) -> Array:
        """sum_i weights_i g_i over the examples to keep, in the parameter's shape, at least float32."""

    @abc.abstractmethod
    def dense(self) -> Array:
        """The gradients themselves, [B, *parameter shape]: what a leaf exists to avoid."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored(Leaf):
    """Per-example gradients of one kernel: g_i = arrange(sum_p left_i[p] (x) right_i[p]).

    Attributes:
      left: [B, P, K], or [B, G, P, K] for G kernels side by side, as of scanned layers.
      right: [B, P, O] or [B, G, P, O].
      arrange: how the matrix [K, O], or [G, K, O], becomes the kernel's gradient: ("reshape", shape) and
        ("transpose", permutation) in order.
      norm: `gram`, from inner products of positions, or `built`, from a product that is dropped again.
      digits: of both factors, where they were rounded to what a device multiplies exactly (`as_multiplied`), so
        that the norm is that of what is summed; None where products are asked for in full.
    """

    left: Any  # not Float[Array, ...]: as a pytree it may hold anything
    right: Any
    arrange: tuple[tuple[str, Any], ...] = dataclasses.field(metadata=dict(static=True))
    norm: str = dataclasses.field(default="gram", metadata=dict(static=True))
    digits: int | None = dataclasses.field(default=None, metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, ...]:
        matrix = (*self.left.shape[1:-2], self.left.shape[-1], self.right.shape[-1])
        return arranged_shape(self.left.shape[0], matrix, self.arrange)

    @property
    def dtype(self):
        return jnp.result_type(self.left, self.right)

    def squared_norm(self) -> Float[Array, " b"]:
        """|g_i|^2 by |x|^2 |d|^2 for one position, else from the Gram matrices or the built product.

        The sums may cancel, so the most that they can be off by rounding is added.  Every row is brought near 1
        by a power of two before it is squared, and the powers multiplied in last: a row that is small where
        its partner is large loses nothing.
        """
        left, right = map(_groups_first, (self.left, self.right))
        if left.shape[1] == 1:
            powers = power_of_rows(left), power_of_rows(right)
            left, right = map(divided, (left, right), powers)
            squares = jnp.square((powers[0] * powers[1])[:, 0]) * (row_squares(left) * row_squares(right))
            squares = squares * (1 + remainder(self.digits)) ** 2
        else:
            positions = Positions.of(left, right, self.digits)
            total, terms = positions.by_gram() if self.norm == "gram" else positions.by_building()
            squares = positions.rounded_up(total, terms, of_square=self.norm == "gram")
        return squares.reshape(math.prod(self.left.shape[1:-2]), self.left.shape[0]).sum(0)

    def weighted_sum(self, weights: Float[Array, " b"], keep: Array) -> Array:
        left, right = (kept(f, keep) for f in (self.left, self.right))
        if left.shape[-1] < right.shape[-1]:
            left = left * over_rows(weights, left)
        else:
            right = right * over_rows(weights, right)
        groups = tuple(range(1, left.ndim - 2))
        summed = (0, left.ndim - 2)
        numbers = ((summed, summed), (groups, groups))
        if self.digits is None:
            return arranged(jax.lax.dot_general(left, right, numbers, precision=EXACT), self.arrange)
        weighted, as_it_is = (0, right) if left.shape[-1] < right.shape[-1] else (1, left)
        total: Any = 0
        for part in in_parts((left, right)[weighted], self.digits):
            pair = (part, as_it_is) if weighted == 0 else (as_it_is, part)
            total = total + jax.lax.dot_general(*pair, numbers, preferred_element_type=part.dtype)
        return arranged(total, self.arrange)

    def dense(self) -> Array:
        matrices = jnp.einsum("...pk,...po->...ko", self.left, self.right, precision=EXACT)
        return jax.vmap(lambda matrix: arranged(matrix, self.arrange))(matrices)


def _groups_first(x: Array) -> Array:
    """[B, G, P, K] as [G B, P, K], the order in which a loop over layers makes them; [B, P, K] as it is."""
    return x if x.ndim == 3 else x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def over_rows(weights: Array, x: Array) -> Array:
    """Weights [B] so that they multiply the rows of `x` [B, ...]."""
    return weights.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)


def kept(x: Array, keep: Array) -> Array:
    """The rows of `x` to keep, zero for the others whatever they contain, at least float32."""
    return jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, 0).astype(at_least_float32(x.dtype))


def arranged(matrix: Array, arrange) -> Array:
    """The matrix laid out as the parameter is."""
    for operation, argument in arrange:
        matrix = matrix.reshape(argument) if operation == "reshape" else matrix.transpose(argument)
    return matrix


def arranged_shape(size: int, matrix: tuple[int, ...], arrange) -> tuple[int, ...]:
    """The shape of `size` such matrices, laid out."""
    of_one = jax.eval_shape(lambda: arranged(jnp.zeros(matrix), arrange)).shape
    return (size, *of_one)


def is_leaf(x: Any) -> bool:
    """Whether `x` is a leaf that is no array: for `jax.tree` functions over per-example gradients."""
    return isinstance(x, Leaf)


def squared_norm(leaf: Array | Leaf) -> Float[Array, " b"]:
    """The squared L2 norm of each example's gradient of one parameter, at least in float32."""
    if isinstance(leaf, Leaf):
        return leaf.squared_norm()
    return row_squares(leaf.astype(at_least_float32(leaf.dtype)))


def weighted_sum(leaf: Array | Leaf, weights: Float[Array, " b"], keep: Array) -> Array:
    """The sum over examples, each times its weight, in the parameter's shape and at least float32.

    Args:
      leaf: per-example gradients of one parameter.
      weights: [B].
      keep: boolean [B]; an example that is not kept adds nothing, whatever it contains (NaN too).
    """
    if isinstance(leaf, Leaf):
        return leaf.weighted_sum(weights, keep)
    flat = leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))
    flat = jnp.where(keep[:, None], flat, 0).astype(at_least_float32(leaf.dtype))
    return jnp.matmul(weights.astype(flat.dtype), flat, precision=EXACT).reshape(leaf.shape[1:])
