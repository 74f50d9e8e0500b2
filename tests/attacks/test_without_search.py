"""Attacks and forecasts that need no search."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attacked_network import CLASSES, PARAMS, PUBLIC, SHAPE, images, leaked, loss_fn
from scipy import stats

from jaxdp.attacks import (
    Leak,
    candidates,
    expected_error,
    first_layer,
    leaks,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_first_layer_gives_the_input_exactly():
    victims, x, _ = leaked(Leak(), count=2)
    np.testing.assert_allclose(first_layer.closed_form(loss_fn, PARAMS, victims, SHAPE), x, atol=1e-5)


def test_risk_is_the_posterior_of_a_linear_leak():
    # For a linear map the linearisation is exact: compare with the dense formula, and with its limits.
    matrix = np.random.default_rng(0).normal(size=(50, 36)).astype(np.float32)
    prior = PUBLIC.prior
    covariance = np.asarray(prior.factor, float) @ np.asarray(prior.factor, float).T
    for std in (0.1, 1.0):
        posterior = np.linalg.inv(matrix.T @ matrix / std**2 + np.linalg.inv(covariance))
        found = expected_error.expected_mse(jnp.asarray(matrix.T @ matrix), [std], prior)
        np.testing.assert_allclose(found, np.trace(posterior) / 36, rtol=2e-2)
    limits = expected_error.expected_mse(jnp.asarray(matrix.T @ matrix), [1e-6, 1e6], prior)
    np.testing.assert_allclose(limits, [0, np.trace(covariance) / 36], atol=1e-6, rtol=1e-3)


def test_information_is_the_jacobians_square():
    x, y = images(1)
    information = functools.partial(expected_error.information, loss_fn, Leak(clip="flat"))
    found = jax.jit(information)(PARAMS, jnp.asarray(x[0]), jnp.asarray(y[0]), 0.1)
    forward = jax.jit(lambda z: leaks.forward(loss_fn, Leak(clip="flat"), PARAMS, z[None], y, 0.1))
    v = jax.random.normal(jax.random.key(0), SHAPE)
    h = 1e-2
    plus, minus = (forward(jnp.asarray(x[0]) + s * h * v) for s in (1, -1))
    change = jax.tree.map(lambda a, b: (a - b) / (2 * h), plus, minus)
    assert float(v.ravel() @ found @ v.ravel()) == pytest.approx(float(leaks.square_norm(change)), rel=1e-2)


def test_informed_adversary_stays_below_the_bound_and_near_it():
    k, steps, std = 10, 20, 3.0
    hits = candidates.informed_adversary(
        jnp.asarray(np.broadcast_to(candidates.canaries(k), (steps, k, k)), jnp.float32),
        jnp.full(steps, std), jax.random.key(0), trials=4000,
    )  # fmt: skip
    rate = np.asarray(hits).mean(0)
    mu = np.sqrt(np.arange(1, steps + 1)) / std
    bound = stats.norm.cdf(stats.norm.ppf(1 / k) + mu)
    slack = 4 * np.sqrt(bound * (1 - bound) / 4000)
    assert (rate <= bound + slack).all()
    assert (rate[4:] >= 0.1 + 0.5 * (bound[4:] - 0.1)).all()


def test_informed_adversary_is_the_explicit_likelihood():
    rng = np.random.default_rng(0)
    gradients, steps = rng.normal(size=(3, 5)), 2
    gram = np.broadcast_to(gradients @ gradients.T, (steps, 3, 3))
    cross, grams = jnp.asarray(gram[:, 1], jnp.float32), jnp.asarray(gram, jnp.float32)
    draw = jax.jit(jax.vmap(lambda key: candidates.log_likelihoods(cross, grams, jnp.array([1.0, 2.0]), key)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    noise = rng.normal(size=(4000, steps, 5)) * np.array([1.0, 2.0])[:, None]
    observed = gradients[1] + noise
    ratios = (observed @ gradients.T - np.square(gradients).sum(1) / 2) / np.array([1.0, 4.0])[:, None]
    expected = np.cumsum(ratios, axis=1)
    for step, candidate in itertools.product(range(steps), range(3)):
        assert stats.ks_2samp(found[:, step, candidate], expected[:, step, candidate]).pvalue > 1e-4
    np.testing.assert_allclose(np.cov(found[:, -1].T), np.cov(expected[:, -1].T), rtol=0.15, atol=0.1)


def test_labels_leak_more_with_every_look_and_less_with_more_noise():
    x, y = images(60, seed=2)
    public_x, public_y = images(100, seed=1)
    share = {}
    for std in (1.0, 8.0, 1000.0):
        found = candidates.label_leakage(
            loss_fn, "flat", [PARAMS] * 30, x, y, public_x, public_y, np.full(30, std, np.float32),
            jax.random.key(0), bound=1.0, classes=CLASSES,
        )  # fmt: skip
        share[std] = (found == y[:, None]).mean(0)
    assert share[1.0][-1] > share[1.0][0] and share[1.0][-1] > 0.9
    assert share[1.0][-1] > share[8.0][-1] > share[1000.0][-1] - 0.05
    assert share[1000.0][-1] < 0.5
