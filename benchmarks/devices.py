"""What several devices do of a step, on CPU devices that XLA is told to make: `python -m benchmarks devices`.

Forced devices share the machine's cores, so that seconds say little of real ones.  What is compiled says more:
arithmetic, temporaries and collectives of one device.  XLA counts the body of a loop once, so the arithmetic of
a microbatch is counted by itself, and taken as often as a device runs it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np

MODELS, COUNTS = ("mlp", "cnn"), (1, 2, 4)
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def measure(name: str, batch_size: int, microbatch_size: int, rounds: int) -> dict[str, Any]:
    """One row: a private gradient on all devices of this process."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from benchmarks import networks, timing
    from jaxdp import clipped_gradients, clipping, models

    devices, model = jax.device_count(), networks.create(name)
    loss_fn, clipper = models.cross_entropy(model), clipping.flat(1.0)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
    params = jax.device_put(model.params, whole)
    batch = jax.device_put(networks.batch(name, batch_size), rows)

    def compiled(batch, size) -> tuple[Any, Any]:
        gradient = clipped_gradients(loss_fn, clipper, microbatch_size=size)
        step = jax.jit(lambda params, batch: gradient(params, batch, None, (), 0))
        return step, step.lower(params, batch).compile()

    step, program = compiled(batch, microbatch_size)
    pieces = batch_size // devices // microbatch_size
    _, piece = compiled(jax.tree.map(lambda x: x[: microbatch_size * devices], batch), None)
    clock = timing.timed(lambda: step(params, batch))
    timing.first_call(lambda: step(params, batch))
    _, summed = step(params, batch)
    text, memory, cost = program.as_text(), program.memory_analysis(), piece.cost_analysis()
    assert memory is not None and cost is not None  # of a CPU
    return {
        "model": name,
        "batch": batch_size,
        "devices": devices,
        "microbatch": microbatch_size,
        "pieces_a_device": pieces,
        "gigaflops_a_device": pieces * cost["flops"] / 1e9,
        "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
        "collectives": {word: len(re.findall(rf" {word}\(", text)) for word in _COLLECTIVES},
        "median_ms": 1e3 * float(np.median([clock() for _ in range(rounds)])),
        "gradient_norm": float(
            np.sqrt(
                sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(summed.gradients))
            )
        ),
        "environment": timing.environment(),
    }


def main() -> None:
    """Measures 1, 2 and 4 devices in processes of their own, and writes `records/devices_cpu.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks devices", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--microbatch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="print the row of this process's devices alone")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.models, options.batch, options.microbatch, options.rounds)))
        return
    from benchmarks import timing

    rows = []
    for name in options.models.split(","):
        for devices in COUNTS:
            flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
            command = [
                *(sys.executable, "-m", "benchmarks", "devices", "--here", "--models", name),
                *("--batch", str(options.batch), "--microbatch", str(options.microbatch)),
                *("--rounds", str(options.rounds)),
            ]
            done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            one = next(row for row in rows if row["model"] == name)
            share = rows[-1]["gigaflops_a_device"] / one["gigaflops_a_device"]
            print(
                f"{name:<5} {devices} devices: {share:.3f} of one's arithmetic each, "
                f"{rows[-1]['temporary_megabytes']:.0f} MB, {rows[-1]['median_ms']:.0f} ms, "
                f"{rows[-1]['collectives']}",
                flush=True,
            )
    timing.write("devices_cpu", rows)


if __name__ == "__main__":
    main()
