"""Walking jaxprs: evaluate a traced function equation by equation, seeing through calls.

Public API only (`jax.make_jaxpr`, `jax.extend.core`), after the recipe of JAX's own documentation, "Writing
custom Jaxpr interpreters in JAX".
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

# Calls that only group equations: their body can stand in their place.
_GROUPING = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_REMATERIALISED = {"checkpoint": "jaxpr", "remat": "jaxpr", "remat2": "jaxpr"}
CALLS = frozenset(_GROUPING | _REMATERIALISED)  # whose bodies `evaluate` walks itself

Rule = Callable[[JaxprEqn, Sequence[Any]], Sequence[Any] | None]


def _body(equation: JaxprEqn, names: dict[str, str]) -> tuple[Jaxpr, Sequence] | None:
    """The jaxpr inside a call of one of the given primitives, and its constants."""
    parameter = names.get(equation.primitive.name)
    if parameter is None:
        return None
    body = equation.params[parameter]
    return (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every equation, those in calls and loops too."""
    for equation in jaxpr.eqns:
        yield equation
        yield from inside(equation)


def inside(equation: JaxprEqn) -> Iterator[JaxprEqn]:
    """Every equation in the calls, loops and branches that an equation makes."""
    for parameter in equation.params.values():
        for value in parameter if isinstance(parameter, tuple | list) else (parameter,):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def scan_inputs(equation: JaxprEqn) -> tuple[int, int]:
    """How many inputs of a scan every step is given alike, and how many are carried; the others are scanned."""
    p = equation.params
    if "num_carry" in p:
        return p["num_consts"], p["num_carry"]
    consts, carried, _ = p["ft_in"].unpack()  # since jax 0.11
    return len(consts), len(carried)


def bind(equation: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """Evaluates one equation as it stands."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair before jax 0.10
    outputs = equation.primitive.bind(*functions, *inputs, **params)
    return outputs if equation.primitive.multiple_results else [outputs]


def bind_rewritten(equation: JaxprEqn, inputs: Sequence[Any], rule: Rule) -> Sequence[Any] | None:
    """Evaluates a loop or a choice between branches, with the rule applied inside; None where it cannot be."""

    def rewritten(parameter):
        if isinstance(parameter, tuple | list):
            return type(parameter)(map(rewritten, parameter))
        if not isinstance(parameter, ClosedJaxpr):
            return parameter
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in parameter.in_avals]
        return jax.make_jaxpr(lambda *xs: evaluate(parameter.jaxpr, parameter.consts, xs, rule))(*shapes)

    params = {name: rewritten(value) for name, value in equation.params.items()}
    bodies = [
        b for value in params.values() for b in (value if isinstance(value, tuple | list) else (value,))
    ]
    if any(isinstance(body, ClosedJaxpr) and body.consts for body in bodies):
        return None
    outputs = equation.primitive.bind(*inputs, **params)
    return outputs if equation.primitive.multiple_results else [outputs]


def as_it_is(equation: JaxprEqn, inputs: Sequence[Any]) -> None:
    """The rule that replaces nothing."""


def evaluate(
    jaxpr: Jaxpr,
    constants: Sequence[Any],
    arguments: Sequence[Any],
    rule: Rule = as_it_is,
    *,
    keep_remat: bool = True,
    outputs: Sequence | None = None,
) -> list[Any]:
    """Evaluates a jaxpr, with its grouping calls (nested jit) inlined.

    Args:
      jaxpr: what to evaluate.
      constants: values of `jaxpr.constvars`.
      arguments: values of `jaxpr.invars`.
      rule: called first on every equation; its outputs stand for the equation's, None leaves it as it is.
      keep_remat: whether `jax.checkpoint` stays a checkpoint (its body walked all the same) or is inlined; what
        it computes a second time is still computed a second time.
      outputs: variables of the jaxpr to return instead of its own outputs.
    """
    values = {}

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    def step(equation, inputs):
        replaced = rule(equation, inputs)
        if replaced is not None:
            return replaced
        body = _body(equation, _GROUPING)
        if body is not None:
            return evaluate(*body, inputs, rule, keep_remat=keep_remat)
        body = _body(equation, _REMATERIALISED)
        if body is None:
            return bind(equation, inputs)
        walk = lambda *xs: evaluate(*body, xs, rule, keep_remat=keep_remat)  # noqa: E731
        p = equation.params
        if keep_remat:
            walk = jax.checkpoint(walk, prevent_cse=p["prevent_cse"], policy=p["policy"])
        elif p["differentiated"] and p["prevent_cse"] and inputs:
            inputs = jax.lax.optimization_barrier(tuple(inputs))  # as JAX compiles it
        return walk(*inputs)

    values.update(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    outputs = jaxpr.outvars if outputs is None else outputs
    for equation in _needed(jaxpr, outputs):
        results = step(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in outputs]


def _needed(jaxpr: Jaxpr, outputs: Sequence) -> list[JaxprEqn]:
    """The equations that the outputs depend on, and those with effects."""
    live = {atom for atom in outputs if not isinstance(atom, Literal)}
    found = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or live.intersection(equation.outvars):
            found.append(equation)
            live.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return found[::-1]


def flatten_calls(closed: ClosedJaxpr, arguments: Sequence[Any], rule: Rule = as_it_is) -> ClosedJaxpr:
    """The same program of the same arguments, the rule applied, with nested jit and checkpoints inlined."""

    def program(*arguments):
        return evaluate(closed.jaxpr, closed.consts, arguments, rule, keep_remat=False)

    return jax.make_jaxpr(program)(*arguments)
