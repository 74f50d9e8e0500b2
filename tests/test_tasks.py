"""The ten commonest tasks, with a network, a loss and data of one's own, each in at most 12 lines."""

import ast
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdp
from jaxdp import accounting, attacks, auditing, clipping, sampling, schedules
from jaxdp.accounting import reconstruction
from jaxdp.adaptive_noise import Adaptive
from jaxdp.training import checkpoints

# --- a network, a loss and data that are the user's -------------------------------------------------------


class Network(nnx.Module):
    def __init__(self, rngs):
        self.convolution = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(8 * 8 * 4, 10, rngs=rngs)

    def __call__(self, x):
        return self.dense(jnp.tanh(self.convolution(x)).reshape(*x.shape[:-3], -1))


graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
digits = jaxdp.data.load("digits")
data = {"image": digits.train_x.astype(np.float32), "label": digits.train_y}
n, steps = len(data["label"]), 30


def loss_fn(params, example):
    logits = nnx.merge(graph, params)(example["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, example["label"])


sampler = sampling.poisson(n, 0.05, steps=steps)
claim = jaxdp.Claim(delta=1e-5, adjacency="add_or_remove_one")
plan = jaxdp.Plan(clipper=clipping.flat(1.0), noise_multiplier=2.0, sampler=sampler, steps=steps)


def accuracy(params):
    logits = nnx.merge(graph, params)(digits.to_float(digits.test_x))
    return float((jnp.argmax(logits, axis=-1) == digits.test_y).mean())


# --- the tasks --------------------------------------------------------------------------------------------


def task_own_step_in_an_own_loop():
    optimizer, gradients = optax.chain(plan.privatize(), optax.adam(1e-2)), plan.gradients(loss_fn)

    @jax.jit
    def step(params, state, key, t):
        drawn = sampler.draw(key, t)
        batch = jax.tree.map(lambda leaf: leaf[drawn.indices], jax.tree.map(jnp.asarray, data))
        _, summed = gradients(params, state, batch, drawn.mask)
        updates, state = optimizer.update(summed, state, params)
        return optax.apply_updates(params, updates), state

    trained, state, key = params, optimizer.init(params), jaxdp.entropy_key()
    for t in range(steps):
        trained, state = step(trained, state, key, t)
    return trained


def task_epsilon_before_training():
    return accounting.epsilon(plan.ledger(), claim)


def task_noise_for_an_epsilon():
    return jaxdp.calibrate(plan, 3.0, claim)


def task_a_falling_clip():
    clipper = clipping.flat(schedules.linear(steps, start=2.0, end=0.5))
    falling = jaxdp.Plan(clipper=clipper, noise_multiplier=2.0, sampler=sampler, steps=steps)
    return jaxdp.train(loss_fn, params, data, falling, optax.sgd(0.5), claim)


def task_own_loss_with_budget_and_resume(folder):
    return jaxdp.train(
        loss_fn, params, data, dataclasses.replace(plan, seed=1), optax.adam(1e-2), claim,
        budget=0.4, folder=folder, resume=True, every=2,
    )  # fmt: skip


def task_a_private_clip_bound():
    clipper = clipping.quantile(1.0, sampler.expected_batch_size, target_quantile=0.5)
    found = jaxdp.Plan(clipper=clipper, noise_multiplier=2.0, sampler=sampler, steps=steps)
    return jaxdp.train(loss_fn, params, data, found, optax.sgd(0.5), claim).curves["l2_norm_clip"]


def task_noise_that_follows_the_clip_bound():
    clipper = clipping.quantile(1.0, sampler.expected_batch_size, count_noise=5.0)
    noise = Adaptive(epsilon=2.0, claim=claim, start=6.0, end=2.0)
    adaptive = jaxdp.Plan(clipper=clipper, noise_multiplier=noise, sampler=sampler, steps=steps)
    return jaxdp.train(loss_fn, params, data, adaptive, optax.sgd(0.5), claim)


def task_the_privacy_statement():
    result = jaxdp.train(loss_fn, params, data, plan, optax.sgd(0.5), claim)
    return str(result.statement)


def task_inversion_of_one_gradient():
    example = jax.tree.map(lambda leaf: jnp.asarray(leaf[7]), data)
    leaked = jax.grad(loss_fn)(params, example)
    pair_loss = lambda params, pair: loss_fn(params, {"image": pair[0], "label": pair[1]})  # noqa: E731
    found = attacks.invert(pair_loss, params, leaked, input_shape=(8, 8, 1))
    return attacks.judge(found, example["image"][None], example["label"][None])


def task_the_reconstruction_bound():
    return reconstruction.bound(plan.ledger(), 0.1, adjacency=claim.adjacency)


def task_an_audit_of_scores(present, absent):
    objective = lambda hits, alarms: auditing.epsilon_of_rates(hits, alarms, claim.delta)  # noqa: E731
    return auditing.distinguished({"score": present}, {"score": absent}, objective, alpha=0.05)


# --- and that they do what they say -----------------------------------------------------------------------


def test_each_task_takes_at_most_twelve_lines():
    tree = ast.parse(pathlib.Path(__file__).read_text())
    tasks = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("task_")]
    source = pathlib.Path(__file__).read_text().splitlines()
    assert len(tasks) >= 10
    for task in tasks:
        lines = [line for line in source[task.lineno : task.end_lineno] if line.strip()]
        assert len(lines) <= 13, f"{task.name}: {len(lines)} lines"  # one of them returns what is tested


def test_own_step():
    assert accuracy(task_own_step_in_an_own_loop()) > 0.5 > accuracy(params)


def test_epsilon_and_noise_for_it():
    import dp_accounting as dp

    spent = task_epsilon_before_training()
    oracle = dp.pld.PLDAccountant().compose(plan.event()).get_epsilon(1e-5)
    assert spent.lower <= oracle * (1 + 1e-3) and spent.value >= oracle * (1 - 1e-3)
    found = task_noise_for_an_epsilon()
    assert accounting.epsilon(found.ledger(), claim).value == pytest.approx(3.0, rel=2e-3)
    assert accounting.epsilon(found.ledger(), claim).value <= 3.0 and found.noise_multiplier < 2.0


def test_a_falling_clip_costs_what_a_fixed_one_does():
    result = task_a_falling_clip()
    assert result.epsilon.value == task_epsilon_before_training().value and accuracy(result.params) > 0.2


def test_a_private_clip_bound_moves():
    bounds = task_a_private_clip_bound()
    assert len(bounds) == 10 and bounds[-1] != 1.0


def test_adaptive_noise_stays_within_its_budget():
    result = task_noise_that_follows_the_clip_bound()
    sigmas = result.ledger.sigmas()
    assert result.epsilon.value == 2.0 and sigmas[0] == 6.0 and sigmas.min() >= 2.0
    assert "privacy filter" in str(result.statement)


def test_the_statement_says_what_is_claimed():
    text = task_the_privacy_statement()
    assert "For one example, epsilon = " in text and "Poisson, rate 0.05" in text and "Not covered" in text


def test_one_gradient_is_inverted():
    assert task_inversion_of_one_gradient()["rmse"] < 0.03


def test_the_reconstruction_bound_lies_between_prior_and_one():
    assert 0.1 < task_the_reconstruction_bound() < 0.9


def test_an_audit_of_scores_refutes_too_small_an_epsilon_and_no_larger():
    rng = np.random.default_rng(0)
    present, absent = rng.normal(size=4000) + 2.0, rng.normal(size=4000)
    rates = task_an_audit_of_scores(present, absent)
    found = auditing.epsilon_of_rates(rates.least_hit_rate, rates.most_false_alarm_rate, claim.delta)
    assert 1.0 < found < 9.5  # one Gaussian of mu = 2 has epsilon 9.98 at delta = 1e-5


_WORKER = "import sys; sys.path.insert(0, sys.argv[1]); import test_tasks as t; "
_WORKER += "t.task_own_loss_with_budget_and_resume(sys.argv[2])"


def test_own_loss_budget_kill_9_and_resume(tmp_path):
    """Killed for real between two checkpoints; the run that goes on ends at the very same bits."""
    whole = task_own_loss_with_budget_and_resume(tmp_path / "whole")
    assert whole.stopped_by_budget and whole.epsilon.value <= 0.4
    here = str(pathlib.Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER, here, str(tmp_path / "run")],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 200
    while not checkpoints.latest_step(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = checkpoints.latest_step(tmp_path / "run")
    assert reached
    resumed = task_own_loss_with_budget_and_resume(tmp_path / "run")
    assert resumed.steps_timed == whole.ledger.steps - reached
    same = jax.tree.map(lambda a, b: bool((a == b).all()), resumed.params, whole.params)
    assert all(jax.tree.leaves(same)) and resumed.epsilon == whole.epsilon and resumed.ledger == whole.ledger
