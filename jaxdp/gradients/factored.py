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

# What bounds an example's part may not be rounded to the 10 bits that some devices multiply float32 with.
EXACT = jax.lax.Precision.HIGHEST
_CHUNK = 512  # longer sums are split, which bounds their rounding


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
    """

    left: Any  # not Float[Array, ...]: as a pytree it may hold anything
    right: Any
    arrange: tuple[tuple[str, Any], ...] = dataclasses.field(metadata=dict(static=True))
    norm: str = dataclasses.field(default="gram", metadata=dict(static=True))

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
        else:
            positions = Positions.of(left, right)
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
        return arranged(jax.lax.dot_general(left, right, numbers, precision=EXACT), self.arrange)

    def dense(self) -> Array:
        matrices = jnp.einsum("...pk,...po->...ko", self.left, self.right, precision=EXACT)
        return jax.vmap(lambda matrix: arranged(matrix, self.arrange))(matrices)


@dataclasses.dataclass(frozen=True)
class Positions:
    """What a norm is computed from: sum_p left_p (x) right_p.

    Every row is divided by a power of two near its largest entry where it is used, not before: a factor may be
    the largest array that there is.

    Attributes:
      left: [N, P, K].
      right: [N, P, O].
      powers: the powers of two of both, [N, P] each.
      scale: [N, P], powers of two: what a position's product is multiplied by once its rows are near 1.
      unit: [N], a power of two by which all is to be multiplied in the end.
      length: [N], the triangle inequality's bound on the norm, without `unit`.
    """

    left: Array
    right: Array
    powers: tuple[Array, Array]
    scale: Array
    unit: Array
    length: Array

    @classmethod
    def of(cls, left: Array, right: Array) -> "Positions":
        """Of any factors."""
        powers = power_of_rows(left), power_of_rows(right)
        scale, unit = relative(powers[0] * powers[1])
        lengths = [
            jnp.sqrt(jnp.square(divided(x, power)).sum(2))
            for x, power in zip((left, right), powers, strict=True)
        ]
        terms = left.shape[2] + right.shape[2] + left.shape[1]
        length = (scale * lengths[0] * lengths[1]).sum(1) * (1 + terms * unit_roundoff(scale.dtype))
        return cls(left, right, powers, scale, unit, length)

    def by_gram(self) -> tuple[Array, int]:
        """The squared norm [N] as sum_pq (left_p . left_q) (right_p . right_q), and its roundings."""
        (of_left, first), (of_right, second) = map(inner, (self.left, self.right), self.powers)
        gram = of_left * of_right
        along = jnp.einsum("npq,nq->np", gram, self.scale, precision=EXACT)
        total = jnp.einsum("np,np->n", along, self.scale, precision=EXACT)
        return total, first + second + 2 * self.left.shape[1]

    def by_building(self, add=None, added: tuple = ()) -> tuple[Array, int]:
        """The norm [N] of the product, built for a few examples at a time and dropped, and its roundings.

        Args:
          add: `(matrix [K, O], *rows) -> matrix`, what to add before the norm is taken.
          added: the rows of all examples, each [N, ...].
        """
        (size, positions, rows), columns = self.left.shape, self.right.shape[2]

        def one(factors):
            left, right, powers, scale, *more = factors
            left, right = map(divided, (left, right), powers)
            matrix = jnp.einsum("pk,po->ko", left * scale[:, None], right, precision=EXACT)
            matrix = add(matrix, *more) if add else matrix
            return jnp.sqrt(jnp.square(matrix).sum(1).sum())

        together = max(1, size * positions * (rows + columns) // max(1, rows * columns))
        factors = (self.left, self.right, self.powers, self.scale, *added)
        norms = jax.vmap(one)(factors) if together >= size else jax.lax.map(one, factors, batch_size=together)
        return norms * (1 + (rows + columns) * unit_roundoff(norms.dtype)), positions

    def rounded_up(self, total: Array, terms: int, *, of_square: bool) -> Array:
        """The squared norm with the most that `terms` roundings of each summand can have taken from it.

        Roundings of a Gram form are of the square, those of an entry of the product are of the norm.
        """
        slack = (terms + 8) * unit_roundoff(total.dtype) * self.length
        squares = jnp.maximum(total, 0) + slack * self.length if of_square else jnp.square(total + slack)
        return jnp.square(self.unit) * jnp.minimum(squares, jnp.square(self.length))


def inner(x: Array, power: Array) -> tuple[Array, int]:
    """Inner products of the rows of `x` [N, P, K] divided by their powers of two [N, P], as [N, P, P].

    Returns:
      Them, and how many roundings a product passes through on its way into their sum.
    """
    length = x.shape[2]

    def of_columns(start, size):
        part = divided(jax.lax.dynamic_slice_in_dim(x, start, size, 2), power)
        return jnp.einsum("npi,nqi->npq", part, part, precision=EXACT)

    chunks, rest = divmod(length, _CHUNK)
    if chunks <= 2:
        return of_columns(0, length), length
    total = of_columns(chunks * _CHUNK, rest) if rest else jnp.zeros((), at_least_float32(x.dtype))
    total += of_columns(0, _CHUNK)
    starts = _CHUNK * jnp.arange(1, chunks)
    return jax.lax.scan(lambda sum_, start: (sum_ + of_columns(start, _CHUNK), None), total, starts)[
        0
    ], _CHUNK + chunks


def divided(x: Array, power: Array) -> Array:
    """`x` [..., P, K] with its rows divided by powers of two [..., P], at least float32."""
    return x.astype(at_least_float32(x.dtype)) * (1 / power)[..., None]


def unit_roundoff(dtype) -> float:
    """The most that one operation rounds by, relative to its result."""
    return float(jnp.finfo(dtype).eps) / 2


def at_least_float32(dtype):
    """The type in which norms and sums are computed."""
    return jnp.promote_types(dtype, jnp.float32)


def power_of_rows(x: Array) -> Array:
    """A power of two near the largest entry of each row of `x` [N, P, K]: [N, P], at least float32.

    None leaves [2^-100, 2^100], so that its inverse and squares of what is divided by it stay in range.
    """
    largest = jnp.abs(x).max(axis=2, initial=0)
    largest = largest.astype(at_least_float32(x.dtype))
    power = jax.lax.reduce_precision(largest, jnp.finfo(largest.dtype).nexp, 0)
    return jnp.clip(power, 2.0**-100, 2.0**100)


def relative(scale: Array) -> tuple[Array, Array]:
    """Powers of two [N, P] divided by the largest of each row, and the largest [N]."""
    largest = jnp.maximum(scale.max(axis=1, initial=0), jnp.finfo(scale.dtype).tiny)
    return scale / largest[:, None], largest


def row_squares(x: Array, axes: int = 1) -> Array:
    """Sum of squares over all axes but the first ones."""
    flat = x.reshape(math.prod(x.shape[:axes]), math.prod(x.shape[axes:]))
    return jnp.einsum("bi,bi->b", flat, flat, precision=EXACT).reshape(x.shape[:axes])


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
