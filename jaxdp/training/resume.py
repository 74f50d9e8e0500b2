"""What a run leaves in its checkpoints beside its state, and how it goes on from one.

A run that goes on with another program draws from secrets of its own: noise that met one sum must not meet
another.  What the program is, is asked of the compiler: its text holds the loss, the optimizer with its
constants, the clipper and the sizes of microbatches, and so all that decides what is summed and how it is
rounded.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdp import noise
from jaxdp.accounting import filters, ledger
from jaxdp.accounting.ledger import Filter, Ledger
from jaxdp.data.source import Source
from jaxdp.data.stream import Stream
from jaxdp.plan import Plan
from jaxdp.training import checkpoints, hosts
from jaxdp.training.feed import Feed
from jaxdp.training.program import Program, TrainState

Curves = dict[str, list[float]]
_DEVICE_COUNT = "xla_force_host_platform_device_count"
_PYTHON = "_python_"  # in the names of all calls of Python from a compiled program, which tell it by a number


def identity(
    program: Program, plan: Plan, source: Source | Stream, state: TrainState, arrays: PyTree | Feed
) -> dict[str, Any]:
    """What a checkpoint says of the run that wrote it.

    Returns:
      `examples`: fingerprint of the data.  `program`: digest of all that decides what a step computes, but
      state and keys; another each time where it calls Python, which its text does not show.  `clip`: the
      clipper's state at the start.
    """
    text = _text(program, state, arrays)
    leaves = [] if state.private is None else jax.tree.leaves(state.private.clip)
    clip = [np.asarray(leaf).tolist() for leaf in leaves]
    unseen = os.urandom(16).hex() if _PYTHON in text else ""
    digest = hashlib.sha256(text.encode())
    for part in (_charged(plan), _injected(state), clip, _machine(), noise.VERSION, unseen):
        digest.update(json.dumps(part).encode())
    return {
        "examples": source.fingerprint,
        "program": digest.hexdigest(),
        "clip": clip,
        "devices": _devices(program),
    }


def _text(program: Program, state: TrainState, arrays: PyTree | Feed) -> str:
    """The program on one device: how many there are does not change which batches and noise a run has."""
    if isinstance(arrays, Feed):
        return program.lowered(state, arrays.empty) + arrays.described()
    if program.placement is None:
        return program.lowered(state, arrays)
    alone = dataclasses.replace(program, placement=None, traces=[])
    shaped = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((program.plan.batches.examples, *x.shape[1:]), x.dtype), arrays
    )
    return alone.lowered(jax.tree.map(shaped, state), rows)


def _devices(program: Program) -> str:
    """The mesh and how parameters lie on it, which decide how sums are rounded, and nothing else."""
    place = program.placement
    if place is None:
        return "1"
    return f"{dict(place.mesh.shape)} of {jax.process_count()} processes, {list(map(str, place.specs))}"


def place_of(folder: pathlib.Path) -> str:
    """What a folder has that a copy of it has not."""
    found = folder.stat()
    return f"{found.st_dev}:{found.st_ino}"


def _charged(plan: Plan) -> list:
    """The noise of every step: its scale is an argument of the program, not a part of it."""
    return [] if plan.policy is not None else list(plan.entry().noise_multipliers)


def _hyperparams(opt_state: PyTree) -> Iterator[Any]:
    """Every part of `optax.inject_hyperparams`, whose values are state and not program."""
    is_injected = lambda x: hasattr(x, "hyperparams") and hasattr(x, "inner_state")  # noqa: E731
    return filter(is_injected, jax.tree.leaves(opt_state, is_leaf=is_injected))


def _injected(state: TrainState) -> list:
    return [
        [np.asarray(v).tolist() for v in part.hyperparams.values()] for part in _hyperparams(state.opt_state)
    ]


def _machine() -> list:
    """What decides how sums are rounded."""
    device, versions = jax.devices()[0], [jax.__version__, jax.lib.__version__]
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if _DEVICE_COUNT not in flag]
    return [*versions, device.platform, device.device_kind, os.cpu_count(), " ".join(flags)]


def storable(state: TrainState) -> TrainState:
    """The state without what the ledger beside it says: which noise each step of an adaptive schedule had."""
    if state.private is None or not state.private.noise:
        return state
    return state.with_private(state.private._replace(noise=state.private.noise._replace(levels=())))


def restored(folder: pathlib.Path, fresh: TrainState) -> checkpoints.Checkpoint:
    """The newest checkpoint, its state in the form of a fresh one."""
    saved = checkpoints.restore(folder, like=storable(fresh))
    private, first = saved.state.private, fresh.private
    if private is None or first is None or not first.noise:
        return saved
    noise = private.noise._replace(levels=first.noise.levels)
    return saved._replace(state=saved.state.with_private(private._replace(noise=noise)))


def kept_filter(folder: pathlib.Path | None, *, adaptive: bool) -> Filter | None:
    """The filter of the run in a folder.

    Raises:
      ValueError: a run that was not begun as it is to go on: under a filter, or under none.
    """
    assert folder is not None
    kept = ledger.from_json(checkpoints.restore(folder).document["ledger"]).filter
    if (kept is None) == adaptive:
        was = "without a filter" if kept is None else "under a filter"
        asked = "adaptive" if adaptive else "fixed beforehand"
        raise ValueError(
            f"noise_multiplier={asked}: the run was begun {was}, which is fixed before the first step"
        )
    return kept


def resume(
    folder: pathlib.Path | None, fresh: TrainState, plan: Plan, now: dict[str, Any] | None
) -> tuple[TrainState, Ledger, Curves, str]:
    """State, privacy spent, curves and name of the run of the newest checkpoint.

    Args:
      folder: of the checkpoints.
      fresh: the state at which the run that goes on would begin.
      plan: its plan.
      now: its `identity`.

    Raises:
      ValueError: other parameters, optimizer or data, a ledger that does not fit, a run that is longer already;
        shuffled batches of an earlier version amid an epoch.
    """
    assert folder is not None and now is not None
    saved = restored(folder, fresh)
    before = saved.document
    missing = {"examples", "program", "clip", "ledger", "curves", "run"} - set(before)
    if missing:
        raise ValueError(
            f"checkpoint={str(folder)!r}: was written by an older version, and cannot be gone on with"
        )
    if before["examples"] != now["examples"]:
        # Other data would meet the noise that these did, and the difference would show.
        raise ValueError("data: not the training examples of the checkpoint")
    spent = ledger.from_json(before["ledger"])
    if spent.steps != saved.step:
        raise ValueError(f"ledger={spent.steps} steps: the checkpoint has {saved.step}; not resumed")
    if saved.step > plan.steps:
        raise ValueError(f"steps={plan.steps}: the checkpoint is at step {saved.step} already")
    state = _with_whole_secrets(_with_hyperparams(saved.state, fresh), fresh, plan)
    private, first = state.private, fresh.private
    if private is not None and first is not None:
        if plan.policy is not None and int(private.noise.spent) != filters.spent(spent):
            raise ValueError("ledger: the filter's account in the checkpoint's state is another; not resumed")
        if before["clip"] != now["clip"]:  # an adaptive bound starts again from the one that is asked for now
            state = state.with_private(private._replace(clip=first.clip))
    # On another mesh sums are rounded otherwise, and what is after one differing digit meets the same noise:
    # that is for the run that goes on in its folder alone, not for one of two copies.
    copied = before.get("devices", "1") != now["devices"] and before.get("place") != place_of(folder)
    if before["program"] != now["program"] or copied:
        state = _with_new_keys(state, plan, f"{saved.step} {now['program']}{now['devices'] * copied}")
    return state, spent, dict(before["curves"]), before["run"]


def _with_hyperparams(state: TrainState, fresh: TrainState) -> TrainState:
    """The state with the hyper-parameters that the optimizer is given now."""
    values = iter([part.hyperparams for part in _hyperparams(fresh.opt_state)])
    is_injected = lambda x: hasattr(x, "hyperparams") and hasattr(x, "inner_state")  # noqa: E731
    changed = jax.tree.map(
        lambda x: x._replace(hyperparams=next(values)) if is_injected(x) else x,
        state.opt_state,
        is_leaf=is_injected,
    )
    return state._replace(opt_state=changed)


def _with_whole_secrets(state: TrainState, fresh: TrainState, plan: Plan) -> TrainState:
    """The state with fresh secrets where an earlier version had shorter ones.

    Raises:
      ValueError: the order of an epoch that is under way is lost with its secret.
    """
    if state.sample_key.shape != fresh.sample_key.shape:
        sampling = plan.sampling
        if sampling.kind == "shuffled" and int(state.step) % (sampling.steps_per_epoch or 1):
            raise ValueError(
                "sampling='shuffled': an earlier version drew the epoch's order, and this one cannot go on "
                "amid an epoch"
            )
        state = state._replace(sample_key=fresh.sample_key)
    private, first = state.private, fresh.private
    if private is None or first is None or private.key.shape == first.key.shape:
        return state
    return state.with_private(private._replace(key=first.key))


def _with_new_keys(state: TrainState, plan: Plan, settings: str) -> TrainState:
    """Secrets of their own for another program, also where copies of a checkpoint go different ways."""
    if plan.sampling.kind != "shuffled":  # a new permutation amid an epoch could take an example twice
        state = state._replace(sample_key=noise.renewed(state.sample_key, settings))
    if state.private is None:
        return state
    return state.with_private(state.private._replace(key=noise.renewed(state.private.key, settings)))


def agreed(state: TrainState) -> TrainState:
    """The state with the secrets of process 0: a program that calls Python has others in each process."""
    state = state._replace(sample_key=hosts.of_first(state.sample_key))
    if state.private is None:
        return state
    return state.with_private(state.private._replace(key=hosts.of_first(state.private.key)))
