"""Products that a loop makes last, moved behind the loop.

The gradient of a scanned layer's kernel is a stacked output of the backward scan: every step makes a product
and puts it out.  Here the step puts out the two factors, and the product of all steps stands behind the loop,
where it is read like any other (`terms`).  A kernel that every step uses has its gradient added up in the
carry; that sum is one product over the positions of all steps.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from jaxdp.gradients import costs, jaxprs, terms
from jaxdp.gradients.factored import arranged
from jaxdp.gradients.scattered import add_rows


def flat(closed: ClosedJaxpr, arguments, platform: str) -> ClosedJaxpr:
    """The same program of the same arguments: calls and checkpoints inlined, products moved behind loops."""

    def rule(equation, inputs):
        return _split(equation, inputs, platform) if equation.primitive.name == "scan" else None

    return jaxprs.flatten_calls(closed, arguments, rule)


@dataclasses.dataclass(frozen=True)
class _Moved:
    """An output of a step that is made of terms, and whether the loop adds it up or stacks it."""

    parts: list[terms.Term]
    added_up: bool


def _split(equation: JaxprEqn, inputs, platform: str):
    """The outputs of a scan, by a scan that makes no large products last; None where there are none."""
    p = equation.params
    consts, carried = jaxprs.scan_inputs(equation)
    body = flat(p["jaxpr"], p["jaxpr"].in_avals, platform)
    moved = _moved(body.jaxpr, consts, carried, p["length"], platform)
    if not moved:
        return None
    outputs = body.jaxpr.outvars
    operands = list(dict.fromkeys(o for m in moved.values() for term in m.parts for o in term.operands))
    carry = [i for i in range(carried) if i not in moved]
    stacked = [i for i in range(carried, len(outputs)) if i not in moved]
    # What the steps are given is stacked already.
    values = dict(zip(body.jaxpr.invars[consts + carried :], inputs[consts + carried :], strict=True))
    operands = [operand for operand in operands if operand not in values]
    wanted = [outputs[i] for i in (*carry, *stacked)] + operands
    nothing = {i: jnp.zeros((), outputs[i].aval.dtype) for i in range(carried) if i in moved}

    def step(carried_on, x):
        whole = iter(carried_on)
        state = [nothing[i] if i in moved else next(whole) for i in range(carried)]
        results = jaxprs.evaluate(body.jaxpr, body.consts, [*inputs[:consts], *state, *x], outputs=wanted)
        return results[: len(carry)], results[len(carry) :]

    first = [inputs[consts + i] for i in carry]
    last, rest = jax.lax.scan(
        step, first, inputs[consts + carried :], p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    values |= dict(zip(operands, rest[len(stacked) :], strict=True))
    found = dict(zip(carry, last, strict=True)) | dict(zip(stacked, rest, strict=False))
    for i, m in moved.items():
        total = _outside(m, values).astype(outputs[i].aval.dtype)
        found[i] = inputs[consts + i] + total if m.added_up else total
    return [found[i] for i in range(len(outputs))]


def _moved(body, consts: int, carried: int, length: int, platform: str) -> dict[int, _Moved]:
    """Number of output -> what is to be made behind the loop."""
    producers, found = terms.producers_of(body), {}
    for i, output in enumerate(body.outvars):
        own = body.invars[consts + i] if i < carried else None
        if isinstance(output, Literal) or (
            own is not None and not _only_added_to(own, output, body, producers)
        ):
            continue
        parts = terms.terms_of(output, producers, skip=own)
        known = ("product", "rows") if own is not None else ("product",)
        if parts and all(term.kind in known for term in parts):
            repeats = length if own is not None else 1
            if all(_is_worth_it(term, repeats, platform) for term in parts):
                found[i] = _Moved(parts, own is not None)
    return found


def _only_added_to(own, output, body, producers) -> bool:
    """Whether a step does nothing with a part of the carry but add to it."""
    uses = sum(atom is own for equation in body.eqns for atom in equation.invars)
    if uses + sum(atom is own for atom in body.outvars) != 1:
        return False
    left: list[Any] = [output]
    while left:
        atom = left.pop()
        if atom is own:
            return True
        equation = None if isinstance(atom, Literal) else producers.get(atom)
        if equation is not None and equation.primitive.name == "add_any":
            left += equation.invars
    return False


def _is_worth_it(term: terms.Term, repeats: int, platform: str) -> bool:
    positions = term.sizes.positions * repeats
    if term.kind == "rows":
        return costs.read_by_rows(positions, term.sizes.rows)
    itemsize = jnp.dtype(term.operands[0].aval.dtype).itemsize
    return costs.cheapest(term.sizes._replace(positions=positions), itemsize, platform) != "kept"


def _outside(moved: _Moved, values):
    """The sum of the terms of all steps, or those of each step stacked."""
    made = []
    for term in moved.parts:
        factors = jax.vmap(term.factors)(*(values[operand] for operand in term.operands))
        if term.kind == "rows":
            ids, rows = (x.reshape(-1, *x.shape[2:]) for x in factors)
            zeros = jnp.zeros((term.sizes.rows, term.sizes.columns), rows.dtype)
            made.append(arranged(add_rows(zeros, ids, rows), term.arrange))
            continue
        left, right = factors
        groups = tuple(range(1, len(term.shape) - 1))
        axis = 1 + len(groups)  # of positions
        numbers = ((axis,), (axis,)), ((0, *groups), (0, *groups))
        if moved.added_up:
            numbers = ((0, axis), (0, axis)), (groups, groups)
        product = jax.lax.dot_general(left, right, numbers)
        made.append(
            arranged(product, term.arrange if moved.added_up else stacked(term.arrange, len(product)))
        )
    return sum(made[1:], made[0])


def stacked(arrange: terms.Arrange, size: int) -> terms.Arrange:
    """The layout changes of each of `size` arrays, for all of them at once."""
    return tuple(
        ("reshape", (size, *argument)) if name == "reshape" else (name, (0, *(axis + 1 for axis in argument)))
        for name, argument in arrange
    )
