"""Objectives and solvers against finite differences and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attacked_network import SHAPE, images, loss_fn, network
from scipy import optimize

from jaxdp.attacks import Leak, leaks, objectives
from jaxdp.attacks.solvers import lbfgs
from jaxdp.attacks.solvers.problem import Problem

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("name", objectives.NAMES)
def test_objective_gradients_agree_with_finite_differences(name):
    with jax.enable_x64(True):
        leak = Leak(clip="flat", window=2)
        params = jax.tree.map(lambda *p: np.stack(p).astype(float), network(0), network(1))
        x, y = images(1)
        forward = jax.jit(lambda x: leaks.forward(loss_fn, leak, params, x, y, 0.5))
        target = objectives.target(name, forward(jnp.asarray(x, float)), jnp.array([0.1, 0.3]), window=2)

        @jax.jit
        def objective(z):
            predicted = leaks.forward(loss_fn, leak, params, z.reshape(1, *SHAPE), y, 0.5)
            return objectives.half_square(objectives.residual(name, predicted, target, window=2))

        assert objective(jnp.asarray(x, float).ravel()) < 1e-12
        z = jax.random.uniform(jax.random.key(0), (36,))
        direction = jax.random.normal(jax.random.key(1), (36,))
        h = 1e-5
        difference = (objective(z + h * direction) - objective(z - h * direction)) / (2 * h)
        np.testing.assert_allclose(jax.jit(jax.grad(objective))(z) @ direction, difference, rtol=1e-5)


def minimise(solver, problem, z, ticks):
    def body(state, _):
        return jax.lax.cond(state.done, lambda s: s, lambda s: solver.tick(problem, s), state), None

    return jax.jit(lambda z: jax.lax.scan(body, solver.init(z), length=ticks)[0])(z)


def rosenbrock(z):
    return (100 * jnp.square(z[1:] - jnp.square(z[:-1])) + jnp.square(1 - z[:-1])).sum()


@pytest.mark.parametrize("form", ["two_loops", "compact"])
def test_lbfgs_minimises_rosenbrock_in_a_box_as_scipy_does(form):
    with jax.enable_x64(True):
        start = np.linspace(-1.5, 1.5, 6)
        for lower, upper in ((-np.inf, np.inf), (-1.8, 0.6)):
            state = minimise(
                lbfgs.lbfgs(10, stall=0.0, form=form), Problem(rosenbrock, lower, upper), start, 400
            )
            scipy = optimize.minimize(
                lambda z: float(rosenbrock(z)), start, jac=jax.grad(rosenbrock), method="L-BFGS-B",
                bounds=[(lower, upper)] * 6, options=dict(ftol=1e-15, gtol=1e-10, maxiter=1000),
            )  # fmt: skip
            np.testing.assert_allclose(state.z, scipy.x, atol=1e-5)


@pytest.mark.parametrize("pairs", [0, 1, 4, 7, 19])
def test_both_forms_of_the_recursion_are_the_inverse_hessian(pairs):
    """Against the updates of the matrix itself (Nocedal & Wright, equation 6.17), of the pairs kept."""
    memory, size = 7, 12
    rng = np.random.default_rng(pairs)
    with jax.enable_x64(True):
        state = lbfgs.lbfgs(memory).init(jnp.zeros(size))
        matrix = np.diag(rng.uniform(0.5, 2, size))
        kept = []
        for pair in range(pairs):
            s = rng.normal(size=size)
            y = matrix @ s + 0.01 * rng.normal(size=size)
            slot = pair % memory
            state = state._replace(
                s=state.s.at[slot].set(s),
                y=state.y.at[slot].set(y),
                rho=state.rho.at[slot].set(1 / (s @ y)),
                pairs=jnp.int32(pair + 1),
            )
            kept = [*kept, (s, y)][-memory:]
        expected = np.eye(size) * (kept[-1][0] @ kept[-1][1] / (kept[-1][1] @ kept[-1][1]) if kept else 1)
        for s, y in kept:
            turn = np.eye(size) - np.outer(s, y) / (s @ y)
            expected = turn @ expected @ turn.T + np.outer(s, s) / (s @ y)
        gradient = rng.normal(size=size)
        for product in lbfgs._FORMS.values():
            np.testing.assert_allclose(product(state, gradient), expected @ gradient, rtol=1e-9)


def test_lbfgs_solves_an_ill_conditioned_quadratic_in_few_evaluations():
    scales = jnp.logspace(0, 4, 12)
    problem = Problem(lambda z: 0.5 * (scales * jnp.square(z - 1)).sum())
    state = minimise(lbfgs.lbfgs(20), problem, jnp.zeros(12), 120)
    np.testing.assert_allclose(state.z, 1, atol=1e-2)


def test_lbfgs_steps_back_from_infinity():
    state = minimise(lbfgs.lbfgs(), Problem(lambda z: (z - jnp.log(z)).sum()), jnp.full(3, 20.0), 60)
    np.testing.assert_allclose(state.z, 1, atol=1e-3)
