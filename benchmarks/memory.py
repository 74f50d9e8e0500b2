"""Peak memory of a training step, each configuration in a process of its own: `python -m benchmarks memory`.

`peak_mb` is the largest resident size of the whole process: Python, JAX, compiler, data, parameters, three
steps.  `before_mb` is what it was before the step was compiled.  `temporary_mb` is what XLA says that the
compiled step needs for intermediate values.
"""

import argparse
import json
import resource
import subprocess
import sys

import jax

from benchmarks import networks, timing, variants

CONFIGURATIONS = [
    ("mlp", 4096, "nonprivate"), ("mlp", 4096, "factored"), ("mlp", 4096, "private"),
    ("mlp", 256, "nonprivate"), ("mlp", 256, "dense"), ("mlp", 256, "factored"), ("mlp", 256, "private"),
    ("cnn", 256, "nonprivate"), ("cnn", 256, "dense"), ("cnn", 256, "factored"), ("cnn", 256, "private"),
    ("cnn", 4096, "nonprivate"), ("cnn", 4096, "private"),
    ("cifar", 64, "nonprivate"), ("cifar", 64, "dense"), ("cifar", 64, "factored"), ("cifar", 64, "private"),
    ("cifar", 256, "nonprivate"), ("cifar", 256, "private"),
    ("transformer", 64, "nonprivate"), ("transformer", 64, "dense"), ("transformer", 64, "factored"),
    ("transformer", 64, "private"),
]  # fmt: skip
BUILD = {
    "nonprivate": lambda model, batch_size: variants.nonprivate(model),
    "dense": lambda model, batch_size: variants.private(
        model, batch_size, method="dense", microbatch_size=None
    ),
    "factored": lambda model, batch_size: variants.private(model, batch_size, microbatch_size=None),
    "private": lambda model, batch_size: variants.private(model, batch_size),
}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def measure(name: str, batch_size: int, variant: str) -> dict:
    """Three steps in this process."""
    model = networks.create(name)
    x, y = networks.batch(name, batch_size)
    step = BUILD[variant](model, batch_size)
    before = _peak_mb()
    compiled = step.run.lower(model.params, step.state, x, y).compile()
    carry = (model.params, step.state)
    for _ in range(3):
        carry = jax.block_until_ready(compiled(*carry, x, y))
    return {
        "model": name,
        "batch": batch_size,
        "variant": variant,
        "peak_mb": _peak_mb(),
        "before_mb": before,
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }


def main() -> None:
    """Measures all configurations and writes `records/memory_DEVICE.json`; with --one, one in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "BATCH", "VARIANT"), help="print one record")
    options = parser.parse_args()
    if options.one:
        name, batch_size, variant = options.one
        print(json.dumps(measure(name, int(batch_size), variant)), flush=True)
        return
    rows = []
    for configuration in CONFIGURATIONS:
        command = [sys.executable, "-m", "benchmarks", "memory", "--one", *map(str, configuration)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print("{model:<12}{batch:<6}{variant:<12}{peak_mb:8.0f} MB".format(**rows[-1]), flush=True)
    timing.write(f"memory_{jax.default_backend()}", rows)


if __name__ == "__main__":
    main()
