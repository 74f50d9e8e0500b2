"""What users call: published figures, adjacency by adjacency, trajectories, calibration, refusals."""

import dataclasses
import math

import dp_accounting as dp
import numpy as np
import pytest

from jaxdp import accounting, calibration, clipping, sampling, schedules
from jaxdp.accounting import Claim, ledger, pld, rdp, trajectory
from jaxdp.accounting.ledger import Entry, Ledger, Sampling, run_lengths
from jaxdp.calibration import Plan
from jaxdp.clipping import adaptive as adaptive_clipping

POISSON = Sampling(kind="poisson", rate=0.01)
ADD = dict(delta=1e-5, adjacency="add_or_remove_one")
CLAIM = Claim(**ADD)
RDP = Claim(**ADD, accountant="rdp")


def plan(schedule="fixed", steps=10_000, **changes):
    return Plan(**{**dict(schedule=schedule, steps=steps, sampling=POISSON), **changes})


@pytest.fixture(scope="module")
def fixed():
    return plan().ledger()


@pytest.fixture(scope="module")
def linear():
    return plan("linear").ledger()


def test_the_plan_of_a_run_is_the_plan_of_its_parts():
    sampler = sampling.poisson(60_000, 0.01, steps=100)
    made = Plan.of(clipping.flat(4.0), schedules.linear(100), sampler, steps=100)
    assert made.ledger() == plan("linear", steps=100).ledger()
    constant = Plan.of(clipping.flat(4.0), 6.0, sampler, steps=100, seed="given").ledger()
    assert constant == plan(steps=100, seed="given").ledger()


def test_the_plan_of_a_run_charges_for_the_sensitivity_that_the_clipper_has():
    sampler = sampling.shuffled(300, 100)
    published = clipping.per_layer_published(1.0, layers=4)
    (entry,) = Plan.of(published, 6.0, sampler, steps=3).ledger().entries
    assert entry.noise_multipliers == ((3.0, 3),) and entry.mechanism == published.name
    assert entry.sampling == Sampling(kind="shuffled", rate=1 / 3, steps_per_epoch=3)
    not_private = Plan.of(clipping.l2_max(), 6.0, sampler, steps=3).ledger()
    assert not_private.reasons == (clipping.l2_max().reason,)


def test_the_plan_of_a_run_refuses_noise_that_is_none_or_too_much_for_the_count():
    sampler = sampling.full(300)
    for sigma in (0.0, -1.0, None, math.nan):
        with pytest.raises(ValueError, match="noise_multiplier="):
            Plan.of(clipping.flat(1.0), sigma, sampler, steps=3)
    counted = adaptive_clipping.quantile(1.0, expected_batch_size=300, count_noise=2.0)
    with pytest.raises(ValueError, match="step=0"):
        Plan.of(counted, counted.noise_multiplier_limit, sampler, steps=3).ledger()


def old_conversion(run):
    """The conversion of early DP-SGD code: rdp - ln(delta) / (order - 1)."""
    (steps,) = accounting.runs(run, "add_or_remove_one")
    total = steps.counts @ rdp.poisson_gaussian(steps.sampling_rate, steps.noise_multipliers)
    return np.min(total + math.log(1e5) / (rdp.ORDERS - 1))


def test_figures_of_the_fixed_and_linear_schedule(fixed, linear):
    for run, new, old in ((fixed, 0.6592, 0.8227), (linear, 0.4497, 0.5748)):
        assert accounting.epsilon(run, RDP).value == pytest.approx(new, abs=5e-4)
        assert old_conversion(run) == pytest.approx(old, abs=5e-4)
    assert calibration.matched_constant(linear, **ADD) == pytest.approx(8.507, abs=2e-3)
    assert accounting.equivalent_noise_multiplier(linear) == pytest.approx(8.507, rel=0.004)


@pytest.mark.parametrize(("layers", "expected"), [(1, 0.659), (3, 1.219), (10, 2.517)])
def test_per_tensor_clipping_with_the_full_bound_costs_the_root_of_the_tensors(layers, expected):
    run = plan(noise_ratio=1 / math.sqrt(layers)).ledger()
    assert accounting.epsilon(run, RDP).value == pytest.approx(expected, abs=1e-3)


def test_replace_one_costs_at_least_the_doubled_sensitivity(fixed):
    """1.440 is the add/remove figure at half the noise multiplier, which is no theorem for replace-one: the
    proved bounds are 1.621 (RDP) and 1.488 (PLD), and the known worst pair attains 1.271.
    """
    halved = accounting.epsilon(fixed.scaled(0.5), RDP).value
    assert halved == pytest.approx(1.440, abs=1e-3)
    replaced = accounting.epsilon(fixed, Claim(delta=1e-5, adjacency="replace_one", accountant="rdp")).value
    tighter = accounting.epsilon(fixed, Claim(delta=1e-5, adjacency="replace_one", accountant="pld"))
    assert halved < replaced < 1.2 * halved
    assert tighter.lower < tighter.value < replaced
    assert (replaced, tighter.value) == (pytest.approx(1.6206, abs=1e-3), pytest.approx(1.4884, abs=5e-3))
    assert tighter.lower == pytest.approx(1.271, abs=5e-3)
    full = plan(sampling=Sampling(kind="full"), steps=5).ledger()
    doubled = accounting.epsilon(full, Claim(delta=1e-5, adjacency="replace_one")).value
    assert doubled == pytest.approx(accounting.epsilon(full.scaled(0.5), CLAIM).value, rel=1e-12)


@pytest.mark.parametrize(("uses", "exact"), [(1, 0.594), (10, 2.114), (100, 8.004)])
def test_unamplified_uses(uses, exact):
    run = plan(steps=uses, sampling=Sampling(kind="full")).ledger()
    assert accounting.epsilon(run, CLAIM).value == pytest.approx(exact, abs=5e-4)
    assert accounting.epsilon(run, RDP).value > exact


@pytest.mark.parametrize("name", ["staircase", "quarter_cosine"])
def test_rdp_is_dp_accountings_of_the_event(name):
    run = plan(name, steps=60).ledger()
    expected = dp.rdp.RdpAccountant().compose(ledger.to_event(run)).get_epsilon(1e-5)
    assert accounting.epsilon(run, RDP).value == pytest.approx(expected, rel=1e-9)
    zeroed = accounting.epsilon(run, Claim(delta=1e-5, adjacency="zero_out", accountant="rdp")).value
    assert zeroed == pytest.approx(expected, rel=1e-9)


def test_without_replacement_is_tighter_than_the_general_theorem():
    """dp_accounting's bound holds for any mechanism (Wang et al. 2019); ours uses that the noise is
    Gaussian.
    """
    run = plan(steps=500, sampling=Sampling(kind="without_replacement", rate=0.02)).ledger()
    ours = accounting.epsilon(run, Claim(delta=1e-5, adjacency="replace_one", accountant="rdp")).value
    event = dp.SampledWithoutReplacementDpEvent(1000, 20, dp.GaussianDpEvent(3.0))
    reference = dp.rdp.RdpAccountant(list(range(2, 65)), dp.NeighboringRelation.REPLACE_ONE)
    assert ours < reference.compose(event, 500).get_epsilon(1e-5)
    assert accounting.epsilon(run, Claim(delta=1e-5, adjacency="replace_one")).lower < ours


def shuffled(sigmas, epoch=4, start=0):
    sampling = Sampling(kind="shuffled", rate=1 / epoch, steps_per_epoch=epoch)
    return Entry(
        start=start, stop=start + len(sigmas), noise_multipliers=run_lengths(sigmas), sampling=sampling
    )


def test_shuffled_batches_are_one_gaussian_step_an_epoch():
    run = Ledger((shuffled([9, 8, 7, 6, 5, 4, 3, 2, 8, 9.0]),))
    mu = math.sqrt(sum(s**-2 for s in (6, 2, 8)))
    spent = accounting.epsilon(run, Claim(delta=1e-5, adjacency="zero_out"))
    assert spent.value == spent.lower == pytest.approx(pld.gaussian_epsilon(mu, 1e-5), rel=1e-12)
    assert "no amplification" in str(spent)
    replaced = accounting.epsilon(run, Claim(delta=1e-5, adjacency="replace_one")).value
    assert replaced == pytest.approx(pld.gaussian_epsilon(2 * mu, 1e-5), rel=1e-12)


MIXED = Ledger((
    Entry(start=0, stop=30, noise_multipliers=((2.0, 10), (3.0, 20)), sampling=POISSON),
    dataclasses.replace(shuffled([9.0, 8, 8, 7, 9, 6, 6, 7, 5], epoch=4), start=30, stop=39),
    Entry(start=39, stop=41, noise_multipliers=((30.0, 2),), sampling=Sampling(kind="full")),
))  # fmt: skip


@pytest.mark.parametrize("adjacency", ["zero_out", "replace_one"])
def test_the_trajectory_is_epsilon_after_every_step(adjacency, monkeypatch):
    monkeypatch.setattr(trajectory, "_CHUNK", 7)
    spent = accounting.epsilon_trajectory(MIXED, Claim(delta=1e-5, adjacency=adjacency))
    assert spent.shape == (41,) and np.all(np.diff(spent) >= 0)
    for step in (1, 9, 31, 32, 33, 36, 37, 39, 41):
        one = accounting.epsilon(
            MIXED.until(step), Claim(delta=1e-5, adjacency=adjacency, accountant="rdp")
        ).value
        assert spent[step - 1] == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
@pytest.mark.parametrize("budget", [0.0, 0.2, 0.3, 99.0])
def test_steps_within_is_the_last_step_that_fits(accountant, budget):
    run = plan("staircase", steps=1_000, scale=0.3).ledger()
    claim = Claim(**ADD, accountant=accountant)
    fits = accounting.steps_within(run, budget, claim)
    assert fits == 0 or accounting.epsilon(run.until(fits), claim).value <= budget
    assert fits == 1_000 or accounting.epsilon(run.until(fits + 1), claim).value > budget
    assert (budget == 0.0) == (fits == 0) and (budget == 99.0) == (fits == 1_000)


@pytest.mark.parametrize("what", calibration.WHAT)
def test_calibration_meets_the_target_from_below(what):
    found = calibration.calibrate(plan("linear", steps=2_000), 0.5, what, **ADD)
    spent = accounting.epsilon(found.ledger(), RDP).value
    assert 0.5 * (1 - 1e-3 if what == "steps" else 1 - 1e-4) <= spent <= 0.5
    unchanged = {"scale", "steps", "parameters", "sampling"} - {
        what if what in ("scale", "steps") else {"end": "parameters", "sampling_rate": "sampling"}[what]
    }
    assert all(getattr(found, name) == getattr(plan("linear", steps=2_000), name) for name in unchanged)
    if what == "steps":
        longer = dataclasses.replace(found, steps=found.steps + 3)
        assert accounting.epsilon(longer.ledger(), RDP).value > 0.5


@pytest.mark.parametrize("sampling", [POISSON, Sampling(kind="shuffled", rate=0.01, steps_per_epoch=100)])
def test_the_calibrated_length_is_the_largest(sampling):
    """Far from the length it started with: one step more spends too much."""
    settings = dict(delta=1e-5, adjacency="zero_out")
    start = plan("staircase", steps=300, sampling=sampling)
    found = calibration.calibrate(start, 0.7, "steps", **settings)
    assert found.steps != 300
    for steps, fits in ((found.steps, True), (found.steps + 1, False)):
        run = dataclasses.replace(found, steps=steps).ledger()
        spent = accounting.epsilon(run, Claim(**settings, accountant="rdp")).value
        assert (spent <= 0.7) == fits


def test_calibration_by_pld_allows_more():
    found = calibration.calibrate(plan("staircase", steps=500), 0.5, **ADD, accountant="pld")
    spent = accounting.epsilon(found.ledger(), CLAIM).value
    assert 0.497 <= spent <= 0.5
    assert found.scale < calibration.calibrate(plan("staircase", steps=500), 0.5, **ADD).scale


@pytest.mark.parametrize("name", schedules.NAMES)
def test_every_schedule_scales_to_the_same_epsilon(name):
    found = calibration.calibrate(plan(name, steps=300), 1.0, **ADD)
    assert accounting.epsilon(found.ledger(), RDP).value == pytest.approx(1, rel=1e-5)


def test_the_plan_spends_what_its_function_draws():
    found = plan("staircase", steps=100, scale=0.5, noise_ratio=0.25)
    np.testing.assert_array_equal(found.ledger().sigmas(), 0.25 * schedules.values(found.function(), 100))


L2_MAX = dict(private=False, reasons=("The noise reveals norms.",), mechanism="l2_max")


def test_a_run_that_is_not_private_has_only_a_nominal_number():
    run = plan(steps=10, **L2_MAX).ledger()
    for call in (
        lambda: accounting.epsilon(run, CLAIM),
        lambda: accounting.epsilon_trajectory(run, CLAIM),
        lambda: calibration.matched_constant(run, **ADD),
    ):
        with pytest.raises(ValueError, match=r"private=False.*reveals norms"):
            call()
    with pytest.raises(ValueError, match="private=False"):
        accounting.steps_within(run, 1.0, CLAIM)
    with pytest.raises(ValueError, match="private=False"):
        calibration.calibrate(plan(steps=10, **L2_MAX), 1.0, **ADD)
    nominal = accounting.epsilon(run, CLAIM, nominal=True)
    assert nominal.nominal and "NOMINAL, not a privacy guarantee" in str(nominal)
    honest = accounting.epsilon(plan(steps=10).ledger(), CLAIM, nominal=True)
    assert not honest.nominal and "NOMINAL" not in str(honest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(delta=0.0), "delta=0.0"),
        (dict(delta=0.5), "delta=0.5"),
        (dict(delta=1.0), "delta=1.0"),
        (dict(delta=math.nan), "delta=nan"),
        (dict(delta=True), "delta=True"),
        (dict(adjacency="neighbours"), "adjacency='neighbours'"),
        (dict(accountant="gdp"), "accountant='gdp'"),
    ],
)
def test_a_claim_of_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Claim(**{**ADD, **change})


def test_a_tolerance_of_nothing_is_refused(fixed):
    with pytest.raises(ValueError, match=r"tolerance=0\.0"):
        accounting.epsilon(fixed, CLAIM, tolerance=0.0)


@pytest.mark.parametrize(
    ("sampling", "adjacency"),
    [
        (Sampling(kind="shuffled", rate=0.1, steps_per_epoch=10), "add_or_remove_one"),
        (Sampling(kind="without_replacement", rate=0.1), "add_or_remove_one"),
        (Sampling(kind="without_replacement", rate=0.1), "zero_out"),
    ],
)
def test_what_has_no_theorem_is_refused(sampling, adjacency):
    run = plan(steps=20, sampling=sampling).ledger()
    with pytest.raises(ValueError, match=f"adjacency='{adjacency}'"):
        accounting.epsilon(run, Claim(delta=1e-5, adjacency=adjacency))


def test_a_delta_below_rounding_is_still_bounded(fixed):
    assert pld.bounds(accounting.runs(fixed, "zero_out"), 1e-14, replace=False).upper == math.inf
    by_pld, by_rdp = (
        accounting.epsilon(fixed, Claim(delta=1e-14, adjacency="zero_out", accountant=a))
        for a in ("pld", "rdp")
    )
    assert by_pld.lower <= by_pld.value == by_rdp.value < 2


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
def test_nothing_done_and_nothing_hidden(accountant):
    """No step and no participation cost nothing; one step without noise costs everything."""
    claim = Claim(**ADD, accountant=accountant)
    assert accounting.epsilon(Ledger(), claim).value == 0
    unused = plan(sampling=Sampling(kind="poisson", rate=0.0)).ledger()
    assert accounting.epsilon(unused, claim).value == 0
    bare = Entry(start=0, stop=3, noise_multipliers=((2.0, 2), (0.0, 1)), sampling=POISSON)
    assert accounting.epsilon(Ledger((bare,)), claim).value == math.inf


def test_adjacency_and_delta_are_never_implied():
    with pytest.raises(TypeError):
        Claim(delta=1e-5)
    with pytest.raises(TypeError):
        Claim(adjacency="zero_out")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan(steps=0), "steps=0"),
        (lambda: plan(scale=-1.0), "scale=-1.0"),
        (lambda: plan("parabola"), "schedule='parabola'"),
        (lambda: plan(parameters={"end": 3.0}), "end=3.0"),
        (lambda: calibration.calibrate(plan(), 0.0, **ADD), "target_epsilon=0.0"),
        (lambda: calibration.calibrate(plan(), 1.0, "delta", **ADD), "what='delta'"),
        (lambda: calibration.calibrate(plan(), 1.0, "end", **ADD), "no end point"),
        (
            lambda: calibration.calibrate(
                plan(steps=5, sampling=Sampling(kind="full")), 1.0, "sampling_rate", **ADD
            ),
            "full batches",
        ),
        (lambda: calibration.calibrate(plan(steps=1), 1e-9, "steps", **ADD), "not reached"),
    ],
)
def test_bad_plans_and_targets_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
