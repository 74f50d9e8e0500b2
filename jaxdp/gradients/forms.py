"""The form in which a parameter's per-example gradients are kept, read off the gradient's own program.

A gradient that is a sum of matrix products, of rows added to a table, or of both is kept as what it is made of,
where that costs less than the gradient itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxdp.gradients import costs
from jaxdp.gradients.factored import Factored
from jaxdp.gradients.precision import as_multiplied, digits_of
from jaxdp.gradients.scattered import Scattered, Tied
from jaxdp.gradients.terms import Producers, Term, aligned, terms_of


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


def of_gradient(variable: Any, producers: Producers, platform: str) -> Form:
    """The form of the gradient that a variable holds: of those that are exact, the cheapest."""
    terms = terms_of(variable, producers)
    other = next((term.kind for term in terms if term.kind not in ("product", "rows")), None)
    if other or not terms:
        return dense(variable, f"its gradient ends in {other}" if other else "nothing depends on it")
    terms = aligned(terms)
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
        return Form(form, size, products.operands, _factored(products, form, platform))
    return _tied(rows, products, form, size, platform)


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


def _factored(products: Term, form: str, platform: str):
    digits = _digits(products, platform)

    def leaf(*operands):
        factors = (as_multiplied(x, digits) for x in products.factors(*operands))
        return Factored(*factors, arrange=products.arrange, norm=form, digits=digits)

    return leaf


def _digits(products: Term, platform: str) -> int | None:
    """See `Factored`; of float32 and what is narrower."""
    narrow = all(operand.aval.dtype.itemsize <= 4 for operand in products.operands)
    return digits_of(platform) if narrow else None


def _tied(rows: Term, products: Term, form: str, size: str, platform: str) -> Form:
    digits = _digits(products, platform)

    def leaf(*operands):
        ids, values = rows.factors(*operands[: len(rows.operands)])
        product = _factored(products, form, platform)(*operands[len(rows.operands) :])
        values = as_multiplied(values, digits)  # as the product's factors, with which they are multiplied
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
