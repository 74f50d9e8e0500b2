"""Batches: the law of the draw, the overflow bound, one conformance suite for the kinds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdp import noise, sampling

SAMPLERS = {
    "poisson": lambda: sampling.poisson(300, 0.1, steps=1_000),
    "poisson everything": lambda: sampling.poisson(40, 1.0, steps=10),
    "truncated poisson": lambda: sampling.truncated_poisson(300, 0.1, 1_000, batch_size_limit=32),
    "truncated everything": lambda: sampling.truncated_poisson(40, 1.0, 10, batch_size_limit=8),
    "shuffled": lambda: sampling.shuffled(300, 64),
    "full": lambda: sampling.full(300),
}


def draws(sampler, key, steps):
    return jax.jit(jax.vmap(sampler.draw, in_axes=(None, 0)))(key, jnp.arange(steps))


@pytest.mark.parametrize("name", SAMPLERS)
class TestEverySampler:
    def test_static_shape_and_no_row_twice(self, name):
        sampler = SAMPLERS[name]()
        batch = draws(sampler, jax.random.key(0), 20)
        assert batch.indices.shape == (20, sampler.physical_batch_size)
        assert not batch.overflow.any()
        for indices, mask in zip(np.asarray(batch.indices), np.asarray(batch.mask), strict=True):
            rows = indices[mask]
            assert len(np.unique(rows)) == len(rows)
            assert rows.min() >= 0 and rows.max() < sampler.examples

    def test_draws_depend_on_key_and_step_alone(self, name):
        sampler = SAMPLERS[name]()
        again = [sampler.draw(jax.random.key(7), 3) for _ in range(2)]
        np.testing.assert_array_equal(again[0].indices, again[1].indices)
        np.testing.assert_array_equal(again[0].mask, again[1].mask)

    def test_rate_is_the_expected_share(self, name):
        sampler = SAMPLERS[name]()
        assert sampler.sampling_rate == pytest.approx(sampler.expected_batch_size / sampler.examples)

    @pytest.mark.parametrize("shards", [2, 7])
    def test_the_union_of_what_shards_draw_is_the_batch(self, name, shards):
        sampler = SAMPLERS[name]()
        rows, draw = sampler.on_shards(shards)
        assert rows * shards >= sampler.examples
        draw = jax.jit(draw)
        for step in range(6):
            whole = sampler.draw(noise.secret(0), step)
            expected = np.asarray(whole.indices)[np.asarray(whole.mask)]
            found = []
            for shard in range(shards):
                part = draw(noise.secret(0), step, shard)
                assert not part.overflow and part.indices.max() < rows
                found += [np.asarray(part.indices)[np.asarray(part.mask)] + shard * rows]
            found = np.concatenate(found)
            assert len(np.unique(found)) == len(found)
            np.testing.assert_array_equal(np.sort(found), np.sort(expected))


def test_poisson_takes_every_example_at_the_stated_rate_and_independently():
    examples, rate, steps = 60, 0.2, 4_000
    sampler = sampling.poisson(examples, rate, steps)
    batch = draws(sampler, jax.random.key(11), steps)
    taken = np.zeros((steps, examples), bool)
    for step, (indices, mask) in enumerate(
        zip(np.asarray(batch.indices), np.asarray(batch.mask), strict=True)
    ):
        taken[step, indices[mask]] = True
    # Batch sizes follow the binomial law; a rate a tenth off would not pass.
    sizes = taken.sum(1)
    assert abs(sizes.mean() - rate * examples) < 5 * np.sqrt(examples * rate * (1 - rate) / steps)
    assert abs(sizes.mean() - 1.1 * rate * examples) > 5 * np.sqrt(examples * rate * (1 - rate) / steps)
    assert 0.85 < sizes.var() / (examples * rate * (1 - rate)) < 1.15
    # No example is favoured, no two examples or successive steps go together.
    assert stats.chisquare(taken.sum(0)).pvalue > 1e-6
    pairs = np.corrcoef(taken.T)[np.triu_indices(examples, 1)]
    assert np.abs(pairs).max() < 6 / np.sqrt(steps)
    assert abs(np.corrcoef(taken[:-1].ravel(), taken[1:].ravel())[0, 1]) < 6 / np.sqrt(taken.size)


@pytest.mark.parametrize(
    "examples, rate, steps", [(60_000, 0.01, 10_000), (1_442, 0.05, 500), (100, 0.5, 10)]
)
def test_overflow_probability_of_a_run_is_below_the_bound(examples, rate, steps):
    size = sampling.physical_size(examples, rate, steps)
    assert steps * stats.binom.sf(size, examples, rate) <= sampling.OVERFLOW_PROBABILITY
    assert size % 8 == 0 or size == examples
    # and not wastefully large: eight places fewer would break the bound
    if size < examples:
        assert steps * stats.binom.sf(size - 9, examples, rate) > sampling.OVERFLOW_PROBABILITY


def test_overflow_is_reported(monkeypatch):
    monkeypatch.setattr(sampling, "physical_size", lambda *_: 8)
    sampler = sampling.poisson(300, 0.5, steps=10)
    assert bool(sampler.draw(jax.random.key(0), 0).overflow)


def test_of_too_many_a_uniformly_random_part_is_kept():
    """Not the first ones, nor those that stand together; what was not too many is as Poisson drew it."""
    examples, rate, limit, steps = 24, 0.5, 6, 4_000
    sampler = sampling.truncated_poisson(examples, rate, steps, limit)
    plain = draws(sampling.poisson(examples, rate, steps), jax.random.key(11), steps)
    batch = draws(sampler, jax.random.key(11), steps)
    drawn, kept = np.zeros((steps, examples), bool), np.zeros((steps, examples), bool)
    for taken, of in ((drawn, plain), (kept, batch)):
        for step, (indices, mask) in enumerate(zip(np.asarray(of.indices), np.asarray(of.mask), strict=True)):
            taken[step, indices[mask]] = True
    assert (kept <= drawn).all()
    np.testing.assert_array_equal(kept.sum(1), np.minimum(drawn.sum(1), limit))
    np.testing.assert_array_equal(kept[drawn.sum(1) <= limit], drawn[drawn.sum(1) <= limit])
    assert (drawn.sum(1) > limit).mean() > 0.9 and not batch.overflow.any()
    assert stats.chisquare(kept.sum(0)).pvalue > 1e-6
    # Of nine that were drawn each is kept with probability 6 / 9, wherever it stands among them.
    nine = drawn.sum(1) == 9
    ranks = np.cumsum(drawn[nine], axis=1)
    by_rank = np.array([kept[nine][(ranks == rank) & drawn[nine]].sum() for rank in range(1, 10)])
    assert stats.chisquare(by_rank).pvalue > 1e-6
    pairs = np.corrcoef(kept.T)[np.triu_indices(examples, 1)]
    assert pairs.std() < 1.5 / np.sqrt(steps) and abs(pairs.mean() + pairs.std()) < 0.1


def test_shuffled_visits_every_example_once_an_epoch():
    sampler = sampling.shuffled(100, 32)
    assert sampler.steps_per_epoch == 4
    batch = draws(sampler, jax.random.key(3), 8)
    indices, mask = np.asarray(batch.indices), np.asarray(batch.mask)
    epochs = [np.concatenate([indices[t][mask[t]] for t in range(s, s + 4)]) for s in (0, 4)]
    for rows in epochs:
        np.testing.assert_array_equal(np.sort(rows), np.arange(100))
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize(
    "build, text",
    [
        (lambda: sampling.poisson(10, 0.0, 5), "sampling_rate=0.0"),
        (lambda: sampling.poisson(10, 1.5, 5), "sampling_rate=1.5"),
        (lambda: sampling.poisson(0, 0.5, 5), "examples=0"),
        (lambda: sampling.shuffled(0, 1), "examples=0"),
        (lambda: sampling.full(0), "examples=0"),
        (lambda: sampling.create("shuffled", 0, 0.5, 5), "examples=0"),
        (lambda: dataclasses.replace(sampling.full(3), examples=0), "examples=0"),
        (lambda: dataclasses.replace(sampling.full(3), expected_batch_size=0.0), "expected_batch_size=0"),
        (lambda: sampling.poisson(10, 0.5, 0), "steps=0"),
        (lambda: sampling.shuffled(10, 11), "batch_size=11"),
        (lambda: sampling.create("random", 10, 0.5, 5), "sampling='random'"),
        (lambda: sampling.create("shuffled", 10, -0.5, 5), "sampling_rate=-0.5"),
    ],
)
def test_refusals(build, text):
    with pytest.raises(ValueError, match=text):
        build()
