"""What an adversary makes of the runs of a study, early, in the middle and late, at equal epsilon.

At the noise of a real run nothing that could be recognised comes back from any variant, so two measures that
still tell variants apart are taken.  The informed adversary (`attacks.candidates`) knows all but which of ten
candidates an example is, and is held against the reconstruction bound of the same steps.  The image attack
meets the noise of each variant times one common factor, so small that images come back: the shape of the
schedule is kept, the epsilon is not.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdp import atomic, clipping, gradients, intervals, models, schedules
from jaxdp.accounting import reconstruction
from jaxdp.accounting.ledger import Ledger
from jaxdp.attacks import candidates as hypotheses
from jaxdp.attacks import public_knowledge
from jaxdp.laboratory import records as results
from jaxdp.laboratory.comparison.exposure import Bench, Case
from jaxdp.laboratory.study.setups import CLAIM, StudyConfig, Trial, settings
from jaxdp.laboratory.study.trials import Workshop, choose, targets
from jaxdp.plan import Plan
from jaxdp.training import configured

CANDIDATES = 10
PRIOR = 1 / CANDIDATES
SNAPSHOTS = 20  # of the parameters along a run
IMAGE_VARIANTS = ("fixed", *schedules.DYNAMIC, "scheduled_clip", "quantile")
INFORMED_VARIANTS = (*IMAGE_VARIANTS, "l2_max")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """How the runs of a study are attacked."""

    candidate_sets: int = 16
    """Sets of ten candidates, all different held-out examples."""
    trials: int = 24
    """Trials of the informed adversary with each set."""
    victims: int = 16
    """Held-out images attacked at each stage and leak point."""
    batch_size: int = 4
    """Images in the leaked batch gradient."""
    image_epsilon: float = 2.0
    """The runs whose images are attacked."""
    levels: tuple[float, ...] = (1.0, 3.0, 10.0)
    """Norm of the noise of the fixed variant over the clip bound, in the image attack."""
    iterations: int = 100
    """Of each image attack."""
    exact_variants: tuple[str, ...] = ("fixed", "linear")
    """Variants whose gradients are also attacked before any noise."""
    exact_victims: int = 8
    """Images of that attack, which tries several attacks on each."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """A run along its steps.

    Attributes:
      plan: of the run.
      ledger: what it spent.
      snapshots: parameters every so many steps, from step 0.
      every: how many.
      bounds: the clip bound (of l2_max the noise scale) at each step [T].
      noise: standard deviation of the noise on the sum at each step [T].
    """

    plan: Plan
    ledger: Ledger
    snapshots: list[PyTree]
    every: int
    bounds: np.ndarray
    noise: np.ndarray

    def at(self, step: int) -> PyTree:
        """The parameters at the last snapshot up to a step."""
        return self.snapshots[step // self.every]


def walk(workshop: Workshop, variant: str, epsilon: float | None) -> Path:
    """The first reported run of a variant once more, with its parameters kept."""
    rate = choose(workshop, variant, epsilon)
    trial = Trial(variant=variant, epsilon=epsilon, learning_rate=rate, seed=0)
    snapshots: list[PyTree] = []
    run, result = workshop.train(
        trial,
        lambda step, params: snapshots.append(jax.tree.map(np.asarray, params)),
        every=max(1, workshop.setup.steps // SNAPSHOTS),
    )
    steps, every, clipper = run.plan.steps, run.config.evaluate_every, run.plan.clipper
    assert clipper is not None and run.plan.schedule is not None
    if variant == "quantile":
        measured = [run.config.l2_norm_clip, *result.curves["l2_norm_clip"]]
    elif variant == "l2_max":
        measured = [_mean_sensitivity(workshop, params) for params in snapshots]
    else:
        sensitivity = clipper.sensitivity
        assert sensitivity is not None  # only l2_max has none
        measured = [float(sensitivity((), step)) for step in range(0, steps + 1, every)]
    paused = np.minimum(every * np.arange(len(measured)), steps)
    bounds = np.interp(np.arange(steps), paused, measured)
    sigma = schedules.values(run.plan.schedule, steps)
    noise = np.asarray(jax.vmap(clipper.gradient_noise)(jnp.asarray(sigma))) * bounds
    return Path(
        plan=run.plan, ledger=result.ledger, snapshots=snapshots, every=every, bounds=bounds, noise=noise
    )


def _mean_sensitivity(workshop: Workshop, params: PyTree, examples: int = 256) -> float:
    """The noise scale that l2-max would use at these parameters, over a part of the training data."""
    dataset, clipper = workshop.dataset, clipping.l2_max()
    batch = (dataset.to_float(dataset.train_x[:examples]), jnp.asarray(dataset.train_y[:examples]))
    _, grads = _per_example(workshop)(params, batch)
    return float(clipper.noise_scale(clipper.clip(grads, (), 0, jnp.ones(len(batch[1]), bool)), (), 0))


@functools.lru_cache(maxsize=8)
def _per_example(workshop: Workshop):
    return jax.jit(gradients.per_example(loss(workshop), method="dense"))


@functools.lru_cache(maxsize=8)
def loss(workshop: Workshop):
    """The loss of one example: the same object for all runs, so that programs are compiled once."""
    trial = Trial(variant="non_private", epsilon=None, learning_rate=1.0, seed=0)
    config = settings(workshop.name, workshop.setup, trial)
    return models.cross_entropy(configured.model(config, workshop.dataset))


def spans(steps: int) -> dict[str | None, tuple[int, int]]:
    """The windows that are attacked: a tenth of the run early, in the middle, late; and all of it."""
    tenth, half = max(1, steps // 10), steps // 2
    return {
        "early": (0, tenth),
        "middle": (half, half + tenth),
        "late": (steps - tenth, steps),
        None: (0, steps),
    }


def informed(
    workshop: Workshop, path: Path, variant: str, epsilon: float | None, config: AttackConfig
) -> list[dict]:
    """The records of the informed adversary: who sees a window and knows that the example is in every step
    of it, and who sees the sums of the whole run and does not."""
    count = config.candidate_sets * CANDIDATES
    x = np.asarray(workshop.dataset.to_float(workshop.dataset.test_x[:count]))
    y = np.asarray(workshop.dataset.test_y[:count])
    sets = len(x) // CANDIDATES
    clip = "none" if variant == "l2_max" else "flat"

    def gram(s: int, i: int):
        rows = slice(s * CANDIDATES, (s + 1) * CANDIDATES)
        step = min(i * path.every, len(path.bounds) - 1)
        return hypotheses.gram(loss(workshop), clip, path.snapshots[i], x[rows], y[rows], path.bounds[step])

    grams = np.asarray([[gram(s, i) for i in range(len(path.snapshots) - 1)] for s in range(sets)])
    along = np.repeat(grams, path.every, axis=1)
    adjacency, found = CLAIM.adjacency, []
    for stage, (start, stop) in spans(len(path.noise)).items():
        rate = 1.0 if stage else path.plan.sampling.rate
        noise = jnp.asarray(path.noise[start:stop], jnp.float32)
        hits = np.concatenate(
            [
                hypotheses.informed_adversary(
                    along[s, start:stop], noise, jax.random.key(s), trials=config.trials, sampling_rate=rate
                )[:, -1]
                for s in range(sets)
            ]
        )  # fmt: skip
        bound = of_one_step = None
        if path.ledger.private:
            of = functools.partial(reconstruction.bound, path.ledger, PRIOR, adjacency=adjacency)
            bound = of(start=start, stop=stop, amplified=stage is None)
            of_one_step = of(start=start, stop=start + 1, amplified=stage is None)
        found.append(
            results.attack_record(
                variant=variant, seed=0, config={"data": workshop.name, "epsilon": epsilon}, stage=stage,
                step=start, leak_point=f"sums of steps {start} to {stop - 1}", attack="informed adversary",
                noise_std=float(path.noise[start:stop].mean()),
                knowledge=f"parameters, the rest of each batch, {CANDIDATES} candidates for one example, "
                + ("in every batch" if stage else "drawn at the sampling rate"),
                metrics={
                    "victims": hits.size, "success": intervals.success_rate(hits), "rmse": None,
                    "rmse_mean_image": None, "iterations": None, "bound": bound,
                    "bound_of_one_step": of_one_step, "chance": PRIOR,
                },
            )
        )  # fmt: skip
    return found


def images(workshop: Workshop, paths: dict[str, Path], config: AttackConfig) -> list[dict]:
    """The records of the image attack: each leak point and stage, each variant's noise times one factor."""
    dataset, n = workshop.dataset, config.victims
    bench = Bench(
        loss_fn=loss(workshop),
        x=np.asarray(dataset.to_float(dataset.test_x[:n])),
        y=np.asarray(dataset.test_y[:n]),
        public=public_knowledge(
            np.asarray(dataset.to_float(dataset.train_x[:512])), np.asarray(dataset.train_y[:512]),
            classes=len(dataset.classes),
        ),
        classes=len(dataset.classes),
        l2_norm_clip=1.0,
        iterations=config.iterations,
        settings={"data": workshop.name, "epsilon": config.image_epsilon},
    )  # fmt: skip
    alone: list[Case] = []
    dimension = sum(leaf.size for leaf in jax.tree.leaves(paths["fixed"].snapshots[0]))
    unit = paths["fixed"].noise[0] * np.sqrt(dimension)
    levels = []
    for variant, path in paths.items():
        steps = len(path.noise)
        for stage, step in {"early": 0, "middle": steps // 2, "late": steps - 1}.items():
            for level in config.levels:
                std = np.full(n, level * path.noise[step] / unit, np.float32)
                levels.append(level)
                alone.append(
                    Case(
                        variant=variant, stage=stage, step=step, params=path.at(step), point="noised",
                        clip="flat", noise_std=std, bound=float(path.bounds[step]),
                    )
                )  # fmt: skip
    together = [
        dataclasses.replace(
            case, point="noised batch", noise_std=case.noise_std[:: config.batch_size] / config.batch_size
        )
        for case in alone
    ]
    few = dataclasses.replace(bench, x=bench.x[: config.exact_victims], y=bench.y[: config.exact_victims])
    nothing = np.zeros(len(few.x), np.float32)
    before = [
        dataclasses.replace(case, point=point, clip=clip, noise_std=nothing)
        for case in alone[:: len(config.levels)]
        if case.variant in config.exact_variants
        for point, clip in (("raw", "none"), ("clipped", "flat"))
    ]
    found = few.expose(before, batch_size=1, unnoised=True, seed=1) if before else []
    found += bench.expose(alone, batch_size=1, unnoised=False, seed=3)
    found += bench.expose(together, batch_size=config.batch_size, unnoised=False, seed=2)
    for record, level in zip(found, [*[None] * len(before), *levels, *levels], strict=True):
        record["metrics"]["level"] = level
    return found


def kept(path: pathlib.Path, wanted: Any, make: Callable[[], Sequence[dict]]) -> list[dict]:
    """The rows of a file, if it was made with the same settings; else made and written now."""
    wanted = results.plain(wanted)
    if path.exists():
        document = json.loads(path.read_text())
        if document["settings"] == wanted:
            return document["rows"]
    rows = results.plain(list(make()))
    atomic.write_text(path, json.dumps({"settings": wanted, "rows": rows}, allow_nan=False) + "\n")
    return rows


def attack(
    workshop: Workshop, study: StudyConfig, config: AttackConfig, log: Callable[[str], Any] = print
) -> None:
    """Attacks the runs of a data set, at every epsilon that it was trained at."""
    common = {
        "setup": dataclasses.asdict(workshop.setup),
        "candidate_sets": config.candidate_sets,
        "trials": config.trials,
    }

    def once(variant: str, epsilon: float | None) -> list[dict]:
        path = walk(workshop, variant, epsilon)
        return informed(workshop, path, variant, epsilon, config)

    for variant in (variant for variant in INFORMED_VARIANTS if variant in study.variants):
        for epsilon in targets(study, workshop.setup, variant):
            file = workshop.folder / f"informed-{variant}-eps{epsilon:g}.json"
            kept(file, common, functools.partial(once, variant, epsilon))
            log(f"{workshop.name} {variant} epsilon {epsilon:g}: informed adversary")


def attack_images(workshop: Workshop, study: StudyConfig, config: AttackConfig) -> None:
    """Attacks the images of a data set at one epsilon."""
    chosen = [variant for variant in IMAGE_VARIANTS if variant in study.variants]
    common = {"setup": dataclasses.asdict(workshop.setup), "variants": chosen, **dataclasses.asdict(config)}

    def make():
        paths = {variant: walk(workshop, variant, config.image_epsilon) for variant in chosen}
        return images(workshop, paths, config)

    kept(workshop.folder / "images.json", common, make)
