"""What one training step costs, with and without privacy: `python -m benchmarks step`.

All variants of a model run in one process in turns, after warm-up, each step waited for; ratios are medians of
the ratios within a round.  `nonprivate` is the usual formulation: XLA's own convolution, mean loss over the
batch, SGD.  `floor` is that plus drawing the noise.
"""

import argparse
import json
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp import clipping, models, results, schedules
from jaxdp.privatize import clipped_gradients, noise_like, privatize

RECORDS = pathlib.Path(__file__).parent / "records"
# name -> (model, shape of an example, batch size)
MODELS = {
    "cnn": ("cnn", (28, 28, 1), 256),
    "mlp": ("mlp", (28, 28, 1), 256),
    "cifar": ("cifar_cnn", (32, 32, 3), 64),
}
STEPS = 10_000


def _nonprivate(model, batch_size):
    """Mean loss of the whole batch, SGD."""
    optimizer = optax.sgd(0.05)

    def mean_loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

    def step(params, state, x, y):
        updates, state = optimizer.update(jax.grad(mean_loss)(params, x, y), state)
        return optax.apply_updates(params, updates), state

    return jax.jit(step), optimizer.init(model.params)


def _private(model, batch_size, sigma, *, microbatch_size="auto", method="factored"):
    """DP-SGD with everything it needs: clip, sum, noise, divide, SGD."""
    clipper = clipping.flat(4.0)
    chain = optax.chain(privatize(clipper, sigma, batch_size), optax.sgd(0.05))
    gradient = clipped_gradients(
        models.cross_entropy(model), clipper, microbatch_size=microbatch_size, method=method
    )
    mask = jnp.ones(batch_size, bool)

    def step(params, state, x, y):
        _, summed = gradient(params, (x, y), mask, state[0].clip, state[0].step)
        updates, state = chain.update(summed, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step), chain.init(model.params)


def _variants(model, batch_size):
    """Name -> (compiled step, optimizer state)."""
    found = {"nonprivate": _nonprivate(model, batch_size)}
    found["dense"] = _private(model, batch_size, 6.0, microbatch_size=None, method="dense")
    found["factored"] = _private(model, batch_size, 6.0, microbatch_size=None)
    found["private"] = _private(model, batch_size, 6.0)
    for name in schedules.DYNAMIC:
        found[f"private {name}"] = _private(model, batch_size, schedules.create(name, STEPS))
    return found


def _quartiles(values) -> list[float]:
    return [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]


def measure(name: str, rounds: int) -> list[dict]:
    """One record for each variant of a model."""
    model_name, shape, batch_size = MODELS[name]
    model = models.create(model_name, jax.random.key(0), input_shape=shape)
    x = jax.random.uniform(jax.random.key(1), (batch_size, *shape))
    y = jnp.arange(batch_size) % 10
    steps, carried, compiled = _variants(model, batch_size), {}, {}
    for variant, (step, state) in steps.items():
        began = time.perf_counter()
        carried[variant] = jax.block_until_ready(step(model.params, state, x, y))
        compiled[variant] = time.perf_counter() - began
    noise = jax.jit(lambda key: noise_like(key, model.params))
    jax.block_until_ready(noise(jax.random.key(0)))
    seconds = {variant: [] for variant in (*steps, "noise")}
    for turn in range(rounds):
        for variant, (step, _) in steps.items():
            began = time.perf_counter()
            carried[variant] = jax.block_until_ready(step(*carried[variant], x, y))
            seconds[variant].append(time.perf_counter() - began)
        began = time.perf_counter()
        jax.block_until_ready(noise(jax.random.key(turn)))
        seconds["noise"].append(time.perf_counter() - began)
    seconds = {variant: np.asarray(times) for variant, times in seconds.items()}
    seconds["floor"] = seconds["nonprivate"] + seconds["noise"]
    return [
        {
            "model": name,
            "batch": batch_size,
            "variant": variant,
            "median_ms": 1e3 * float(np.median(times)),
            "ratio_to_nonprivate": float(np.median(times / seconds["nonprivate"])),
            "ratio_quartiles": _quartiles(times / seconds["nonprivate"]),
            "ratio_to_fixed": float(np.median(times / seconds["private"])),
            "ratio_to_floor": float(np.median(times / seconds["floor"])),
            "examples_per_second": batch_size / float(np.median(times)),
            "compile_seconds": compiled.get(variant),
            "compilations": steps[variant][0]._cache_size() if variant in steps else None,
            "rounds": rounds,
        }
        for variant, times in seconds.items()
    ]


def main() -> None:
    """Measures the models asked for and writes `records/step_DEVICE.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help=f"comma-separated, of {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=25, help="how often each variant runs")
    parser.add_argument("--json", action="store_true", help="print one JSON record a line; write no file")
    options = parser.parse_args()
    names = options.models.split(",")
    for name in names:
        if name not in MODELS:
            parser.error(f"models={name!r}: choose from {', '.join(MODELS)}")
    records = []
    for name in names:
        for record in measure(name, options.rounds):
            records.append(record)
            ratio = f"{record['ratio_to_nonprivate']:.3f} of nonprivate"
            line = f"{name:<6}{record['variant']:<24}{record['median_ms']:9.2f} ms  {ratio}"
            print(json.dumps(record) if options.json else line, flush=True)
    if not options.json:
        device = jax.devices()[0]
        environment = {
            "device": device.device_kind,
            "jax": jax.__version__,
            "python": platform.python_version(),
        }
        text = json.dumps({"environment": environment, "records": records}, indent=1)
        results.write_text(RECORDS / f"step_{device.platform}.json", text + "\n")
