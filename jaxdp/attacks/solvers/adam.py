"""Adam with cosine decay (Geiping et al. 2020), kept in the box.

Slower to the last digit than L-BFGS, and the one that still moves where curvature says nothing: ReLU networks
and the flat gradients of trained ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdp.attacks.solvers.problem import Solver


class AdamState(NamedTuple):
    """One lane: the best point so far (`z`, `value`), the current one and Adam's moments."""

    z: Float[Array, " n"]
    value: Float[Array, ""]
    current: Float[Array, " n"]
    moments: optax.OptState
    ticks: Array
    done: Array


def adam(learning_rate: float = 0.03, keep_last: bool = False) -> Solver:
    """The solver; its step size follows a cosine from `learning_rate` to 0 as the problem's `progress` says.

    Args:
      learning_rate: at the start.
      keep_last: keep the last point instead of the best one, for an objective that changes on the way.
    """
    optimizer = optax.scale_by_adam()

    def init(z):
        zero = jnp.zeros((), z.dtype)
        return AdamState(
            z, zero + jnp.inf, z, optimizer.init(z), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        )

    def tick(problem, state):
        z = state.current
        value, gradient = jax.value_and_grad(problem.objective)(z)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
        better = (value < state.value) | keep_last
        updates, moments = optimizer.update(gradient, state.moments)
        value = jnp.where(better, value, state.value)
        step = learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(problem.progress, 0, 1)))
        return AdamState(
            z=jnp.where(better, z, state.z),
            value=value,
            current=problem.project(z - jnp.asarray(step * jnp.asarray(updates), z.dtype)),
            moments=moments,
            ticks=state.ticks + 1,
            done=state.done,
        )

    return Solver(init, tick)
