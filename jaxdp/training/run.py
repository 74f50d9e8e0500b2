"""Private training for any loss: plan the privacy, train, save, resume, state what was spent.

The privacy of the run is planned before its first step, as a ledger made from the very schedule that scales
the noise; the budget is enforced on that plan, so the step that would pass it is never taken.  A checkpoint
with the privacy spent is on disk before anyone is shown the parameters that it holds.
"""

import contextlib
import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxdp import _validate, accounting, data
from jaxdp.accounting import Claim, filters
from jaxdp.accounting.ledger import Ledger
from jaxdp.accounting.statement import Statement, privacy_statement
from jaxdp.data.source import Source
from jaxdp.data.stream import Stream
from jaxdp.gradients import Loss
from jaxdp.plan import Plan
from jaxdp.training import placement, resume
from jaxdp.training.feed import Feed
from jaxdp.training.loop import Callback, Evaluate, Loop, Store
from jaxdp.training.program import Program, TrainState
from jaxdp.training.resume import Curves

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
    mesh: Mesh | str | None = "auto",
) -> TrainResult:
    """Trains privately: any loss of one example, any parameters, any Optax optimizer, any data.

    Args:
      loss_fn: `(params, example) -> scalar`, the loss of ONE example (no batch axis).
      params: any tree of arrays.
      data: a tree of arrays with one leading axis, or a `jaxdp.data.Source`, held on the device; memory-mapped
        arrays, an object with `__len__` and `__getitem__`, or a `jaxdp.data.Stream`: read batch by batch, a few
        steps ahead.  Either way the same batches, and on a CPU the same bits.  An example has its structure.
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
        It is called before the checkpoint, which holds its numbers, is on disk, so it shows them to nobody.
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
        differs in seed and scale alone: nothing is compiled again, and it runs on the devices that it ran on.
      mesh: the devices, its axes `AxisType.Auto`: the examples are split along the first, each device draws
        from and clips those that it holds, and parameters lie on it as given.  `auto` for the parameters' own,
        or all devices of all processes (`jax.distributed`); None for one device.  A run goes on on any number
        of devices, in its own folder with the same batches and noise; a copy of it takes new keys there.

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
    plan = plan.sized(params)
    every = max(1, plan.steps // 10) if every is None else every
    _validate.whole(every=every)
    source = _source(data, plan)
    store = Store(None if folder is None else pathlib.Path(folder), resume, dict(document or {}))
    with store:
        plan = store.fitted(plan)
        if program is None:
            program = Program(
                plan=plan, loss_fn=loss_fn, optimizer=optimizer, decode=source.decode, ema_decay=ema_decay,
                microbatch_size=microbatch_size, placement=_placement(mesh, params, source),
            )  # fmt: skip
        elif program.loss_fn is not loss_fn:
            raise ValueError("program: was compiled for another loss_fn than the one given")
        elif store.going_on and plan.policy is not None:  # under the filter that the run began with
            program = dataclasses.replace(program, plan=plan)
        program.check(plan)
        run = _Run(plan=plan, program=program, source=source, claim=claim, every=every, evaluate=evaluate)
        run = dataclasses.replace(run, callbacks=tuple(callbacks), diagnostics=diagnostics, progress=progress)
        first = dataclasses.replace(program, optimizer=optimizer).init(params, plan)
        return run.go(store, first, budget)


def _placement(mesh: Any, params: PyTree, source: Source | Stream) -> placement.Placement | None:
    """Where the run lies; what is read batch by batch goes to one device."""
    if isinstance(source, Stream) and (mesh is None or mesh == "auto"):
        return placement.of(None, params)
    if isinstance(source, Stream):
        raise ValueError(f"mesh={mesh}: data that are read batch by batch go to one device, mesh=None")
    return placement.of(mesh, params)


def _source(given: Any, plan: Plan) -> Source | Stream:
    source = data.as_source(given)
    if source.examples != plan.batches.examples:
        raise ValueError(
            f"data={source.examples} examples: the plan's sampler draws from {plan.batches.examples}"
        )
    if source.unit not in (None, plan.unit):
        raise ValueError(f"unit={plan.unit!r}: of the plan; a row of the data is one {source.unit}")
    return source


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """One call of `train`."""

    plan: Plan
    program: Program
    source: Source | Stream
    claim: Claim
    every: int
    evaluate: Evaluate | None
    callbacks: tuple[Callback, ...] = ()
    diagnostics: bool = False
    progress: bool = False

    def go(self, store: Store, state: TrainState, budget: float | None) -> TrainResult:
        with contextlib.ExitStack() as reading:
            if isinstance(self.source, Stream):
                arrays: Any = reading.enter_context(Feed(self.source, self.plan.batches))
            else:
                arrays = self.program.rows(self.source.arrays)
            return self._advanced(store, state, arrays, budget)

    def _advanced(
        self, store: Store, state: TrainState, arrays: PyTree | Feed, budget: float | None
    ) -> TrainResult:
        spent, curves, identity = Ledger(), {}, None
        if store.folder is not None:
            identity = resume.identity(self.program, self.plan, self.source, state, arrays)
        if store.going_on:
            resumed = resume.resume(store.folder, state, self.plan, identity)
            state, spent, curves, store.run = resumed
            state = self.program.placed(resume.agreed(state))
        spent_at, stop = self._planned(spent, state, budget)
        claimed(spent_at(state, stop) if self.plan.policy is None else spent, self.claim)  # or refused
        loop = Loop(
            program=self.program, plan=self.plan, store=store, identity=identity, spent_at=spent_at,
            curves=curves, every=self.every, evaluate=self.evaluate, callbacks=self.callbacks,
            diagnostics=self.diagnostics, progress=self.progress,
        )  # fmt: skip
        timings = loop.advance(state, arrays, max(spent.steps, stop))
        return self._result(*timings, store, spent.steps, spent_at, curves)

    def _planned(self, before: Ledger, state: TrainState, budget: float | None):
        """The ledger after a step, as a function, and the step at which the budget stops the run."""
        plan, first = self.plan, before.steps
        if plan.filter is not None:
            if budget not in (None, plan.filter.epsilon):
                raise ValueError(f"budget={budget}: the plan's own is {plan.filter.epsilon}")
            budget = plan.filter.epsilon
            for name in ("delta", "adjacency"):
                asked, fixed = getattr(self.claim, name), getattr(plan.filter, name)
                if asked != fixed:
                    raise ValueError(f"{name}={asked}: the filter of the plan's noise has {name}={fixed}")
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
            statement=privacy_statement(spent, epsilon, disclosed=disclosed, examples=self.source.examples),
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
