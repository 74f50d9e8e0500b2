"""L-BFGS with one function evaluation a tick, Armijo backtracking and a box.

Nocedal & Wright, Numerical Optimization (2006), algorithms 7.4 and 3.1; the box by two-metric projection
(Bertsekas 1982): coordinates held at a bound are taken out of the gradient and of the step.  There is no
Wolfe condition: a pair without positive curvature is not remembered, so the matrix stays positive definite.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp import _validate, platforms
from jaxdp.attacks.solvers.problem import Problem, Solver

_ARMIJO = 1e-4
_TRIES = 20  # backtracking steps before the memory is dropped, then before the lane gives up


class LBFGSState(NamedTuple):
    """One lane.

    Attributes:
      z, value, gradient: the current point, the best so far since steps never ascend.
      direction, step: where the next trial lies.
      s, y, rho: the memory, [m, n], [m, n], [m]; rho is 0 where it is empty.
      pairs: pairs stored so far.
      tries: trials rejected in a row.
      stalled: accepted steps in a row that gained next to nothing.
      ticks, done: evaluations so far; whether the lane has stopped.
    """

    z: Float[Array, " n"]
    value: Float[Array, ""]
    gradient: Float[Array, " n"]
    direction: Float[Array, " n"]
    step: Float[Array, ""]
    s: Float[Array, "m n"]
    y: Float[Array, "m n"]
    rho: Float[Array, " m"]
    pairs: Array
    tries: Array
    stalled: Array
    ticks: Array
    done: Array


def _two_loops(state: LBFGSState, gradient):
    """The two-loop recursion, newest pair first."""
    memory = state.rho.shape[0]
    order = (state.pairs - 1 - jnp.arange(memory)) % memory

    def newest_first(q, i):
        alpha = state.rho[i] * jnp.vdot(state.s[i], q)
        return q - alpha * state.y[i], alpha

    def oldest_first(q, pair):
        i, alpha = pair
        return q + (alpha - state.rho[i] * jnp.vdot(state.y[i], q)) * state.s[i], None

    q, alphas = jax.lax.scan(newest_first, gradient, order)
    newest = order[0]
    curvature = jnp.vdot(state.y[newest], state.y[newest]) * state.rho[newest]
    q = q / jnp.where(curvature > 0, curvature, 1)
    return jax.lax.scan(oldest_first, q, (order[::-1], alphas[::-1]))[0]


def _compact_product(state: LBFGSState, gradient):
    """The same by matrix products and two triangular solves (Byrd, Nocedal & Schnabel 1994, theorem 2.2).

    With S and Y the pairs as rows, oldest first, R the upper triangle of S Y^T, D its diagonal and c the newest
    curvature's inverse,

        H g = c g + S^T R^-T ((D + c Y Y^T) p - c Y g) - c Y^T p,    p = R^-1 S g

    Two loops of 2 m small operations become ten that an accelerator does at once.
    """
    memory, (s, y, rho) = state.rho.shape[0], (state.s, state.y, state.rho)
    kept = rho > 0
    curvatures = 1 / jnp.where(kept, rho, 1)
    # Pairs stay where they lie; what is small is put in the order of their age, oldest first, and back.
    age = jnp.arange(memory)
    order, back = (age + state.pairs) % memory, (age - state.pairs) % memory
    products = jnp.where(jnp.outer(kept, kept), s @ y.T, 0)[order][:, order]
    upper = jnp.triu(products, 1) + jnp.diag(curvatures[order])

    def solve(rows, trans=0):
        solved = jax.scipy.linalg.solve_triangular(upper, jnp.where(kept, rows, 0)[order], trans=trans)
        return jnp.where(kept, solved[back], 0)

    last = y[(state.pairs - 1) % memory]
    newest = rho[(state.pairs - 1) % memory] * jnp.vdot(last, last)
    scale = 1 / jnp.where(newest > 0, newest, 1)
    p = solve(s @ gradient)
    rest = gradient - y.T @ p
    return scale * rest + s.T @ solve(curvatures * p - scale * (y @ rest), trans=1)


def _remember(state: LBFGSState, z, gradient, accepted):
    """The memory with the newest pair, if it has positive curvature."""
    s, y = z - state.z, gradient - state.gradient
    product = jnp.vdot(s, y)
    limit = jnp.asarray(jnp.finfo(s.dtype).eps, s.dtype) * jnp.sqrt(jnp.vdot(s, s) * jnp.vdot(y, y))
    keep = accepted & ~state.done & (state.ticks > 0) & (product > limit)
    slot = state.pairs % state.rho.shape[0]
    put = lambda array, row: array.at[slot].set(jnp.where(keep, row, array[slot]))  # noqa: E731
    rho = 1 / jnp.where(keep, product, 1)
    return state._replace(
        s=put(state.s, s), y=put(state.y, y), rho=put(state.rho, rho), pairs=state.pairs + keep
    )


def _forget(state: LBFGSState, drop):
    return state._replace(rho=jnp.where(drop, 0, state.rho), pairs=jnp.where(drop, 0, state.pairs))


def _next_direction(problem: Problem, state: LBFGSState, first_length, product):
    """A descent direction within the box and the length of its first trial."""
    free = problem.free(state.z, state.gradient)
    gradient = state.gradient * free
    direction = -product(state, gradient) * free
    length = jnp.sqrt(jnp.vdot(gradient, gradient))
    steepest = -gradient * (first_length / jnp.maximum(length, jnp.finfo(length.dtype).tiny))
    descends = (jnp.vdot(direction, gradient) < 0) & (state.pairs > 0)
    return jnp.where(descends, direction, steepest)


def _shorter(state: LBFGSState, value, slope):
    """The minimum of the parabola through both values and the slope, within [.1, .5] of the last step."""
    excess = value - state.value - slope
    parabola = jnp.where(excess > 0, -slope / (2 * excess), 0.5)
    return state.step * jnp.where(jnp.isfinite(value), jnp.clip(parabola, 0.1, 0.5), 0.1)


_FORMS = {"two_loops": _two_loops, "compact": _compact_product}


def lbfgs(
    memory: int = 20,
    patience: int = 10,
    stall: float = 1e-5,
    first_length: float = 1.0,
    form: str = "auto",
) -> Solver:
    """The solver.

    Args:
      memory: pairs kept, 20 to 30: beyond, the recursion costs more than the attack's gradient.
      patience: a lane stops after so many steps in a row that each gained less than the share `stall`.
      stall: see `patience`.
      first_length: length of a step without curvature information.
      form: of the recursion: `two_loops`, `compact`, or `auto` for the first on a CPU and the second elsewhere.

    Raises:
      ValueError: an unknown form.
    """
    _validate.one_of(("auto", *_FORMS), form=form)
    fast = "two_loops" if platforms.resolved("auto") == "cpu" else "compact"
    product = _FORMS[fast if form == "auto" else form]

    def init(z):
        zero, count = jnp.zeros((), z.dtype), jnp.zeros((), jnp.int32)
        vectors = jnp.zeros_like(z)
        rows = jnp.zeros((memory, *z.shape), z.dtype)
        return LBFGSState(
            z, zero + jnp.inf, vectors, vectors, zero, rows, rows, jnp.zeros(memory, z.dtype),
            count, count, count, count, jnp.zeros((), bool),
        )  # fmt: skip

    def tick(problem, state):
        trial = problem.project(state.z + state.step * state.direction)
        value, gradient = jax.value_and_grad(problem.objective)(trial)
        slope = jnp.vdot(state.gradient, trial - state.z)
        finite = jnp.isfinite(value) & jnp.isfinite(jnp.vdot(gradient, gradient))
        accepted = finite & ((state.ticks == 0) | (value <= state.value + _ARMIJO * slope) & (slope < 0))
        gain = state.value - value
        state = _remember(state, trial, gradient, accepted)
        choose = lambda new, old: jnp.where(accepted, new, old)  # noqa: E731
        little = gain < stall * jnp.abs(state.value)
        moved = state._replace(
            z=choose(trial, state.z),
            value=choose(value, state.value),
            gradient=choose(gradient, state.gradient),
            tries=choose(0, state.tries + 1),
            stalled=choose(jnp.where(little, state.stalled + 1, 0), state.stalled),
            ticks=state.ticks + 1,
        )
        restart = moved.tries == _TRIES
        moved = _forget(moved, restart)
        redirect = accepted | restart
        return moved._replace(
            direction=jnp.where(
                redirect, _next_direction(problem, moved, first_length, product), state.direction
            ),
            step=jnp.where(redirect, 1, _shorter(state, value, slope)),
            done=(moved.stalled >= patience) | (moved.tries >= 2 * _TRIES) | ~jnp.isfinite(moved.value),
        )

    return Solver(init, tick, kept=("s", "y"))
