"""Quantile clipping: what its pair of gradient and count costs, both noises, where the bound goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from noise_oracle import is_normal, smoothed
from scipy import stats

from jaxdp import Plan, clipping, noise, schedules
from jaxdp._privatize import privatize
from jaxdp.accounting.ledger import Sampling
from jaxdp.clipping import adaptive as adaptive_clipping
from jaxdp.clipping.adaptive import RANGE, QuantileState, gradient_noise_multiplier

NAMES = tuple(adaptive_clipping.BY_NAME)
PARAMS = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
LAYERS = len(PARAMS)
EXPECTED = 10.0


def charged(clipper, sigma, steps):
    return Plan(
        clipper=clipper, noise_multiplier=sigma, sampler=Sampling(rate=0.1), steps=steps
    ).noise_multipliers()


def make(name, **options):
    settings = dict(expected_batch_size=EXPECTED, learning_rate=0.3, target_quantile=0.6, count_noise=2.0)
    return clipping.create(name, 1.5, **{**settings, **options})


def state_of(name):
    """A state whose bounds differ, as after some steps."""
    return QuantileState(jnp.array([0.5, 2.0]) if name == "quantile_per_layer" else jnp.float32(1.5))


def examples(scales, seed=0):
    """Gradients of norm `scales` in every tensor."""
    rng = np.random.default_rng(seed)

    def leaf(p):
        g = rng.normal(size=(len(scales), *p.shape))
        length = np.sqrt((g.reshape(len(scales), -1) ** 2).sum(1))
        return jnp.asarray(g * (np.asarray(scales) / length).reshape(-1, *[1] * p.ndim), jnp.float32)

    return jax.tree.map(leaf, PARAMS)


def flat(tree):
    return np.concatenate([np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)])


def noised_counts(before, after, target=0.6, rate=0.3):
    """The noised sums of halves, read off the move of the bounds."""
    return EXPECTED * (-np.log(np.asarray(after, float) / np.asarray(before, float)) / rate + target - 0.5)


KEYS = 3000


@functools.cache
def released(name):
    """Steps of many keys as one compiled function of z, three gradients, their mask and the keys."""

    def one(z, grads, mask, key):
        transform = privatize(make(name), lambda step: z, EXPECTED, key=key)
        state = transform.init(PARAMS)._replace(clip=state_of(name))
        update, state = transform.update(grads, state, mask=mask)
        return update, state.clip.bound

    return jax.jit(jax.vmap(one, in_axes=(None, None, None, 0)))


def draws(name, z, grads, mask=(True, True, True), seed=0):
    """What real steps release: noised sums of gradients [keys, d], noised counts [keys, quantiles]."""
    keys = jax.random.split(jax.random.key(seed), KEYS)
    updates, bounds = released(name)(jnp.float32(z), grads, jnp.array(mask), keys)
    rows = np.concatenate([np.asarray(u, float).reshape(KEYS, -1) for u in jax.tree.leaves(updates)], 1)
    return rows * EXPECTED, noised_counts(state_of(name).bound, bounds).reshape(KEYS, -1)


def accounted(clipper, schedule, steps):
    plan = Plan(clipper=clipper, noise_multiplier=schedule, sampler=Sampling(kind="full"), steps=steps)
    return plan.noise_multipliers()


def releasing(seed):
    """What `privatize` gives the clipper to noise its counts with."""
    return lambda sums, std: noise.released(noise.Stream(noise.secret(seed), 0, noise.CLIPPER), sums, std)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("z", [0.3, 1.0, 3.9])
def test_one_example_costs_the_whole_noise_multiplier_and_no_more(name, z):
    """The shift of gradient and counts, each over its own noise: 1 / z in length, attained."""
    clipper, state = make(name), state_of(name)
    gradient_std = gradient_noise_multiplier(z, 2.0) * float(clipper.noise_scale(None, state, 0))
    count_std = 2.0 * np.sqrt(LAYERS if name == "quantile_per_layer" else 1)
    costs = []
    for scale in (0.0, 0.4, 0.7, 1.6, 50.0, 1e6):
        summed = clipper.clip(examples([scale]), state, 0, jnp.ones(1, bool))
        shift = np.concatenate([flat(summed.gradients) / gradient_std, flat(summed.statistic) / count_std])
        costs.append(np.linalg.norm(shift))
        np.testing.assert_array_equal(np.abs(flat(summed.statistic)), 0.5)
    assert max(costs) <= (1 + 1e-6) / z
    assert costs[-1] == pytest.approx(1 / z, rel=1e-6)
    assert accounted(clipper, schedules.constant(z), 1)[0] == pytest.approx(z)


def deviations(name, z, count_noise=2.0):
    """Standard deviations of the noise on a coordinate of the gradient and on a count, from the formulas."""
    bound = np.linalg.norm(state_of(name).bound)
    return (
        (z**-2 - (2 * count_noise) ** -2) ** -0.5 * bound,
        count_noise * (np.sqrt(LAYERS) if name == "quantile_per_layer" else 1),
    )


@pytest.mark.parametrize("name", NAMES)
def test_both_noises_have_the_stated_scale_and_no_other(name):
    gradients, counts = draws(name, 3.0, examples([0.0, 0.0, 0.0]))
    of_gradient, of_count = deviations(name, 3.0)
    for values, mean, std in ((gradients.ravel(), 0.0, of_gradient), (counts.ravel(), 1.5, of_count)):
        assert is_normal(values, std, mean)
        assert not is_normal(values, std * 2 / 3, mean) and not is_normal(values, std * 3 / 2, mean)


@pytest.mark.parametrize("name", NAMES)
def test_an_attacker_gains_from_the_pair_what_one_gaussian_gives(name):
    """The best test between a batch with and without one large example, on what real steps release."""
    z, grads = 0.8, examples([1e4, 0.3, 0.3])
    std = np.repeat(deviations(name, z), [9, np.size(state_of(name).bound)])

    def over_noise(mask):
        summed = make(name).clip(grads, state_of(name), 0, jnp.array(mask))
        return np.concatenate([flat(summed.gradients), flat(summed.statistic)]) / std

    with_it, without = (True, True, True), (False, True, True)
    direction = z * (over_noise(with_it) - over_noise(without))
    for mask, seed in ((with_it, 1), (without, 2)):
        released = np.concatenate(draws(name, z, grads, mask, seed), axis=1)
        columns = [smoothed(c, s, i) for i, (c, s) in enumerate(zip(released.T, std, strict=True))]
        scores = np.array(columns).T / std @ direction
        shift = 1 / z if mask == with_it else 0.0
        centre = over_noise(without) @ direction
        follow = lambda mean, deviation, s=scores: stats.kstest((s - mean) / deviation, "norm").pvalue > 1e-4  # noqa: E731
        assert follow(centre + shift, 1.0)
        assert not follow(centre + shift, 2 / 3) and not follow(centre + shift, 3 / 2)
    for wrong in (2 / 3, 3 / 2):
        assert not follow(centre + (wrong - 1) / z, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_noises_of_gradient_and_counts_are_unrelated(name):
    columns = np.concatenate(draws(name, 1.0, examples([0.0, 0.0, 0.0]), seed=3), axis=1)
    correlation = np.corrcoef(columns, rowvar=False) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(KEYS)


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_moves_as_the_definition_says(name):
    """Against NumPy: divided by the expected batch size; padding and NaN count nowhere."""
    clipper, state = make(name), state_of(name)
    grads = examples([0.1, 0.6, 1.2, 3.0, 0.2, 9.0])
    grads["a"] = grads["a"].at[4, 0, 0].set(jnp.nan)
    mask = jnp.arange(6) < 5
    summed = clipper.clip(grads, state, 0, mask)
    moved = clipper.update(state, summed, 0, lambda sums, std: sums + std * jnp.full_like(sums, 0.3))
    tensors = [np.asarray(g, float).reshape(6, -1) for g in jax.tree.leaves(grads)]
    norms = np.array([np.sqrt((t**2).sum(1)) for t in tensors])[:, :4]
    if name == "quantile":
        norms = np.sqrt((norms**2).sum(0, keepdims=True))
    bounds = np.atleast_1d(np.asarray(state.bound, float))
    counts = np.where(norms <= bounds[:, None], 0.5, -0.5).sum(1)
    np.testing.assert_array_equal(flat(summed.statistic), counts)
    share = (counts + 2.0 * np.sqrt(len(bounds)) * 0.3) / EXPECTED + 0.5
    np.testing.assert_allclose(np.atleast_1d(moved.bound), bounds * np.exp(-0.3 * (share - 0.6)), rtol=1e-5)
    assert summed.nonfinite == 1 and summed.examples == 5


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_learns_nothing_but_the_count(name):
    """The next bound is the same whatever the gradients behind the count were."""
    clipper, state = make(name), state_of(name)
    summed = clipper.clip(examples([0.1, 5.0, 0.2]), state, 0, jnp.ones(3, bool))
    hidden = jax.tree.map(lambda x: jnp.full_like(x, 77), summed)._replace(statistic=summed.statistic)
    a, b = (clipper.update(state, s, 0, releasing(4)).bound for s in (summed, hidden))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [0.5, 0.8])
def test_the_bound_finds_its_quantile(name, target):
    """Of lognormal norms, from far off, through the noise of real steps."""
    n = 400
    scales = np.random.default_rng(5).lognormal(1.0, 1.0, n)
    grads = examples(scales)
    options = dict(expected_batch_size=float(n), learning_rate=0.2, target_quantile=target, count_noise=20.0)
    transform = privatize(clipping.create(name, 0.01, **options), 1.0, float(n), key=jax.random.key(5))

    def step(state, _):
        _, state = transform.update(grads, state)
        return state, state.clip.bound

    _, bounds = jax.jit(lambda s: jax.lax.scan(step, s, length=300))(transform.init(PARAMS))
    expected = np.quantile(scales, target) * (1 if name == "quantile_per_layer" else np.sqrt(LAYERS))
    found = np.exp(np.log(np.asarray(bounds)[150:]).mean(0))
    np.testing.assert_allclose(np.log(found), np.log(expected), atol=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [1e-3, 1e30])
def test_no_noise_takes_the_bound_out_of_its_public_range(name, rate):
    clipper = make(name, count_noise=1e30, learning_rate=rate)
    zero = clipper.clip(examples([1.0]), state_of(name), 0, jnp.ones(1, bool))
    for seed in range(8):
        bound = np.asarray(clipper.update(state_of(name), zero, 0, releasing(seed)).bound)
        assert ((bound >= np.float32(RANGE[0])) & (bound <= np.float32(RANGE[1]))).all()


def test_an_impossible_split_in_a_loop_never_passes_for_private():
    """Whoever scales sigma past the check gets an error, or compiled no number; not too little noise."""
    transform = privatize(make("quantile"), schedules.linear(10, start=3.0, end=5.0), EXPECTED)
    for step, possible in ((0, True), (5, False), (9, False)):
        state = transform.init(PARAMS)._replace(step=jnp.int32(step))
        updates, _ = jax.jit(transform.update)(examples([1.0]), state)
        assert np.isfinite(flat(updates)).all() == possible
    with pytest.raises(ValueError, match=r"step=9: noise_multiplier=4\.8"):
        transform.update(examples([1.0]), state)


def test_the_split_is_checked_at_every_step_of_a_schedule():
    with pytest.raises(ValueError, match=r"step=5: noise_multiplier=4, count_noise=2: .* above 2"):
        accounted(make("quantile"), schedules.linear(10, start=3.0, end=5.0), 10)
    resumed = make("quantile").check
    resumed([3.0, 3.9], first=4)
    with pytest.raises(ValueError, match="step=7: noise_multiplier=4"):
        resumed([3.9, 4.0], first=6)


@pytest.mark.parametrize("z", [0.1, 1.0, 3.9999])
def test_the_split_adds_up(z):
    gradient = gradient_noise_multiplier(z, 2.0)
    assert (gradient**-2 + 4.0**-2) ** -0.5 == pytest.approx(z, rel=1e-9) and gradient > z


@pytest.mark.parametrize("batch, largest", [(100.0, 2.0), (100.0, 15.0), (1.0, 0.0)])
def test_the_default_count_noise_leaves_most_to_the_gradient(batch, largest):
    count_noise = adaptive_clipping.default_count_noise(batch, largest)
    assert count_noise == max(batch / 20, largest)
    if largest:
        assert gradient_noise_multiplier(largest, count_noise) <= 1.1548 * largest


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options, text",
    [
        (dict(target_quantile=0.0), "target_quantile=0.0"),
        (dict(target_quantile=1.0), "target_quantile=1.0"),
        (dict(learning_rate=0.0), "learning_rate=0.0"),
        (dict(count_noise=-1.0), "count_noise=-1.0"),
        (dict(count_noise=float("inf")), "count_noise=inf"),
        (dict(expected_batch_size=None), "expected_batch_size=None"),
        (dict(expected_batch_size=0.0, count_noise=None), "expected_batch_size=0.0"),
    ],
)
def test_refusals(name, options, text):
    with pytest.raises(ValueError, match=text):
        make(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_refused_bounds_and_splits(name):
    for bound in (0.0, -1.0, 1e7, float("nan")):
        with pytest.raises(ValueError, match=f"l2_norm_clip={bound}"):
            clipping.create(name, bound, expected_batch_size=8.0)
    with pytest.raises(ValueError, match="finds its own bound"):
        clipping.create(name, schedules.constant(1.0), expected_batch_size=8.0)
    for z in (4.0, 7.0):
        with pytest.raises(ValueError, match=rf"noise_multiplier={z:g}, count_noise=2: .*\(0, 4\)"):
            privatize(make(name), z, EXPECTED)
        with pytest.raises(ValueError, match=f"noise_multiplier={z:g}"):
            gradient_noise_multiplier(z, 2.0)
