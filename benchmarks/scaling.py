"""Cost of a step against the batch size, 16 .. 4096: `python -m benchmarks scaling`."""

import argparse

import jax
import numpy as np

from benchmarks import networks, timing, variants
from benchmarks.step import Carried

BATCH_SIZES = (16, 64, 256, 1024, 4096)
# Beyond this many examples a step of these takes longer than the whole of the others' table.
LARGEST = {"cnn": 4096, "mlp": 4096, "cifar": 1024, "transformer": 1024}


def measure(name: str, batch_size: int, rounds: int, budget_seconds: float) -> list[dict]:
    """The ordinary and the private step."""
    model = networks.create(name)
    x, y = networks.batch(name, batch_size)
    steps = {"nonprivate": variants.nonprivate(model), "private": variants.private(model, batch_size)}
    runs = {variant: Carried(step, model.params, x, y) for variant, step in steps.items()}
    for run in runs.values():
        timing.first_call(run)
    seconds = timing.interleaved({k: timing.timed(run) for k, run in runs.items()}, rounds, budget_seconds)
    return [
        {
            "model": name,
            "batch": batch_size,
            "variant": variant,
            "median_ms": 1e3 * float(np.median(times)),
            "ratio_to_nonprivate": timing.ratio(times, seconds["nonprivate"])["median"],
            "microseconds_per_example": 1e6 * float(np.median(times)) / batch_size,
            "rounds": len(times),
        }
        for variant, times in seconds.items()
    ]


def main() -> None:
    """Measures the models asked for and writes `records/scaling_MODEL_DEVICE.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scaling", description=__doc__)
    parser.add_argument("--models", default=",".join(networks.CASES), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=10, help="no further round of a size after this")
    options = parser.parse_args()
    for name in options.models.split(","):
        rows = []
        for batch_size in (size for size in BATCH_SIZES if size <= LARGEST[name]):
            rows += measure(name, batch_size, options.rounds, options.seconds)
            for row in rows[-2:]:
                print("{model:<12}{batch:<6}{variant:<12}{median_ms:10.2f} ms".format(**row), flush=True)
        timing.write(f"scaling_{name}_{jax.default_backend()}", rows)


if __name__ == "__main__":
    main()
