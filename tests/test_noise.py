"""The noise: its words, its distribution in the body and the tails, and independence, against slow oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdp import noise

SIZE = 400_000


def draw(seed=0, size=SIZE):
    return np.asarray(jax.jit(noise.standard_normal, static_argnums=1)(jax.random.key(seed), size))


def threefry(key, first, second):
    """One block of threefry2x32 with 20 rounds (Salmon et al. 2011), in Python's integers."""
    mask, rotations = 2**32 - 1, ((13, 15, 26, 6), (17, 29, 16, 24))
    keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA]
    x, y = (first + keys[0]) & mask, (second + keys[1]) & mask
    for group in range(5):
        for rotation in rotations[group % 2]:
            x = (x + y) & mask
            y = ((y << rotation | y >> (32 - rotation)) & mask) ^ x
        x = (x + keys[(group + 1) % 3]) & mask
        y = (y + keys[(group + 2) % 3] + group + 1) & mask
    return x, y


def test_the_numbers_are_box_muller_of_threefry_blocks():
    """Against integers and float64, written down independently; an odd size drops one number."""
    size = 199
    key = [int(word) for word in np.asarray(jax.random.key_data(jax.random.key(7)))]
    words = [threefry(key, i, i + 100) for i in range(100)]
    radius, angle = np.array([[np.sqrt(-2 * np.log((a + 0.5) / 2**32)), b / 2**32] for a, b in words]).T
    angle = 2 * np.pi * angle - np.pi / 4
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
    np.testing.assert_allclose(draw(7, size), expected, rtol=2e-6, atol=2e-6)


def test_no_block_is_used_twice():
    words = noise.threefry_2x32(jax.random.key_data(jax.random.key(0)), jnp.arange(SIZE, dtype=jnp.uint32))
    # 400,000 random words of 32 bits collide in about 18.6 pairs; a repeated block would add thousands.
    assert SIZE - len(np.unique(words)) < 50


def test_distribution_in_body_and_tails():
    z = draw()
    assert stats.kstest(z, "norm").pvalue > 1e-4
    for wrong in (2 / 3, 0.98, 1.02, 3 / 2):
        assert stats.kstest(z, "norm", args=(0, wrong)).pvalue < 1e-4
    for bound in (1.0, 2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(bound)
        assert abs((np.abs(z) > bound).mean() - expected) < 5 * np.sqrt(expected / SIZE)
    assert np.isfinite(z).all() and len(np.unique(z)) > 0.95 * SIZE


def test_the_extreme_words_are_finite_and_far_out():
    words = jnp.array([0, 1, 2**31, 2**32 - 1], jnp.uint32)
    first, second = (np.asarray(x) for x in noise._box_muller(words, jnp.full(4, 2**29, jnp.uint32)))
    radius = np.hypot(first, second)
    assert np.isfinite(radius).all() and radius[0] == pytest.approx(6.763, abs=1e-3) and radius[3] < 1e-3


def test_halves_neighbours_keys_and_squares_are_unrelated():
    """A pair shares its radius: only the angle makes it independent, so squares are compared as well."""
    z, other = draw(), draw(1)
    half = SIZE // 2
    for a, b in ((z[:half], z[half:]), (z[:-1], z[1:]), (z, other), (z[:half:2], z[1:half:2])):
        limit = 5 / np.sqrt(len(a))
        assert abs(np.corrcoef(a, b)[0, 1]) < limit
        assert abs(np.corrcoef(a**2, b**2)[0, 1]) < limit


def test_other_generators_and_float64_take_the_ordinary_way():
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(noise.standard_normal(key, 7), jax.random.normal(key, (7,)))
    with jax.enable_x64(True):
        key = jax.random.key(0)
        z = noise.standard_normal(key, 7, jnp.float64)
        np.testing.assert_array_equal(z, jax.random.normal(key, (7,), jnp.float64))
