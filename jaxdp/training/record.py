"""The record of a training run: what was done, what it cost, and what may be said of its privacy."""

from typing import Any

from jaxdp import accounting, records
from jaxdp.accounting.ledger import Ledger
from jaxdp.accounting.statement import privacy_statement
from jaxdp.training.config import TrainConfig
from jaxdp.training.configured import Run
from jaxdp.training.run import TrainResult, claimed


def variant_name(config: TrainConfig) -> str:
    """What tables call a run: its schedule, or the clipping where that is what sets it apart."""
    if config.schedule == "none":
        return "non_private"
    return config.schedule if config.clipping == "flat" else f"{config.clipping}_{config.schedule}"


def privacy(run: Run, result: TrainResult) -> dict[str, Any]:
    """The privacy part of a record: the claim with its settings and the statement, or why there is none."""
    spent, epsilon, statement = result.ledger, result.epsilon, result.statement
    if epsilon is None and run.plan.clipper is not None:  # a published number, labelled nominal
        epsilon = accounting.epsilon(spent, run.config.claim, nominal=True)
        disclosed = () if run.dataset.public_preprocessing else ("preprocessed_on_private_data",)
        examples = run.plan.batches.examples
        statement = privacy_statement(spent, epsilon, disclosed=disclosed, examples=examples)
    settings = ("delta", "accountant", "adjacency", "sampling")
    return {
        "private": spent.private,
        "nominal": epsilon is not None and epsilon.nominal,
        "epsilon": None if epsilon is None else epsilon.value,
        **{name: None if epsilon is None else getattr(epsilon, name) for name in settings},
        "unit": spent.unit,
        "statement": f"{statement}\n  Data: {run.dataset.preprocessing}",
        "statement_data": {**statement.to_dict(), "data": run.dataset.preprocessing},
    }


def epsilon_curve(spent: Ledger, claim: accounting.Claim, steps: list[int]) -> list[float | None]:
    """epsilon after each of the given steps; None where the run is not private."""
    if not spent.private or not spent.steps:
        return [None] * len(steps)
    if claim.accountant == "rdp" and spent.filter is None:
        values = accounting.epsilon_trajectory(spent, claim)
        return [0.0 if step == 0 else float(values[step - 1]) for step in steps]
    # What a filter guarantees is its budget, at every step.
    found = [claimed(spent if spent.filter is not None else spent.until(step), claim) for step in steps]
    return [None if epsilon is None else epsilon.value for epsilon in found]


def curves(run: Run, result: TrainResult) -> dict[str, list | None]:
    """epsilon, sigma and test accuracy over the steps at which the run was evaluated."""
    steps = [int(step) for step in result.curves["step"]]
    clipper, values = run.plan.clipper, None
    if clipper is not None:  # as charged, so that those of a run that went on with other noise are its own
        values = result.ledger.sigmas() / clipper.noise_to_sensitivity
    return {
        **result.curves,
        "epsilon": epsilon_curve(result.ledger, run.config.claim, steps),
        "noise_multiplier": None if values is None else [float(values[step - 1]) for step in steps],
    }


def train_record(
    run: Run, result: TrainResult, *, variant: str | None = None, **timings: float
) -> dict[str, Any]:
    """The record of a run, for `records.write`.

    Args:
      run: what was trained.
      result: what it left.
      variant: its name in tables; None for `variant_name`.
      **timings: measured otherwise, to replace the run's own: `ms_per_step`, its
        `ms_per_step_spread` over repeated timings, `examples_per_second`.
    """
    config = run.config
    seconds_per_step = result.seconds / result.steps_timed if result.steps_timed else None
    batch_size = run.plan.expected_batch_size
    return records.made(
        "train",
        variant=variant_name(config) if variant is None else variant,
        seed=config.seed,
        config=config.options(),
        seed_policy="system entropy" if config.noise_seed is None else f"given seed {config.noise_seed}",
        privacy=privacy(run, result),
        metrics={
            "test_accuracy": result.curves["test_accuracy"][-1],
            "steps": result.ledger.steps,
            "ms_per_step": 1e3 * seconds_per_step if seconds_per_step else None,
            "examples_per_second": batch_size / seconds_per_step if seconds_per_step else None,
            "compile_count": len(result.program.traces),
            "compile_seconds": result.compile_seconds,
            "stopped_by_budget": result.stopped_by_budget,
            **timings,
        },
        curves=curves(run, result),
        run=result.run,
        ledger=result.ledger.to_json(),
    )
