"""The same private step by other libraries: `python -m benchmarks peers`, after `pip install '.[peers]'`.

`optax.contrib` and jax-privacy run in this process, Opacus in processes of its own on the same cores, one with
the system's malloc as it comes and one tuned (`benchmarks.malloc`; here it is tuned); all in turns.
With `--no-ynn` the whole is measured again in a process where XLA's YNN fusions are off: jax-privacy's dense
layers gain from that, and the win over it should not be XLA's.  What is not installed is named in the record.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import jax
import numpy as np
import optax
from optax import contrib

from benchmarks import networks, opacus_worker, timing, variants
from benchmarks.step import Carried
from jaxdp import models

BATCH_SIZES = {"cnn": (256,), "mlp": (256,), "cifar": (64, 128)}
NO_YNN = "--xla_cpu_experimental_ynn_fusion_type="
# jax-privacy's step slows down by orders of magnitude on some of these; its best size is found by trying.
MICROBATCHES = {"cnn": (None, 16), "mlp": (None, 1), "cifar": (None, 8)}


def optax_aggregate(model: models.Model, batch_size: int) -> variants.Step:
    """`vmap(grad)`, then Optax's transformation."""
    aggregate = contrib.differentially_private_aggregate(
        l2_norm_clip=variants.L2_NORM_CLIP, noise_multiplier=variants.SIGMA, key=jax.random.key(0)
    )
    chain = optax.chain(aggregate, optax.sgd(variants.LEARNING_RATE))
    gradient = jax.vmap(jax.grad(models.cross_entropy(model)), in_axes=(None, 0))

    def step(params, state, x, y):
        updates, state = chain.update(gradient(params, (x, y)), state, params)
        return optax.apply_updates(params, updates), state

    return variants.Step(jax.jit(step), chain.init(model.params))


def jax_privacy_step(model: models.Model, batch_size: int, microbatch_size: int | None) -> variants.Step:
    """Its clipped gradient, its Gaussian noise, SGD."""
    import jax_privacy
    from jax_privacy import noise_addition

    gradient = jax_privacy.clipped_grad(
        models.cross_entropy(model),
        l2_clip_norm=variants.L2_NORM_CLIP,
        normalize_by=batch_size,
        batch_argnums=1,
        keep_batch_dim=False,
        microbatch_size=microbatch_size,
    )
    std = variants.SIGMA * variants.L2_NORM_CLIP / batch_size  # of the mean, as the gradient is
    noise = noise_addition.gaussian_privatizer(stddev=std, prng_key=jax.random.key(0))
    chain = optax.chain(noise, optax.sgd(variants.LEARNING_RATE))

    def step(params, state, x, y):
        updates, state = chain.update(gradient(params, (x, y)), state, params)
        return optax.apply_updates(params, updates), state

    return variants.Step(jax.jit(step), chain.init(model.params))


def missing() -> list[str]:
    """Peers that are not installed."""
    return [name for name in ("jax_privacy", "opacus") if importlib.util.find_spec(name) is None]


def _versions() -> dict[str, str]:
    found = {}
    for name in ("optax", "jax-privacy", "opacus", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _steps(name: str, model: models.Model, batch_size: int) -> dict[str, variants.Step]:
    """What runs in this process."""
    found = {
        "nonprivate": variants.nonprivate(model),
        "private": variants.private(model, batch_size),
        "optax.contrib": optax_aggregate(model, batch_size),
    }
    if "jax_privacy" not in missing():
        for size in MICROBATCHES[name]:
            label = "jax-privacy" if size is None else f"jax-privacy, microbatch {size}"
            found[label] = jax_privacy_step(model, batch_size, size)
    return found


def measure(name: str, batch_size: int, rounds: int, budget_seconds: float, opacus: bool) -> list[dict]:
    """One record for each peer."""
    model = networks.create(name)
    x, y = networks.batch(name, batch_size)
    steps = _steps(name, model, batch_size)
    runs = {label: Carried(step, model.params, x, y) for label, step in steps.items()}
    compile_seconds = {label: timing.first_call(run) for label, run in runs.items()}
    workers = opacus_worker.start(name, batch_size) if opacus and "opacus" not in missing() else {}
    clocks = {label: timing.timed(run) for label, run in runs.items()}
    for malloc, worker in workers.items():
        for mode in opacus_worker.MODES:
            if mode not in worker.failed:
                clocks[f"{mode}, {malloc}"] = functools.partial(worker.seconds, mode)
    seconds = timing.interleaved(clocks, rounds, budget_seconds)
    for worker in workers.values():
        worker.close()
    return [
        {
            "model": name,
            "batch": batch_size,
            "peer": label,
            "median_ms": 1e3 * float(np.median(times)),
            "ratio_to_nonprivate": timing.ratio(times, seconds["nonprivate"])["median"],
            "ratio_to_private": timing.ratio(times, seconds["private"]),
            "examples_per_second": batch_size / float(np.median(times)),
            "compile_seconds": compile_seconds.get(label),
            "rounds": len(times),
        }
        for label, times in seconds.items()
    ]


def main() -> None:
    """Measures the models asked for and writes `records/peers_MODEL_BATCH_DEVICE.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description=__doc__)
    parser.add_argument("--models", default=",".join(BATCH_SIZES), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60, help="no further round of a model after this")
    parser.add_argument("--no-ynn", action="store_true", help="measure with XLA's YNN fusions off")
    options = parser.parse_args()
    if options.no_ynn and NO_YNN not in os.environ.get("XLA_FLAGS", ""):
        flags = f"{os.environ.get('XLA_FLAGS', '')} {NO_YNN}".strip()
        command = [sys.executable, "-m", "benchmarks", "peers", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=False).returncode)
    suffix = "_no_ynn" if options.no_ynn else ""
    for name in options.models.split(","):
        for batch_size in BATCH_SIZES[name]:
            rows = measure(name, batch_size, options.rounds, options.seconds, not options.no_ynn)
            for row in rows:
                print("{model:<8}{batch:<6}{peer:<32}{median_ms:10.2f} ms".format(**row), flush=True)
            timing.write(
                f"peers_{name}_{batch_size}_{jax.default_backend()}{suffix}",
                rows,
                versions=_versions(),
                not_installed=missing(),
            )


if __name__ == "__main__":
    main()
