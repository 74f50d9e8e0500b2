"""Fixed against dynamic privacy parameters at the same epsilon, by four metrics.

Every private variant's noise schedule is scaled until the whole run spends the same epsilon: the published
comparison, in which the dynamic schedules simply add more noise on average, says nothing about schedules.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdp import clipping, data, gradients, metrics, models, recording, results, runs, schedules, training
from jaxdp.attacks import Attack, Leak, Public, evaluation, observe, public_knowledge
from jaxdp.attacks.engine import Reconstruction
from jaxdp.attacks.portfolio import PLAIN, POSTERIOR, invert_portfolio
from jaxdp.runs import TrainResult
from jaxdp.training import TrainConfig

VARIANTS = ("non_private", "fixed", *schedules.DYNAMIC, "l2_max")
STAGES = {"early": 0.05, "middle": 0.5, "late": 1.0}
_TIMED_STEPS, _TIMED_ROUNDS = 10, 5
_SHOWN = 5  # reconstructions kept in a record
_PLAIN = dataclasses.replace(
    PLAIN, labels="column_norm"
)  # the published label rule needs positive activations

Snapshots = dict[str, tuple[int, PyTree]]


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
    noise_levels: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 1.0)
    """Noise on a raw gradient, relative to its norm, of the success curve."""
    attack_iterations: int = 100
    """Iterations of each attack: few, so that a comparison is quick; `jaxdp attack` takes more."""

    def __post_init__(self):
        for name in ("seeds", "steps", "victims", "batch_size", "attack_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be >= 1")
        if self.steps < 20:
            raise ValueError(f"steps={self.steps}: early, middle and late need at least 20")
        if self.victims % self.batch_size:
            raise ValueError(f"victims={self.victims}: must be a multiple of batch_size={self.batch_size}")


def train_config(config: CompareConfig, variant: str, seed: int) -> TrainConfig:
    """The training run of one variant and seed."""
    clipped = variant not in ("non_private", "l2_max")
    schedule = {"non_private": "none", "l2_max": "fixed"}.get(variant, variant)
    return TrainConfig(
        data=config.data,
        image_size=config.image_size,
        model=config.model,
        activation=config.activation,
        schedule=schedule,
        target_epsilon=None if schedule == "none" else config.target_epsilon,
        clipping="l2_max" if variant == "l2_max" else "flat",
        l2_norm_clip=config.l2_norm_clip,
        steps=config.steps,
        sampling_rate=config.sampling_rate,
        learning_rate=config.learning_rate if clipped else config.unclipped_learning_rate,
        delta=config.delta,
        evaluate_every=config.steps // 20,
        seed=seed,
        noise_seed=seed,  # a study that can be repeated: each statement says that the seed is known
    )


def train_variant(
    config: CompareConfig, variant: str, dataset: data.Dataset, log
) -> tuple[list[TrainResult], Snapshots]:
    """The runs of all seeds, and the first seed's parameters at the three stages."""
    stages = {round(share * config.steps): stage for stage, share in STAGES.items()}
    snapshots: Snapshots = {}

    def keep(step, params):
        if step in stages:
            snapshots[stages[step]] = (step, jax.tree.map(np.asarray, params))

    first = runs.train(train_config(config, variant, 0), dataset=dataset, observer=keep)
    done = [first]
    for seed in range(1, config.seeds):
        seeded = dataclasses.replace(first.config, seed=seed, noise_seed=seed)
        done.append(runs.train(seeded, run=first.run))
    accuracies = ", ".join(f"{r.curves['test_accuracy'][-1]:.3f}" for r in done)
    log(f"trained {variant:<15} accuracy {accuracies}")
    return done, snapshots


def time_steps(finished: dict[str, TrainResult]) -> dict[str, float]:
    """Milliseconds a step for each variant, measured in turns so that all meet the same machine."""
    times: dict[str, list[float]] = {variant: [] for variant in finished}
    arrays = next(iter(finished.values())).run.train_arrays()
    for _ in range(_TIMED_ROUNDS):
        for variant, result in finished.items():
            state = result.state._replace(step=jnp.zeros((), jnp.int32))
            began = time.perf_counter()
            jax.block_until_ready(result.run.epoch(state, arrays, np.int32(_TIMED_STEPS)))
            times[variant].append((time.perf_counter() - began) / _TIMED_STEPS)
    return {variant: 1e3 * float(np.median(seconds)) for variant, seconds in times.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Target:
    """One (variant, stage): its parameters and the mechanism at that step."""

    variant: str
    stage: str
    step: int
    params: PyTree
    noise_multiplier: float


def targets(results_by_variant: dict[str, TrainResult], snapshots: dict[str, Snapshots]) -> list[_Target]:
    """Every stage of every variant, with the noise multiplier that its next step would use."""
    found = []
    for variant, stages in snapshots.items():
        run = results_by_variant[variant].run
        for stage, (step, params) in stages.items():
            sigma = 0.0 if run.noise_multiplier is None else float(run.noise_multiplier(step))
            found.append(
                _Target(variant=variant, stage=stage, step=step, params=params, noise_multiplier=sigma)
            )
    return found


def noise_scales(loss_fn, target: _Target, x, y, l2_norm_clip: float) -> np.ndarray:
    """The noise scale that a batch of each victim alone would get: C, or its own S for l2-max."""
    if target.variant != "l2_max":
        return np.full(len(x), l2_norm_clip, np.float32)
    _, grads = jax.jit(gradients.per_example(loss_fn, method="dense"))(target.params, (x, y))
    clipper = clipping.l2_max()
    alone = jnp.eye(len(x), dtype=bool)
    scales = [clipper.noise_scale(clipper.clip(grads, (), 0, mask), (), 0) for mask in alone]
    return np.asarray(scales, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all attacks of a comparison share.

    Attributes:
      config: the comparison.
      loss_fn: of one example; the same object for all, so that a program is compiled once.
      x: victims [N, *input_shape], held out.
      y: their labels.
      public: what the attacker knows of images, from training images.
      classes: number of labels.
    """

    config: CompareConfig
    loss_fn: Any
    x: np.ndarray
    y: np.ndarray
    public: Public
    classes: int

    def attack(
        self, leak: Leak, attacks: list[Attack], params: list[PyTree], noise_std: np.ndarray, seed: int
    ) -> list[tuple[dict[str, Any], Reconstruction]]:
        """Attacks the victims under each set of parameters, all in one program.

        Args:
          leak: what leaks.
          attacks: candidates; the best by its own objective counts.
          params: one set of parameters for each target.
          noise_std: [targets, victims / B], per coordinate of the leaked gradient.
          seed: of noise and starts.

        Returns:
          Metrics and reconstructions for each target.
        """
        size = leak.batch_size
        count = len(self.x) // size
        x = self.x.reshape(count, size, *self.x.shape[1:])
        y = self.y.reshape(count, size)
        own = jax.tree.map(lambda *leaves: np.repeat(np.stack(leaves), count, axis=0), *params)
        xs, ys = (np.tile(v, (len(params), *[1] * (v.ndim - 1))) for v in (x, y))
        noise_key, start_key = jax.random.split(jax.random.key(seed))
        victims = observe(
            self.loss_fn, leak, own, xs, ys, noise_key,
            noise_std=noise_std.reshape(-1), bound=self.config.l2_norm_clip, own_params=True,
        )  # fmt: skip
        found, _ = invert_portfolio(
            self.loss_fn, leak, attacks, victims, start_key, public=self.public,
            input_shape=self.x.shape[1:], classes=self.classes, own_params=True,
        )  # fmt: skip
        parts = [
            Reconstruction(*(np.asarray(field)[i * count : (i + 1) * count] for field in found))
            for i in range(len(params))
        ]
        return [(evaluation.judge(part, x, y, np.asarray(self.public.mean)), part) for part in parts]

    def record(
        self, row: dict[str, Any], found: Reconstruction, *, leak: Leak, attacks: list[Attack], point: str,
        noise_std: float, variant: str, stage: str | None, step: int, seed: int,
    ) -> dict[str, Any]:  # fmt: skip
        """The record of one target's attack."""
        guess = metrics.matched(found.x, self.x.reshape(found.x.shape)).reshape(self.x.shape)
        known = evaluation.knowledge(leak, attacks[-1], noise_std=noise_std, bound=self.config.l2_norm_clip)
        return results.attack_record(
            variant=variant,
            seed=seed,
            config=dataclasses.asdict(self.config),
            stage=stage,
            step=step,
            leak_point=point,
            attack=" or ".join(f"{a.solver} {a.objective}" for a in attacks) + ", best by its own objective",
            noise_std=noise_std,
            knowledge=dataclasses.asdict(known),
            metrics={**row, "success": row["recognisable"], "threshold": metrics.RECOGNISABLE},
            originals=self.x[:_SHOWN],
            reconstructions=guess[:_SHOWN],
        )


def bench(config: CompareConfig, dataset: data.Dataset) -> Bench:
    """The victims, the attacker's public images and the loss of a comparison."""
    model = training.make_model(train_config(config, "non_private", 0), dataset)
    n, known = config.victims, 512
    return Bench(
        config=config,
        loss_fn=models.cross_entropy(model),
        x=np.asarray(dataset.to_float(dataset.test_x[:n])),
        y=np.asarray(dataset.test_y[:n]),
        public=public_knowledge(
            np.asarray(dataset.to_float(dataset.train_x[:known])),
            np.asarray(dataset.train_y[:known]),
            classes=len(dataset.classes),
        ),
        classes=len(dataset.classes),
    )


def portfolio(config: CompareConfig, *kinds: Attack) -> list[Attack]:
    """The attacks of these kinds with the comparison's iterations."""
    return [dataclasses.replace(kind, iterations=config.attack_iterations) for kind in kinds]


def attack_stages(bench: Bench, found: list[_Target], log) -> list[dict[str, Any]]:
    """Every target at every leak point: raw, clipped, noised alone, noised in a batch."""
    config, size = bench.config, bench.config.batch_size
    noised = [t for t in found if t.variant != "non_private"]
    clipped = [t for t in noised if t.variant != "l2_max"]
    scales = {
        (t.variant, t.stage): noise_scales(bench.loss_fn, t, bench.x, bench.y, config.l2_norm_clip)
        for t in noised
    }
    unclipped = [t for t in noised if t.variant == "l2_max"]
    points = [
        ("raw", Leak(), found, (_PLAIN, POSTERIOR)),
        ("clipped", Leak(clip="flat"), clipped, (_PLAIN, POSTERIOR)),
        ("noised", Leak(clip="flat"), clipped, (POSTERIOR,)),
        ("noised", Leak(), unclipped, (POSTERIOR,)),
        ("noised batch", Leak(clip="flat", batch_size=size), clipped, (POSTERIOR,)),
        ("noised batch", Leak(batch_size=size), unclipped, (POSTERIOR,)),
    ]
    records = []
    for point, leak, among, kinds in points:
        attacks = portfolio(config, *kinds)
        std = np.zeros((len(among), len(bench.x) // leak.batch_size), np.float32)
        if point.startswith("noised"):
            for row, target in enumerate(among):
                per_batch = scales[target.variant, target.stage].reshape(-1, leak.batch_size).mean(axis=1)
                std[row] = target.noise_multiplier * per_batch / leak.batch_size
        began = time.perf_counter()
        rows = bench.attack(leak, attacks, [t.params for t in among], std, seed=len(records))
        for target, (row, reconstruction), level in zip(among, rows, std, strict=True):
            records.append(
                bench.record(
                    row,
                    reconstruction,
                    leak=leak,
                    attacks=attacks,
                    point=point,
                    noise_std=float(level.mean()),
                    variant=target.variant,
                    stage=target.stage,
                    step=target.step,
                    seed=0,
                )
            )
        seconds = time.perf_counter() - began
        log(f"attacked {point:<13} {len(among) * len(bench.x):>4} victims in {seconds:.0f} s")
    return records


def attack_noise_levels(bench: Bench, params: PyTree, log) -> list[dict[str, Any]]:
    """Success against noise on the raw gradient of a fresh model, noise relative to the gradient's norm."""
    config, leak, attacks = bench.config, Leak(), portfolio(bench.config, POSTERIOR)
    _, grads = jax.jit(gradients.per_example(bench.loss_fn, method="dense"))(params, (bench.x, bench.y))
    squares = sum(gradients.squared_norm(leaf) for leaf in jax.tree.leaves(grads))
    dimension = sum(leaf[0].size for leaf in jax.tree.leaves(grads))
    per_coordinate = np.sqrt(np.asarray(squares) / dimension)
    std = np.outer(config.noise_levels, per_coordinate).astype(np.float32)
    began = time.perf_counter()
    rows = bench.attack(leak, attacks, [params] * len(std), std, seed=17)
    log(f"attacked {len(std)} noise levels in {time.perf_counter() - began:.0f} s")
    return [
        bench.record(
            row, found, leak=leak, attacks=attacks, point="raw", noise_std=float(level.mean()),
            variant="undefended", stage=None, step=0, seed=0,
        )
        for (row, found), level in zip(rows, std, strict=True)
    ]  # fmt: skip


def compare(config: CompareConfig, log=print) -> list[dict[str, Any]]:
    """Trains, times and attacks every variant; returns all records.

    Args:
      config: what to compare.
      log: called with a line at each part that is done.
    """
    dataset = data.load(config.data, size=config.image_size)
    trained, snapshots = {}, {}
    for variant in VARIANTS:
        trained[variant], snapshots[variant] = train_variant(config, variant, dataset, log)
    first = {variant: done[0] for variant, done in trained.items()}
    ms = time_steps(first)
    records = [
        recording.train_record(
            result,
            variant=variant,
            ms_per_step=ms[variant],
            examples_per_second=1e3 * result.run.sampler.expected_batch_size / ms[variant],
        )
        for variant, done in trained.items()
        for result in done
    ]
    shared = bench(config, dataset)
    records += attack_stages(shared, targets(first, snapshots), log)
    fresh = training.make_model(train_config(config, "non_private", 0), dataset).params
    return records + attack_noise_levels(shared, fresh, log)
