"""Runs: one compilation, resume after a real kill -9, budgets, ledgers, what is refused."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdp import data, models, noise, sampling
from jaxdp.accounting.ledger import Ledger, from_json
from jaxdp.data.source import as_source
from jaxdp.training import checkpoints, configured, program, record, resume
from jaxdp.training.config import TrainConfig
from jaxdp.training.run import claimed, train

CONFIG = TrainConfig.of(
    model="logistic", steps=40, schedule="linear", scale=0.2, evaluate_every=10, noise_seed=1
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def trained(config, dataset, **options):
    return configured.build(config, dataset=dataset).train(**options)


def resumed(run, folder):
    """The state with which a run would go on."""
    fresh, source = run.init(), as_source(run.dataset)
    now = resume.identity(run.program, run.plan, source, fresh, run.arrays)
    return resume.resume(folder, fresh, run.plan, now)[0]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("schedule", ["fixed", "linear", "none"])
def test_one_compilation_for_epochs_of_any_length(digits, schedule):
    config = CONFIG.replace(schedule=schedule, scale=1.0, evaluate_every=7)
    result = trained(config, digits)
    assert len(result.program.traces) == 1 and int(result.state.step) == 40
    assert result.curves["step"] == [7, 14, 21, 28, 35, 40]


def test_the_loop_equals_its_steps_written_out(digits):
    """Two private steps by hand: same batches, gradients one by one, same noise."""
    run = configured.build(CONFIG.replace(l2_norm_clip=0.3), dataset=digits)
    state, train = run.init(), run.arrays
    looped = run.epoch(state, train, 2)
    loss_fn = models.cross_entropy(run.model)
    params, key = state.params, state.opt_state[0].key
    for step in range(2):
        batch = run.plan.batches.draw(state.sample_key, step)
        total = jax.tree.map(jnp.zeros_like, params)
        for row in np.asarray(batch.indices)[np.asarray(batch.mask)]:
            g = jax.grad(loss_fn)(params, (train[0][row], train[1][row]))
            factor = jnp.minimum(1.0, 0.3 / optax.tree.norm(g))
            total = jax.tree.map(lambda t, g, f=factor: t + f * g, total, g)
        std = 0.3 * 0.2 * (15 - 10.15 * step / 40)
        noised = noise.released(noise.Stream(key, step, noise.GRADIENTS), total, std)
        scale = 0.5 / (0.1 * digits.train_size)
        params = jax.tree.map(lambda p, u, s=scale: p - s * u, params, noised)
    # Where a sum is rounded otherwise an entry can go to the next place on the grid.
    apart = [
        np.abs(np.ravel(a - b)) for a, b in zip(*map(jax.tree.leaves, (looped.params, params)), strict=True)
    ]
    apart = np.concatenate(apart)
    assert np.mean(apart > 2e-6) < 1e-3 and apart.max() < 2 * scale * 0.125


def test_accuracy_of_ordinary_and_private_training(digits):
    """Not a benchmark: training learns, with and without noise, and the noise costs something."""
    ordinary = trained(CONFIG.replace(schedule="none", scale=1.0, steps=150), digits)
    private = trained(CONFIG.replace(steps=150), digits)
    assert ordinary.curves["test_accuracy"][-1] > 0.93
    assert 0.8 < private.curves["test_accuracy"][-1] < ordinary.curves["test_accuracy"][-1]
    assert ordinary.epsilon is None and "no noise" in ordinary.ledger.reasons[0]


@pytest.mark.parametrize("sampling", ["poisson", "shuffled", "full"])
def test_the_ledger_says_how_batches_were_drawn(digits, sampling):
    config = CONFIG.replace(sampling=sampling, steps=20, adjacency="zero_out")
    result = trained(config, digits)
    (entry,) = result.ledger.entries
    assert entry.sampling.kind == sampling and result.ledger.steps == 20
    assert entry.sampling.rate == pytest.approx(result.plan.sampling.rate)
    assert result.epsilon.value > 0


def test_one_example_that_is_not_finite_neither_spoils_the_run_nor_passes_unseen(digits):
    x = digits.train_x.copy()
    x[3] = 3e38
    spoilt = dataclasses.replace(digits, train_x=x)
    config = CONFIG.replace(sampling="full", steps=5)
    with pytest.warns(UserWarning, match="5 per-example gradients were not finite"):
        result = trained(config, dataset=spoilt)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state.params))


def test_exact_diagnostics_cost_the_claim(digits):
    result = trained(CONFIG.replace(diagnostics=True), digits)
    assert len(result.curves["training_loss"]) == 4
    assert result.epsilon is None and "without noise" in result.ledger.reasons[0]
    silent = trained(CONFIG, digits)
    assert set(silent.curves) == {"step", "test_accuracy"} and silent.epsilon is not None


def test_overflow_is_an_error_and_leaves_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "physical_size", lambda *_: 8)
    with pytest.raises(ValueError, match="outgrew its places"):
        trained(CONFIG, digits, folder=tmp_path / "run")
    assert checkpoints.latest_step(tmp_path / "run") is None


# --- averaged parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.01, 0.9, 0.9999])
def test_the_average_is_the_moving_average_of_optax(decay):
    """Three steps, from a first value that must not count."""
    oracle = optax.ema(decay, debias=True)
    rows = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)}
    state = oracle.init(jax.tree.map(lambda r: r[0], rows))
    average = {"w": jnp.ones(4)}
    for step in range(3):
        params = jax.tree.map(lambda r, s=step: r[s], rows)
        expected, state = oracle.update(params, state)
        average = program.averaged(average, params, jnp.int32(step), decay)
        # optax forms 1 - decay^n from rounded powers: at 0.9999 it is the less exact of the two
        np.testing.assert_allclose(average["w"], expected["w"], rtol=2e-6 + 2e-7 / (1 - decay), atol=1e-6)


@pytest.mark.parametrize(
    "decay, of", [("linear", lambda t: 1 - t / 40), ("cosine", lambda t: (1 + np.cos(np.pi * t / 40)) / 2)]
)
def test_a_decay_scales_each_update_and_changes_nothing_else(digits, decay, of):
    """From the same state a step with it is a step without, times the curve."""
    config = CONFIG.replace(learning_rate_decay=decay)
    decayed, plain = (configured.build(c, dataset=digits) for c in (config, CONFIG))
    state = decayed.init()
    for step in (0, 13, 39):
        state = decayed.epoch(state, decayed.arrays, step)
        other = state._replace(opt_state=(state.opt_state[0], *plain.init().opt_state[1:]))
        ends = [run.epoch(s, run.arrays, step + 1) for run, s in ((decayed, state), (plain, other))]
        moved, would = (jax.tree.map(lambda a, b: a - b, end.params, state.params) for end in ends)
        jax.tree.map(
            lambda m, w, s=step: np.testing.assert_allclose(m, of(s) * w, rtol=1e-3, atol=1e-6), moved, would
        )
    assert trained(config, digits).epsilon == trained(CONFIG, digits).epsilon


def test_averaging_changes_what_is_evaluated_and_nothing_else(digits, tmp_path):
    """Same steps, noise and epsilon; whoever watches or attacks the run is given the parameters of the step."""
    seen = []
    config = CONFIG.replace(ema_decay=0.9)
    run = configured.build(config, dataset=digits)
    averaged = run.train(folder=tmp_path / "run", callbacks=(lambda step, params: seen.append(params),))
    plain = trained(CONFIG, digits)
    assert len(averaged.program.traces) == 1 and plain.state.average == ()
    assert bits(averaged.state.params) == bits(plain.state.params) == bits(seen[-1])
    assert averaged.epsilon == plain.epsilon and averaged.ledger == plain.ledger
    last = averaged.curves["test_accuracy"][-1]
    assert last == float(run.evaluate(averaged.state.average)["test_accuracy"])
    assert bits(averaged.params) == bits(averaged.state.average)
    assert last != plain.curves["test_accuracy"][-1]
    assert record.train_record(run, averaged)["metrics"]["test_accuracy"] == last
    run, state, _ = configured.from_checkpoint(tmp_path / "run")
    assert bits(state.params) == bits(plain.state.params)
    assert float(run.evaluate(state.evaluated)["test_accuracy"]) == last
    with pytest.raises(ValueError, match=r"ema_decay=0\.5: the run was begun with ema_decay=0\.9"):
        again = config.replace(ema_decay=0.5)
        trained(again, digits, folder=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="another model, optimizer, average or clipping"):
        bare = configured.build(CONFIG, dataset=digits)
        train(
            bare.program.loss_fn, bare.model.params, digits, bare.plan, configured.optimizer(CONFIG),
            CONFIG.claim, folder=tmp_path / "run", resume=True,
        )  # fmt: skip


# --- quantile clipping -----------------------------------------------------------------------------------

QUANTILE = CONFIG.replace(clipping="quantile", l2_norm_clip=0.1)


def test_quantile_clipping_costs_what_flat_costs_and_says_what_it_charged(digits):
    flat = trained(QUANTILE.replace(clipping="flat"), digits)
    adaptive = trained(QUANTILE.replace(evaluate_every=20), digits)
    same = dict(ledger=flat.epsilon.ledger, generator=flat.epsilon.generator)
    assert dataclasses.replace(adaptive.epsilon, **same) == flat.epsilon
    assert adaptive.epsilon.generator.numbers == flat.epsilon.generator.numbers + 40  # the counts
    assert adaptive.ledger.entries[0].noise_multipliers == flat.ledger.entries[0].noise_multipliers
    count_noise = adaptive.plan.expected_batch_size / 20
    assert f"noised count of norms below the bound together: noise {count_noise:g} on" in str(
        adaptive.statement
    )
    assert "no noise multiplier follows it" in str(adaptive.statement)
    assert len(adaptive.curves["l2_norm_clip"]) == 2
    assert adaptive.curves["l2_norm_clip"][-1] == float(adaptive.state.opt_state[0].clip.bound) != 0.1


def test_an_impossible_split_is_refused_before_the_run(digits):
    config = QUANTILE.replace(scale=1.0, count_noise=7.0)
    with pytest.raises(ValueError, match=r"step=0: noise_multiplier=15, count_noise=7: .* above 7.5"):
        trained(config, digits)
    late = config.replace(start=5.0, end=20.0)
    with pytest.raises(ValueError, match="step=24: noise_multiplier=14, count_noise=7"):
        trained(late, digits)


@pytest.mark.parametrize("changed", [False, True])
def test_a_resumed_run_keeps_its_bound_unless_another_is_asked_for(digits, tmp_path, changed):
    half = QUANTILE.replace(schedule="fixed", noise_multiplier=6.0, steps=20)
    trained(half, digits, folder=tmp_path / "run")
    _, before, _ = configured.from_checkpoint(tmp_path / "run")
    more = half.replace(steps=40, count_noise=9.0, **({"l2_norm_clip": 0.7} if changed else {}))
    bound = float(resumed(configured.build(more, dataset=digits), tmp_path / "run").private.clip.bound)
    assert bound == (np.float32(0.7) if changed else float(before.opt_state[0].clip.bound))
    result = trained(more, digits, folder=tmp_path / "run", resume=True)
    assert [e.stop for e in result.ledger.entries] == [20, 40]
    assert "noise 9 on" in result.ledger.entries[1].charged


# --- budget ----------------------------------------------------------------------------------------------


def test_budget_stops_before_the_step_that_would_pass_it(digits):
    free = trained(CONFIG, digits)
    budget = 0.7 * free.epsilon.value
    bounded = trained(CONFIG.replace(budget_epsilon=budget), digits)
    assert bounded.stopped_by_budget and bounded.ledger.steps == int(bounded.state.step) < 40
    assert bounded.epsilon.value <= budget
    one_more = claimed(free.ledger.until(bounded.ledger.steps + 1), CONFIG.claim)
    assert one_more.value > budget


def test_target_epsilon_is_met_from_below(digits):
    config = CONFIG.replace(scale=1.0, target_epsilon=2.0)
    result = trained(config, digits)
    assert 1.99 < result.epsilon.value <= 2.0


# --- checkpoints -----------------------------------------------------------------------------------------

_WORKER = """
import json, sys
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig
config = TrainConfig.of(**json.loads(sys.argv[1]))
configured.build(config).train(folder=sys.argv[2], resume=True)
"""


def worker(config, folder):
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER, json.dumps(config.options()), str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_kill_9_and_resume_gives_the_same_bits(digits, tmp_path):
    """Killed between two checkpoints of a run with momentum, averages and decay, resumed in another process."""
    config = CONFIG.replace(
        optimizer="momentum", learning_rate=0.1, ema_decay=0.99, steps=1_500, evaluate_every=20
    )
    config = config.replace(clipping="quantile_per_layer", scale=1.0, learning_rate_decay="cosine")
    whole = trained(config, digits)
    process = worker(config, tmp_path / "run")
    deadline = time.monotonic() + 120
    while (checkpoints.latest_step(tmp_path / "run") or 0) < 40 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = checkpoints.latest_step(tmp_path / "run")
    assert 40 <= reached < config.steps
    resumed = trained(config, digits, folder=tmp_path / "run", resume=True)
    assert bits(resumed.state.params) == bits(whole.state.params)
    assert bits(resumed.state.average) == bits(whole.state.average) != bits(whole.state.params)
    assert bits(resumed.state.opt_state[1:]) == bits(whole.state.opt_state[1:])
    assert resumed.epsilon == whole.epsilon and resumed.curves == whole.curves
    assert resumed.steps_timed == config.steps - reached


def test_changed_privacy_is_appended_to_the_ledger_and_meets_new_noise(digits, tmp_path):
    first = CONFIG.replace(steps=20)
    trained(first, digits, folder=tmp_path / "run")
    _, before, spent = configured.from_checkpoint(tmp_path / "run")
    more = CONFIG.replace(steps=40, schedule="fixed", noise_multiplier=5.0, scale=1.0, sampling_rate=0.05)
    run = configured.build(more, dataset=digits)
    result = run.train(folder=tmp_path / "run", resume=True)
    assert result.ledger.entries[0] == spent.entries[0] and len(result.ledger.entries) == 2
    # The record's curve: 0.2 (15 - 10.15 t / 20) at the steps 9 and 19, then the new noise.
    assert record.curves(run, result)["noise_multiplier"] == pytest.approx([2.0865, 1.0715, 5.0, 5.0])
    assert result.ledger.entries[1].noise_multipliers == ((5.0, 20),)
    assert result.ledger.entries[1].sampling.rate == pytest.approx(0.05)
    old, new = (s.opt_state[0].key for s in (before, result.state))
    assert not np.array_equal(old, new)


def test_copies_of_a_checkpoint_that_go_different_ways_share_no_noise(digits, tmp_path):
    half = CONFIG.replace(schedule="fixed", scale=1.0, noise_multiplier=6.0, steps=20)
    trained(half, digits, folder=tmp_path / "run")
    _, original, _ = configured.from_checkpoint(tmp_path / "run")

    def secrets(**changes):
        run = configured.build(half.replace(steps=40, **changes), dataset=digits)
        state = resumed(run, tmp_path / "run")
        return bits([state.opt_state[0].key, state.sample_key])

    first, second = (secrets(noise_multiplier=sigma) for sigma in (8.0, 16.0))
    kept = bits([original.opt_state[0].key, original.sample_key])
    for a, b in ((first, second), (first, kept), (second, kept)):
        assert all(x != y for x, y in zip(a, b, strict=True))
    assert first == secrets(noise_multiplier=8.0)  # a second try is the same run


def test_a_shuffled_epoch_goes_on_in_its_order(digits, tmp_path):
    half = CONFIG.replace(sampling="shuffled", adjacency="zero_out", steps=5)
    trained(half, digits, folder=tmp_path / "run")
    _, before, _ = configured.from_checkpoint(tmp_path / "run")
    run = configured.build(half.replace(steps=10), dataset=digits)
    state = resumed(run, tmp_path / "run")
    assert bits(state.sample_key) == bits(before.sample_key)
    seen = [np.asarray(run.plan.batches.draw(state.sample_key, step).indices) for step in range(10)]
    assert len(np.unique(seen)) == np.size(seen)


def test_other_examples_and_late_targets_are_not_resumed(digits, tmp_path):
    trained(CONFIG.replace(steps=20), digits, folder=tmp_path / "run")
    exchanged = digits.train_y.copy()
    exchanged[0] = (exchanged[0] + 1) % 10
    with pytest.raises(ValueError, match="data: not the training examples"):
        trained(
            CONFIG,
            dataclasses.replace(digits, train_y=exchanged),
            folder=tmp_path / "run",
            resume=True,
        )
    late = CONFIG.replace(scale=1.0, target_epsilon=3.0)
    with pytest.raises(ValueError, match=r"target_epsilon=3\.0: for a run as a whole"):
        trained(late, digits, folder=tmp_path / "run", resume=True)


def test_a_finished_run_resumes_to_itself(digits, tmp_path):
    done = trained(CONFIG, digits, folder=tmp_path / "run")
    again = trained(CONFIG, digits, folder=tmp_path / "run", resume=True)
    assert bits(done.state.params) == bits(again.state.params) and again.epsilon == done.epsilon


def test_a_run_that_began_with_another_version_of_the_noise_goes_on_with_new_keys(
    digits, tmp_path, monkeypatch
):
    done = trained(CONFIG, digits, folder=tmp_path / "run")
    run = configured.build(CONFIG, dataset=digits)

    def secrets(state):
        return bits([state.opt_state[0].key, state.sample_key])

    state = resumed(run, tmp_path / "run")
    assert secrets(state) == secrets(done.state)
    monkeypatch.setattr(noise, "VERSION", noise.VERSION + 1)
    other = resumed(run, tmp_path / "run")
    assert not set(secrets(other)) & set(secrets(state)) and bits(other.params) == bits(state.params)


def _with_short_secrets(folder):
    """The newest checkpoint as earlier versions wrote it: secrets of two words."""
    saved = checkpoints.restore(folder)
    short = [leaf[:2] if leaf.dtype == np.uint32 and leaf.shape == (8,) else leaf for leaf in saved.state]
    assert sum(leaf.shape == (2,) and leaf.dtype == np.uint32 for leaf in short) == 2
    document = saved.document | {"program": "of an earlier version"}
    shutil.rmtree(folder)
    with checkpoints.Writer(folder) as writer:
        writer.save(saved.step, short, document)
    return saved


def test_a_checkpoint_of_shorter_secrets_goes_on_with_new_ones(digits, tmp_path):
    trained(CONFIG.replace(steps=20), digits, folder=tmp_path / "run")
    before = _with_short_secrets(tmp_path / "run")
    run = configured.build(CONFIG, dataset=digits)
    state = resumed(run, tmp_path / "run")
    assert int(state.step) == 20 and state.sample_key.shape == state.opt_state[0].key.shape == (8,)
    old = {leaf.tobytes() for leaf in before.state if leaf.dtype == np.uint32 and leaf.shape == (8,)}
    fresh = run.init()
    assert not {np.asarray(state.opt_state[0].key).tobytes(), np.asarray(state.sample_key).tobytes()} & (
        old | {np.asarray(fresh.sample_key).tobytes()}
    )


def test_a_shuffled_epoch_of_an_earlier_version_is_not_gone_on_with(digits, tmp_path):
    half = CONFIG.replace(sampling="shuffled", adjacency="zero_out", steps=5)
    trained(half, digits, folder=tmp_path / "run")
    _with_short_secrets(tmp_path / "run")
    with pytest.raises(ValueError, match="sampling='shuffled': an earlier version drew the epoch's order"):
        resumed(configured.build(half.replace(steps=10), dataset=digits), tmp_path / "run")


def test_a_folder_in_use_is_not_overwritten(digits, tmp_path):
    trained(CONFIG, digits, folder=tmp_path / "run")
    with pytest.raises(ValueError, match="holds checkpoints already"):
        trained(CONFIG, digits, folder=tmp_path / "run")


def test_keys_in_checkpoints_are_for_the_owner_only(digits, tmp_path):
    trained(CONFIG, digits, folder=tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0


def test_another_model_is_not_resumed(digits, tmp_path):
    trained(CONFIG, digits, folder=tmp_path / "run")
    with pytest.raises(ValueError, match="seed=5: the run was begun with seed=0"):
        trained(CONFIG.replace(seed=5), digits, folder=tmp_path / "run", resume=True)


def _files(folder: pathlib.Path):
    step = folder / str(checkpoints.latest_step(folder))
    return sorted(p for p in step.rglob("*") if p.is_file() and p.stat().st_size)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_a_damaged_checkpoint_is_refused(digits, tmp_path, damage):
    """Whatever file of it is damaged; and no file is passed over."""
    config = CONFIG.replace(steps=10)
    trained(config, digits, folder=tmp_path / "run")
    files = _files(tmp_path / "run")
    assert len(files) >= 6
    for file in files:
        whole = file.read_bytes()
        if damage == "remove":
            file.unlink()
        elif damage == "truncate":
            file.write_bytes(whole[: len(whole) // 2])
        elif damage == "flip":
            middle = len(whole) // 2
            file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0x10]) + whole[middle + 1 :])
        else:
            file.with_name("another").write_bytes(b"")
        with pytest.raises((ValueError, FileNotFoundError), match=r"not resumed|no complete checkpoint"):
            checkpoints.restore(tmp_path / "run")
        file.write_bytes(whole)
        file.with_name("another").unlink(missing_ok=True)
    assert checkpoints.restore(tmp_path / "run").step == 10


def test_a_rewritten_ledger_is_refused(digits, tmp_path):
    """Even with its own checksum made right again, the manifest tells."""
    config = CONFIG.replace(steps=10)
    spent = trained(config, digits, folder=tmp_path / "run").ledger
    less = Ledger((dataclasses.replace(spent.entries[0], noise_multipliers=((99.0, 10),)),))
    path = tmp_path / "run" / "10" / "document" / "metadata"
    document = json.loads(path.read_text())
    assert from_json(document["ledger"]) == spent
    path.write_text(json.dumps({**document, "ledger": less.to_json()}))
    with pytest.raises(ValueError, match="document/metadata is missing, damaged or altered"):
        trained(config.replace(steps=20), digits, folder=tmp_path / "run", resume=True)


def test_a_missing_ledger_is_refused(digits, tmp_path):
    """A checkpoint whole in itself that does not say what was spent."""
    run = configured.build(CONFIG, dataset=digits)
    writer = checkpoints.Writer(tmp_path / "run")
    now = resume.identity(run.program, run.plan, as_source(digits), run.init(), run.arrays)
    document = {**now, "config": CONFIG.options(), "run": "a", "ledger": None, "curves": {}}
    writer.save(0, run.init(), document)
    writer.close()
    with pytest.raises(ValueError, match="the privacy already spent is unknown"):
        trained(CONFIG, digits, folder=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(steps=0), "steps=0"),
        (dict(delta=0.0), "delta=0.0"),
        (dict(sampling_rate=1.5), "sampling_rate=1.5"),
        (dict(l2_norm_clip=0.0), "l2_norm_clip=0.0"),
        (dict(learning_rate=float("nan")), "learning_rate=nan"),
        (dict(scale=-1.0), "scale=-1.0"),
        (dict(ema_decay=1.0), "ema_decay=1.0"),
        (dict(target_epsilon=3.0), "scale=0.2, target_epsilon=3.0"),
        (dict(schedule="none", scale=1.0, target_epsilon=3.0), "schedule='none'"),
        (dict(schedule="fixed", noise_multiplier=-2.0), "noise_multiplier=-2.0"),
        (dict(budget_epsilon=1e-6), "budget=1e-06"),
        (dict(clipping="l2_max", budget_epsilon=1.0), "budget=1.0.*private gradients"),
        (dict(clipping="quantile", l2_norm_clip_end=1.0), "l2_norm_clip_end=1.0: quantile"),
        (dict(clipping="quantile", target_quantile=1.0), "target_quantile=1.0"),
        (dict(count_noise=0.0), "count_noise=0.0"),
        (dict(sampling="shuffled"), "adjacency='add_or_remove_one'"),
    ],
)
def test_refusals(digits, change, text):
    with pytest.raises(ValueError, match=text):
        trained(CONFIG.replace(**change), digits)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_curve_of_epsilon_is_by_the_accountant_of_the_claim(digits, accountant):
    config = CONFIG.replace(steps=20, schedule="linear", accountant=accountant, evaluate_every=7)
    result = trained(config, digits)
    steps = [0, *(int(step) for step in result.curves["step"])]
    curve = record.epsilon_curve(result.ledger, config.claim, steps)
    # Of few noise multipliers dp_accounting's own sum is stated, which may be the larger in the sixth digit.
    assert curve[0] == 0 and curve[-1] == pytest.approx(result.epsilon.value, rel=1e-5)
    assert curve[-1] <= result.epsilon.value * (1 + 1e-9)
    another = config.replace(accountant="rdp" if accountant == "pld" else "pld").claim
    other = record.epsilon_curve(result.ledger, another, steps)
    assert all(a < b for a, b in itertools.pairwise(curve)) and curve[-1] != pytest.approx(
        other[-1], rel=0.01
    )
