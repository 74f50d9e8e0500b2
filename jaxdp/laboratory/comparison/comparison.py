"""Fixed against dynamic privacy parameters at the same epsilon, by four metrics.

Every private variant's noise schedule is scaled until the whole run spends the same epsilon: the published
comparison, in which the dynamic schedules simply add more noise on average, says nothing about schedules.
"""

import concurrent.futures
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdp import _validate, data, models, schedules
from jaxdp.laboratory.comparison.exposure import Bench, Case, noise_scales, relative_noise
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig
from jaxdp.training.record import train_record
from jaxdp.training.run import TrainResult

VARIANTS = ("non_private", "fixed", *schedules.DYNAMIC, "l2_max")
STAGES = {"early": 0.05, "middle": 0.5, "late": 1.0}
_TIMED_STEPS, _TIMED_ROUNDS = 10, 5
# Options of a comparison that its training runs have as they are.
_SHARED = (
    *("data", "image_size", "model", "activation"),
    *("delta", "l2_norm_clip", "steps", "sampling_rate"),
)
Snapshots = dict[str, tuple[int, PyTree]]
Trained = tuple[configured.Run, TrainResult]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared."""

    data: str = "digits"
    """Data set."""
    image_size: int | None = 16
    """Resample images to this size; None leaves them as they are."""
    model: str = "lenet"
    """Network."""
    activation: str | None = "tanh"
    """Activation; None for the network's own."""
    target_epsilon: float = 3.0
    """epsilon that every private variant spends."""
    delta: float = 1e-5
    """delta of the comparison."""
    seeds: int = 3
    """Runs of each variant, from weights, batches and noise of their own."""
    steps: int = 200
    """Length of a run."""
    sampling_rate: float = 0.05
    """Expected share of the data in a batch (q)."""
    l2_norm_clip: float = 1.0
    """Bound C on an example's gradient."""
    learning_rate: float = 0.5
    """Learning rate where gradients are clipped to C."""
    unclipped_learning_rate: float = 0.1
    """Learning rate of non_private and l2_max, whose gradients are several times as long."""
    victims: int = 8
    """Held-out images attacked at each stage and leak point."""
    batch_size: int = 4
    """Images in the leaked batch gradient."""
    noise_levels: tuple[float, ...] = (0.0, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    """Noise on a raw gradient, relative to its norm, of the success curve."""
    attack_iterations: int = 400
    """Iterations of each attack: few, so that a comparison is quick; `jaxdp attack` takes more."""

    def __post_init__(self):
        _validate.whole(
            seeds=self.seeds, victims=self.victims, batch_size=self.batch_size,
            attack_iterations=self.attack_iterations,
        )  # fmt: skip
        _validate.whole(20, steps=self.steps)  # for early, middle and late
        if self.victims % self.batch_size:
            raise ValueError(f"victims={self.victims}: must be a multiple of batch_size={self.batch_size}")


def train_config(config: CompareConfig, variant: str, seed: int) -> TrainConfig:
    """The training run of one variant and seed."""
    clipped = variant not in ("non_private", "l2_max")
    schedule = {"non_private": "none", "l2_max": "fixed"}.get(variant, variant)
    # Names of any spelling: those that do not exist are refused when the run is built.
    shared: dict[str, Any] = {name: getattr(config, name) for name in _SHARED}
    return TrainConfig.of(
        **shared | {"schedule": schedule},
        target_epsilon=None if schedule == "none" else config.target_epsilon,
        clipping="l2_max" if variant == "l2_max" else "flat",
        learning_rate=config.learning_rate if clipped else config.unclipped_learning_rate,
        accountant="pld",  # over few steps RDP asks more of one schedule than of another
        evaluate_every=config.steps // 20,
        seed=seed,
        noise_seed=seed,  # a study that can be repeated: each statement says that the seed is known
    )


def train_variant(
    config: CompareConfig, variant: str, dataset: data.Dataset, log
) -> tuple[list[Trained], Snapshots]:
    """The runs of all seeds, and the first seed's parameters at the three stages."""
    stages = {round(share * config.steps): stage for stage, share in STAGES.items()}
    snapshots: Snapshots = {}

    def keep(step, params):
        if step in stages:
            snapshots[stages[step]] = (step, jax.tree.map(np.asarray, params))

    first = configured.build(train_config(config, variant, 0), dataset=dataset)
    done = [(first, first.train(callbacks=(keep,)))]
    for seed in range(1, config.seeds):
        seeded = first.adjusted(first.config.replace(seed=seed, noise_seed=seed))
        done.append((seeded, seeded.train()))
    accuracies = ", ".join(f"{result.curves['test_accuracy'][-1]:.3f}" for _, result in done)
    log(f"trained {variant:<15} accuracy {accuracies}")
    return done, snapshots


def time_steps(finished: dict[str, Trained]) -> dict[str, dict[str, float]]:
    """Median and spread of each variant's time a step, measured in turns so that all meet the same machine."""
    times: dict[str, list[float]] = {variant: [] for variant in finished}
    arrays = next(iter(finished.values()))[0].arrays
    for _ in range(_TIMED_ROUNDS):
        for variant, (run, result) in finished.items():
            advance = functools.partial(run.program.advance, run.plan)
            state = jax.tree.map(jnp.copy, result.state._replace(step=jnp.zeros((), jnp.int32)))
            state = jax.block_until_ready(advance(state, arrays, (0, 0))[0])
            began = time.perf_counter()
            jax.block_until_ready(advance(state, arrays, (0, _TIMED_STEPS)))
            times[variant].append(1e3 * (time.perf_counter() - began) / _TIMED_STEPS)
    return {
        variant: {
            "ms_per_step": float(np.median(ms)),
            "ms_per_step_spread": float(np.std(ms, ddof=1)),
            "examples_per_second": 1e3 * finished[variant][0].plan.expected_batch_size / float(np.median(ms)),
        }
        for variant, ms in times.items()
    }


def leaking(
    bench: Bench, first: dict[str, Trained], snapshots: dict[str, Snapshots], batch_size: int
) -> dict[str, list[Case]]:
    """Every variant and stage at every leak point: cases `unnoised`, `noised` (alone) and `batch`.

    Noise is what the variant's next step would add.
    """
    cases: dict[str, list[Case]] = {"unnoised": [], "noised": [], "batch": []}
    nothing = np.zeros(len(bench.x), np.float32)
    for variant, stages in snapshots.items():
        sigma = first[variant][0].plan.schedule
        clip = "none" if variant in ("non_private", "l2_max") else "flat"
        for stage, (step, params) in stages.items():
            case = Case(
                variant=variant, stage=stage, step=step, params=params, point="raw", clip="none",
                noise_std=nothing,
            )  # fmt: skip
            cases["unnoised"].append(case)
            if sigma is None:
                continue
            if clip == "flat":
                cases["unnoised"].append(dataclasses.replace(case, point="clipped", clip="flat"))
            std = float(sigma(step)) * noise_scales(bench, params, clip)
            noised = dataclasses.replace(case, point="noised", clip=clip, noise_std=std)
            cases["noised"].append(noised)
            together = std.reshape(-1, batch_size).mean(axis=1) / batch_size
            cases["batch"].append(dataclasses.replace(noised, point="noised batch", noise_std=together))
    return cases


def attack(
    config: CompareConfig,
    bench: Bench,
    cases: dict[str, list[Case]],
    fresh: PyTree,
    log: Callable[[str], Any],
) -> list[dict[str, Any]]:
    """All records of attacks: the cases, and success against noise on the raw gradient of a fresh model."""
    curve = [
        Case(variant="undefended", stage=None, step=0, params=fresh, point="raw", clip="none", noise_std=std)
        for std in relative_noise(bench, fresh, config.noise_levels)
    ]
    groups = {
        "raw and clipped": (cases["unnoised"], dict(batch_size=1, unnoised=True, seed=1)),
        "noised batches": (cases["batch"], dict(batch_size=config.batch_size, unnoised=False, seed=2)),
        "noised": (cases["noised"] + curve, dict(batch_size=1, unnoised=False, seed=3)),
    }

    def expose(name: str) -> list[dict[str, Any]]:
        found, settings = groups[name]
        began = time.perf_counter()
        records = bench.expose(found, **settings)
        seconds = time.perf_counter() - began
        log(f"attacked {len(found) * len(bench.x):>4} victims, {name}, in {seconds:.0f} s")
        return records

    return [record for records in _at_once(expose, groups) for record in records]


def _at_once(function: Callable[[str], Any], names) -> list[Any]:
    """`function` of every name, on as many threads as cores: compiling and small steps leave cores idle."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, names))


def compare(config: CompareConfig, log: Callable[[str], Any] = print) -> list[dict[str, Any]]:
    """Trains, times and attacks every variant, and logs a line at each part that is done; all records."""
    dataset = data.load(config.data, size=config.image_size)
    trained = _at_once(lambda variant: train_variant(config, variant, dataset, log), VARIANTS)
    done = dict(zip(VARIANTS, trained, strict=True))
    first = {variant: trained[0] for variant, (trained, _) in done.items()}
    timings = time_steps(first)
    records = [
        train_record(run, result, variant=variant, **timings[variant])
        for variant, (trained, _) in done.items()
        for run, result in trained
    ]
    fresh = configured.model(train_config(config, "non_private", 0), dataset)
    bench = Bench.of(
        dataset, models.cross_entropy(fresh), victims=config.victims, l2_norm_clip=config.l2_norm_clip,
        iterations=config.attack_iterations, settings=dataclasses.asdict(config),
    )  # fmt: skip
    cases = leaking(bench, first, {v: snapshots for v, (_, snapshots) in done.items()}, config.batch_size)
    return records + attack(config, bench, cases, fresh.params, log)
