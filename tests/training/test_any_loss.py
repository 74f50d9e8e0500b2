"""`jaxdp.train` with parts of one's own: what is shown is charged, what goes on goes on as it was."""

import dataclasses
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import accounting, cli, clipping, sampling, schedules
from jaxdp.accounting import ledger
from jaxdp.data.source import Source, as_source
from jaxdp.training import checkpoints, resume
from jaxdp.training.program import Program

RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(200, 6)).astype(np.float32), "y": RNG.integers(0, 3, 200)}
PARAMS = {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)}
CLAIM = jaxdp.Claim(delta=1e-5, adjacency="add_or_remove_one")


def loss_fn(params, example):
    logits = example["x"] @ params["w"] + params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, example["y"])


def planned(sigma: object = 4.0, steps=12, kind="poisson", **changes):
    sampler = sampling.create(kind, 200, 0.2, steps)
    plan = jaxdp.Plan(
        clipper=clipping.flat(1.0), noise_multiplier=sigma, sampler=sampler, steps=steps, seed=1
    )
    return dataclasses.replace(plan, **changes)


def trained(plan, loss=loss_fn, optimizer=None, **options):
    options = {"every": 4, **options}
    return jaxdp.train(loss, PARAMS, DATA, plan, optimizer or optax.sgd(0.5), CLAIM, **options)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_what_is_drawn_is_what_is_charged_at_every_step():
    """The noise of each step, measured on zero gradients, against the ledger's noise multipliers."""
    steps = 60
    sampler = sampling.full(40_000)
    plan = jaxdp.Plan(
        clipper=clipping.flat(0.5),
        noise_multiplier=schedules.linear(steps),
        sampler=sampler,
        steps=steps,
        seed=3,
    )
    plan = jaxdp.calibrate(plan, 5.0, CLAIM)
    transformation = plan.privatize()
    params = {"w": jnp.zeros(40_000)}
    state = transformation.init(params)
    update = jax.jit(lambda s: transformation.update({"w": jnp.zeros((1, 40_000))}, s, params))
    measured = []
    for _ in range(steps):
        noised, state = update(state)
        measured.append(float(jnp.std(noised["w"])) * sampler.expected_batch_size / 0.5)
    np.testing.assert_allclose(measured, plan.ledger().sigmas(), rtol=0.02)
    wrong = 1.05 * plan.ledger().sigmas()
    assert np.abs(np.array(measured) / wrong - 1).max() > 0.02  # a scale wrong by a twentieth is seen


def test_the_event_of_a_plan_is_dp_accountings():
    import dp_accounting as dp

    plan = planned(schedules.staircase(12, start=6.0, end=3.0, stairs=3))
    accountant = dp.rdp.RdpAccountant().compose(plan.event())
    rdp = dataclasses.replace(CLAIM, accountant="rdp")
    ours = accounting.epsilon(plan.ledger(), rdp).value
    assert ours == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)


def test_a_schedule_that_is_no_value_is_asked_each_time():
    """A callable object whose number changed after it was asked is charged at what it says now."""

    class Changing:
        sigma = 6.0

        def __call__(self, step):
            return jnp.full(jnp.shape(step), self.sigma, jnp.float32)

    schedule = Changing()
    before = planned(schedule).ledger().sigmas()
    schedule.sigma = 0.5
    assert set(before) == {6.0} and set(planned(schedule).ledger().sigmas()) == {0.5}
    assert schedules.linear(12) == schedules.linear(12) != schedules.linear(13)


def test_nobody_is_shown_what_is_not_on_disk(tmp_path):
    """At every call the newest checkpoint is of that step, and its ledger reaches it."""
    seen = []

    def shown(step, params):
        kept = checkpoints.latest_step(tmp_path / "run")
        spent = (
            ledger.from_json(checkpoints.restore(tmp_path / "run").document["ledger"]).steps if kept else 0
        )
        seen.append((step, kept or 0, spent))

    trained(planned(), folder=tmp_path / "run", callbacks=(shown,))
    assert seen == [(0, 0, 0), (4, 4, 4), (8, 8, 8), (12, 12, 12)]


def test_what_was_shown_before_an_interruption_is_charged_though_the_noise_changes(tmp_path):
    shown = []

    def stop_at_eight(step, params):
        shown.append(step)
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(planned(1.0), folder=tmp_path / "run", callbacks=(stop_at_eight,))
    result = trained(planned(9.0), folder=tmp_path / "run", resume=True)
    assert max(shown) == 8
    assert result.ledger.entries[0].noise_multipliers == ((1.0, 8), (9.0, 4))


def _program(plan, loss=loss_fn, optimizer=None, **changes):
    program = Program(plan=plan, loss_fn=loss, optimizer=optimizer or optax.sgd(0.5), **changes)
    state = program.init(PARAMS)
    arrays = jax.tree.map(jnp.asarray, DATA)
    return resume.identity(program, plan, as_source(DATA), state, arrays)["program"]


def test_whatever_changes_what_is_computed_changes_the_identity():
    plan = planned()
    same = _program(plan)
    assert _program(planned()) == same and _program(plan, lambda p, e: loss_fn(p, e)) == same
    injected = optax.inject_hyperparams(optax.sgd)
    others = {
        "noise": _program(planned(5.0)),
        "clip": _program(planned(clipper=clipping.flat(0.9))),
        "rule": _program(planned(clipper=clipping.automatic(1.0))),
        "loss": _program(plan, lambda p, e: 1.01 * loss_fn(p, e)),
        "learning rate": _program(plan, optimizer=optax.sgd(0.4)),
        "optimizer": _program(plan, optimizer=optax.adam(0.5)),
        "injected": _program(plan, optimizer=injected(learning_rate=0.5)),
        "injected, other": _program(plan, optimizer=injected(learning_rate=0.4)),
        "microbatches": _program(plan, microbatch_size=8),
        "average": _program(plan, ema_decay=0.9),
        "rate": _program(planned(sampler=sampling.poisson(200, 0.1, 12))),
        "large constant": _program(
            plan, lambda p, e: loss_fn(p, e) + jnp.asarray(RNG.normal(size=500))[0] * 0
        ),
    }
    assert len({same, *others.values()}) == 1 + len(others)


def test_a_change_of_rounding_alone_renews_the_keys(tmp_path):
    trained(planned(steps=4), folder=tmp_path / "run", microbatch_size=None)
    before = checkpoints.restore(tmp_path / "run").state
    same = trained(planned(steps=8), folder=tmp_path / "run", resume=True, microbatch_size=8)
    keys = [np.asarray(k) for k in (same.state.sample_key, same.state.private.key)]
    assert not any(np.array_equal(k, leaf) for k in keys for leaf in before)


def test_hyperparameters_are_those_given_now(tmp_path):
    def optimizer(rate):
        return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)

    trained(planned(steps=4), optimizer=optimizer(0.5), folder=tmp_path / "run")
    result = trained(planned(steps=8), optimizer=optimizer(0.125), folder=tmp_path / "run", resume=True)
    assert float(result.state.opt_state[1].hyperparams["learning_rate"]) == 0.125


@pytest.mark.parametrize(
    "plan, options, text",
    [
        (planned(kind="shuffled"), {}, "adjacency='add_or_remove_one'"),
        (planned(sampler=ledger.Sampling(rate=0.2)), {}, "sampler=Poisson, rate 0.2: draws no batch"),
        (planned(sampler=sampling.poisson(100, 0.2, 12)), {}, "data=200 examples: .* draws from 100"),
        (planned(), {"budget": 1e-6}, "budget=1e-06: the first step alone"),
        (planned(), {"budget": 1.0, "diagnostics": True}, "budget=1.0: exact training loss"),
        (planned(), {"every": 0}, "every=0"),
        (planned(lambda t: jnp.float32(6.0) - t), {}, "noise_multiplier=0.0: at step 6"),
    ],
)
def test_refused_before_the_first_step(plan, options, text, tmp_path):
    calls = []
    with pytest.raises(ValueError, match=text):
        trained(plan, folder=tmp_path / "run", callbacks=(lambda *_: calls.append(1),), **options)
    assert not calls and checkpoints.latest_step(tmp_path / "run") is None


def test_a_program_is_not_lent_to_another_plan():
    plan = planned(schedules.linear(12, start=8.0, end=4.0))
    first = trained(plan)
    half = trained(plan.scaled(0.5), program=first.program)
    assert half.ledger.sigmas()[0] == 4.0 and len(first.program.traces) == 1
    assert bits(half.params) == bits(trained(plan.scaled(0.5)).params) != bits(first.params)
    for other, name in (
        (dataclasses.replace(plan, clipper=clipping.flat(1.0)), "clipper"),
        (
            dataclasses.replace(plan, noise_multiplier=schedules.linear(12, start=9.0, end=4.0)),
            "noise_multiplier",
        ),
        (dataclasses.replace(plan, generator="threefry"), "generator"),
    ):
        with pytest.raises(ValueError, match=f"compiled for another {name}"):
            trained(other, program=first.program)


def test_a_source_that_was_prepared_on_private_data_is_told():
    source = Source(arrays=DATA, public_preprocessing=False)
    result = jaxdp.train(loss_fn, PARAMS, source, planned(), optax.sgd(0.5), CLAIM)
    assert "prepared with numbers computed exactly from the training data" in str(result.statement)


def test_ordinary_training_is_not_private():
    plan = planned(clipper=None, noise_multiplier=None)
    result = trained(plan, diagnostics=True)
    assert result.epsilon is None and "NOT PRIVATE" in str(result.statement) and not plan.private
    assert np.isfinite(result.curves["training_loss"]).all() and bits(result.params) != bits(PARAMS)
    with pytest.raises(ValueError, match="no noise is added"):
        accounting.epsilon(result.ledger, CLAIM)


# --- at the command line ----------------------------------------------------------------------------------

OWN = """
import jax.numpy as jnp, optax
from flax import nnx

class Network(nnx.Module):
    def __init__(self, shape, classes, rngs):
        self.dense = nnx.Linear(shape[0] * shape[1], classes, rngs=rngs)
    def __call__(self, x):
        return self.dense(x.reshape(*x.shape[:-3], -1))

def make_model(key, input_shape, classes):
    return Network(input_shape, classes, nnx.Rngs(key))

def loss_fn(output, label):
    return optax.softmax_cross_entropy_with_integer_labels(output, label)
"""


def command(*arguments):
    return cli.main(["train", "--no-progress", *map(str, arguments)])


def test_a_network_and_a_loss_from_a_file_and_a_resume_without_flags(tmp_path, capsys):
    file, output = tmp_path / "own.py", tmp_path / "run"
    file.write_text(textwrap.dedent(OWN))
    own = ("--model", f"{file}:make_model", "--loss", f"{file}:loss_fn", "--sampling-rate", 0.05)
    assert (
        command(*own, "--steps", 8, "--evaluate-every", 4, "--output", output, "--learning-rate", 0.25) == 0
    )
    assert command("--output", output, "--resume", "--steps", 12) == 0
    assert "after 12 steps" in capsys.readouterr().out
    kept = checkpoints.restore(output / "checkpoints").document["config"]
    assert (kept["learning_rate"], kept["sampling_rate"], kept["steps"]) == (0.25, 0.05, 12)
    assert kept["model"] == f"{file}:make_model"
    assert command("--output", output, "--resume", "--optimizer", "adam") == 2
    assert "optimizer='adam': the run was begun with optimizer='sgd'" in capsys.readouterr().err
    assert command("--output", output, "--resume") == 0
    assert "no step was left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "place, text",
    [("gone.py:make", "gone.py:make"), ("own.py:other", "AttributeError"), ("own.py:", "FILE.py:NAME")],
)
def test_a_file_that_does_not_serve_is_one_line(place, text, tmp_path, capsys):
    (tmp_path / "own.py").write_text(textwrap.dedent(OWN))
    assert command("--model", tmp_path / place, "--steps", 2) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_the_same_run_in_two_processes_has_one_identity():
    """Else each resumption would take new keys, and none would end at the same bits."""
    program = "import test_any_loss as t; print(t._program(t.planned()))"
    here = str(__import__("pathlib").Path(__file__).parent)
    found = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=here, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1] and len(found[0]) == 65


def test_a_sampler_made_for_a_shorter_run_is_refused():
    """Its places suffice, with probability 1 - 1e-9, for as many steps as it was made for."""
    with pytest.raises(ValueError, match="steps=13: the sampler's batches have places for a run of 12 steps"):
        dataclasses.replace(planned(), steps=13)
    assert planned(sampler=sampling.full(200), steps=13).steps == 13


def test_the_seed_is_no_part_of_the_program():
    assert _program(planned()) == _program(planned(seed=2))
