"""Norms of sums of outer products, never below the true ones of what is summed."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp.gradients.precision import EXACT, at_least_float32, precision, remainder, unit_roundoff

_CHUNK = 512  # longer sums are split, which bounds their rounding


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
      digits: see `Factored`.
    """

    left: Array
    right: Array
    powers: tuple[Array, Array]
    scale: Array
    unit: Array
    length: Array
    digits: int | None = None

    @classmethod
    def of(cls, left: Array, right: Array, digits: int | None = None) -> "Positions":
        """Of any factors."""
        powers = power_of_rows(left), power_of_rows(right)
        scale, unit = relative(powers[0] * powers[1])
        lengths = [
            jnp.sqrt(jnp.square(divided(x, power)).sum(2))
            for x, power in zip((left, right), powers, strict=True)
        ]
        terms = left.shape[2] + right.shape[2] + left.shape[1]
        length = (scale * lengths[0] * lengths[1]).sum(1) * (1 + terms * unit_roundoff(scale.dtype))
        return cls(left, right, powers, scale, unit, length, digits)

    def by_gram(self) -> tuple[Array, int]:
        """The squared norm [N] as sum_pq (left_p . left_q) (right_p . right_q), and its roundings."""
        (of_left, first), (of_right, second) = (
            inner(x, power, precision(self.digits))
            for x, power in zip((self.left, self.right), self.powers, strict=True)
        )
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
            matrix = jnp.einsum("pk,po->ko", left * scale[:, None], right, precision=precision(self.digits))
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
        slack = ((terms + 8) * unit_roundoff(total.dtype) + remainder(self.digits)) * self.length
        squares = jnp.maximum(total, 0) + slack * self.length if of_square else jnp.square(total + slack)
        return jnp.square(self.unit) * jnp.minimum(squares, jnp.square(self.length))


def inner(x: Array, power: Array, precision: jax.lax.Precision = EXACT) -> tuple[Array, int]:
    """Inner products of the rows of `x` [N, P, K] divided by their powers of two [N, P], as [N, P, P].

    Returns:
      Them, and how many roundings a product passes through on its way into their sum.
    """
    length = x.shape[2]

    def of_columns(start, size):
        part = divided(jax.lax.dynamic_slice_in_dim(x, start, size, 2), power)
        return jnp.einsum("npi,nqi->npq", part, part, precision=precision)

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
