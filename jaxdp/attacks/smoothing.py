"""A network's ReLUs replaced by smooth ones of a given width, whatever the code of the network.

The gradient of a ReLU network jumps where a unit switches, so its distance to a leaked gradient has no useful
slope between the jumps.  With max(x, 0) replaced by (x + sqrt(x^2 + width^2)) / 2 it has one, and letting the
width shrink while the search runs leads to the network as it is.  The swap is made in the jaxpr of the loss.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal

from jaxdp.gradients import jaxprs


def _is_relu(equation: JaxprEqn) -> bool:
    """The maximum with a literal zero, also where a call holds nothing else (`jax.nn.relu`)."""
    for name in ("call_jaxpr", "jaxpr"):
        body = getattr(equation.params.get(name), "jaxpr", None)
        if body is not None and equation.primitive.name in ("custom_jvp_call", "jit", "pjit"):
            return len(body.eqns) == 1 and _is_relu(body.eqns[0])
    if equation.primitive.name != "max":
        return False
    return any(
        isinstance(atom, Literal) and jnp.ndim(atom.val) == 0 and atom.val == 0 for atom in equation.invars
    )


def _smooth(x, width):
    """The smooth ReLU; its width is relative to the root mean square of the units it is applied to."""
    scale = jax.lax.stop_gradient(jnp.sqrt(jnp.square(x).mean() + 1e-30))
    return 0.5 * (x + jnp.sqrt(jnp.square(x) + jnp.square(width * scale)))


def smoothed(loss_fn, width):
    """`loss_fn` with every ReLU smoothed.

    Args:
      loss_fn: `(params, (x, y)) -> scalar`.
      width: relative width, may be traced; 0 gives the network as it is.
    """

    def rule(equation, inputs):
        if not _is_relu(equation):
            return None
        x = next(
            value
            for atom, value in zip(equation.invars, inputs, strict=True)
            if not (isinstance(atom, Literal) and jnp.ndim(atom.val) == 0)
        )
        return [_smooth(x, width)]

    def rewritten(*arguments):
        closed = jax.make_jaxpr(loss_fn)(*arguments)
        return jaxprs.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), rule)[0]

    return rewritten


def has_relu(loss_fn, *arguments) -> bool:
    """Whether the function takes a maximum with zero anywhere."""
    found = []

    def rule(equation, inputs):
        found.append(_is_relu(equation))
        return None

    def walk(*arguments):
        closed = jax.make_jaxpr(loss_fn)(*arguments)
        return jaxprs.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), rule)

    jax.eval_shape(walk, *arguments)
    return any(found)
