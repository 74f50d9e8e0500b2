"""What leaks, against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attacked_network import PARAMS, images, leaked, loss_fn
from scipy import stats

from jaxdp.attacks import (
    Leak,
    leaks,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_forward_is_the_plain_loop():
    (x, y), gradient = images(3), jax.jit(jax.grad(loss_fn))
    for clip in leaks.CLIPS:
        each = [gradient(PARAMS, (x[i], y[i])) for i in range(3)]
        clipped = [clip_by_hand(clip, gradient, 0.2) for gradient in each]
        expected = jax.tree.map(lambda *g: sum(g) / 3, *clipped)
        forward = functools.partial(leaks.forward, loss_fn, Leak(clip=clip, batch_size=3))
        found = jax.jit(forward)(PARAMS, x, y, 0.2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, expected)


def clip_by_hand(clip, gradient, bound):
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(gradient)]
    total = np.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
    if clip == "flat":
        leaves = [leaf * min(1, bound / total) for leaf in leaves]
    elif clip == "automatic":
        leaves = [leaf * bound / (total + 0.01) for leaf in leaves]
    elif clip.startswith("per_layer"):
        bound = bound if clip == "per_layer_published" else bound / 2
        leaves = [leaf * min(1, bound / np.sqrt(np.square(leaf).sum())) for leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(gradient), leaves)


def test_updates_are_the_plain_loop():
    (x, y), gradient = images(2), jax.jit(jax.grad(loss_fn))
    current = PARAMS
    for _ in range(3):
        gradients = [gradient(current, (x[i], y[i])) for i in range(2)]
        current = jax.tree.map(lambda p, a, b: p - 0.5 * (a + b) / 2, current, *gradients)
    expected = jax.tree.map(lambda start, end: (start - end) / (3 * 0.5), PARAMS, current)
    found = leaks.forward(loss_fn, Leak(batch_size=2, local_steps=3), PARAMS, x, y, learning_rate=0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_observation_noise_has_the_stated_deviation():
    std = np.array([0.3, 0.6])
    (noised, _, _), (clean, _, _) = (leaked(Leak(), 2, noise_std=s) for s in (std, 0.0))
    noise = jax.tree.map(jnp.subtract, noised.observed, clean.observed)
    rows = [np.concatenate([leaf[i].ravel() for leaf in jax.tree.leaves(noise)]) for i in range(2)]
    for row, sigma in zip(rows, std, strict=True):
        assert stats.kstest(row / sigma, "norm").pvalue > 1e-3
        for factor in (2 / 3, 3 / 2):
            assert stats.kstest(row / (sigma * factor), "norm").pvalue < 1e-3
    assert abs(np.corrcoef(rows)[0, 1]) < 0.2
