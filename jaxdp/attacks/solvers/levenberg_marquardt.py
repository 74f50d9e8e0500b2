"""Levenberg-Marquardt on the gradient residual, its step by conjugate gradients on Jacobian products.

Nocedal & Wright (2006), section 10.3, with Nielsen's damping update (1999).  One tick is one outer step: a
linearisation, `conjugate_gradients` products with J and J^T, one evaluation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.attacks.objectives import half_square
from jaxdp.attacks.solvers.problem import Solver


class LMState(NamedTuple):
    """One lane: the point and its value, the damping and its growth factor, and the counters."""

    z: Float[Array, " n"]
    value: Float[Array, ""]
    damping: Float[Array, ""]
    growth: Float[Array, ""]
    ticks: Array
    done: Array


def _conjugate_gradients(product, right, steps):
    """Approximate solution of product(x) = right by a fixed number of steps, frozen once exact."""

    def step(carry, _):
        x, remainder, direction, square = carry
        image = product(direction)
        curvature = jnp.vdot(direction, image)
        alive = (curvature > 0) & (square > 0)
        alpha = jnp.where(alive, square / jnp.where(alive, curvature, 1), 0)
        x, remainder = x + alpha * direction, remainder - alpha * image
        fresh = jnp.vdot(remainder, remainder)
        beta = jnp.where(alive, fresh / jnp.where(alive, square, 1), 0)
        return (x, remainder, remainder + beta * direction, fresh), None

    start = (jnp.zeros_like(right), right, right, jnp.vdot(right, right))
    return jax.lax.scan(step, start, length=steps)[0][0]


def levenberg_marquardt(conjugate_gradients: int = 50, damping: float = 1e-3) -> Solver:
    """The solver; its problem needs a `residual`.

    Args:
      conjugate_gradients: inner steps.
      damping: at the start, relative to a normalised residual.
    """

    def init(z):
        zero = jnp.zeros((), z.dtype)
        return LMState(
            z, zero + jnp.inf, zero + damping, zero + 2, jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        )

    def tick(problem, state):
        residual, forwards = jax.linearize(problem.residual, state.z)
        backwards = jax.linear_transpose(forwards, state.z)
        value = half_square(residual)
        gradient = backwards(residual)[0]
        free = problem.free(state.z, gradient)

        def product(v):
            return backwards(forwards(v * free))[0] * free + state.damping * v

        delta = _conjugate_gradients(product, -gradient * free, conjugate_gradients)
        trial = problem.project(state.z + delta)
        new = half_square(problem.residual(trial))
        image = jax.tree.map(jnp.add, residual, forwards(trial - state.z))
        predicted = value - half_square(image)
        accepted = jnp.isfinite(new) & (new < value)
        ratio = (value - new) / jnp.where(predicted > 0, predicted, 1)
        shrink = jnp.clip(1 - (2 * ratio - 1) ** 3, 1 / 3, 2)
        best = jnp.where(accepted, new, value)
        dampened = jnp.where(accepted, state.damping * shrink, state.damping * state.growth)
        return LMState(
            z=jnp.where(accepted, trial, state.z),
            value=best,
            damping=jnp.maximum(dampened, 1e-12),
            growth=jnp.where(accepted, 2, 2 * state.growth),
            ticks=state.ticks + 1,
            done=(dampened > 1e6) | ~jnp.isfinite(best),
        )

    return Solver(init, tick)
