"""The noise of a step against the normal distribution, and far out."""

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdp import noise


def test_quantiles_are_those_of_the_normal_distribution_out_to_nine():
    tails = np.concatenate([np.linspace(1e-3, 1, 2001), np.logspace(-3, np.log10(2.0**-65), 2001)])
    tails = tails.astype(np.float32)
    found = np.asarray(noise._two_sided_quantile(jnp.asarray(tails)), np.float64)
    np.testing.assert_allclose(found, stats.norm.isf(tails.astype(np.float64) / 2), rtol=4e-6, atol=1e-6)
    assert found.max() > 9


@pytest.mark.parametrize("refined", [noise._REFINED, 2**30])
def test_draws_are_normal_whether_refined_or_not(refined, monkeypatch):
    """With half of all magnitudes refined too: the finer bits must not shift what they refine."""
    monkeypatch.setattr(noise, "_REFINED", refined)
    draws = np.asarray(noise.standard_normal(jax.random.key(0), (400_000,)), np.float64)
    assert stats.kstest(draws, "norm").pvalue > 1e-4
    assert abs(np.mean(draws)) < 5 / np.sqrt(len(draws)) and np.mean(draws > 0) == pytest.approx(
        0.5, abs=5e-3
    )
    assert np.var(draws) == pytest.approx(1, abs=1e-2)


def test_the_outermost_draws_pass_what_23_bits_can_reach(monkeypatch):
    """All magnitudes are taken for the outermost: 1e6 draws then stand for the far tail of 1e6 * 2^31."""
    words, calls = noise._words, []

    def outermost_first(key, size):
        calls.append(1)
        drawn = words(key, size)
        return drawn % jnp.uint32(2 * noise._REFINED) if len(calls) == 1 else drawn

    monkeypatch.setattr(noise, "_words", outermost_first)
    draws = np.abs(np.asarray(noise.standard_normal(jax.random.key(1), (4096,)), np.float64))
    assert draws.min() > 5.4 and draws.max() > 6.8
    given_outer = 2 * stats.norm.sf(draws) / (noise._REFINED * 2.0**-31)
    assert stats.kstest(given_outer, "uniform").pvalue > 1e-4


def test_words_are_threefry_s_for_any_kind_of_threefry_key():
    """Against JAX's bits of a key, which are the exclusive or of both words of the block."""
    key = jax.random.key(3)
    size = 64
    words = np.asarray(noise._words(key, size)).reshape(2, size // 2)
    np.testing.assert_array_equal(words.ravel(), noise._words(jax.random.PRNGKey(3), size))
    data = jax.random.key_data(key)
    counters = np.arange(size, dtype=np.uint32).reshape(2, size // 2)
    both = jax.extend.random.threefry2x32_p.bind(data[0], data[1], *counters)
    np.testing.assert_array_equal(words, both)
    low = np.arange(size // 2, dtype=np.uint32)
    first, second = jax.extend.random.threefry2x32_p.bind(data[0], data[1], np.zeros_like(low), low)
    np.testing.assert_array_equal(first ^ second, jax.random.bits(key, (size // 2,), jnp.uint32))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("shape", [(), (1,), (63,), (65,), (3, 43)])
def test_draws_of_any_shape_and_key(impl, shape):
    key = jax.random.key(0, impl=impl)
    draws = np.asarray(
        jax.vmap(lambda i: noise.standard_normal(jax.random.fold_in(key, i), shape))(jnp.arange(500))
    )
    assert draws.shape == (500, *shape) and len(np.unique(draws)) > 0.99 * draws.size
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-4


def test_the_two_words_of_a_block_are_uncorrelated():
    draws = noise.standard_normal(jax.random.key(4), (1 << 20,))
    halves = np.asarray(draws, np.float64).reshape(2, -1)
    assert abs(np.corrcoef(halves)[0, 1]) < 5 / np.sqrt(halves.shape[1])
    assert abs(np.corrcoef(halves**2)[0, 1]) < 5 / np.sqrt(halves.shape[1])


def test_leaves_are_cut_from_one_draw():
    tree = {"a": jnp.zeros((3, 5)), "b": [jnp.zeros(()), jnp.zeros(7)]}
    leaves = jax.tree.leaves(noise.noise_like(jax.random.key(2), tree))
    whole = noise.standard_normal(jax.random.key(2), (23,))
    np.testing.assert_array_equal(np.concatenate([np.ravel(leaf) for leaf in leaves]), whole)
