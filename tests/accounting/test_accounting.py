"""What users call: published figures, adjacency by adjacency, trajectories, refusals."""

import dataclasses
import math
import tracemalloc

import dp_accounting as dp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_ledgers import POISSON, written

from jaxdp import accounting
from jaxdp.accounting import Claim, events, gaussian, pld, rdp, trajectory
from jaxdp.accounting._epsilon import rounded
from jaxdp.accounting.ledger import Entry, Ledger, Sampling, run_lengths

ADD = dict(delta=1e-5, adjacency="add_or_remove_one")
CLAIM = Claim(**ADD)
RDP = Claim(**ADD, accountant="rdp")


@pytest.fixture(scope="module")
def fixed():
    return written()


@pytest.fixture(scope="module")
def linear():
    return written("linear")


def old_conversion(run):
    """The conversion of early DP-SGD code: rdp - ln(delta) / (order - 1)."""
    (steps,) = accounting.runs(run, "add_or_remove_one")
    total = steps.counts @ rdp.poisson_gaussian(steps.sampling_rate, steps.noise_multipliers)
    return np.min(total + math.log(1e5) / (rdp.ORDERS - 1))


def test_figures_of_the_fixed_and_linear_schedule(fixed, linear):
    for run, new, old in ((fixed, 0.6592, 0.8227), (linear, 0.4497, 0.5748)):
        assert accounting.epsilon(run, RDP).value == pytest.approx(new, abs=5e-4)
        assert old_conversion(run) == pytest.approx(old, abs=5e-4)
    assert accounting.equivalent_noise_multiplier(linear) == pytest.approx(8.507, rel=0.004)


@pytest.mark.parametrize(("layers", "expected"), [(1, 0.659), (3, 1.219), (10, 2.517)])
def test_per_tensor_clipping_with_the_full_bound_costs_the_root_of_the_tensors(layers, expected):
    run = written(factor=1 / math.sqrt(layers))
    assert accounting.epsilon(run, RDP).value == pytest.approx(expected, abs=1e-3)


def test_replace_one_costs_at_least_the_doubled_sensitivity(fixed):
    """1.440 is the add/remove figure at half the noise multiplier, which is no theorem for replace-one: the
    proved bounds are 1.621 (RDP) and 1.488 (PLD), and the known worst pair attains 1.271.
    """
    halved = accounting.epsilon(written(factor=0.5), RDP).value
    assert halved == pytest.approx(1.440, abs=1e-3)
    replaced = accounting.epsilon(fixed, Claim(delta=1e-5, adjacency="replace_one", accountant="rdp")).value
    tighter = accounting.epsilon(fixed, Claim(delta=1e-5, adjacency="replace_one", accountant="pld"))
    assert halved < replaced < 1.2 * halved
    assert tighter.lower < tighter.value < replaced
    assert (replaced, tighter.value) == (pytest.approx(1.6206, abs=1e-3), pytest.approx(1.4884, abs=5e-3))
    assert tighter.lower == pytest.approx(1.271, abs=5e-3)
    full = written(sampling=Sampling(kind="full"), steps=5)
    doubled = accounting.epsilon(full, Claim(delta=1e-5, adjacency="replace_one")).value
    assert doubled == pytest.approx(
        accounting.epsilon(written(sampling=Sampling(kind="full"), steps=5, factor=0.5), CLAIM).value,
        rel=1e-12,
    )


@pytest.mark.parametrize(("uses", "exact"), [(1, 0.594), (10, 2.114), (100, 8.004)])
def test_unamplified_uses(uses, exact):
    run = written(steps=uses, sampling=Sampling(kind="full"))
    assert accounting.epsilon(run, CLAIM).value == pytest.approx(exact, abs=5e-4)
    assert accounting.epsilon(run, RDP).value > exact


@pytest.mark.parametrize("name", ["staircase", "quarter_cosine"])
def test_rdp_is_dp_accountings_of_the_event(name):
    run = written(name, steps=60)
    expected = dp.rdp.RdpAccountant().compose(events.to_event(run)).get_epsilon(1e-5)
    assert accounting.epsilon(run, RDP).value == pytest.approx(expected, rel=1e-9)
    zeroed = accounting.epsilon(run, Claim(delta=1e-5, adjacency="zero_out", accountant="rdp")).value
    assert zeroed == pytest.approx(expected, rel=1e-9)


def test_without_replacement_is_tighter_than_the_general_theorem():
    """dp_accounting's bound holds for any mechanism (Wang et al. 2019); ours uses that the noise is
    Gaussian.
    """
    run = written(steps=500, sampling=Sampling(kind="without_replacement", rate=0.02))
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
    assert spent.value == spent.lower == pytest.approx(gaussian.gaussian_epsilon(mu, 1e-5), rel=1e-12)
    assert "no amplification" in str(spent)
    replaced = accounting.epsilon(run, Claim(delta=1e-5, adjacency="replace_one")).value
    assert replaced == pytest.approx(gaussian.gaussian_epsilon(2 * mu, 1e-5), rel=1e-12)


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
        assert spent[step - 1] == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
@pytest.mark.parametrize("budget", [0.0, 0.2, 0.3, 99.0])
def test_steps_within_is_the_last_step_that_fits(accountant, budget):
    run = written("staircase", steps=1_000, factor=0.3)
    claim = Claim(**ADD, accountant=accountant)
    fits = accounting.steps_within(run, budget, claim)
    assert fits == 0 or accounting.epsilon(run.until(fits), claim).value <= budget
    assert fits == 1_000 or accounting.epsilon(run.until(fits + 1), claim).value > budget
    assert (budget == 0.0) == (fits == 0) and (budget == 99.0) == (fits == 1_000)


L2_MAX = dict(private=False, reasons=("The noise reveals norms.",), mechanism="l2_max")


def test_a_run_that_is_not_private_has_only_a_nominal_number():
    run = written(steps=10, **L2_MAX)
    for call in (
        lambda: accounting.epsilon(run, CLAIM),
        lambda: accounting.epsilon_trajectory(run, CLAIM),
    ):
        with pytest.raises(ValueError, match=r"private=False.*reveals norms"):
            call()
    with pytest.raises(ValueError, match="private=False"):
        accounting.steps_within(run, 1.0, CLAIM)
    nominal = accounting.epsilon(run, CLAIM, nominal=True)
    assert nominal.nominal and "NOMINAL, not a privacy guarantee" in str(nominal)
    honest = accounting.epsilon(written(steps=10), CLAIM, nominal=True)
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
    run = written(steps=20, sampling=sampling)
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
    unused = written(sampling=Sampling(kind="poisson", rate=0.0))
    assert accounting.epsilon(unused, claim).value == 0
    bare = Entry(start=0, stop=3, noise_multipliers=((2.0, 2), (0.0, 1)), sampling=POISSON)
    assert accounting.epsilon(Ledger((bare,)), claim).value == math.inf


def test_adjacency_and_delta_are_never_implied():
    with pytest.raises(TypeError):
        Claim(delta=1e-5)
    with pytest.raises(TypeError):
        Claim(adjacency="zero_out")


# --- whose number it is ----------------------------------------------------------------------------------


def distinct(sigmas, rate=0.3):
    lengths = run_lengths(np.asarray(sigmas))
    entry = Entry(start=0, stop=len(sigmas), noise_multipliers=lengths, sampling=Sampling(rate=rate))
    return Ledger((entry,))


@pytest.mark.parametrize(
    ("sigmas", "rate"),
    [([0.7] * 5, 0.3), ([3.0, 2.0, 2.0, 8.0] * 4, 0.3), (np.linspace(4.0, 9.0, 32), 0.001)],
)
def test_few_noise_multipliers_are_dp_accountings_own(sigmas, rate):
    """Also where its series is above the integral."""
    run = distinct(sigmas, rate)
    accountant = dp.rdp.RdpAccountant().compose(events.to_event(run))
    expected, order = accountant.get_epsilon_and_optimal_order(1e-5)
    spent = accounting.epsilon(run, RDP)
    assert (spent.value, spent.order) == (pytest.approx(expected, rel=1e-9), order)


def test_many_noise_multipliers_are_at_most_dp_accountings_and_near_it():
    run = distinct(np.linspace(4.0, 9.0, 40), rate=0.01)
    expected = dp.rdp.RdpAccountant().compose(events.to_event(run)).get_epsilon(1e-5)
    assert accounting.epsilon(run, RDP).value == pytest.approx(expected, rel=1e-6)


def test_chords_do_not_show_in_epsilon():
    """Thousands of noise multipliers, against the sum of every one's own integral."""
    run = distinct(np.linspace(0.6, 3.0, 3 * rdp.NODES), rate=0.1)
    total = rdp.exact(0.1, run.sigmas(), rdp.ORDERS).sum(axis=0)
    expected, _ = rdp.epsilon(total, 1e-5)
    spent = accounting.epsilon(run, RDP).value
    assert expected * (1 - 1e-9) <= spent <= expected * (1 + 1e-9)
    assert accounting.epsilon_trajectory(run, RDP)[-1] >= expected * (1 - 1e-9)


@pytest.mark.parametrize("wrong", [0.99, 1.01])
def test_what_dp_accounting_does_not_confirm_is_refused(wrong, monkeypatch):
    right = rdp.exact
    monkeypatch.setattr(rdp, "exact", lambda *args: wrong * right(*args))
    with pytest.raises(ArithmeticError, match=r"noise_multiplier=.*not dp_accounting's"):
        accounting.epsilon(distinct(np.linspace(1.01, 2.02, 40)), RDP)


def test_many_steps_take_no_more_memory_than_their_number():
    run = distinct(np.linspace(4.0, 9.0, 120_000), rate=0.01)
    tracemalloc.start()
    try:
        accounting.epsilon(run, RDP)
        assert tracemalloc.get_traced_memory()[1] < 80e6  # a table of all orders alone would be 150e6
    finally:
        tracemalloc.stop()


# --- what is printed -------------------------------------------------------------------------------------


@given(st.floats(1e-12, 1e9))
def test_a_printed_bound_is_on_its_own_side(value):
    above, below = float(rounded(value)), float(rounded(value, up=False))
    assert below <= value <= above and above - below <= 2e-4 * value


def test_a_printed_bracket_holds_the_bracket():
    spent = accounting.Epsilon(
        value=1.779951,
        lower=1.779949,
        delta=1e-5,
        accountant="pld",
        adjacency="zero_out",
        sampling="",
        ledger="",
    )
    assert "epsilon = 1.7800 (not below 1.7799)" in str(spent)
    assert "epsilon = 0.000015600" in str(dataclasses.replace(spent, value=1.56e-5, lower=None))


def test_rdp_stands_in_where_there_is_no_distribution():
    run = written(steps=10_000, parameters={"value": 0.03})
    by_pld, by_rdp = (accounting.epsilon(run, claim) for claim in (CLAIM, RDP))
    assert by_pld.value == by_rdp.value and by_pld.lower == 0
    assert "the value is by RDP" in str(by_pld) and math.isfinite(by_pld.value)


@pytest.mark.parametrize(
    ("sigma", "steps", "side"), [(300.0, 10, "larger"), (0.3, 10_000, "smaller"), (6.0, 10_000, None)]
)
def test_an_order_at_the_end_of_the_grid_is_said(sigma, steps, side):
    spent = accounting.epsilon(written(steps=steps, parameters={"value": sigma}), RDP)
    assert (f"a {side} one would be tighter" in str(spent)) == (side is not None)
    assert (spent.caveat == "") == (side is None)


@pytest.mark.parametrize(
    ("delta", "examples", "warned"), [(1e-3, 1000, True), (1e-3, 999, False), (0.4, 2, False)]
)
def test_a_delta_that_gives_examples_away_is_warned_of(delta, examples, warned):
    said = Claim(delta=delta, adjacency="zero_out").warnings(examples)
    assert bool(said) == warned and all(f"delta = {delta:g}" in text for text in said)


@pytest.mark.parametrize("claim", [RDP, CLAIM], ids=lambda claim: claim.accountant)
def test_a_thousand_million_equal_steps_are_one_number(claim):
    """No array of steps is made; without sampling the answer is known."""
    entry = Entry(start=0, stop=10**9, noise_multipliers=((1e5, 10**9),), sampling=Sampling(rate=1.0))
    exact = gaussian.gaussian_epsilon(math.sqrt(1e9) / 1e5, 1e-5)
    tracemalloc.start()
    try:
        spent = accounting.epsilon(Ledger((entry,)), claim)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert exact * (1 - 1e-9) <= spent.value <= 1.2 * exact
    assert accounting.equivalent_noise_multiplier(Ledger((entry,))) == pytest.approx(1e5)
