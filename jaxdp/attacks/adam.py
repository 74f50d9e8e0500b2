"""Adam with cosine decay, plain or on the gradient's sign (Geiping et al. 2020), kept in the box.

Slower to the last digit than L-BFGS, and the one that still moves where curvature says nothing: ReLU networks
and the flat gradients of trained ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdp.attacks.solver import Solver


class AdamState(NamedTuple):
    """One lane: the best point so far (`z`, `value`), the current one and Adam's moments."""

    z: Float[Array, " n"]
    value: Float[Array, ""]
    current: Float[Array, " n"]
    moments: optax.OptState
    ticks: Array
    done: Array


def adam(iterations: int, learning_rate: float = 0.03, signed: bool = False) -> Solver:
    """The solver.

    Args:
      iterations: length of the cosine decay to 0.
      learning_rate: at the start.
      signed: feed the sign of the gradient.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, iterations))

    def init(z):
        zero = jnp.zeros((), z.dtype)
        return AdamState(
            z, zero + jnp.inf, z, optimizer.init(z), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        )

    def tick(problem, state):
        value, gradient = jax.value_and_grad(problem.objective)(state.current)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
        better = value < state.value
        updates, moments = optimizer.update(jnp.sign(gradient) if signed else gradient, state.moments)
        value = jnp.where(better, value, state.value)
        return AdamState(
            z=jnp.where(better, state.current, state.z),
            value=value,
            current=problem.project(state.current + jnp.asarray(updates, state.current.dtype)),
            moments=moments,
            ticks=state.ticks + 1,
            done=state.done,
        )

    return Solver(init, tick)
