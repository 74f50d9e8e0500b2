"""The form in which a parameter's per-example gradients are kept, read off the gradient's own program.

The last equations behind a gradient say what it is: a sum of matrix products (kernels, also convolutions'), of
rows added to a table (embeddings), of both (a table that is the output too), or anything else.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array

from jaxdp.gradients import correlation, costs
from jaxdp.gradients.costs import Sizes
from jaxdp.gradients.factored import Factored
from jaxdp.gradients.scattered import Scattered, Tied

Arrange = tuple[tuple[str, Any], ...]
Producers = Mapping[Any, JaxprEqn]
_RESHAPES = ("reshape", "squeeze", "expand_dims")
_SAME = ("convert_element_type", "copy", "copy_p")
_ADDITIONS = ("add_any", "add")


@dataclasses.dataclass(frozen=True)
class Term:
    """One of the terms that a gradient is the sum of.

    Attributes:
      kind: `product`, `rows` (added to a table), or the name of the operation of any other.
      operands: the variables that it is made of.
      factors: what of them is kept: the factors [P, K] and [P, O], with axes of groups before; or ids [T] and rows
        [T, O].
      sizes: of the product; for rows P is T, and K that of the table.
      arrange: how [K, O] or [G, K, O] becomes the gradient.
    """

    kind: str
    operands: tuple[Any, ...] = ()
    factors: Callable[..., tuple[Array, ...]] = tuple
    sizes: Sizes = Sizes(0, 0, 0, 0)
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


@dataclasses.dataclass(frozen=True)
class Form:
    """How a gradient is kept.

    Attributes:
      name: `dense`, `gram`, `built`, `rows` or `tied`.
      why: a clause.
      operands: the variables that it is made of.
      leaf: makes the leaf of one example of their values.
    """

    name: str
    why: str
    operands: tuple[Any, ...]
    leaf: Callable[..., Any]


def producers_of(jaxpr) -> Producers:
    """Variable -> the equation that makes it."""
    return {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}


def of_gradient(variable: Any, producers: Producers, platform: str) -> Form:
    """The form of the gradient that a variable holds: of those that are exact, the cheapest."""
    terms = terms_of(variable, producers)
    other = next((term.kind for term in terms if term.kind not in ("product", "rows")), None)
    if other or not terms:
        return dense(variable, f"its gradient ends in {other}" if other else "nothing depends on it")
    terms = _aligned(terms)
    if len({term.layout for term in terms}) > 1:
        return dense(variable, "its uses are laid out differently")
    products = _joined([term for term in terms if term.kind == "product"], axis=-2)
    rows = _joined([term for term in terms if term.kind == "rows"], axis=0)
    if products is None:
        return _of_rows(variable, rows)
    itemsize = jnp.dtype(products.operands[0].aval.dtype).itemsize
    sizes = products.sizes._replace(read=rows.sizes.positions if rows else 0)
    form = costs.cheapest(sizes, itemsize, platform)
    groups, positions, inside, outside, _ = sizes
    size = f"{f'{groups} x ' if groups > 1 else ''}[{inside}, {outside}] over {positions} positions"
    if form == "kept":
        return dense(variable, f"{size}: cheaper kept than its factors")
    if rows is None:
        return Form(form, size, products.operands, _factored(products, form))
    return _tied(rows, products, form, size)


def dense(variable: Any, why: str) -> Form:
    """The gradient as it is."""
    return Form("dense", why, (variable,), lambda gradient: gradient)


def _of_rows(variable, rows) -> Form:
    tokens, size = rows.sizes.positions, rows.sizes.rows
    if not costs.read_by_rows(tokens, size):
        return dense(variable, f"a table of {size} rows, read {tokens} times")

    def leaf(*operands):
        ids, values = rows.factors(*operands)
        return Scattered(ids, values, size, rows.arrange)

    return Form("rows", f"a table of {size} rows, read {tokens} times", rows.operands, leaf)


def _factored(products: Term, form: str):
    return lambda *operands: Factored(*products.factors(*operands), arrange=products.arrange, norm=form)


def _tied(rows: Term, products: Term, form: str, size: str) -> Form:
    def leaf(*operands):
        ids, values = rows.factors(*operands[: len(rows.operands)])
        product = _factored(products, form)(*operands[len(rows.operands) :])
        return Tied(Scattered(ids, values, rows.sizes.rows, rows.arrange), product)

    why = f"read {rows.sizes.positions} times, and {size}; the norm is {form}"
    return Form("tied", why, (*rows.operands, *products.operands), leaf)


def _joined(terms: list[Term], axis: int) -> Term | None:
    """Terms of one layout as one term: their positions side by side."""
    if len(terms) <= 1:
        return terms[0] if terms else None
    counts = [len(term.operands) for term in terms]

    def factors(*operands):
        parts, at = [], 0
        for term, count in zip(terms, counts, strict=True):
            parts.append(term.factors(*operands[at : at + count]))
            at += count
        return tuple(jnp.concatenate(side, axis=axis) for side in zip(*parts, strict=True))

    first, positions = terms[0], sum(term.sizes.positions for term in terms)
    operands = tuple(operand for term in terms for operand in term.operands)
    return dataclasses.replace(
        first, operands=operands, factors=factors, sizes=first.sizes._replace(positions=positions)
    )


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
    equation = producers.get(variable)
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
    if name in _ADDITIONS and equation.invars[0].aval.shape == equation.invars[1].aval.shape:
        return [term for atom in equation.invars for term in terms_of(atom, producers, arrange, skip)]
    return list(_of_equation(equation, producers, arrange, skip))


def _of_equation(equation, producers, arrange, skip) -> Iterator[Term]:
    name = equation.primitive.name
    reader = {"dot_general": _of_dot, correlation.NAME: _of_convolution, "scatter-add": _of_scatter}.get(name)
    if reader is None or any(isinstance(operand, Literal) for operand in equation.invars):
        yield Term(name)
        return
    found = reader(equation, producers)
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
    for side, operand in enumerate(term.operands):
        summed = equation.params["dimension_numbers"][0][side]
        ids = _one_hot(operand, summed, producers)
        if ids is None:
            continue
        groups, positions, *widths, _ = term.sizes
        size, columns = widths[side], widths[1 - side]

        def factors(ids, other, side=side):
            x = other.transpose(orders[1 - side])
            return _whole(ids).reshape(-1), x.reshape(positions, columns)

        turn = (("transpose", (1, 0)),) if side else ()
        operands = (ids, term.operands[1 - side])
        return Term("rows", operands, factors, Sizes(groups, positions, size, columns), (*turn, *term.arrange))
    return term


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
    numbers, mode = equation.params["dimension_numbers"], equation.params["mode"]
    table, indices, updates = (operand.aval.shape for operand in equation.invars)
    window = tuple(numbers.update_window_dims)
    axes = tuple(numbers.inserted_window_dims)
    if len(axes) != 1 or axes != tuple(numbers.scatter_dims_to_operand_dims) or numbers.operand_batching_dims:
        return None
    (axis,) = axes
    rest = tuple(size for place, size in enumerate(table) if place != axis)
    if tuple(updates[place] for place in window) != rest:
        return None
    scattered = [place for place in range(len(updates)) if place not in window]
    tokens, columns, size = math.prod(indices[:-1]), math.prod(rest), table[axis]

    def factors(indices, updates):
        ids = _whole(indices).reshape(tokens)
        ids = jnp.clip(ids, 0, size - 1) if "CLIP" in str(mode) else ids
        return ids, updates.transpose(*scattered, *window).reshape(tokens, columns)

    order = list(range(1, len(table)))
    order.insert(axis, 0)
    arrange = (("reshape", (size, *rest)), ("transpose", tuple(order)))
    return Term("rows", tuple(equation.invars[1:]), factors, Sizes(1, tokens, size, columns), arrange)


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


def _aligned(terms: list[Term]) -> list[Term]:
    """Products turned where that gives them the layout of the others."""
    model = next((term for term in terms if term.kind == "rows"), terms[0])
    return [
        turned(term) if term.kind == "product" and term.layout != model.layout and turned(term).layout == model.layout
        else term
        for term in terms
    ]  # fmt: skip
