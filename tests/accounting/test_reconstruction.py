"""The reconstruction bound: closed form, both branches, windows, and an attack that it must hold."""

import math

import numpy as np
import pytest
from scipy import stats
from written_ledgers import written

from jaxdp.accounting import pld, reconstruction
from jaxdp.accounting.ledger import Sampling
from jaxdp.accounting.pld import Steps


def run(schedule="fixed", steps=100, rate=1.0, **changes):
    return written(schedule, steps, Sampling(rate=rate), **changes)


@pytest.mark.parametrize(("mu", "expected"), [(1.667, 0.650), (1.177, 0.458), (1.301, 0.508)])
def test_known_figures_without_sampling(mu, expected):
    ledger = run(parameters={"value": 10 / mu})
    assert reconstruction.bound(ledger, 0.1, adjacency="zero_out") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("mu", [0.3, 1.7, 3.0, 3.7])
@pytest.mark.parametrize("prior", [0.01, 0.1, 0.5])
def test_the_curve_gives_the_closed_form(mu, prior):
    """From the discretised losses of several steps; at mu > 2 |Phi^-1(prior)| only the second branch does."""
    steps = [Steps(1.0, np.array([math.sqrt(50) / mu]), np.array([50]))]
    curve = pld.divergence(steps, replace=False, tolerance=1e-3)
    exact, found = float(reconstruction.gaussian_bound(mu, prior)), reconstruction.curve_bound(curve, prior)
    assert exact * (1 - 1e-6) <= found <= exact + 1e-3
    if mu > 2 * abs(stats.norm.ppf(prior)) + 0.4:
        first = min(curve.delta(e) + math.exp(e) * prior for e in np.linspace(0, 20, 400))
        assert first > found + 2e-3


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_no_attack_on_subsampled_steps_does_better(rate):
    """Ten candidates on orthogonal axes, noise on each: the attacker with the exact likelihood."""
    rng, sigma, steps, candidates = np.random.default_rng(0), 1.0, 20, 10
    taken = rng.random((40_000, steps, 1)) < rate
    outputs = sigma * rng.standard_normal((40_000, steps, candidates))
    outputs[:, :, :1] += taken
    scores = np.log1p(rate * np.expm1((outputs - 0.5) / sigma**2)).sum(axis=1)
    success = np.mean(scores.argmax(axis=1) == 0)
    bound = reconstruction.bound(
        run(steps=steps, rate=rate, parameters={"value": sigma}), 1 / candidates, adjacency="zero_out"
    )
    assert 0.6 * bound < success <= bound + 0.01


def test_windows_order_the_steps_of_a_decaying_schedule():
    ledger = run("linear", steps=90, rate=0.2)
    settings = dict(prior=0.1, adjacency="zero_out")
    early = reconstruction.bound(ledger, start=0, stop=30, **settings)
    late = reconstruction.bound(ledger, start=60, **settings)
    one = reconstruction.bound(ledger, start=0, stop=1, **settings)
    whole = reconstruction.bound(ledger, **settings)
    assert 0.1 <= one < early < late < whole < 1
    seen = reconstruction.bound(ledger, amplified=False, **settings)
    mu = math.sqrt(np.sum(ledger.sigmas() ** -2.0))
    assert whole < seen == pytest.approx(float(reconstruction.gaussian_bound(mu, 0.1)), rel=1e-12)
    assert reconstruction.bound(ledger, 0.1, adjacency="replace_one", start=0, stop=30) > early


def test_schedules_of_equal_spending_differ_in_what_they_allow_early_and_late():
    """At the same mu over the run, without sampling, where everything is a closed form."""
    dynamic = run("linear", steps=50)
    constant = math.sqrt(50 / np.sum(dynamic.sigmas() ** -2.0))
    fixed = run(steps=50, parameters={"value": constant})
    settings = dict(adjacency="zero_out", length=5)
    falling, level = (
        {w.name: w for w in reconstruction.windows(ledger, 0.1, **settings)} for ledger in (dynamic, fixed)
    )
    assert list(falling) == list(level)
    for early in ("first step", "first 5 steps"):
        assert falling[early].released < level[early].released - 1e-3
    for late in ("last step", "last 5 steps"):
        assert falling[late].released > level[late].released + 1e-3
    whole = "whole run, 50 steps"
    assert falling[whole].released == pytest.approx(level[whole].released, rel=1e-6)
    for name, window in falling.items():
        mu = math.sqrt(np.sum(dynamic.sigmas()[window.start : window.stop] ** -2.0))
        assert window.released == window.seen == pytest.approx(stats.norm.cdf(stats.norm.ppf(0.1) + mu)), name


def test_windows_of_a_sampled_run_are_below_what_a_known_participant_allows():
    found = reconstruction.windows(run("linear", steps=40, rate=0.1), 0.1, adjacency="replace_one")
    assert [(w.start, w.stop) for w in found] == [(0, 1), (39, 40), (0, 4), (36, 40), (0, 40)]
    assert all(0.1 <= w.released < w.seen for w in found)
    for length in (0, 41):
        with pytest.raises(ValueError, match=f"window={length}"):
            reconstruction.windows(run(steps=40), 0.1, adjacency="zero_out", length=length)


def test_limits():
    assert reconstruction.bound(run(rate=0.0), 0.1, adjacency="zero_out") == pytest.approx(0.1)
    shuffled = written(steps=12, sampling=Sampling(kind="shuffled", rate=0.25, steps_per_epoch=4))
    expected = float(reconstruction.gaussian_bound(math.sqrt(3) / 6, 0.1))
    assert reconstruction.bound(shuffled, 0.1, adjacency="zero_out") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(prior=0.0), "prior=0.0"),
        (dict(prior=1.0), "prior=1.0"),
        (dict(start=5, stop=5), "start=5, stop=5"),
        (dict(stop=101), "stop=101"),
        (dict(adjacency="none"), "adjacency='none'"),
    ],
)
def test_bad_questions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        reconstruction.bound(run(), **{**dict(prior=0.1, adjacency="zero_out"), **change})
    with pytest.raises(ValueError, match="private=False"):
        reconstruction.bound(run(private=False, reasons=("leak",)), 0.1, adjacency="zero_out")
