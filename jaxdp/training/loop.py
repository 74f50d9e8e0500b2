"""The loop of a run on the host: epochs, and between them evaluation, checkpoints and callbacks."""

import contextlib
import dataclasses
import pathlib
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdp.accounting.ledger import Ledger
from jaxdp.adaptive_noise import Adaptive
from jaxdp.plan import Plan
from jaxdp.training import checkpoints, hosts, resume
from jaxdp.training.feed import Feed
from jaxdp.training.placement import on_one_device
from jaxdp.training.program import Diagnostics, Program, TrainState
from jaxdp.training.resume import Curves

Callback = Callable[[int, PyTree], Any]
Evaluate = Callable[[PyTree], Mapping[str, Any]]


class Store(contextlib.AbstractContextManager):
    """The folder of a run, this process's alone while it is entered; or none."""

    def __init__(self, folder: pathlib.Path | None, wanted: bool, document: dict[str, Any]):
        self.folder, self.document, self.run = folder, document, uuid.uuid4().hex
        first = jax.process_index() == 0  # of the processes of a run, the one that writes
        self.writer = checkpoints.Writer(folder) if folder is not None and first else None
        hosts.meet("the folder")
        self.going_on = folder is not None and checkpoints.latest_step(folder) is not None
        if self.writer is not None and self.going_on and not wanted:
            self.writer.close()
            raise ValueError(f"folder={str(folder)!r}: holds checkpoints already; resume, or choose another")

    def __exit__(self, *raised: Any) -> None:
        if self.writer is not None:
            self.writer.close()

    def fitted(self, plan: Plan) -> Plan:
        """The plan with the filter of the run that goes on."""
        if not self.going_on:
            return plan
        kept = resume.kept_filter(self.folder, adaptive=plan.policy is not None)
        if kept is None:
            return plan
        assert isinstance(plan.noise_multiplier, Adaptive)
        return dataclasses.replace(
            plan, noise_multiplier=dataclasses.replace(plan.noise_multiplier, kept=kept)
        )


@dataclasses.dataclass(kw_only=True)
class Loop:
    """Epochs, with evaluation, checkpoints, callbacks and the bar between them.

    Attributes:
      program, plan: what is run.
      store: where it is kept.
      identity: of `resume.identity`, for the checkpoints; None without a folder.
      spent_at: state and step -> the privacy spent.
      curves: what was measured; grows.
      every, evaluate, callbacks, diagnostics, progress: as of `train`.
    """

    program: Program
    plan: Plan
    store: Store
    identity: dict[str, Any] | None
    spent_at: Callable[[TrainState, int], Ledger]
    curves: Curves
    every: int
    evaluate: Evaluate | None
    callbacks: tuple[Callback, ...]
    diagnostics: bool
    progress: bool
    _waiting: Any = None

    def advance(self, state: TrainState, arrays: PyTree | Feed, stop: int) -> tuple[TrainState, float, float]:
        """Steps to `stop`; returns the state, seconds and compile seconds."""
        from tqdm import tqdm

        program = self.program
        first = done = int(state.step)
        pauses = _pauses(first, stop, self.every)
        chunk = 0 if isinstance(arrays, Feed) else program.chunk([first, *pauses])
        began = time.perf_counter()
        state = _copied(state)  # the caller's stays; this one's buffers are used again at every pause
        if isinstance(arrays, Feed):
            arrays.begin(state.sample_key, [first, *pauses])
        if not chunk:  # compiles, and takes no step
            compiled_for = arrays.empty if isinstance(arrays, Feed) else arrays
            state, _ = jax.block_until_ready(program.advance(self.plan, state, compiled_for, (first, first)))
        if self.evaluate is not None:
            jax.block_until_ready(self.evaluate(on_one_device(_copied(state.evaluated))))
        compile_seconds = time.perf_counter() - began
        self._show(first, state)
        bar = tqdm(total=stop, initial=first, unit="step", disable=not self.progress)
        began = time.perf_counter()
        for pause in pauses:
            sent = time.perf_counter()
            if isinstance(arrays, Feed):
                state, diagnostics = arrays.advance(program, self.plan, state, (done, pause))
            else:
                state, diagnostics = program.advance(self.plan, state, arrays, (done, pause), chunk)
            if chunk and done == first:  # a call returns once it is compiled, before its steps are made
                compile_seconds, began = (at + time.perf_counter() - sent for at in (compile_seconds, began))
            reached = pause if self.plan.policy is None else int(state.step)
            if reached == done:
                break  # the filter stopped where the last pause was
            self._measure(reached, state, diagnostics)
            hosts.meet(f"step {reached}")
            if self.store.folder is not None or self.callbacks:
                self._flush()  # or an error, before anyone is shown a batch that is not what is charged for
            if self.store.folder is not None:
                self._save(reached, state)
            self._show(reached, state)
            bar.update(reached - done)
            done = reached
        self._flush()
        jax.block_until_ready(state.params)
        seconds = time.perf_counter() - began
        bar.close()
        return state, seconds, compile_seconds

    def _show(self, step: int, state: TrainState) -> None:
        for callback in self.callbacks:
            callback(step, on_one_device(_copied(state.params)))

    def _save(self, step: int, state: TrainState) -> None:
        assert self.store.folder is not None and self.identity is not None
        storable = hosts.on_host(resume.storable(state))
        if self.store.writer is not None:
            spent, place = self.spent_at(state, step), resume.place_of(self.store.folder)
            document = {**self.store.document, "run": self.store.run, **self.identity, "place": place}
            self.store.writer.save(
                step, storable, {**document, "ledger": spent.to_json(), "curves": self.curves}
            )
        hosts.meet(f"checkpoint {step}")  # shown to nobody before

    def _measure(self, step: int, state: TrainState, diagnostics: Diagnostics) -> None:
        """Keeps what was measured, to be read one epoch late so that the device never waits for the host."""
        self._flush()
        measured = (
            {} if self.evaluate is None else dict(self.evaluate(on_one_device(_copied(state.evaluated))))
        )
        bound = getattr(state.private.clip, "bound", None) if state.private is not None else None
        if bound is not None:
            measured["l2_norm_clip"] = _copied(bound)
        if self.diagnostics:
            measured |= {"training_loss": diagnostics.loss, "clipped": diagnostics.clipped}
        self._waiting = (step, measured, _copied(state.overflow))

    def _flush(self) -> None:
        if self._waiting is None:
            return
        step, measured, overflow = self._waiting
        self._waiting = None
        if bool(overflow):
            raise ValueError(
                f"step<={step}: a Poisson batch outgrew its places, which happens with probability below "
                "1e-9 a run; the steps since the last checkpoint are void, run again"
            )
        for name, value in {"step": step, **measured}.items():
            value = float(np.linalg.norm(value)) if name == "l2_norm_clip" else np.asarray(value).item()
            self.curves.setdefault(name, []).append(value)


def _copied(tree: PyTree) -> PyTree:
    """What stays when the steps to come are made in the place of the state."""
    return jax.tree.map(jax.numpy.copy, tree)


def _pauses(first: int, stop: int, every: int) -> list[int]:
    """Where to pause: at multiples of `every`, and at the end."""
    return [*range((first // every + 1) * every, stop, every), stop] if stop > first else []
