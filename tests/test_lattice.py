"""Whoever knows two candidate sums, and looks at the digits of a release to see which of them it was.

Each attack is run against the library, where it must do no better than the Gaussian mechanism lets it, and
against the noise that the library once had, where it is right every time.
"""

import functools
import math

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxdp import clipping, noise
from jaxdp._privatize import privatize

# --- the old generator: 31 bits of tail probability to float32 --------------------------------------------

_CENTRAL = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
    -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_TAIL = (
    -2.5580903e-06, 9.174656e-06, 3.486347e-08, -1.688665e-05, -4.3560816e-05, 0.000188807, -0.00043030598,
    0.00030673316, 1.0102329, 4.3447556,
)  # fmt: skip


@functools.partial(jax.jit, static_argnums=1)
def old_normal(seed, size):
    """As the library drew it once, but for the refinement of one draw in 1.3e8."""
    counters = jax.lax.iota(jnp.uint32, size + size % 2)
    bits = jax.extend.random.threefry_2x32(jax.random.key_data(jax.random.key(seed)), counters)[:size]
    tail = ((bits >> 1).astype(jnp.float32) + 0.5) * 2.0**-31
    draws = old_quantile(jnp.minimum(tail, 1.0))
    return jnp.where(bits & 1, draws, -draws)


def old_quantile(tail):
    w = -jnp.log(tail * (2 - tail))
    central = jnp.polyval(jnp.asarray(_CENTRAL, jnp.float32), w - 2.5)
    outer = jnp.polyval(jnp.asarray(_TAIL, jnp.float32), jnp.sqrt(w) - 4.5)
    return math.sqrt(2) * (1 - tail) * jnp.where(w < 5, central, outer)


def old_release(seed, sums, std):
    return np.asarray(jax.jit(lambda z: sums + std * z)(old_normal(seed, sums.size)))


def new_release(seed, sums, std):
    return np.asarray(_new_release(noise.secret(seed), sums, std))


@jax.jit
def _new_release(secret, sums, std):
    return noise.released(noise.Stream(secret, 0, noise.GRADIENTS), sums, std)


# --- the attacks ------------------------------------------------------------------------------------------

# Deviations between which the adversary looks: where numbers are many, and where those that can be drawn are
# farthest apart.
MIDDLE, TAILS = (0.0, 0.12), (4.0, 6.0)


@functools.cache
def old_values(region):
    """All numbers that the old generator could draw there, ascending."""
    if region == MIDDLE:
        tails = np.float32(1) - np.arange(1, int(0.1 * 2**24), dtype=np.float32) * np.float32(2.0**-24)
    else:
        tails = (np.arange(4, int(2 * stats.norm.sf(4) * 2**31), dtype=np.float32) + 0.5) * np.float32(
            2.0**-31
        )
    return np.unique(np.asarray(jax.jit(old_quantile)(tails), np.float64))


def nearness(z, region):
    """How near numbers are to those that can be drawn: 1/4 for the same, -1/4 for halfway; 0 on average."""
    z, values = np.abs(z), old_values(region)
    z = z[(z < region[1]) & (z > max(values[0], region[0]))]
    above = np.clip(np.searchsorted(values, z), 1, len(values) - 1)
    gap = values[above] - values[above - 1]
    distance = np.minimum(np.abs(z - values[above - 1]), np.abs(values[above] - z))
    return float(np.sum(0.25 - np.clip(distance / gap, 0, 0.5)))


def candidates(size, seed):
    """Two sums that differ in one example of norm 1."""
    rng = np.random.default_rng(seed)
    first = (0.5 * rng.normal(size=size) / math.sqrt(size)).astype(np.float32)
    example = rng.normal(size=size)
    return first, (first + example / np.linalg.norm(example)).astype(np.float32)


def guess(released, pair, std, region=MIDDLE):
    """Which of the two sums was released, from the lattice alone; 1/2 where nothing was seen."""
    std = np.float64(np.float32(std))
    scores = [nearness((released.astype(np.float64) - sums) / std, region) for sums in pair]
    return (1 + np.sign(scores[1] - scores[0])) / 2


def hits(release, size, sigma, trials, regions=(MIDDLE,)):
    """How often the guess is right, and how often there was one, of each region."""
    right, made = np.zeros(len(regions)), np.zeros(len(regions))
    for trial in range(trials):
        pair, truth = candidates(size, trial), trial % 2
        released = release(trial, jnp.asarray(pair[truth]), np.float32(sigma))
        guesses = np.array([guess(released, pair, sigma, region) for region in regions])
        right += guesses == truth
        made += guesses != 0.5
    return right.astype(int), made.astype(int)


def allowed(right, trials, sigma):
    """Whether so many right guesses are possible where the Gaussian mechanism is all that is seen."""
    most = stats.norm.cdf(1 / (2 * sigma))
    return stats.binom.sf(right - 1, trials, most) > 1e-3 and stats.binom.cdf(right, trials, 1 - most) > 1e-3


def test_the_lattice_tells_nothing():
    """Where the noise is on no lattice that the sum shifts, every guess is a coin: all cases together."""
    right, made = np.zeros(2, int), np.zeros(2, int)
    for size in (44, 1_000, 26_010, 500_000):
        for sigma in (1.0, 6.0, 100.0):
            hit, guesses = hits(new_release, size, sigma, 200, (MIDDLE, TAILS))
            assert all(allowed(*case, sigma) for case in zip(hit, guesses, strict=True))
            right, made = right + hit, made + guesses
    assert made[0] > 2_300 and made[1] > 900
    assert all(stats.binomtest(int(r), int(m)).pvalue > 0.01 for r, m in zip(right, made, strict=True))


@pytest.mark.parametrize("sigma", [1.0, 6.0, 100.0])
@pytest.mark.parametrize("size", [44, 1_000, 26_010, 500_000])
def test_the_lattice_told_all(size, sigma):
    (middle, tails), (_, seen) = hits(old_release, size, sigma, 100, (MIDDLE, TAILS))
    assert middle >= (80 if size == 44 else 99)
    assert size < 500_000 or tails >= 0.95 * seen > 90


@pytest.mark.parametrize("sigma", [6.0, 100.0])
def test_parameters_before_and_after_one_compiled_step_tell_nothing(sigma):
    """The sum as both sets of parameters give it, off the grid by their own rounding."""
    size, trials, batch = 5_000, 100, 64.0
    gamma = float(noise.grid_step(sigma))
    chain = optax.chain(privatize(clipping.flat(1.0), sigma, batch, key=0), optax.sgd(1.0))

    @jax.jit
    def step(params, example, present, key):
        state = chain.init(params)
        state = (state[0]._replace(key=key), *state[1:])
        updates, _ = chain.update(example[None], state, params, mask=present[None])
        return optax.apply_updates(params, updates)

    right = {"cells": 0, "lattice": 0}
    for trial in range(trials):
        (none, example), truth = candidates(size, trial), trial % 2
        example = (example - none).astype(np.float32)
        params = 0.05 * np.random.default_rng(trial).normal(size=size).astype(np.float32)
        after = step(params, example, jnp.asarray(truth == 1), noise.secret(trial))
        found = batch * (params.astype(np.float64) - np.asarray(after, np.float64))
        assert np.abs(found / gamma - np.round(found / gamma)).max() < 0.01
        pair = np.zeros(size), example
        right["lattice"] += guess(found, pair, sigma) == truth
        rest = [np.sum(np.cos(2 * np.pi * (found - sums) / gamma)) for sums in pair]
        right["cells"] += int(rest[1] > rest[0]) == truth
    assert all(allowed(count, trials, sigma) for count in right.values())


def test_tensors_and_steps_share_no_noise_but_a_key_used_twice_gives_the_sum_away():
    """Differences, in which shared noise cancels: between tensors, steps, purposes, and runs of one key."""
    zeros, example = jnp.zeros(4096), jnp.zeros(4096).at[0].set(1.0)
    one = lambda key, step, purpose, tree: noise.released(noise.Stream(key, step, purpose), tree, 100.0)  # noqa: E731
    key = noise.entropy_key()
    first, second = one(key, 0, noise.GRADIENTS, [zeros, zeros])
    others = [
        second, *one(key, 1, noise.GRADIENTS, [zeros, zeros]), one(key, 0, noise.CLIPPER, zeros),
        one(noise.entropy_key(), 0, noise.GRADIENTS, zeros), jnp.roll(first, 8), -first[::-1],
    ]  # fmt: skip
    for other in others:
        assert stats.kstest(np.asarray(first - other) / (100 * math.sqrt(2)), "norm").pvalue > 1e-6
    again = one(key, 0, noise.GRADIENTS, [example, zeros])[0]
    assert np.abs(np.asarray(first - again)).sum() <= 2 * float(noise.grid_step(100.0))
