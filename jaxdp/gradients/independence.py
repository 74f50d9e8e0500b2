"""Whether the gradient of an example is made of that example alone.

Under `vmap` an operation sees its own example only, but for a few that are told of the whole batch: batching
rules and callbacks that a user writes, and collectives over devices or an outer `vmap`.  They are found by name
in the program that is about to be mapped over the examples.
"""

import warnings
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jaxtyping import PyTree

from jaxdp.gradients import jaxprs

_NO_COLLECTIVES = ("axis_index", "pvary")  # name an axis of devices too, but look at no other device


def _is_collective(equation: JaxprEqn) -> bool:
    """Whether an operation goes over a named axis; the axes of arrays are whole numbers."""
    axes = equation.params.get("axis_name", equation.params.get("axes", ()))
    axes = axes if isinstance(axes, tuple | list) else (axes,)
    named = any(axis is not None and not isinstance(axis, int | np.integer) for axis in axes)
    return named and equation.primitive.name not in _NO_COLLECTIVES


def _reason(equation: JaxprEqn) -> str | None:
    """Why an equation may see other examples; None where it cannot."""
    name, method = equation.primitive.name, equation.params.get("vmap_method")
    if name == "custom_vmap_call":
        return "its batching rule is given all examples together"
    if _is_collective(equation):
        return "it adds up or moves values of other examples"
    if name == "io_callback" and equation.outvars:
        return "what it returns may depend on anything; use pure_callback with vmap_method='sequential'"
    if method is not None and not method.startswith("sequential"):
        return f"vmap_method={method!r} gives it all examples together; use 'sequential'"
    return None


def check(closed: ClosedJaxpr) -> None:
    """Refuses a program of one example that could see others once it is mapped over them.

    Raises:
      ValueError: the operation, by name.
    """
    for equation in jaxprs.equations(closed.jaxpr):
        reason = _reason(equation)
        if reason is not None:
            raise ValueError(f"loss_fn: calls {equation.primitive.name}, and {reason}")


def warn_of_shared_randomness(closed: ClosedJaxpr, params: PyTree, example: PyTree) -> None:
    """Warns where random numbers are drawn that depend on no example: all get the same dropout mask.

    Args:
      closed: the program of one example, calls inlined.
      params: its first inputs.
      example: the inputs after those.
    """
    first = len(jax.tree.leaves(params))
    own = set(closed.jaxpr.invars[first : first + len(jax.tree.leaves(example))])
    for equation in closed.jaxpr.eqns:
        if own.intersection(atom for atom in equation.invars if not isinstance(atom, Literal)):
            own.update(equation.outvars)
        elif equation.primitive.name == "random_bits":
            warnings.warn(
                "loss_fn draws random numbers from a key that is not the example's: all examples of the batch "
                "share one dropout mask; give each its key, batch=(x, y, jax.random.split(key, B))",
                stacklevel=2,
            )
            return


def varying(x: Any) -> frozenset[str]:
    """The axes of a `shard_map` mesh over which a value differs from device to device, as far as JAX says."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    axes = getattr(kind, "manual_axis_type", None)  # `vma` in some versions
    return frozenset(getattr(kind, "vma", None) or ()) if axes is None else frozenset(axes.varying)


def vary_as(tree: PyTree, like: PyTree) -> PyTree:
    """`tree`, every leaf said to vary over the axes that some leaf of `like` varies over.

    Without it JAX adds up the gradients of all devices where the parameters are the same on each.
    """
    axes = frozenset().union(*map(varying, jax.tree.leaves(like)))

    def cast(x):
        missing = tuple(sorted(axes - varying(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
