"""The Renyi filter: never beyond its budget, ordinary composition where nothing adapts, real runs under it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import dp_accounting as dp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp import accounting, adaptive_noise, data, models
from jaxdp._privatize import privatize
from jaxdp.accounting import Claim, events, filters
from jaxdp.accounting.filters import UNITS
from jaxdp.accounting.ledger import Entry, Ledger, Sampling, from_json, run_lengths
from jaxdp.accounting.statement import privacy_statement
from jaxdp.clipping import clipped_gradients
from jaxdp.training import checkpoints, configured, record, resume
from jaxdp.training.config import TrainConfig

CLAIM = Claim(delta=1e-5, adjacency="add_or_remove_one")
GUESS = dict(sampling_rate=0.1, noise_multiplier=2.0)
FILTER = filters.create(2.0, CLAIM, **GUESS)
POISSON = Sampling(rate=0.1)


def kept(sigmas, filter=FILTER, **changes):
    whole = dict(start=0, stop=len(sigmas), noise_multipliers=run_lengths(sigmas), sampling=POISSON)
    return Ledger((Entry(**{**whole, "filter": filter, **changes}),))


def admitted(filter, rate, sigmas, spent=0):
    """How many of the steps a filter admits before it stops, one at a time."""
    for step, units in enumerate(filters.units(filter, rate, np.asarray(sigmas, float))):
        spent += int(units)
        if spent > UNITS:
            return step
    return len(sigmas)


def divergence(sigmas, filter=FILTER, rate=0.1):
    """RDP at the filter's order by dp_accounting, step by step."""
    total = 0.0
    for sigma in sigmas:
        event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma))
        total += dp.rdp.RdpAccountant([filter.order]).compose(event)._rdp[0]
    return total


# --- the filter ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.4, 20.0), min_size=1, max_size=60))
def test_never_admits_beyond_the_budget_and_stops_only_before_the_step_that_would_pass(sigmas):
    steps = admitted(FILTER, 0.1, np.array(sigmas))
    assert divergence(sigmas[:steps]) <= FILTER.budget
    if steps < len(sigmas):
        assert divergence(sigmas[: steps + 1]) > FILTER.budget * (1 - 1e-6)
    if steps:
        assert filters.epsilon(kept(sigmas[:steps])).value == 2.0


@pytest.mark.parametrize("adjacency", ["add_or_remove_one", "replace_one", "zero_out"])
@pytest.mark.parametrize("sigma, rate", [(0.8, 0.02), (2.0, 0.1), (6.0, 1.0)])
def test_equals_ordinary_composition_at_its_order_where_nothing_adapts(adjacency, sigma, rate):
    claim = Claim(delta=1e-5, adjacency=adjacency, accountant="rdp")
    filter = filters.create(3.0, claim, sampling_rate=rate, noise_multiplier=sigma)
    cost = accounting.divergences(rate, np.array([sigma]), adjacency, np.array([filter.order]))[0, 0]
    planned = int(filter.budget / cost)
    steps = admitted(filter, rate, np.full(planned + 50, sigma))
    assert planned - 1 <= steps <= planned
    # And the order is the one that ordinary accounting would have used for these steps.
    sampling = Sampling(kind="full") if rate == 1 else Sampling(rate=rate)
    ordinary = kept([sigma] * max(steps, 1), None, sampling=sampling)
    spent = accounting.epsilon(ordinary, claim)
    if steps > 20:
        assert spent.value == pytest.approx(3.0, rel=0.05) and spent.value <= 3.0


def test_the_budget_is_what_epsilon_leaves_at_the_order():
    accountant = dp.rdp.RdpAccountant([FILTER.order])
    accountant._rdp = np.array([FILTER.budget])
    assert accountant.get_epsilon(1e-5) == pytest.approx(2.0, rel=1e-9)


def test_cost_in_units_is_never_below_the_divergence():
    sigmas = np.geomspace(0.3, 50, 40)
    exact = np.array([divergence([s]) for s in sigmas]) / FILTER.budget * UNITS
    found = filters.units(FILTER, 0.1, sigmas)
    affordable = exact < UNITS
    assert (found >= exact)[affordable].all() and (found[~affordable] > UNITS).all()
    assert (found <= exact * (1 + 1e-8) + 1)[affordable].all()
    assert filters.units(FILTER, 0.1, np.array([0.0]))[0] == UNITS + 1


def test_the_order_is_chosen_for_the_guess_and_kept_whatever_is_used():
    quiet = filters.create(2.0, CLAIM, sampling_rate=0.1, noise_multiplier=20.0)
    assert quiet.order != FILTER.order
    sigmas = np.full(10_000, 20.0)
    assert admitted(quiet, 0.1, sigmas) > admitted(FILTER, 0.1, sigmas)
    assert filters.epsilon(kept(sigmas[:100])).order == FILTER.order


def test_what_was_spent_before_counts():
    sigmas = np.full(1000, 2.0)
    whole = admitted(FILTER, 0.1, sigmas)
    first = filters.spent(kept(sigmas[:30]))
    assert admitted(FILTER, 0.1, sigmas, spent=first) == whole - 30


# --- what may not be said of it --------------------------------------------------------------------------


def test_ordinary_accounting_refuses_what_a_filter_admitted():
    run = kept([2.0] * 20)
    for accountant in accounting.ACCOUNTANTS:
        claim = dataclasses.replace(CLAIM, accountant=accountant)
        for refused in (accounting.epsilon, accounting.epsilon_trajectory):
            with pytest.raises(ValueError, match="filter: the noise multipliers followed"):
                refused(run, claim)
    with pytest.raises(ValueError, match="filter: "):
        events.to_event(run)
    with pytest.raises(ValueError, match="filter=None"):
        filters.epsilon(kept([2.0] * 20, None))


def test_a_ledger_beyond_the_budget_has_no_epsilon():
    most = admitted(FILTER, 0.1, np.full(1000, 2.0))
    assert filters.epsilon(kept([2.0] * most)).value == 2.0
    with pytest.raises(ValueError, match="a step was taken that it did not admit"):
        filters.epsilon(kept([2.0] * (most + 1)))
    with pytest.raises(ValueError, match="private=False"):
        filters.epsilon(kept([2.0], private=False, reasons=("why",)))
    generous = dataclasses.replace(FILTER, budget=2 * FILTER.budget)
    with pytest.raises(ValueError, match="does not follow from a budget"):
        filters.epsilon(kept([2.0], generous))


def test_a_filter_is_fixed_before_the_first_step():
    other = dataclasses.replace(FILTER, budget=FILTER.budget / 2)
    for later in (other, None):
        with pytest.raises(ValueError, match="filter: is fixed before the first step"):
            kept([2.0]).append(dataclasses.replace(kept([2.0], later).entries[0], start=1, stop=2))
    run = kept([2.0, 1.5])
    assert from_json(run.to_json()) == run and run.until(1).filter == FILTER


@pytest.mark.parametrize("kind", ["shuffled", "without_replacement"])
def test_charges_for_no_other_sampling(kind):
    sampling = Sampling(kind=kind, rate=0.1, steps_per_epoch=10 if kind == "shuffled" else None)
    with pytest.raises(ValueError, match=f"sampling='{kind}'"):
        filters.epsilon(kept([2.0], sampling=sampling))


def test_the_statement_says_that_it_is_a_filter():
    run = kept([2.0, 1.5, 1.5])
    text = str(privacy_statement(run, filters.epsilon(run)))
    for part in (
        "RENYI FILTER",
        "not the sum",
        "privacy filter",
        f"order {FILTER.order:g}",
        "fully adaptive",
    ):
        assert part in text
    ordinary = kept([2.0, 1.5, 1.5], None)
    spent = accounting.epsilon(ordinary, Claim(delta=1e-5, adjacency="zero_out"))
    assert "filter" not in str(privacy_statement(ordinary, spent))
    for wrong in ((run, spent), (ordinary, filters.epsilon(run))):
        with pytest.raises(ValueError, match="a run under a filter, and no other"):
            privacy_statement(*wrong)


@pytest.mark.parametrize(
    "build, text",
    [
        (lambda: filters.create(0.0, CLAIM, **GUESS), "budget_epsilon=0.0"),
        (lambda: filters.create(1e-9, CLAIM, **GUESS), "budget_epsilon=1e-09"),
        (lambda: dataclasses.replace(FILTER, order=1.0), "order=1.0"),
        (lambda: dataclasses.replace(FILTER, budget=float("nan")), "budget=nan"),
    ],
)
def test_refusals(build, text):
    with pytest.raises(ValueError, match=text):
        build()


# --- the schedule that follows ---------------------------------------------------------------------------

ADAPTIVE = adaptive_noise.Adaptive(epsilon=2.0, claim=CLAIM, start=4.0, end=1.5, kept=FILTER)
FOLLOWING = ADAPTIVE.following(sampling_rate=0.1, steps=400)


@jax.jit
def next_step(state, bound, step):
    return FOLLOWING.admits(state, bound), *FOLLOWING.charge(state, bound, step)


def follow(bounds):
    """The schedule written out in Python: levels taken, units spent."""
    taken, spent, peak = [], 0, 0.0
    for bound in np.asarray(bounds, np.float32):
        peak = max(peak, bound)
        wanted = np.float32(4.0) * np.float32(bound / peak)
        level = min(
            int(np.searchsorted(FOLLOWING.noise_multipliers.astype(np.float32), wanted)),
            adaptive_noise.LEVELS - 1,
        )
        if spent + FOLLOWING.units[level] > UNITS:
            break
        spent += FOLLOWING.units[level]
        taken.append(level)
    return taken, spent


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=80))
def test_the_device_keeps_the_account_that_python_keeps(bounds):
    """Any course of the bound, adversarial ones too: the same levels, the same units, never beyond."""
    bounds = np.resize(np.array(bounds, np.float32), 400)
    taken, spent = follow(bounds)
    state = FOLLOWING.init()
    for step, bound in enumerate(bounds[: len(taken) + 1]):
        admitted, charged, sigma = next_step(state, jnp.float32(bound), jnp.int32(step))
        if not bool(admitted):
            break
        state = charged
        assert 1.499999 < float(sigma) <= 4.0
    assert np.asarray(state.levels)[: len(taken)].tolist() == taken
    assert int(state.spent) == spent <= UNITS
    sigmas = FOLLOWING.used(state, 0, len(taken))
    assert filters.spent(kept(sigmas)) == spent


def test_a_step_that_is_not_admitted_gets_no_noise_multiplier_and_no_entry():
    state = FOLLOWING.init()._replace(spent=jnp.int32(UNITS))
    charged, sigma = FOLLOWING.charge(state, jnp.float32(1.0), jnp.int32(0))
    assert np.isnan(float(sigma)) and int(charged.spent) == UNITS
    with pytest.raises(ValueError, match="not all were taken"):
        FOLLOWING.used(charged, 0, 1)


@pytest.mark.parametrize("start, end", [(1.0, 2.0), (1.0, 1.0), (1.0, 0.0), (float("inf"), 1.0)])
def test_a_range_that_is_none_is_refused(start, end):
    with pytest.raises(ValueError, match=f"start={start}, end={end}"):
        dataclasses.replace(ADAPTIVE, start=start, end=end)


# --- real runs -------------------------------------------------------------------------------------------

CONFIG = TrainConfig.of(
    model="logistic", schedule="adaptive", clipping="quantile", budget_epsilon=2.0, start=4.0, end=1.5,
    steps=4000, evaluate_every=25, noise_seed=1,
)  # fmt: skip


def trained(config, dataset, **options):
    return configured.build(config, dataset=dataset).train(**options)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def whole(digits):
    return trained(CONFIG, digits)


def test_a_real_run_stops_before_the_step_that_would_pass_the_budget(whole):
    steps, filter = whole.ledger.steps, whole.plan.filter
    assert 50 < steps == int(whole.state.step) < 400 and whole.stopped_by_budget
    assert len(whole.program.traces) == 1
    sigmas = whole.ledger.sigmas()
    policy, private = whole.plan.policy, whole.state.private
    refused = policy.noise_multipliers[int(policy.level(private.noise, private.clip.bound))]
    assert divergence(sigmas, filter) <= filter.budget < divergence([*sigmas, refused], filter)
    assert sigmas[0] == 4.0 and sigmas.min() < 2.0 and len(np.unique(sigmas)) > 10
    assert whole.epsilon.value == 2.0 and whole.epsilon.order == filter.order
    assert whole.curves["step"] == [*range(25, steps, 25), steps]
    assert whole.curves["test_accuracy"][-1] > 0.85


def test_the_ledger_holds_what_the_noise_was(digits, whole):
    """The run again, its noise given as the schedule that the ledger recorded, gives the same parameters."""
    sigmas = jnp.asarray(whole.ledger.sigmas(), jnp.float32)
    steps = whole.ledger.steps
    count_noise = whole.plan.batches.expected_batch_size / 20
    config = CONFIG.replace(
        schedule="fixed",
        start=None,
        end=None,
        budget_epsilon=None,
        steps=steps,
        count_noise=count_noise,
    )
    run = configured.build(config, dataset=digits)
    chain = optax.chain(
        privatize(run.plan.clipper, lambda t: sigmas[t], run.plan.batches.expected_batch_size),
        configured.optimizer(config),
    )
    gradient = clipped_gradients(models.cross_entropy(run.model), run.plan.clipper)
    state, train = run.init(), run.arrays
    params, opt_state = state.params, state.opt_state

    @jax.jit
    def step(params, opt_state, t):
        drawn = run.plan.batches.draw(state.sample_key, t)
        batch = (digits.to_float(train[0][drawn.indices]), train[1][drawn.indices])
        _, summed = gradient(params, batch, drawn.mask, opt_state[0].clip, opt_state[0].step)
        updates, opt_state = chain.update(summed, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for t in range(steps):
        params, opt_state = step(params, opt_state, jnp.int32(t))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(whole.state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_the_record_says_what_holds(digits, whole):
    written = record.train_record(configured.build(CONFIG, dataset=digits), whole)
    assert written["privacy"]["accountant"] == "renyi filter" and written["privacy"]["epsilon"] == 2.0
    assert "privacy filter" in written["privacy"]["statement"]
    assert set(written["curves"]["epsilon"]) == {2.0}
    assert written["curves"]["noise_multiplier"][-1] == whole.ledger.sigmas()[-1]
    json.dumps(written, allow_nan=False)


_WORKER = """
import json, sys
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig
configured.build(TrainConfig.of(**json.loads(sys.argv[1]))).train(folder=sys.argv[2], resume=True)
"""


def test_kill_9_and_resume_keep_the_filters_account(digits, tmp_path):
    config = CONFIG.replace(evaluate_every=2, start=8.0, end=3.0)
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER, json.dumps(config.options()), str(tmp_path / "run")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while (checkpoints.latest_step(tmp_path / "run") or 0) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    _, killed, before = configured.from_checkpoint(tmp_path / "run")
    assert 10 <= before.steps == int(killed.step) and int(killed.private.noise.spent) == filters.spent(before)
    config = config.replace(evaluate_every=500)
    resumed = trained(config, digits, folder=tmp_path / "run", resume=True)
    whole = trained(config, digits)
    assert resumed.ledger == whole.ledger and resumed.ledger.until(before.steps) == before
    assert (
        int(resumed.state.private.noise.spent)
        == int(whole.state.private.noise.spent)
        == filters.spent(whole.ledger)
    )
    for a, b in zip(*(jax.tree.leaves(r.state.params) for r in (resumed, whole)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def first_steps(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    trained(CONFIG.replace(steps=25), digits, folder=folder)
    return folder


@pytest.fixture
def begun(first_steps, tmp_path):
    return shutil.copytree(first_steps, tmp_path / "run")


def test_changes_on_the_way_are_appended_and_the_filter_stays(digits, begun):
    _, _, before = configured.from_checkpoint(begun)
    config = CONFIG.replace(start=8.0, end=3.0, sampling_rate=0.05)
    result = trained(config, digits, folder=begun, resume=True)
    assert result.ledger.until(25) == before and len(result.ledger.entries) == 2
    assert result.ledger.filter == before.filter and result.stopped_by_budget
    assert result.ledger.entries[1].sampling.rate == pytest.approx(0.05)
    assert filters.spent(result.ledger) <= UNITS and result.epsilon.value == 2.0
    again = trained(config, digits, folder=begun, resume=True)
    assert again.ledger == result.ledger and again.steps_timed == 0


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(budget_epsilon=4.0), r"epsilon=4.0: the run's filter was fixed at epsilon=2.0"),
        (dict(delta=1e-3), r"delta=0.001: the run's filter was fixed at delta=1e-05"),
        (dict(schedule="fixed", start=None, end=None), "the run was begun under a filter"),
    ],
)
def test_a_filter_is_not_changed_on_the_way(digits, begun, change, text):
    with pytest.raises(ValueError, match=text):
        trained(CONFIG.replace(**change), digits, folder=begun, resume=True)


def test_a_run_begun_without_a_filter_does_not_get_one(digits, tmp_path):
    planned = CONFIG.replace(
        schedule="fixed", noise_multiplier=4.0, start=None, end=None, steps=25, budget_epsilon=None
    )
    trained(planned, digits, folder=tmp_path / "run")
    with pytest.raises(ValueError, match="begun without a filter"):
        trained(CONFIG, digits, folder=tmp_path / "run", resume=True)


def test_an_account_that_differs_from_the_ledger_is_refused(digits, begun, tmp_path):
    _, state, _ = configured.from_checkpoint(begun)
    account = state.private.noise._replace(spent=state.private.noise.spent - 1)
    less = resume.storable(state.with_private(state.private._replace(noise=account)))
    document = checkpoints.restore(begun).document
    writer = checkpoints.Writer(tmp_path / "forged")
    writer.save(25, less, document)
    writer.close()
    with pytest.raises(ValueError, match="the filter's account in the checkpoint's state is another"):
        trained(CONFIG, digits, folder=tmp_path / "forged", resume=True)


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(clipping="flat"), "clipping='flat'"),
        (dict(budget_epsilon=None), "budget_epsilon=None"),
        (dict(target_epsilon=1.0), "target_epsilon=1.0"),
        (dict(noise_multiplier=1.0), "noise_multiplier=1.0"),
        (dict(sampling="shuffled"), "sampling='shuffled'"),
        (dict(start=1.0, end=2.0), "start=1.0, end=2.0"),
        (dict(budget_epsilon=0.02), "the first step alone"),
        (dict(diagnostics=True), "budget=2.0: exact training loss"),
        (dict(count_noise=1.9), "step=0: noise_multiplier=4, count_noise=1.9"),
    ],
)
def test_runs_refused_before_they_begin(digits, change, text):
    with pytest.raises(ValueError, match=text):
        trained(CONFIG.replace(**change), digits)
