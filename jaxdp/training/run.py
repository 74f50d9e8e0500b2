"""A whole training run: plan the privacy, train, evaluate, save, resume.

The privacy of the run is planned before its first step, as a ledger made from the very schedule that scales
the noise; the budget is enforced on that plan, so the step that would pass it is never taken.
"""

import dataclasses
import functools
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdp import accounting, calibration, data
from jaxdp.accounting import filters, ledger
from jaxdp.accounting.ledger import Entry, Ledger
from jaxdp.data import Dataset
from jaxdp.plan import accounted_noise_multipliers
from jaxdp.training import checkpoints
from jaxdp.training import program as training
from jaxdp.training import resume as resuming
from jaxdp.training.config import TrainConfig
from jaxdp.training.program import Diagnostics, Run, TrainState
from jaxdp.training.resume import Curves

Observer = Callable[[int, PyTree], None]
SpentAt = Callable[[TrainState, int], Ledger]  # the state after a step, and its number -> what was spent


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainResult:
    """What a run leaves.

    Attributes:
      config: as run, with the target epsilon resolved into a scale.
      run: its functions and data.
      state: the final state.
      ledger: the privacy spent.
      curves: lists of equal length: `step`, `test_accuracy` (of `state.evaluated`); of an adaptive clipper
        `l2_norm_clip`, the bound on an example's whole gradient at that step (from noised counts: nothing more
        to charge for); with diagnostics `training_loss`, `clipped`.
      epsilon: the claim, or None where the run is not private.
      nonfinite: examples left out since their gradient was not finite; not covered by any epsilon.
      seconds: wall time of training, without compilation.
      steps_timed: steps in it.
      compile_seconds: time to trace and compile the epoch.
      stopped_by_budget: whether the run ended early for its budget.
    """

    config: TrainConfig
    run: Run
    state: TrainState
    ledger: Ledger
    curves: Curves
    epsilon: accounting.Epsilon | None
    nonfinite: int
    seconds: float
    steps_timed: int
    compile_seconds: float
    stopped_by_budget: bool


def _reasons(config: TrainConfig, run: Run) -> tuple[str, ...]:
    """Why no epsilon holds for the run; empty if one does."""
    if run.clipper is None:
        return ("no noise is added",)
    reasons = () if run.clipper.private else (run.clipper.reason,)
    if config.diagnostics:
        reasons += ("exact training loss and clip counts are recorded without noise",)
    return reasons


def entry(run: Run, start: int, stop: int, state: TrainState | None = None) -> Entry:
    """The ledger's entry for the steps `start .. stop - 1` of a run.

    Args:
      run: what is run.
      start, stop: the steps.
      state: after them; of an adaptive schedule the noise multipliers are read back from it, of the others they
        are known beforehand.
    """
    config, filter = run.config, None
    if run.following is not None:
        if state is None:
            raise ValueError("state=None: the noise multipliers of an adaptive schedule are read from it")
        sigmas, filter = run.following.used(state.follow, start, stop), run.following.filter
    elif run.noise_multiplier is None or run.clipper is None:
        sigmas = np.zeros(stop - start)
    else:
        sigmas = accounted_noise_multipliers(run.clipper, run.noise_multiplier, stop - start, start)
    reasons = _reasons(config, run)
    return Entry(
        start=start,
        stop=stop,
        noise_multipliers=ledger.run_lengths(sigmas),
        sampling=run.sampler.accounted,
        mechanism=config.clipping,
        charged="" if run.clipper is None else run.clipper.charged,
        private=not reasons,
        reasons=reasons,
        seed="entropy" if config.noise_seed is None else "given",
        filter=filter,
    )


def resolved(config: TrainConfig, dataset: Dataset | None = None) -> TrainConfig:
    """The configuration with its target epsilon turned into the scale of the schedule that spends it.

    For a run that is not private this is nominal: the scale at which the published accounting would give it.
    """
    if config.target_epsilon is None:
        return config
    run = training.build(dataclasses.replace(config, target_epsilon=None), dataset=dataset)
    assert run.noise_multiplier is not None and run.clipper is not None  # a target needs both
    plan = calibration.Plan(
        schedule=run.noise_multiplier,
        steps=config.steps,
        sampling=run.sampler.accounted,
        noise_ratio=run.clipper.noise_to_sensitivity,
    )
    calibrated = calibration.calibrate(
        plan,
        config.target_epsilon,
        delta=config.delta,
        adjacency=config.adjacency,
        accountant=config.accountant,
    )
    return dataclasses.replace(config, target_epsilon=None, scale=calibrated.scale)


def _affordable(plan: Ledger, config: TrainConfig) -> int:
    """How many steps of the plan the budget allows."""
    if config.budget_epsilon is None:
        return plan.steps
    return accounting.steps_within(plan, config.budget_epsilon, claim_of(config))


def claim_of(config: TrainConfig) -> accounting.Claim:
    """What the run's epsilon is claimed at."""
    return accounting.Claim(delta=config.delta, adjacency=config.adjacency, accountant=config.accountant)


def claim(spent: Ledger, config: TrainConfig) -> accounting.Epsilon | None:
    """The epsilon that the run may claim; None where it is not private."""
    if not spent.private:
        return None
    if spent.filter is not None:
        return filters.epsilon(spent)
    return accounting.epsilon(spent, claim_of(config))


@dataclasses.dataclass
class _Progress:
    """Curves so far, read one epoch late so that the device never waits for the host."""

    curves: Curves
    waiting: tuple[int, Any, Diagnostics, TrainState] | None = None

    def add(self, step: int, accuracy: Any, diagnostics: Diagnostics, state: TrainState) -> None:
        self.flush()
        self.waiting = (step, accuracy, diagnostics, state)

    def flush(self) -> None:
        if self.waiting is None:
            return
        step, accuracy, diagnostics, state = self.waiting
        self.waiting = None
        if bool(state.overflow):
            raise ValueError(
                f"step<={step}: a Poisson batch outgrew its places, which happens with probability below "
                "1e-9 a run; the steps since the last checkpoint are void, run again"
            )
        self.curves["step"].append(step)
        self.curves["test_accuracy"].append(float(accuracy))
        if "l2_norm_clip" in self.curves:
            self.curves["l2_norm_clip"].append(float(np.linalg.norm(state.opt_state[0].clip.bound)))
        if "training_loss" in self.curves:
            self.curves["training_loss"].append(float(diagnostics.loss))
            self.curves["clipped"].append(float(diagnostics.clipped))


def _new_curves(config: TrainConfig) -> Curves:
    names = ["step", "test_accuracy"]
    names += ["l2_norm_clip"] * (config.schedule != "none" and config.clipping.startswith("quantile"))
    names += ["training_loss", "clipped"] * config.diagnostics
    return {name: [] for name in names}


def _epochs(first: int, stop: int, every: int) -> list[int]:
    """Where to pause: at multiples of `every`, and at the end."""
    return [*range((first // every + 1) * every, stop, every), stop] if stop > first else []


def _refuse_unbounded(config: TrainConfig, reasons: tuple[str, ...]) -> None:
    if config.budget_epsilon is not None and reasons:
        raise ValueError(f"budget_epsilon={config.budget_epsilon}: {'; '.join(reasons)}, so none can be kept")


def _planned(run: Run, before: Ledger) -> tuple[SpentAt, int]:
    """The ledger of a run whose noise is known beforehand, and the step at which its budget stops it."""
    config, first = run.config, before.steps
    plan = before.append(entry(run, first, config.steps)) if first < config.steps else before
    _refuse_unbounded(config, plan.reasons)
    stop = min(plan.steps, _affordable(plan, config)) if plan.private else plan.steps
    return lambda state, step: plan.until(step), stop


def _followed(run: Run, state: TrainState, before: Ledger) -> tuple[SpentAt, int]:
    """The ledger of an adaptive schedule, read back from the device, which stops by itself."""
    config, first = run.config, before.steps
    _refuse_unbounded(config, before.reasons or _reasons(config, run))
    assert run.clipper is not None and run.following is not None
    run.clipper.check(run.following.noise_multipliers[-1:], first)
    stop = config.steps if first or bool(run.admits(state)) else 0

    def spent_at(state, step):
        return before.append(entry(run, first, step, state)) if step > first else before

    return spent_at, stop


def train(
    config: TrainConfig,
    *,
    dataset: Dataset | None = None,
    run: Run | None = None,
    folder: str | pathlib.Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    progress: bool = False,
) -> TrainResult:
    """Trains as configured.

    Args:
      config: what to do.
      dataset: the data; None loads `config.data`.
      run: an earlier run of the same program (`training.program`): with other seeds, another learning rate,
        scale or `evaluate_every`, so that nothing is compiled again.
      folder: where checkpoints go, after every `evaluate_every` steps; None for none.
      resume: go on from the newest checkpoint in `folder`; from the start where there is none.
      observer: called with (step, params) at the start and at every evaluation: the parameters of the step,
        which leak, also where their average is evaluated.
      progress: whether to show a progress bar.

    Raises:
      ValueError: a configuration, checkpoint or ledger that is refused; a budget too small for one step; a
        Poisson batch that outgrew its places.
      OSError: a folder that cannot be written.
    """
    folder = None if folder is None else pathlib.Path(folder)
    going_on = folder is not None and checkpoints.latest_step(folder) is not None
    if going_on and not resume:
        raise ValueError(f"folder={str(folder)!r}: holds checkpoints already; resume, or choose another")
    kept, target_epsilon = resuming.kept_filter(config, folder) if going_on else None, config.target_epsilon
    if run is None:
        dataset = data.load(config.data, size=config.image_size) if dataset is None else dataset
        config = resolved(config, dataset)
        run = training.build(config, dataset=dataset, kept=kept)
    else:
        run = run.adjusted(config)
    state, spent, curves = run.init(config), Ledger(), _new_curves(config)
    if going_on:
        state, spent, curves = resuming.resume(run, folder, target_epsilon, curves)
    first = spent.steps
    spent_at, stop = _planned(run, spent) if run.following is None else _followed(run, state, spent)
    if stop < 1:
        raise ValueError(f"budget_epsilon={config.budget_epsilon}: the first step alone would pass it")
    writer = None if folder is None else checkpoints.Writer(folder)
    seconds, compile_seconds, state = _advance(
        run, state, max(first, stop), spent_at, curves, writer=writer, observer=observer, progress=progress
    )
    noise = training.noise_state(state)
    nonfinite = 0 if noise is None else int(noise.nonfinite)
    if nonfinite:
        warnings.warn(
            f"{nonfinite} per-example gradients were not finite and counted as zero; this count is exact, "
            "keep it as private as the data",
            stacklevel=2,
        )
    spent = spent_at(state, int(state.step))
    return TrainResult(
        config=config,
        run=run,
        state=state,
        ledger=spent,
        curves=curves,
        epsilon=claim(spent, config),
        nonfinite=nonfinite,
        seconds=seconds,
        steps_timed=int(state.step) - first,
        compile_seconds=compile_seconds,
        stopped_by_budget=int(state.step) < config.steps,
    )


def _advance(
    run: Run,
    state: TrainState,
    stop: int,
    spent_at: SpentAt,
    curves: Curves,
    *,
    writer: checkpoints.Writer | None,
    observer: Observer | None,
    progress: bool,
) -> tuple[float, float, TrainState]:
    """Steps to `stop`, with evaluation, checkpoints and the bar; returns seconds, compile seconds, state."""
    from tqdm import tqdm

    config, train_arrays = run.config, run.train_arrays()
    began = time.perf_counter()
    compiled = bool(run.traces)
    jax.block_until_ready(run.epoch(state, train_arrays, np.int32(0)))  # compiles, and takes no step
    if not compiled:
        run.evaluate(state.evaluated).block_until_ready()
    compile_seconds = time.perf_counter() - began
    waiting = _Progress(curves)
    first = done = int(state.step)
    if observer is not None:
        observer(first, state.params)
    bar = tqdm(total=stop, initial=first, unit="step", disable=not progress)
    began = time.perf_counter()
    for pause in _epochs(first, stop, config.evaluate_every):
        state, diagnostics = run.epoch(state, train_arrays, np.int32(pause))
        reached = pause if run.following is None else int(state.step)
        if reached == done:
            break  # the filter stopped where the last pause was
        waiting.add(reached, run.evaluate(state.evaluated), diagnostics, state)
        if observer is not None:
            observer(reached, state.params)
        if writer is not None:
            waiting.flush()
            document = resuming.document(run, spent_at(state, reached), curves)
            writer.save(reached, resuming.storable(state), document)
        bar.update(reached - done)
        done = reached
        if curves["test_accuracy"]:
            bar.set_postfix(accuracy=f"{curves['test_accuracy'][-1]:.3f}")
    waiting.flush()
    jax.block_until_ready(state.params)
    seconds = time.perf_counter() - began
    bar.close()
    if writer is not None:
        writer.close()
    return seconds, compile_seconds, state


@functools.lru_cache(maxsize=1024)  # runs that differ in their seeds alone spend the same
def _pld_epsilon(spent: Ledger, claim: accounting.Claim) -> float:
    return accounting.epsilon(spent, claim).value


def epsilon_curve(spent: Ledger, config: TrainConfig, steps: list[int]) -> list[float | None]:
    """epsilon after each of the given steps by the run's accountant; None where the run is not private."""
    if not spent.private or not spent.steps:
        return [None] * len(steps)
    if spent.filter is not None:  # what a filter guarantees is its budget, at every step
        return [filters.epsilon(spent).value] * len(steps)
    if config.accountant == "pld":
        claim = claim_of(config)
        return [0.0 if step == 0 else _pld_epsilon(spent.until(step), claim) for step in steps]
    values = accounting.epsilon_trajectory(spent, claim_of(config))
    return [0.0 if step == 0 else float(values[step - 1]) for step in steps]
