"""The record of a training run: what was done, what it cost, and what may be said of its privacy."""

import dataclasses
from typing import Any

from jaxdp import accounting, schedules
from jaxdp import records as results
from jaxdp.accounting.statement import privacy_statement
from jaxdp.training import run as runs
from jaxdp.training.config import TrainConfig
from jaxdp.training.run import TrainResult


def variant_name(config: TrainConfig) -> str:
    """What tables call a run: its schedule, or the clipping where that is what sets it apart."""
    if config.schedule == "none":
        return "non_private"
    return config.schedule if config.clipping == "flat" else f"{config.clipping}_{config.schedule}"


def privacy(result: TrainResult) -> dict[str, Any]:
    """The privacy part of a record: the claim with its settings and the statement, or why there is none."""
    config, spent, claimed = result.config, result.ledger, result.epsilon
    noised = result.run.clipper is not None
    if claimed is None and noised:  # a published number, labelled nominal
        claimed = accounting.epsilon(spent, runs.claim_of(config), nominal=True)
    prepared = () if result.run.dataset.public_preprocessing else ("preprocessed_on_private_data",)
    statement = privacy_statement(spent, claimed, disclosed=prepared)
    settings = ("delta", "accountant", "adjacency", "sampling")
    return {
        "private": spent.private,
        "nominal": claimed is not None and claimed.nominal,
        "epsilon": None if claimed is None else claimed.value,
        **{name: None if claimed is None else getattr(claimed, name) for name in settings},
        "statement": f"{statement}\n  Data: {result.run.dataset.preprocessing}",
        "statement_data": {**statement.to_dict(), "data": result.run.dataset.preprocessing},
    }


def curves(result: TrainResult) -> dict[str, list | None]:
    """epsilon, sigma and test accuracy over the steps at which the run was evaluated."""
    steps = [int(step) for step in result.curves["step"]]
    sigma = result.run.noise_multiplier
    values = None if sigma is None else schedules.values(sigma, result.config.steps)
    if result.run.following is not None:
        values = result.ledger.sigmas()
    return {
        **result.curves,
        "epsilon": runs.epsilon_curve(result.ledger, result.config, steps),
        "noise_multiplier": None if values is None else [float(values[step - 1]) for step in steps],
    }


def train_record(result: TrainResult, *, variant: str | None = None, **timings: float) -> dict[str, Any]:
    """The record of a run, for `results.write`.

    Args:
      result: of `runs.train`.
      variant: its name in tables; None for `variant_name`.
      **timings: measured otherwise, to replace the run's own: `ms_per_step`, its
        `ms_per_step_spread` over repeated timings, `examples_per_second`.
    """
    config = result.config
    seconds_per_step = result.seconds / max(result.steps_timed, 1)
    seed_policy = "system entropy" if config.noise_seed is None else f"given seed {config.noise_seed}"
    return results.train_record(
        variant=variant_name(config) if variant is None else variant,
        seed=config.seed,
        config=dataclasses.asdict(config),
        seed_policy=seed_policy,
        privacy=privacy(result),
        metrics={
            "test_accuracy": result.curves["test_accuracy"][-1],
            "steps": result.ledger.steps,
            "ms_per_step": 1e3 * seconds_per_step,
            "examples_per_second": result.run.sampler.expected_batch_size / max(seconds_per_step, 1e-9),
            "compile_count": len(result.run.traces),
            "compile_seconds": result.compile_seconds,
            "stopped_by_budget": result.stopped_by_budget,
            **timings,
        },
        curves=curves(result),
    )
