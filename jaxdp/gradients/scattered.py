"""Per-example gradients of a table that was read by rows: an embedding, also where it is the output too.

The gradient of table[ids] is a scatter of the cotangent's rows, at most as many as the example has tokens.  A
table that is also multiplied with (tied to the output) has a matrix product on top, and |a + b|^2 is
|a|^2 + |b|^2 + 2 <a, b>, where <scatter(ids, r), l^T h> = sum_pq (r_p . h_q) l[q, ids_p].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.gradients import factored
from jaxdp.gradients.factored import Leaf
from jaxdp.gradients.positions import Positions, divided, power_of_rows, relative, row_squares
from jaxdp.gradients.precision import EXACT, precision, unit_roundoff


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scattered(Leaf):
    """Per-example gradients of one table: g_i = arrange(sum_p e(ids_i[p]) (x) rows_i[p]), e the unit vectors.

    Attributes:
      ids: whole numbers [B, T]; what is not in [0, size) adds nothing.
      rows: [B, T, O].
      size: K, the rows of the table.
      arrange: how the matrix [K, O] becomes the table's gradient, see `Factored`.
    """

    ids: Any
    rows: Any
    size: int = dataclasses.field(metadata=dict(static=True))
    arrange: tuple[tuple[str, Any], ...] = dataclasses.field(metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, ...]:
        return factored.arranged_shape(self.ids.shape[0], (self.size, self.rows.shape[-1]), self.arrange)

    @property
    def dtype(self):
        return self.rows.dtype

    def squared_norm(self) -> Float[Array, " b"]:
        """The sum of squares of the table's rows, each the sum of the rows of equal ids.

        What is added for rounding is nothing where all ids of an example differ.
        """
        rows = self._inside()
        power = power_of_rows(rows)
        scale, unit = relative(power)
        return jnp.square(unit) * _squares_of_equal_ids(self.ids, divided(rows, power) * scale[..., None])

    def weighted_sum(self, weights: Float[Array, " b"], keep: Array) -> Array:
        return factored.arranged(self.scattered_onto(0, weights, keep), self.arrange)

    def scattered_onto(self, matrix: Array | int, weights: Array, keep: Array) -> Array:
        """The weighted sum as the matrix [K, O], on top of another: one scatter-add over the batch."""
        rows = factored.kept(self.rows, keep)
        rows = rows * factored.over_rows(weights, rows)
        if isinstance(matrix, int):
            matrix = jnp.zeros((self.size, rows.shape[-1]), rows.dtype)
        return add_rows(matrix, self.ids.reshape(-1), rows.reshape(-1, rows.shape[-1]))

    def dense(self) -> Array:
        def one(ids, rows):
            return factored.arranged(
                add_rows(jnp.zeros((self.size, rows.shape[-1]), rows.dtype), ids, rows), self.arrange
            )

        return jax.vmap(one)(self.ids, self.rows)

    def _inside(self) -> Array:
        """The rows, zero where their id is none of the table's."""
        inside = (self.ids >= 0) & (self.ids < self.size)
        return jnp.where(inside[..., None], self.rows, 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tied(Leaf):
    """Per-example gradients of a table that is read by rows and multiplied with: the sum of both parts.

    Attributes:
      read: what the rows get, [K, O].
      product: what the product gets, [K, O] too and laid out as `read` is; its `norm` is that of the sum.
    """

    read: Scattered
    product: factored.Factored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.read.shape

    @property
    def dtype(self):
        return jnp.result_type(self.read.rows, self.product.left, self.product.right)

    def squared_norm(self) -> Float[Array, " b"]:
        """From inner products of positions, or from the sum built for a few examples at a time and dropped."""
        rows, length, product = self._on_one_scale()
        ids = self.read.ids
        both = dataclasses.replace(product, length=length + product.length)
        if self.product.norm == "built":
            norm, terms = product.by_building(add_rows, (ids, rows))
            return both.rounded_up(norm, terms + ids.shape[1], of_square=False)
        square, terms = product.by_gram()
        left, right = map(divided, (_columns(product.left, ids), product.right), product.powers)
        asked = precision(self.product.digits)
        cross = jnp.einsum("bpi,bti->bpt", right, rows, precision=asked) * left
        cross = jnp.einsum("bp,bp->b", cross.sum(2), product.scale, precision=EXACT)
        square = square + _squares_of_equal_ids(ids, rows) + 2 * cross
        terms += rows.shape[2] + ids.shape[1] + product.left.shape[1]
        return both.rounded_up(square, terms, of_square=True)

    def weighted_sum(self, weights: Float[Array, " b"], keep: Array) -> Array:
        matrix = dataclasses.replace(self.product, arrange=()).weighted_sum(weights, keep)
        return factored.arranged(self.read.scattered_onto(matrix, weights, keep), self.read.arrange)

    def dense(self) -> Array:
        return self.read.dense() + self.product.dense()

    def _on_one_scale(self) -> tuple[Array, Array, Positions]:
        """The rows and the sum of their lengths, and the product's positions, all in the same unit."""
        product = Positions.of(self.product.left, self.product.right, self.product.digits)
        rows = self.read._inside()
        power = power_of_rows(rows)
        unit = jnp.maximum(product.unit, power.max(axis=1, initial=0))
        rows = divided(rows, power) * (power / unit[:, None])[..., None]
        terms = rows.shape[2] + rows.shape[1]
        length = jnp.sqrt(row_squares(rows, 2)).sum(1) * (1 + terms * unit_roundoff(rows.dtype))
        shrink = product.unit / unit
        scale = product.scale * shrink[:, None]
        product = dataclasses.replace(product, scale=scale, unit=unit, length=product.length * shrink)
        return rows, length, product


def _columns(left: Array, ids: Array) -> Array:
    """The columns [B, P, T] of `left` [B, P, K] that ids [B, T] name, zero where they name none."""
    return jax.vmap(lambda x, ids: x.at[:, _checked(ids, x.shape[1])].get(mode="fill", fill_value=0))(
        left, ids
    )


def _checked(ids: Array, size: int) -> Array:
    """Ids, those that are none of the table's set to its size: `.at` would count negative ones from the end."""
    return jnp.where((ids >= 0) & (ids < size), ids, size)


def add_rows(matrix: Array, ids: Array, rows: Array) -> Array:
    """Rows added to those of a table [K, O] that ids name; what names none adds nothing."""
    return matrix.at[_checked(ids, matrix.shape[0])].add(rows.astype(matrix.dtype), mode="drop")


def _squares_of_equal_ids(ids: Array, rows: Array) -> Array:
    """|scatter(ids, rows)|^2 of each example, from ids [B, T] and rows [B, T, O], rounding added."""
    size, tokens = ids.shape
    order = jnp.argsort(ids, axis=1)
    ids = jnp.take_along_axis(ids, order, axis=1)
    rows = jnp.take_along_axis(rows, order[..., None], axis=1)
    first = jnp.concatenate([jnp.ones((size, 1), bool), ids[:, 1:] != ids[:, :-1]], axis=1)
    place = jnp.cumsum(first, axis=1) - 1 + tokens * jnp.arange(size)[:, None]  # among all examples' rows
    sums = (
        jnp.zeros((size * tokens, rows.shape[2]), rows.dtype)
        .at[place.reshape(-1)]
        .add(rows.reshape(-1, rows.shape[2]))
    )
    more = jnp.zeros(size * tokens, rows.dtype).at[place.reshape(-1)].add(1)[place] - 1
    lengths = jnp.sqrt(row_squares(rows, 2))
    slack = unit_roundoff(rows.dtype) * jnp.einsum("bt,bt->b", more, lengths, precision=EXACT)
    squares = row_squares(sums.reshape(rows.shape), 2).sum(1)
    return jnp.square(jnp.sqrt(squares) + slack)
