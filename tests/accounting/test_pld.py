"""Bounds by privacy loss distributions: against dp_accounting, closed forms, and each other."""

import math

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as reference

from jaxdp.accounting import gaussian, pld, privacy_loss
from jaxdp.accounting.pld import Steps
from jaxdp.accounting.privacy_loss import Pair


def fixed(q, sigma, steps):
    return [Steps(q, np.array([sigma]), np.array([steps]))]


def linear(q, steps, start=15.0, end=4.85):
    return [Steps(q, np.sort(np.linspace(start, end, steps)), np.ones(steps, int))]


CASES = [(0.01, 6.0, 10_000), (0.01, 0.5, 1_000), (0.1, 1.0, 1), (0.9, 2.0, 100), (1e-3, 0.6, 3_000)]


@pytest.mark.parametrize(("q", "sigma", "steps"), CASES)
def test_brackets_dp_accounting(q, sigma, steps):
    """Its pessimistic value, at a fine interval, lies inside ours (it is a little above the truth itself)."""
    bounds = pld.bounds(fixed(q, sigma, steps), 1e-5, replace=False)
    distribution = reference.from_gaussian_mechanism(
        sigma, sampling_prob=q, value_discretization_interval=2e-5 if sigma == 6 else 2e-4
    )
    expected = distribution.self_compose(steps).get_epsilon_for_delta(1e-5)
    assert bounds.lower <= expected * (1 + 1e-9)
    assert bounds.upper >= expected * (1 - 5e-4)
    assert bounds.upper - bounds.lower <= pld.TOLERANCE * bounds.upper


def test_a_long_dynamic_schedule_closes_and_holds_the_reference_of_few_groups():
    runs = linear(0.01, 10_000)
    bounds = pld.bounds(runs, 1e-5, replace=False)
    assert bounds.upper - bounds.lower <= 0.005 * bounds.upper
    composed = reference.identity(1e-4)
    for part in np.array_split(runs[0].noise_multipliers, 20):  # the middle of each group: an estimate
        middle = np.mean(part**-2.0) ** -0.5
        step = reference.from_gaussian_mechanism(float(middle), sampling_prob=0.01)
        composed = composed.compose(step.self_compose(part.size))
    assert bounds.lower <= composed.get_epsilon_for_delta(1e-5) <= bounds.upper


def test_rates_compose():
    runs = [*fixed(0.01, 2.0, 300), *fixed(0.05, 3.0, 200), *fixed(1.0, 20.0, 2)]
    composed = reference.from_gaussian_mechanism(20.0).self_compose(2)
    for (q,), (sigma,), (count,) in (((0.01,), (2.0,), (300,)), ((0.05,), (3.0,), (200,))):
        composed = composed.compose(
            reference.from_gaussian_mechanism(sigma, sampling_prob=q).self_compose(count)
        )
    bounds = pld.bounds(runs, 1e-6, replace=False)
    assert bounds.lower <= composed.get_epsilon_for_delta(1e-6) <= bounds.upper * (1 + 2e-4)


def test_replace_one_holds_the_antipodal_pair():
    """dp_accounting composes that pair; it is attained, so our proved bound lies above it and ours below
    reach it.
    """
    pair = reference.from_gaussian_mechanism(
        6.0, sampling_prob=0.01, value_discretization_interval=2e-5,
        neighboring_relation=dp.NeighboringRelation.REPLACE_ONE,
    )  # fmt: skip
    attained = pair.self_compose(10_000).get_epsilon_for_delta(1e-5)
    bounds = pld.bounds(fixed(0.01, 6.0, 10_000), 1e-5, replace=True)
    assert bounds.lower == pytest.approx(attained, rel=1e-3)
    assert attained < bounds.upper < 1.2 * attained
    fixed_size = pld.bounds(fixed(0.01, 6.0, 10_000), 1e-5, replace=True, fixed_size=True)
    assert bounds.lower < fixed_size.lower < fixed_size.upper == bounds.upper


@pytest.mark.parametrize(("steps", "expected"), [(1, 0.594), (10, 2.114), (100, 8.004)])
def test_without_sampling_both_bounds_are_the_closed_form(steps, expected):
    bounds = pld.bounds(fixed(1.0, 6.0, steps), 1e-5, replace=False)
    assert bounds.upper == bounds.lower == pytest.approx(expected, abs=5e-4)
    assert bounds.upper == pytest.approx(dp.get_epsilon_gaussian(6.0 / math.sqrt(steps), 1e-5), rel=1e-9)


def test_nothing_and_everything():
    assert pld.bounds(fixed(0.0, 1.0, 5), 1e-5, replace=False).upper == 0
    assert pld.bounds(fixed(0.1, 0.0, 5), 1e-5, replace=False).upper == math.inf


PAIRS = [
    Pair(k, q, s) for k in ("remove", "add", "replace") for q, s in ((0.01, 0.2), (0.3, 2.0), (1.0, 0.5))
]


def _curve(pair, epsilon):
    """The exact hockey-stick divergence at e^epsilon."""
    if pair.kind == "add" or (pair.kind == "replace" and epsilon < 0):
        return -math.expm1(epsilon) + math.exp(epsilon) * _curve(pair._replace(kind="remove"), -epsilon)
    if math.exp(epsilon) <= 1 - pair.q:
        return -math.expm1(epsilon)
    tilt = math.log((math.exp(epsilon) - (1 - pair.q)) / pair.q)
    return pair.q * float(gaussian.gaussian_delta(pair.shift, tilt))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_one_step_is_never_better_than_the_truth_and_close(pair):
    interval = 0.05 * math.sqrt(privacy_loss.mean_square_loss(pair))
    pmf = privacy_loss.pessimistic(pair, interval)
    assert pmf.probabilities.min() >= 0
    assert pmf.probabilities.sum() + pmf.infinite == pytest.approx(1, abs=1e-12)
    curve = pld.Divergence((pmf,), interval, 0.0)
    for epsilon in np.linspace(-0.01, 2.5, 40) * math.sqrt(privacy_loss.mean_square_loss(pair)) * 2:
        exact, found = _curve(pair, epsilon), curve.delta(epsilon)
        assert exact * (1 - 1e-9) - 1e-12 <= found <= exact + 3e-3 * pair.q


@pytest.mark.parametrize("pair", [Pair("remove", 0.2, 1.0), Pair("antipodal", 0.2, 1.0)], ids=str)
def test_rounded_laws_are_those_of_sampled_outputs(pair):
    """The pair's two laws, by simulation: the loss of outputs drawn under P and under Q."""
    rng = np.random.default_rng(3)
    p, tilted, log_total = privacy_loss.rounded(pair, 0.1)
    losses = (p.start + np.arange(p.probabilities.size)) * 0.1
    q_law = tilted.probabilities * np.exp(log_total - losses)
    taken = rng.random(400_000) < pair.q
    noise = rng.standard_normal(taken.size)

    def loss(x):
        mixture = lambda mean: 1 - pair.q + pair.q * np.exp(mean * x - mean**2 / 2)  # noqa: E731
        return np.log(mixture(pair.shift) / (mixture(-pair.shift) if pair.kind == "antipodal" else 1))

    under_p = loss(noise + pair.shift * taken)
    under_q = loss(noise - pair.shift * taken if pair.kind == "antipodal" else noise)
    for sample, law in ((under_p, p.probabilities), (under_q, q_law)):
        index = np.clip(np.round(sample / 0.1).astype(int) - p.start, 0, law.size - 1)
        found = np.bincount(index, minlength=law.size) / sample.size
        assert np.abs(np.cumsum(found) - np.cumsum(law)).max() < 0.004


def test_groups_only_ever_round_the_noise_down():
    steps = linear(0.01, 2_000)[0]
    groups = pld._groups(steps, 0.01)
    assert [g.start for g in groups] == [0, *(g.stop for g in groups[:-1])] and groups[-1].stop == 2_000
    cost = np.expm1(steps.noise_multipliers**-2.0)
    rounded = sum(cost[g.start] * (g.stop - g.start) for g in groups)
    assert 1 <= rounded / cost.sum() <= 1.01 and len(groups) < 500


def test_composition_is_convolution():
    rng = np.random.default_rng(0)
    pmfs = [
        privacy_loss.Pmf(-3, rng.dirichlet(np.ones(7))),
        privacy_loss.Pmf(1, rng.dirichlet(np.ones(4)), 0.0),
    ]
    composed = privacy_loss.compose(pmfs, np.array([2, 3]), 0.1)
    expected = np.ones(1)
    for pmf, count in zip(pmfs, (2, 3), strict=True):
        for _ in range(count):
            expected = np.convolve(expected, pmf.probabilities)
    first = 2 * -3 + 3 * 1
    found = dict(enumerate(composed.probabilities, composed.start))
    np.testing.assert_allclose([found.get(first + k, 0) for k in range(expected.size)], expected, atol=1e-12)


def test_a_bracket_of_a_hundred_thousand_holds():
    """Between dp_accounting's optimistic and pessimistic values."""
    bounds = pld.bounds(fixed(0.9, 0.06, 1000), 1e-5, replace=False)
    low, high = (
        reference.from_gaussian_mechanism(
            0.06, sampling_prob=0.9, value_discretization_interval=0.1, pessimistic_estimate=pessimistic
        )
        .self_compose(1000)
        .get_epsilon_for_delta(1e-5)
        for pessimistic in (False, True)
    )
    assert bounds.lower <= high and low <= bounds.upper
    assert bounds.lower < bounds.upper <= bounds.lower * 1.005 and high < low * 1.005


@pytest.mark.parametrize(
    "runs",
    [((0.01, 2.0, 100), (1.0, 3.0, 10)), ((0.1, 1.0, 10), (1.0, 30.0, 1)), ((0.5, 4.0, 3), (1.0, 0.4, 5))],
)
def test_full_batches_mix_with_sampled_ones_under_replace_one(runs):
    """Not below what the full batches spend alone, not above what all steps spend without sampling."""
    bounds = pld.bounds([r for run in runs for r in fixed(*run)], 1e-5, replace=True)
    mu = [2 * math.sqrt(n) / sigma for _, sigma, n in runs]
    alone, everything = (gaussian.gaussian_epsilon(m, 1e-5) for m in (mu[1], math.hypot(*mu)))
    assert 0 < bounds.lower <= bounds.upper and alone <= bounds.upper <= everything * 1.005
    assert bounds.lower <= everything


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("q", [1e-300, 1e-17])
def test_hardly_anyone_spends_hardly_anything(q, replace):
    assert pld.bounds(fixed(q, 1.0, 10), 1e-5, replace=replace).upper == 0


@pytest.mark.parametrize("sigma", [0.034, 0.03, 1e-3])
def test_what_float64_cannot_hold_has_a_bracket_of_everything(sigma):
    assert pld.bounds(fixed(0.01, sigma, 10), 1e-5, replace=False)[:2] == (math.inf, 0.0)


def test_groups_close_where_losses_are_large():
    """Noise multipliers between 0.1 and 0.14 are told apart."""
    runs = [Steps(0.01, np.linspace(0.1, 0.14, 12), np.ones(12, int))]
    bounds = pld.bounds(runs, 1e-5, replace=False, tolerance=0.02)
    assert bounds.upper - bounds.lower <= 0.02 * bounds.upper
