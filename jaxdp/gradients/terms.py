"""The terms that a gradient is the sum of, read off the last equations of its program.

A term is a matrix product (of kernels, also convolutions'), rows that are added to a table (embeddings, also by
a product with a one-hot matrix), or anything else.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array

from jaxdp.gradients import correlation
from jaxdp.gradients.costs import Sizes

Arrange = tuple[tuple[str, Any], ...]
Producers = Mapping[Any, JaxprEqn]
_RESHAPES = ("reshape", "squeeze", "expand_dims")
_SAME = ("convert_element_type", "copy", "copy_p")
_NOTHING = Sizes(0, 0, 0, 0)
_ADDITIONS = ("add_any", "add")


@dataclasses.dataclass(frozen=True)
class Term:
    """One of the terms that a gradient is the sum of.

    Attributes:
      kind: `product`, `rows` (added to a table), or the name of the operation of any other.
      operands: the variables that it is made of.
      factors: what of them is kept: the factors [P, K] and [P, O], groups first where there are any; or ids [T]
        and rows [T, O].
      sizes: of the product; for rows P is T, and K that of the table.
      arrange: how [K, O] or [G, K, O] becomes the gradient.
    """

    kind: str
    operands: tuple[Any, ...] = ()
    factors: Callable[..., tuple[Array, ...]] = tuple
    sizes: Sizes = _NOTHING
    arrange: Arrange = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix, or of the matrices of all groups."""
        groups, _, rows, columns, _ = self.sizes
        return (groups, rows, columns) if groups > 1 else (rows, columns)

    @property
    def layout(self) -> tuple:
        """What terms must share to be added up as they are kept."""
        return self.sizes.groups, self.sizes.rows, self.sizes.columns, self.arrange


def producers_of(jaxpr) -> Producers:
    """Variable -> the equation that makes it."""
    return {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}


def terms_of(variable: Any, producers: Producers, arrange: Arrange = (), skip: Any = None) -> list[Term]:
    """The terms that a variable is the sum of.

    Args:
      variable: of a program.
      producers: of that program.
      arrange: layout changes that follow.
      skip: a variable that counts as zero.
    """
    if variable is skip and skip is not None:
        return []
    if isinstance(variable, Literal):
        return [Term("a constant")]
    equation: Any = producers.get(variable)
    if equation is None:
        return [Term("an input")]
    name, source = equation.primitive.name, equation.invars[0] if equation.invars else None
    if name in _SAME:
        return terms_of(source, producers, arrange, skip)
    if name == "transpose":
        step = ("transpose", tuple(equation.params["permutation"]))
        return terms_of(source, producers, (step, *arrange), skip)
    if name in _RESHAPES:
        step = ("reshape", tuple(equation.outvars[0].aval.shape))
        return terms_of(source, producers, (step, *arrange), skip)
    if name == "broadcast_in_dim" and isinstance(source, Literal) and not source.val:
        return []
    if name in _ADDITIONS and len({atom.aval.shape for atom in equation.invars}) == 1:
        return [term for atom in equation.invars for term in terms_of(atom, producers, arrange, skip)]
    return list(_of_equation(equation, producers, arrange, skip))


def _of_equation(equation, producers, arrange, skip) -> Iterator[Term]:
    name = equation.primitive.name
    reader = {
        "dot_general": _of_dot, correlation.NAME: _of_convolution, "scatter-add": _of_scatter,
        "dynamic_update_slice": _of_slice, "pad": _of_slice,
    }.get(name) if equation.outvars[0].aval.size else None  # fmt: skip
    constant = any(isinstance(operand, Literal) for operand in equation.invars) and reader is not _of_slice
    found = None if reader is None or constant else reader(equation, producers)
    if found is None:
        yield Term(name)
        return
    yield _upright(dataclasses.replace(found, arrange=simplified(found.shape, (*found.arrange, *arrange))))
    if name == "scatter-add":
        yield from terms_of(equation.invars[0], producers, arrange, skip)


def _of_dot(equation, producers) -> Term:
    (left_summed, right_summed), (left_groups, right_groups) = equation.params["dimension_numbers"]
    sides = zip(equation.invars, (left_groups, right_groups), (left_summed, right_summed), strict=True)
    free, orders = [], []
    for operand, groups, summed in sides:
        shape = operand.aval.shape
        rest = [axis for axis in range(len(shape)) if axis not in (*groups, *summed)]
        free.append(tuple(shape[axis] for axis in rest))
        orders.append((*groups, *summed, *rest))
    shape = equation.invars[0].aval.shape
    grouped = tuple(shape[axis] for axis in left_groups)
    groups, positions = math.prod(grouped), math.prod(shape[axis] for axis in left_summed)
    sizes = Sizes(groups, positions, *map(math.prod, free))
    of_output = (("reshape", (*grouped, *free[0], *free[1])),)
    lead = (groups,) if groups > 1 else ()

    def factors(*operands):
        return tuple(
            x.transpose(order).reshape(*lead, positions, math.prod(rest))
            for x, order, rest in zip(operands, orders, free, strict=True)
        )

    term = Term("product", tuple(equation.invars), factors, sizes, of_output)
    return term if grouped else _as_rows(term, equation, producers, orders)


def _as_rows(term: Term, equation, producers, orders) -> Term:
    """The product of a one-hot matrix with rows as those rows, added to a table."""
    summed = equation.params["dimension_numbers"][0]
    found = [_one_hot(operand, axes, producers) for operand, axes in zip(term.operands, summed, strict=True)]
    side = next((side for side, ids in enumerate(found) if ids is not None), None)
    if side is None:
        return term
    groups, positions, *widths, _ = term.sizes
    size, columns = widths[side], widths[1 - side]

    def factors(ids, other):
        x = other.transpose(orders[1 - side])
        return _whole(ids).reshape(-1), x.reshape(positions, columns)

    turn = (("transpose", (1, 0)),) if side else ()
    operands = (found[side], term.operands[1 - side])
    return Term("rows", operands, factors, Sizes(groups, positions, size, columns), (*turn, *term.arrange))


def _one_hot(variable, summed, producers) -> Any:
    """The ids of which a matrix is the one-hot form along its one axis that is not summed over; else None."""
    shape = variable.aval.shape
    rest = [axis for axis in range(len(shape)) if axis not in summed]
    if rest != [len(shape) - 1] or tuple(summed) != tuple(range(len(shape) - 1)):
        return None
    equation = producers.get(variable)
    while equation is not None and equation.primitive.name in _SAME:
        source = equation.invars[0]
        equation = None if isinstance(source, Literal) else producers.get(source)
    if equation is None or equation.primitive.name != "eq":
        return None
    kind = equation.invars[0].aval.dtype
    if not jnp.issubdtype(kind, jnp.integer) or shape[-1] - 1 > jnp.iinfo(kind).max:
        return None  # an id may lie between two places, or equal several
    for ids, places in (equation.invars, equation.invars[::-1]):
        made = None if isinstance(places, Literal) else producers.get(places)
        if made is None or made.primitive.name != "iota":
            continue
        if made.params["dimension"] != len(shape) - 1 or made.params["shape"][-1] != shape[-1]:
            continue
        if not isinstance(ids, Literal) and ids.aval.shape == (*shape[:-1], 1):
            return ids
    return None


def _whole(ids: Array) -> Array:
    """Ids in a type that holds the number of a table's rows."""
    return ids if ids.dtype.itemsize == 8 else ids.astype(jnp.int32)


def _of_convolution(equation, producers) -> Term | None:
    """A convolution as its windows times the other operand."""
    form = correlation.Form(equation)
    if form.groups > 1 or form.empty:
        return None

    def factors(left, right):
        left, right = form.matrices(left, right)
        return left[0], right[0]

    sizes = Sizes(1, form.positions, form.rows, form.columns)
    return Term("product", tuple(equation.invars), factors, sizes, form.arrange)


def _of_scatter(equation, producers) -> Term | None:
    """Whole rows (or columns) of an array, added at places along one axis."""
    numbers, clips = equation.params["dimension_numbers"], "CLIP" in str(equation.params["mode"])
    table, indices, updates = (operand.aval.shape for operand in equation.invars)
    window, named = tuple(numbers.update_window_dims), tuple(numbers.scatter_dims_to_operand_dims)
    extents: list[int] = [updates[axis] for axis in window]
    for axis in sorted((*numbers.inserted_window_dims, *numbers.operand_batching_dims)):
        extents.insert(axis, 1)
    axis = _short_axis(extents, table)
    # A window that is as long as the table starts at its start, if starts are clipped.
    if (
        axis is None
        or axis not in named
        or extents[axis] != 1
        or numbers.operand_batching_dims
        or (len(named) > 1 and not clips)
    ):
        return None
    scattered = [place for place in range(len(updates)) if place not in window]
    tokens, size = math.prod(indices[:-1]), table[axis]

    def factors(indices, updates):
        ids = _whole(indices)[..., named.index(axis)].reshape(tokens)
        ids = jnp.clip(ids, 0, size - 1) if clips else ids
        return ids, updates.transpose(*scattered, *window).reshape(tokens, math.prod(table) // size)

    return _rows(tuple(equation.invars[1:]), factors, tokens, table, axis)


def _of_slice(equation, producers) -> Term | None:
    """The part of an array that was read as one slice, zeros around it."""
    table, padded = equation.outvars[0].aval.shape, equation.primitive.name == "pad"
    part = equation.invars[0 if padded else 1]
    axis = None if isinstance(part, Literal) else _short_axis(part.aval.shape, table)
    if axis is None:
        return None
    if padded:
        edges, filling = equation.params["padding_config"], equation.invars[1]
        if not isinstance(filling, Literal) or filling.val or any(min(edge) < 0 or edge[2] for edge in edges):
            return None
        start = edges[axis][0]
    else:
        if terms_of(equation.invars[0], producers):
            return None  # something is overwritten
        start = equation.invars[2 + axis]
        start = start.val if isinstance(start, Literal) else start
    count, size = part.aval.shape[axis], table[axis]
    constant = isinstance(start, int | np.integer | np.ndarray)

    def factors(part, start=start):
        ids = jnp.clip(jnp.asarray(start, jnp.int32), 0, size - count) + jnp.arange(count, dtype=jnp.int32)
        return ids, jnp.moveaxis(part, axis, 0).reshape(count, math.prod(table) // size)

    return _rows((part,) if constant else (part, start), factors, count, table, axis)


def _short_axis(extents, table) -> int | None:
    """The one axis along which a part is shorter than the table; None where there are none or several."""
    short = [axis for axis, (part, whole) in enumerate(zip(extents, table, strict=True)) if part != whole]
    return short[0] if len(short) == 1 else None


def _rows(operands, factors, tokens: int, table: tuple[int, ...], axis: int) -> Term:
    """Rows along an axis of a table of that shape."""
    size, rest = table[axis], (*table[:axis], *table[axis + 1 :])
    order = list(range(1, len(table)))
    order.insert(axis, 0)
    arrange = (("reshape", (size, *rest)), ("transpose", tuple(order)))
    return Term("rows", operands, factors, Sizes(1, tokens, size, math.prod(rest)), arrange)


def simplified(shape: tuple[int, ...], arrange: Arrange) -> Arrange:
    """The same layout changes of an array of that shape, in as few steps."""
    found: list[tuple[str, Any]] = []
    shapes = [tuple(shape)]
    for operation, argument in arrange:
        if found and found[-1][0] == operation:
            before = found.pop()[1]
            shapes.pop()
            argument = tuple(before[axis] for axis in argument) if operation == "transpose" else argument
        now = shapes[-1]
        after = argument if operation == "reshape" else tuple(now[axis] for axis in argument)
        moves = operation == "transpose" and argument != tuple(range(len(now)))
        if moves or (operation == "reshape" and after != now):
            found.append((operation, argument))
            shapes.append(after)
    return tuple(found)


def turned(term: Term) -> Term:
    """A product with its factors exchanged."""
    groups, positions, rows, columns, _ = term.sizes
    swap, shape = ((0, 2, 1), (groups, columns, rows)) if groups > 1 else ((1, 0), (columns, rows))

    def factors(*operands):
        return term.factors(*operands)[::-1]

    return dataclasses.replace(
        term, factors=factors, sizes=Sizes(groups, positions, columns, rows),
        arrange=simplified(shape, (("transpose", swap), *term.arrange)),
    )  # fmt: skip


def _upright(term: Term) -> Term:
    """A product turned where that saves laying the gradient out anew."""
    other = turned(term) if term.kind == "product" else term
    return other if len(other.arrange) < len(term.arrange) else term


def aligned(terms: list[Term]) -> list[Term]:
    """Products turned where that gives them the layout of the others."""
    model = next((term for term in terms if term.kind == "rows"), terms[0]).layout

    def as_model(term: Term) -> Term:
        other = turned(term) if term.kind == "product" and term.layout != model else term
        return other if other.layout == model else term

    return list(map(as_model, terms))
