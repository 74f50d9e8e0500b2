"""Calibration: the target is met from below by the accountant that was named, whatever is changed."""

import math
import re

import pytest

from jaxdp import accounting, calibration, clipping, sampling, schedules
from jaxdp.accounting import Claim, gdp, reconstruction
from jaxdp.accounting.ledger import Sampling
from jaxdp.plan import Plan

POISSON = Sampling(kind="poisson", rate=0.01)
PLD = Claim(delta=1e-5, adjacency="add_or_remove_one")
RDP = Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="rdp")


def plan(name="fixed", steps=10_000, sampling=POISSON, **changes):
    noise = schedules.create(name, steps)
    parts = dict(clipper=clipping.flat(1.0), noise_multiplier=noise, sampler=sampling, steps=steps)
    return Plan(**{**parts, **changes})


def spent(found, claim):
    return accounting.epsilon(found.ledger(), claim).value


@pytest.mark.parametrize("what", calibration.WHAT)
def test_meets_the_target_from_below(what):
    start = plan("linear", steps=2_000)
    found = calibration.calibrate(start, 0.5, RDP, what)
    assert 0.5 * (1 - 1e-3 if what == "steps" else 1 - 1e-4) <= spent(found, RDP) <= 0.5
    assert (found.steps != start.steps) == (what == "steps")
    assert (found.sampling != start.sampling) == (what == "sampling_rate")
    if what == "steps":
        assert spent(found.stretched(found.steps + 3), RDP) > 0.5


@pytest.mark.parametrize("sampling", [POISSON, Sampling(kind="shuffled", rate=0.01, steps_per_epoch=100)])
def test_the_length_is_the_largest(sampling):
    """Far from the length it started with: one step more spends too much."""
    claim = Claim(delta=1e-5, adjacency="zero_out", accountant="rdp")
    found = calibration.calibrate(plan("staircase", steps=300, sampling=sampling), 0.7, claim, "steps")
    assert found.steps != 300
    for steps, fits in ((found.steps, True), (found.steps + 1, False)):
        assert (spent(found.stretched(steps), claim) <= 0.7) == fits


def test_pld_allows_more():
    start = plan("staircase", steps=500)
    by_pld, by_rdp = (calibration.calibrate(start, 0.5, claim) for claim in (PLD, RDP))
    assert 0.497 <= spent(by_pld, PLD) <= 0.5 < spent(by_pld, RDP)
    assert by_pld.noise_multiplier.factor < by_rdp.noise_multiplier.factor


@pytest.mark.parametrize("name", schedules.NAMES)
def test_every_schedule_scales_to_the_same_epsilon(name):
    found = calibration.calibrate(plan(name, steps=300), 1.0, RDP)
    assert spent(found, RDP) == pytest.approx(1, rel=1e-5)


def test_the_matched_constant_spends_the_same():
    run = plan("linear").ledger()
    matched = calibration.matched_constant(run, RDP)
    assert matched == pytest.approx(8.507, abs=2e-3)
    constant = plan(noise_multiplier=matched)
    assert spent(constant, RDP) == pytest.approx(accounting.epsilon(run, RDP).value, rel=1e-5)


def test_what_is_not_private_has_only_a_nominal_constant():
    leaking = plan(steps=10, clipper=clipping.l2_max())
    for call in (
        lambda: calibration.matched_constant(leaking.ledger(), RDP),
        lambda: calibration.calibrate(leaking, 1.0, RDP),
    ):
        with pytest.raises(ValueError, match="private=False"):
            call()
    assert calibration.matched_constant(leaking.ledger(), RDP, nominal=True) == pytest.approx(6.0, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration.calibrate(plan(), 0.0, RDP), "epsilon=0.0"),
        (lambda: calibration.calibrate(plan(), math.nan, RDP), "epsilon=nan"),
        (lambda: calibration.calibrate(plan(), 1.0, RDP, "delta"), "what='delta'"),
        (lambda: calibration.calibrate(plan(), 1.0, RDP, "end"), "no end point"),
        (
            lambda: calibration.calibrate(plan(sampling=Sampling(kind="full")), 1.0, RDP, "sampling_rate"),
            "full batches",
        ),
        (lambda: calibration.calibrate(plan(steps=1), 1e-9, RDP, "steps"), "not reached"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("what", ["scale", "steps", "end"])
def test_a_target_of_reconstruction_is_met_from_below(what):
    start = plan("linear", steps=100, sampling=Sampling(kind="poisson", rate=0.05))
    found = calibration.calibrate(start, claim=PLD, what=what, reconstruction_bound=0.16, prior=0.1)
    assert 0.158 < reconstruction.bound(found.ledger(), 0.1, adjacency=PLD.adjacency) <= 0.16


@pytest.mark.parametrize("what", ["scale", "steps"])
def test_a_target_of_mu_is_met_from_below(what):
    start = plan("linear", steps=100, sampling=Sampling(kind="poisson", rate=0.05))
    found = calibration.calibrate(start, claim=PLD, what=what, mu=0.3)
    assert 0.29 < gdp.gdp(found.ledger(), PLD).mu <= 0.3


def test_a_mu_that_only_a_few_quiet_steps_reach_is_refused():
    """All noise far away but at the end: the curve is that of some steps, and no Gaussian's."""
    start = plan("linear", steps=100, sampling=Sampling(kind="poisson", rate=0.05))
    with pytest.raises(ValueError, match=r"mu=0\.3: the curve of the plan"):
        calibration.calibrate(start, claim=PLD, what="end", mu=0.3)


def test_equal_epsilon_is_not_equal_protection():
    """At q = .01 and 100 steps the epsilon of a falling sigma is that of its last steps."""
    bounds = [
        reconstruction.bound(
            calibration.calibrate(plan(name, steps=100), 2.0, PLD).ledger(), 0.1, adjacency=PLD.adjacency
        )
        for name in ("fixed", "linear")
    ]
    assert 0.1 < bounds[1] < bounds[0] - 0.02


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, "epsilon=None, mu=None, reconstruction_bound=None"),
        (dict(epsilon=1.0, mu=1.0), "need one"),
        (dict(mu=-1.0), "mu=-1.0"),
        (dict(reconstruction_bound=0.05), "reconstruction_bound=0.05"),
    ],
)
def test_anything_but_one_sensible_target_is_refused(targets, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        calibration.calibrate(plan(steps=10), claim=PLD, **targets)


def test_steps_are_chosen_beyond_those_that_the_sampler_has_places_for():
    sampler = sampling.poisson(1_000, 0.05, steps=20)
    start = Plan(clipper=clipping.flat(1.0), noise_multiplier=2.0, sampler=sampler, steps=20)
    claim = Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="rdp")
    found = calibration.calibrate(start, 1.0, claim, what="steps")
    assert found.steps > 20 and found.sampler.steps == found.steps and found.sampler.examples == 1_000
    assert 0.97 < accounting.epsilon(found.ledger(), claim).value <= 1.0
    kept = calibration.calibrate(start, accounting.epsilon(start.ledger(), claim).value, claim, what="steps")
    assert kept.steps == 20 and kept.sampler == start.sampler
