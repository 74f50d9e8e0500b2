"""Calibration: the target is met from below by the accountant that was named, whatever is changed."""

import math
import re

import pytest

from jaxdp import accounting, calibration, clipping, schedules
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
def test_a_target_of_mu_or_of_reconstruction_is_met_from_below(what):
    steps = 100
    sampler = Sampling(kind="poisson", rate=0.05)
    plan = Plan(
        clipper=clipping.flat(1.0), noise_multiplier=schedules.linear(steps), sampler=sampler, steps=steps
    )
    claim = Claim(delta=1e-5, adjacency="add_or_remove_one")
    found = calibration.calibrate(plan, claim=claim, what=what, mu=0.3)
    mu = gdp.gdp(found.ledger(), claim).mu
    assert 0.29 < mu <= 0.3
    found = calibration.calibrate(plan, claim=claim, what=what, reconstruction_bound=0.16, prior=0.1)
    assert 0.158 < reconstruction.bound(found.ledger(), 0.1, adjacency=claim.adjacency) <= 0.16


def test_equal_epsilon_is_not_equal_mu():
    """At q = .01 and 100 steps the epsilon of a falling sigma is that of its last steps."""
    claim, mus = Claim(delta=1e-5, adjacency="add_or_remove_one"), []
    for noise in (schedules.constant(6.0), schedules.linear(100)):
        sampler = Sampling(kind="poisson", rate=0.01)
        plan = Plan(clipper=clipping.flat(1.0), noise_multiplier=noise, sampler=sampler, steps=100)
        mus.append(
            gdp.mu_of(
                reconstruction.curve(calibration.calibrate(plan, 2.0, claim).ledger(), claim.adjacency), 1e-5
            )
        )
    assert mus[1] < 0.8 * mus[0]


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
    plan = Plan(
        clipper=clipping.flat(1.0), noise_multiplier=2.0, sampler=Sampling(kind="poisson", rate=0.1), steps=10
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        calibration.calibrate(plan, claim=Claim(delta=1e-5, adjacency="zero_out"), **targets)
