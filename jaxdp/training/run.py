"""Private training for any loss: plan the privacy, train, save, resume, state what was spent.

The privacy of the run is planned before its first step, as a ledger made from the very schedule that scales
the noise; the budget is enforced on that plan, so the step that would pass it is never taken.  A checkpoint
with the privacy spent is on disk before anyone is shown the parameters that it holds.
"""

import dataclasses
import functools
import pathlib
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from jaxdp import _validate, accounting, data
from jaxdp.accounting import Claim, filters
from jaxdp.accounting.ledger import Ledger
from jaxdp.accounting.statement import Statement, privacy_statement
from jaxdp.adaptive_noise import Adaptive
from jaxdp.data.source import Source
from jaxdp.gradients import Loss
from jaxdp.plan import Plan
from jaxdp.training import checkpoints, resume
from jaxdp.training.program import Diagnostics, Program, TrainState
from jaxdp.training.resume import Curves

Callback = Callable[[int, PyTree], Any]
Evaluate = Callable[[PyTree], Mapping[str, Any]]
UNNOISED = "exact training loss and clip counts are recorded without noise"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainResult:
    """What a run leaves.

    Attributes:
      params: the parameters to use: the average where one was kept, else those of the last step.
      ledger: the privacy spent.
      epsilon: the claim, or None where the run is not private.
      statement: the privacy statement; `str` of it is its text.
      curves: lists of equal length: `step`, what `evaluate` gave; of an adaptive clipper `l2_norm_clip`, the
        bound on an example's whole gradient at that step (from noised counts: nothing more to charge for); with
        diagnostics `training_loss`, `clipped`.
      state: the final state.
      plan, program: what was run.
      run: identity of the run, kept through resumptions.
      nonfinite: examples left out since their gradient was not finite; not covered by any epsilon.
      seconds: wall time of training, without compilation.
      steps_timed: steps in it.
      compile_seconds: time to trace and compile the epoch.
      stopped_by_budget: whether the run ended early for its budget.
    """

    params: PyTree
    ledger: Ledger
    epsilon: accounting.Epsilon | None
    statement: Statement
    curves: Curves
    state: TrainState
    plan: Plan
    program: Program
    run: str
    nonfinite: int
    seconds: float
    steps_timed: int
    compile_seconds: float
    stopped_by_budget: bool


@functools.lru_cache(maxsize=1024)  # runs that differ in their seeds alone spend the same
def claimed(spent: Ledger, claim: Claim) -> accounting.Epsilon | None:
    """The epsilon that a run may claim; None where it is not private."""
    if not spent.private:
        return None
    return filters.epsilon(spent) if spent.filter is not None else accounting.epsilon(spent, claim)


def train(
    loss_fn: Loss,
    params: PyTree,
    data: Any,
    plan: Plan,
    optimizer: optax.GradientTransformation,
    claim: Claim,
    *,
    budget: float | None = None,
    folder: str | pathlib.Path | None = None,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    callbacks: Sequence[Callback] = (),
    every: int | None = None,
    ema_decay: float | None = None,
    microbatch_size: int | str | None = "auto",
    diagnostics: bool = False,
    progress: bool = False,
    document: Mapping[str, Any] | None = None,
    program: Program | None = None,
) -> TrainResult:
    """Trains privately: any loss of one example, any parameters, any Optax optimizer, any data.

    Args:
      loss_fn: `(params, example) -> scalar`, the loss of ONE example (no batch axis).
      params: any tree of arrays.
      data: a tree of arrays with one leading axis, or a `jaxdp.data.Source`; an example has its structure.
      plan: clipper, noise, sampler and steps; with a clipper of None training is ordinary, and not private.
      optimizer: of the noised gradients.  Hyper-parameters of `optax.inject_hyperparams` are those given
        here, also where a run goes on.
      claim: delta, adjacency and accountant of the epsilon that is stated.
      budget: stop before the step that would pass this epsilon.
      folder: where checkpoints go, after every `every` steps; None for none.
      resume: go on from the newest checkpoint in `folder`; from the start where there is none.  With another
        loss, optimizer, clipper, noise or number of steps the ledger keeps both, and batches and noise take
        new keys.
      evaluate: `params -> {name: scalar}`, kept in `curves`; of data that may be looked at: it is not noised.
      callbacks: called with (step, params of that step) at the start and after every `every` steps, once the
        checkpoint is on disk: the parameters of the step, which leak, also where their average is used.
      every: steps between evaluations, checkpoints and callbacks; None for a tenth of the run.
      ema_decay: of a moving average of the noised parameters, at no cost in privacy; None for none.
      microbatch_size: see `jaxdp.clipped_gradients`.
      diagnostics: also keep exact training loss and clip counts in `curves`: unnoised, so that the run is not
        private.
      progress: whether to show a progress bar.
      document: kept in the checkpoints, what JSON can hold.
      program: of an earlier run with the same loss, optimizer, sampler and clipper objects, whose plan
        differs in seed and scale alone: nothing is compiled again.

    Raises:
      ValueError: what is refused, before the first step: parts that do not fit, a claim that has no theorem, a
        checkpoint of other data or parameters, a budget too small for one step; during the run a Poisson batch
        that outgrew its places (probability below 1e-9).
      OSError: a folder that cannot be written, or is in use by another run.

    Formal guarantee: what the callbacks are shown and what is returned is (epsilon, delta)-differentially
    private as `statement` says, if `loss_fn` sees one example, `evaluate` other data, and the statement's
    assumptions hold.  None where `epsilon` is None.

    >>> import jax.numpy as jnp
    >>> import jaxdp, numpy as np, optax
    >>> from jaxdp import clipping, sampling
    >>> x = np.eye(50, dtype=np.float32)
    >>> sampler = sampling.poisson(50, 0.2, steps=20)
    >>> plan = jaxdp.Plan(clipper=clipping.flat(1.0), noise_multiplier=2.0, sampler=sampler, steps=20)
    >>> claim = jaxdp.Claim(delta=1e-5, adjacency="add_or_remove_one")
    >>> loss_fn = lambda w, example: (example @ w - 1.0) ** 2
    >>> result = train(loss_fn, jnp.zeros(50), x, plan, optax.sgd(0.1), claim)
    >>> result.ledger.steps, round(result.epsilon.value, 1)
    (20, 2.2)
    """
    if diagnostics and plan.clipper is not None:
        plan = dataclasses.replace(plan, reasons=(*plan.reasons, UNNOISED))
    every = max(1, plan.steps // 10) if every is None else every
    _validate.whole(every=every)
    store = _Store(None if folder is None else pathlib.Path(folder), resume, dict(document or {}))
    plan = store.fitted(plan)
    source = _source(data, plan)
    if program is None:
        program = Program(
            plan=plan, loss_fn=loss_fn, optimizer=optimizer, decode=source.decode, ema_decay=ema_decay,
            microbatch_size=microbatch_size,
        )  # fmt: skip
    elif store.going_on and plan.policy is not None:  # under the filter that the run began with
        program = dataclasses.replace(program, plan=plan)
    program.check(plan)
    run = _Run(plan=plan, program=program, source=source, claim=claim, every=every, evaluate=evaluate)
    run = dataclasses.replace(run, callbacks=tuple(callbacks), diagnostics=diagnostics, progress=progress)
    first = dataclasses.replace(program, optimizer=optimizer).init(params, plan)
    return run.go(store, first, budget)


def _source(given: Any, plan: Plan) -> Source:
    source = data.as_source(given)
    if source.examples != plan.batches.examples:
        raise ValueError(
            f"data={source.examples} examples: the plan's sampler draws from {plan.batches.examples}"
        )
    return source


class _Store:
    """The folder of a run, or none."""

    def __init__(self, folder: pathlib.Path | None, wanted: bool, document: dict[str, Any]):
        self.folder, self.document, self.writer = folder, document, None
        self.going_on = folder is not None and checkpoints.latest_step(folder) is not None
        if self.going_on and not wanted:
            raise ValueError(f"folder={str(folder)!r}: holds checkpoints already; resume, or choose another")
        self.run = uuid.uuid4().hex

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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """One call of `train`."""

    plan: Plan
    program: Program
    source: Source
    claim: Claim
    every: int
    evaluate: Evaluate | None
    callbacks: tuple[Callback, ...] = ()
    diagnostics: bool = False
    progress: bool = False

    def go(self, store: _Store, state: TrainState, budget: float | None) -> TrainResult:
        arrays = jax.tree.map(jax.numpy.asarray, self.source.arrays)
        spent, curves, identity = Ledger(), {}, None
        if store.folder is not None:
            identity = resume.identity(self.program, self.plan, self.source, state, arrays)
        if store.going_on:
            resumed = resume.resume(store.folder, state, self.plan, identity)
            state, spent, curves, store.run = resumed
        spent_at, stop = self._planned(spent, state, budget)
        claimed(spent_at(state, stop) if self.plan.policy is None else spent, self.claim)  # or refused
        stop = max(spent.steps, stop)
        writer = None if store.folder is None else checkpoints.Writer(store.folder)
        try:
            timings = _Loop(self, writer, store, identity, spent_at, curves).advance(state, arrays, stop)
        finally:
            if writer is not None:
                writer.close()
        return self._result(*timings, store, spent.steps, spent_at, curves)

    def _planned(self, before: Ledger, state: TrainState, budget: float | None):
        """The ledger after a step, as a function, and the step at which the budget stops the run."""
        plan, first = self.plan, before.steps
        if plan.filter is not None:
            if budget not in (None, plan.filter.epsilon):
                raise ValueError(f"budget={budget}: the plan's own is {plan.filter.epsilon}")
            budget = plan.filter.epsilon
        reasons = before.reasons or plan.why_not_private
        if budget is not None and reasons:
            raise ValueError(f"budget={budget}: {'; '.join(reasons)}, so none can be kept")
        if plan.policy is not None:
            stop = plan.steps if first or bool(self.program.admits(state)) else 0
        else:
            whole = before.append(plan.entry(first)) if first < plan.steps else before
            stop = whole.steps
            if budget is not None and whole.private:
                stop = accounting.steps_within(whole, budget, self.claim)
        if stop < 1:
            raise ValueError(f"budget={budget}: the first step alone would pass it")

        def spent_at(state: TrainState, step: int) -> Ledger:
            if plan.policy is None:
                return whole.until(step)
            return before.append(plan.entry(first, step, state.opt_state)) if step > first else before

        return spent_at, stop

    def _result(self, state, seconds, compile_seconds, store, first, spent_at, curves) -> TrainResult:
        nonfinite = 0 if state.private is None else int(state.private.nonfinite)
        if nonfinite:
            warnings.warn(
                f"{nonfinite} per-example gradients were not finite and counted as zero; this count is exact, "
                "keep it as private as the data",
                stacklevel=4,
            )
        done = int(state.step)
        spent = spent_at(state, done)
        epsilon = claimed(spent, self.claim)
        disclosed = () if self.source.public_preprocessing else ("preprocessed_on_private_data",)
        return TrainResult(
            params=state.evaluated,
            ledger=spent,
            epsilon=epsilon,
            statement=privacy_statement(spent, epsilon, disclosed=disclosed),
            curves=curves,
            state=state,
            plan=self.plan,
            program=self.program,
            run=store.run,
            nonfinite=nonfinite,
            seconds=seconds,
            steps_timed=done - first,
            compile_seconds=compile_seconds,
            stopped_by_budget=done < self.plan.steps,
        )


class _Loop:
    """Epochs, with evaluation, checkpoints, callbacks and the bar between them."""

    def __init__(self, run: _Run, writer, store: _Store, identity, spent_at, curves: Curves):
        self.run, self.writer, self.store, self.identity = run, writer, store, identity
        self.spent_at, self.curves = spent_at, curves
        self.waiting: Any = None

    def advance(self, state: TrainState, arrays: PyTree, stop: int) -> tuple[TrainState, float, float]:
        """Steps to `stop`; returns the state, seconds and compile seconds."""
        from tqdm import tqdm

        run, program = self.run, self.run.program
        began = time.perf_counter()
        jax.block_until_ready(program.epoch(run.plan, state, arrays, 0))  # compiles, and takes no step
        if run.evaluate is not None:
            jax.block_until_ready(run.evaluate(state.evaluated))
        compile_seconds = time.perf_counter() - began
        first = done = int(state.step)
        self._show(first, state)
        bar = tqdm(total=stop, initial=first, unit="step", disable=not run.progress)
        began = time.perf_counter()
        for pause in _pauses(first, stop, run.every):
            state, diagnostics = program.epoch(run.plan, state, arrays, pause)
            reached = pause if run.plan.policy is None else int(state.step)
            if reached == done:
                break  # the filter stopped where the last pause was
            self._measure(reached, state, diagnostics)
            if self.writer is not None:
                self._flush()
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
        for callback in self.run.callbacks:
            callback(step, state.params)

    def _save(self, step: int, state: TrainState) -> None:
        assert self.writer is not None
        spent = self.spent_at(state, step)
        document = {**self.store.document, "run": self.store.run, **self.identity}
        self.writer.save(
            step, resume.storable(state), {**document, "ledger": spent.to_json(), "curves": self.curves}
        )

    def _measure(self, step: int, state: TrainState, diagnostics: Diagnostics) -> None:
        """Keeps what was measured, to be read one epoch late so that the device never waits for the host."""
        self._flush()
        measured = {} if self.run.evaluate is None else dict(self.run.evaluate(state.evaluated))
        bound = getattr(state.private.clip, "bound", None) if state.private is not None else None
        if bound is not None:
            measured["l2_norm_clip"] = bound
        if self.run.diagnostics:
            measured |= {"training_loss": diagnostics.loss, "clipped": diagnostics.clipped}
        self.waiting = (step, measured, state.overflow)

    def _flush(self) -> None:
        if self.waiting is None:
            return
        step, measured, overflow = self.waiting
        self.waiting = None
        if bool(overflow):
            raise ValueError(
                f"step<={step}: a Poisson batch outgrew its places, which happens with probability below "
                "1e-9 a run; the steps since the last checkpoint are void, run again"
            )
        for name, value in {"step": step, **measured}.items():
            value = float(np.linalg.norm(value)) if name == "l2_norm_clip" else np.asarray(value).item()
            self.curves.setdefault(name, []).append(value)


def _pauses(first: int, stop: int, every: int) -> list[int]:
    """Where to pause: at multiples of `every`, and at the end."""
    return [*range((first // every + 1) * every, stop, every), stop] if stop > first else []
