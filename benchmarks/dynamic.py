"""What a dynamic sigma costs over a fixed one: `python -m benchmarks dynamic`.

The same private step with each schedule, in one process, in many rounds; and whole runs of the compiled
training loop (`configured.build(...).epoch`), in steps a second.  Each must compile once.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import networks, timing, variants
from benchmarks.step import Carried
from jaxdp import data, schedules
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig

NAMES = ("fixed", *schedules.DYNAMIC)
LOOP_STEPS = 200


def step_rows(name: str, rounds: int, budget_seconds: float) -> list[dict]:
    """Single steps at the model's first batch size."""
    model, batch_size = networks.create(name), networks.CASES[name].batch_sizes[0]
    x, y = networks.batch(name, batch_size)
    steps = {
        schedule: variants.private(model, batch_size, schedules.create(schedule, variants.RUN_STEPS))
        for schedule in NAMES
    }
    runs = {schedule: Carried(step, model.params, x, y) for schedule, step in steps.items()}
    for run in runs.values():
        timing.first_call(run)
    seconds = timing.interleaved({k: timing.timed(run) for k, run in runs.items()}, rounds, budget_seconds)
    return [
        {
            "kind": "step",
            "model": name,
            "batch": batch_size,
            "schedule": schedule,
            "median_ms": 1e3 * float(np.median(times)),
            "ratio_to_fixed": timing.ratio(times, seconds["fixed"]),
            "compilations": steps[schedule].run._cache_size(),
            "rounds": len(times),
        }
        for schedule, times in seconds.items()
    ]


def _loop(run: configured.Run):
    """The first steps of a run, from the same state each time."""
    state, arrays, chunk = run.init(), run.arrays, run.program.chunk([0, LOOP_STEPS])

    def again():
        return run.program.advance(run.plan, jax.tree.map(jnp.copy, state), arrays, (0, LOOP_STEPS), chunk)

    return again


def loops(names: Sequence[str] = NAMES) -> dict[str, tuple]:
    """The training loop of an MLP on digits, compiled: `(run, what it runs)` of each schedule."""
    dataset = data.load("digits")
    built = {
        schedule: configured.build(
            TrainConfig.of(schedule=schedule, steps=LOOP_STEPS, noise_seed=0), dataset=dataset
        )
        for schedule in names
    }
    runs = {schedule: _loop(run) for schedule, run in built.items()}
    for run in runs.values():
        timing.first_call(run)
    return {schedule: (built[schedule], runs[schedule]) for schedule in names}


def loop_rows(compiled: dict[str, tuple], rounds: int, budget_seconds: float) -> list[dict]:
    """Whole runs of the training loop."""
    built = {schedule: run for schedule, (run, _) in compiled.items()}
    clocks = {schedule: timing.timed(run) for schedule, (_, run) in compiled.items()}
    seconds = timing.interleaved(clocks, rounds, budget_seconds)
    return [
        {
            "kind": "loop",
            "model": "mlp on digits",
            "batch": built[schedule].plan.expected_batch_size,
            "schedule": schedule,
            "steps_per_second": LOOP_STEPS / float(np.median(times)),
            "ratio_to_fixed": timing.ratio(times, seconds["fixed"]),
            "compilations": len(built[schedule].program.traces),
            "rounds": len(times),
        }
        for schedule, times in seconds.items()
    ]


def main() -> None:
    """Measures and writes `records/dynamic_DEVICE.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks dynamic", description=__doc__)
    parser.add_argument("--models", default=",".join(networks.CASES), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30, help="no further round of a model after this")
    options = parser.parse_args()
    rows = loop_rows(loops(), options.rounds, options.seconds)
    for name in options.models.split(","):
        rows += step_rows(name, options.rounds, options.seconds)
    for row in rows:
        line = f"{row['model']:<16}{row['schedule']:<16}{row['ratio_to_fixed']['median']:.4f} of fixed"
        print(line, f"compiled {row['compilations']}", flush=True)
    timing.write(f"dynamic_{jax.default_backend()}", rows)


if __name__ == "__main__":
    main()
