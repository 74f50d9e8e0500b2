"""What a run leaves in its checkpoints, and how it goes on from one.

A run that goes on with other noise draws from secrets of its own: the noise of steps that were taken before an
interruption, and seen, must not meet other gradients again.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from jaxdp import noise
from jaxdp.accounting import filters, ledger
from jaxdp.accounting.ledger import Filter, Ledger
from jaxdp.training import checkpoints
from jaxdp.training import program as training
from jaxdp.training.config import TrainConfig
from jaxdp.training.program import Run, TrainState

Curves = dict[str, list[float]]

# What a resumed run may change: the mechanism (the ledger keeps the old and the new) ...
_MECHANISM = {
    *(
        "schedule",
        "noise_multiplier",
        "start",
        "end",
        "scale",
        "clipping",
        "l2_norm_clip",
        "l2_norm_clip_end",
    ),
    *("target_quantile", "clip_learning_rate", "count_noise"),
    *("steps", "sampling", "sampling_rate", "target_epsilon", "learning_rate"),
}
# ... and how closely it is watched, and its privacy stated.
_WATCHING = {
    *(
        "microbatch_size",
        "delta",
        "adjacency",
        "accountant",
        "budget_epsilon",
        "evaluate_every",
        "diagnostics",
    ),
}


def storable(state: TrainState) -> TrainState:
    """The state without what the ledger beside it says."""
    return state._replace(follow=state.follow._replace(levels=())) if state.follow else state


def kept_filter(config: TrainConfig, folder: pathlib.Path) -> Filter | None:
    """The filter of the run in a folder.

    Raises:
      ValueError: a run that was not begun as it is to go on: under a filter, or under none.
    """
    kept = ledger.from_json(checkpoints.restore(folder).document["ledger"]).filter
    if (kept is None) == (config.schedule == "adaptive"):
        was = "without a filter" if kept is None else "under a filter"
        raise ValueError(
            f"schedule={config.schedule!r}: the run was begun {was}, which is fixed before the first step"
        )
    return kept


def resume(
    run: Run, folder: pathlib.Path, target_epsilon: float | None, curves: Curves
) -> tuple[TrainState, Ledger, Curves]:
    """State, privacy spent and curves of the newest checkpoint, checked against the run that goes on.

    Args:
      run: what goes on.
      folder: of the checkpoints.
      target_epsilon: as asked for, before it became a scale.
      curves: those that the run keeps.

    Raises:
      ValueError: another model, other data, a ledger that does not fit, what a resumed run may not change.
    """
    saved = checkpoints.restore(folder, like=storable(run.init(run.config)))
    before, now = saved.document["config"], dataclasses.asdict(run.config)
    for name in sorted(set(now) - _MECHANISM - _WATCHING):
        if before.get(name) != now[name]:
            raise ValueError(
                f"{name}={now[name]!r}: the checkpoint was made with {name}={before.get(name)!r}"
            )
    if saved.document.get("examples") != run.dataset.fingerprint:
        # Other data would meet the noise that these did, and the difference would show.
        raise ValueError(f"data={run.dataset.name!r}: not the training examples of the checkpoint")
    if target_epsilon is not None and before.get("scale") != now["scale"]:
        raise ValueError(
            f"target_epsilon={target_epsilon}: for a run as a whole, and this one began with other noise; "
            "go on with the settings it had, or give scale and budget_epsilon"
        )
    spent = ledger.from_json(saved.document["ledger"])
    if spent.steps != saved.step:
        raise ValueError(f"ledger={spent.steps} steps: the checkpoint has {saved.step}; not resumed")
    if saved.step > run.config.steps:
        raise ValueError(f"steps={run.config.steps}: the checkpoint is at step {saved.step} already")
    curves = {name: saved.document["curves"].get(name, []) for name in curves}
    state = saved.state
    if run.following is not None:
        if int(state.follow.spent) != filters.spent(spent):
            raise ValueError("ledger: the filter's account in the checkpoint's state is another; not resumed")
        state = state._replace(follow=state.follow._replace(levels=run.following.init().levels))
    if before.get("l2_norm_clip") != now["l2_norm_clip"]:
        state = _with_new_bound(state, run)
    other_noise = saved.document.get("noise") != noise.VERSION
    if other_noise or any(before.get(name) != now[name] for name in _MECHANISM):
        # Steps after the checkpoint may have been taken with the old parameters before the interruption: the
        # new ones must not meet the same noise again.
        state = _with_new_noise(state, run, saved.step)
    return state, spent, curves


def _with_new_bound(state: TrainState, run: Run) -> TrainState:
    """An adaptive clip bound starts again from the new one that was asked for."""
    private = training.noise_state(state)
    if private is None:
        return state
    first = private._replace(clip=run.init(run.config).opt_state[0].clip)
    return state._replace(opt_state=(first, *state.opt_state[1:]))


def _with_new_noise(state: TrainState, run: Run, step: int) -> TrainState:
    """Secrets of their own for other settings, also where copies of a checkpoint go different ways."""
    settings = {name: getattr(run.config, name) for name in sorted(_MECHANISM)}
    digest = hashlib.sha256(json.dumps([step, settings]).encode()).digest()
    words = np.frombuffer(digest, np.uint32)[:4]

    def renewed(key):
        return functools.reduce(jax.random.fold_in, words, key)

    private = training.noise_state(state)
    if run.sampler.kind != "shuffled":  # a new permutation amid an epoch could take an example twice
        state = state._replace(sample_key=renewed(state.sample_key))
    if private is None:
        return state
    first = private._replace(key=renewed(private.key))
    return state._replace(opt_state=(first, *state.opt_state[1:]))


def document(run: Run, spent: Ledger, curves: Curves) -> dict[str, Any]:
    """What a checkpoint says beside its arrays."""
    return {
        "config": dataclasses.asdict(run.config),
        "examples": run.dataset.fingerprint,
        "noise": noise.VERSION,
        "ledger": spent.to_json(),
        "curves": curves,
    }


def from_checkpoint(folder: str | pathlib.Path) -> tuple[Run, TrainState, Ledger]:
    """The run, state and privacy spent of the newest checkpoint in a folder."""
    document = checkpoints.restore(folder).document
    spent = ledger.from_json(document["ledger"])
    run = training.build(TrainConfig(**document["config"]), kept=spent.filter)
    return run, checkpoints.restore(folder, like=storable(run.init(run.config))).state, spent
