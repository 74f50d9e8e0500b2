"""What one training step costs, with and without privacy: `python -m benchmarks step`.

All variants of a model (see `benchmarks.variants`) run in one process in turns, after warm-up.  `noise` draws
the step's noise alone; `floor` is `nonprivate` plus `noise`.
"""

import argparse
import json
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import networks, timing, variants
from jaxdp import noise


class Carried:
    """A step that goes on from where it was, as in training."""

    def __init__(self, step: variants.Step, params, x, y):
        self.step, self.x, self.y = step, x, y
        self.carry = (params, step.state)

    def __call__(self):
        self.carry = self.step.run(*self.carry, self.x, self.y)
        return self.carry


def noise_of(params):
    """Draws the noise of one step after another."""
    secret = noise.secret(0)
    draw = jax.jit(lambda step: noise.released(noise.Stream(secret, step, noise.GRADIENTS), params, 1.0))
    steps = iter(range(2**31))
    return lambda: draw(np.int32(next(steps)))


def measure(name: str, batch_size: int, rounds: int, budget_seconds: float) -> list[dict]:
    """One record for each variant of a model."""
    model = networks.create(name)
    x, y = networks.batch(name, batch_size)
    steps = variants.build(model, x, y)
    runs: dict[str, Callable] = {
        variant: Carried(step, model.params, x, y) for variant, step in steps.items()
    }
    runs["noise"] = noise_of(model.params)
    compile_seconds = {variant: timing.first_call(run) for variant, run in runs.items()}
    seconds = timing.interleaved({k: timing.timed(run) for k, run in runs.items()}, rounds, budget_seconds)
    seconds["floor"] = seconds["nonprivate"] + seconds["noise"]
    best = min(
        (times for variant, times in seconds.items() if variant.startswith("nonprivate")), key=np.median
    )
    rows = []
    for variant, times in seconds.items():
        of_nonprivate = timing.ratio(times, seconds["nonprivate"])
        rows.append(
            {
                "model": name,
                "batch": batch_size,
                "variant": variant,
                "median_ms": 1e3 * float(np.median(times)),
                "ratio_to_nonprivate": of_nonprivate["median"],
                "ratio_quartiles": of_nonprivate["quartiles"],
                "ratio_to_floor": timing.ratio(times, seconds["floor"])["median"],
                "ratio_to_best_nonprivate": timing.ratio(times, best)["median"],
                "ratio_to_fixed": timing.ratio(times, seconds["private"])["median"],
                "examples_per_second": batch_size / float(np.median(times)),
                "compile_seconds": compile_seconds.get(variant),
                "compilations": steps[variant].run._cache_size() if variant in steps else None,
                "rounds": len(times),
            }
        )
    return rows


def main() -> None:
    """Measures the models asked for and writes `records/step_MODEL_BATCH_DEVICE.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=__doc__)
    known = ", ".join(networks.CASES)
    parser.add_argument("--models", default=",".join(networks.CASES), help=f"comma-separated, of {known}")
    parser.add_argument("--batch", type=int, help="batch size; left out, those of the record")
    parser.add_argument("--rounds", type=int, default=25, help="how often each variant runs")
    parser.add_argument("--seconds", type=float, default=60, help="no further round of a model after this")
    parser.add_argument("--json", action="store_true", help="print one JSON record a line; write no file")
    options = parser.parse_args()
    names = options.models.split(",")
    for name in names:
        if name not in networks.CASES:
            parser.error(f"models={name!r}: choose from {known}")
    for name in names:
        for batch_size in (options.batch,) if options.batch else networks.CASES[name].batch_sizes:
            rows = measure(name, batch_size, options.rounds, options.seconds)
            for row in rows:
                ratio = f"{row['ratio_to_nonprivate']:.3f} of nonprivate"
                line = f"{name:<12}{batch_size:<6}{row['variant']:<24}{row['median_ms']:9.2f} ms  {ratio}"
                print(json.dumps(row) if options.json else line, flush=True)
            if not options.json:
                timing.write(f"step_{name}_{batch_size}_{jax.default_backend()}", rows)


if __name__ == "__main__":
    main()
