"""`jaxdp.train` against whoever would make its epsilon false or see what it does not charge for."""

import dataclasses
import shutil
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import accounting, clipping, sampling
from jaxdp.adaptive_noise import Adaptive
from jaxdp.data.source import as_source
from jaxdp.training import checkpoints, resume
from jaxdp.training.program import Program

DATA = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
CLAIM = jaxdp.Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="rdp")
SAMPLER = sampling.poisson(60, 0.2, steps=20)


def loss_fn(params, example):
    return (example @ params - 1) ** 2


def planned(**changes):
    parts = dict(clipper=clipping.flat(1.0), noise_multiplier=2.0, sampler=SAMPLER, steps=20)
    return jaxdp.Plan(**cast(Any, {**parts, **changes}))


def trained(plan, loss=loss_fn, claim=CLAIM, **options):
    return jaxdp.train(loss, jnp.zeros(5), DATA, plan, optax.sgd(1.0), claim, **options)


def test_copies_of_a_checkpoint_with_other_first_bounds_share_no_noise(tmp_path):
    """With one noise at two bounds, the difference of two scaled updates would be a sum without noise."""
    bounds, sigma, noise = (1.0, 2.0), 1e5, []
    options = {"count_noise": 1e6, "learning_rate": 1e-9}  # of bounds that stay where they begin
    plans = [
        planned(clipper=clipping.quantile(bound, 12.0, **options), noise_multiplier=sigma) for bound in bounds
    ]
    trained(dataclasses.replace(plans[0], steps=10), folder=tmp_path / "1.0", every=10)
    shutil.copytree(tmp_path / "1.0", tmp_path / "2.0")
    for plan, bound in zip(plans, bounds, strict=True):
        shown = {}

        def show(step, params, shown=shown):
            shown[step] = params

        trained(plan, folder=tmp_path / str(bound), resume=True, callbacks=[show], every=1)
        noise.append(np.asarray(shown[10] - shown[11]) * 12 / (sigma * bound))
    # Beside this noise the gradients, of at most 60 bounds, are less than a thousandth.
    assert np.abs(np.subtract(*noise)).max() > 0.05


def _identity(loss):
    program = Program(plan=planned(), loss_fn=loss, optimizer=optax.sgd(1.0))
    arguments = (program, program.plan, as_source(DATA), program.init(jnp.zeros(5)), jnp.asarray(DATA))
    return resume.identity(*arguments)["program"]


def test_losses_that_call_python_are_never_taken_for_one_another():
    """A program's text names what it calls by a number, the same for every function."""

    def calling(target):
        def loss(params, example):
            shape = jax.ShapeDtypeStruct((), jnp.float32)
            host = jax.pure_callback(lambda _: target, shape, example, vmap_method="sequential")
            return (example @ params - host) ** 2

        return loss

    first, second = (_identity(calling(np.float32(target))) for target in (1, 2))
    assert first != second
    assert _identity(loss_fn) == _identity(loss_fn)


def test_a_batch_that_outgrew_its_places_is_shown_to_nobody():
    """It leaves out the last of the drawn, so that one example displaces another."""

    def draw(key, step):
        drawn = SAMPLER.draw(key, step)
        return sampling.Batch(drawn.indices[:4], drawn.mask[:4], drawn.mask.sum() > 4)

    shown = []
    small = dataclasses.replace(SAMPLER, physical_batch_size=4, draw=draw)
    with pytest.raises(ValueError, match="outgrew its places"):
        trained(planned(sampler=small), callbacks=[lambda step, params: shown.append(step)], every=5)
    assert shown == [0]


class Changing:
    sigma = 1.0

    def __call__(self, step):
        return jnp.full(jnp.shape(step), self.sigma, jnp.float32)


def test_a_program_keeps_the_noise_it_was_compiled_with_and_no_other_is_charged():
    schedule = Changing()
    plan = planned(noise_multiplier=schedule)
    program = trained(plan).program
    assert trained(plan, program=program).ledger.sigmas().max() == 1.0
    schedule.sigma = 50.0
    with pytest.raises(ValueError, match="other values of the noise_multiplier's function"):
        trained(plan, program=program)


def test_a_program_is_not_lent_to_another_loss():
    plan = planned()
    program = trained(plan).program
    with pytest.raises(ValueError, match="another loss_fn"):
        trained(plan, lambda params, example: 100 * loss_fn(params, example), program=program)


@pytest.mark.parametrize("asked", [{"delta": 1e-6}, {"adjacency": "replace_one"}])
def test_a_claim_is_not_answered_with_that_of_the_filter(asked):
    noise = Adaptive(epsilon=3.0, claim=CLAIM, start=4.0, end=2.0)
    clipper = clipping.quantile(1.0, 12.0, count_noise=20.0)
    plan = planned(clipper=clipper, noise_multiplier=noise)
    assert trained(plan).epsilon.delta == CLAIM.delta
    ((name, value),) = asked.items()
    with pytest.raises(ValueError, match=f"{name}={value}: the filter of the plan's noise has"):
        trained(plan, claim=dataclasses.replace(CLAIM, **asked))


def test_dividing_by_another_number_does_not_change_what_is_charged():
    """The rate is that of the draws, counted here."""
    rescaled = dataclasses.replace(SAMPLER, expected_batch_size=1.2)
    drawn = np.mean([SAMPLER.draw(jax.random.key(0), step).mask.sum() for step in range(400)]) / 60
    assert rescaled.accounted.rate == pytest.approx(drawn, abs=0.02)
    plan, other = planned(), planned(sampler=rescaled)
    assert accounting.epsilon(other.ledger(), CLAIM) == accounting.epsilon(plan.ledger(), CLAIM)


def test_a_run_that_ended_while_another_began_is_not_gone_on_with(tmp_path, monkeypatch):
    real = checkpoints.Writer

    def late(folder):
        monkeypatch.setattr(checkpoints, "Writer", real)
        trained(planned(steps=4), folder=folder)
        return real(folder)

    monkeypatch.setattr(checkpoints, "Writer", late)
    with pytest.raises(ValueError, match="holds checkpoints already"):
        trained(planned(steps=8), folder=tmp_path)
    assert trained(planned(steps=8), folder=tmp_path, resume=True).ledger.steps == 8
