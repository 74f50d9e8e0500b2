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

from jaxdp import atomic, clipping, intervals, schedules
from jaxdp.accounting import reconstruction
from jaxdp.accounting.ledger import Ledger
from jaxdp.attacks import candidates
from jaxdp.laboratory.comparison.exposure import Bench, Case
from jaxdp.laboratory.records import attack_record
from jaxdp.laboratory.study.setups import CLAIM, StudyConfig, Trial, targets
from jaxdp.laboratory.study.trials import Workshop, choose
from jaxdp.plan import Plan
from jaxdp.records import plain

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
    elif clipper.sensitivity is None:  # of l2-max
        measured = [_mean_sensitivity(workshop, params) for params in snapshots]
    else:
        measured = [float(clipper.sensitivity((), step)) for step in range(0, steps + 1, every)]
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
    _, grads = workshop.per_example(params, batch)
    return float(clipper.noise_scale(clipper.clip(grads, (), 0, jnp.ones(len(batch[1]), bool)), (), 0))


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
    sets = range(len(x) // CANDIDATES)
    clip = "none" if variant == "l2_max" else "flat"

    def gram(s: int, i: int):
        rows = slice(s * CANDIDATES, (s + 1) * CANDIDATES)
        bound = path.bounds[min(i * path.every, len(path.bounds) - 1)]
        return candidates.gram(workshop.loss_fn, clip, path.snapshots[i], x[rows], y[rows], bound)

    grams = np.asarray([[gram(s, i) for i in range(len(path.snapshots) - 1)] for s in sets])
    along = np.repeat(grams, path.every, axis=1)
    found = []
    for stage, (start, stop) in spans(len(path.noise)).items():
        rate = 1.0 if stage else path.plan.sampling.rate
        noise = jnp.asarray(path.noise[start:stop], jnp.float32)
        trials = functools.partial(candidates.informed_adversary, trials=config.trials, sampling_rate=rate)
        hits = [trials(along[s, start:stop], noise, jax.random.key(s))[:, -1] for s in sets]
        spent = functools.partial(_bound, path.ledger, amplified=stage is None, start=start)
        found.append(
            attack_record(
                variant=variant, seed=0, config={"data": workshop.name, "epsilon": epsilon}, stage=stage,
                step=start, leak_point=f"sums of steps {start} to {stop - 1}", attack="informed adversary",
                noise_std=float(path.noise[start:stop].mean()),
                knowledge=f"parameters, the rest of each batch, {CANDIDATES} candidates for one example, "
                + ("in every batch" if stage else "drawn at the sampling rate"),
                metrics={
                    "victims": len(sets) * config.trials, "rmse": None, "rmse_mean_image": None,
                    "success": intervals.success_rate(np.concatenate(hits)), "iterations": None,
                    # Trials of one set are no independent ones: intervals are made of these.
                    "success_of_each_set": [float(np.mean(own)) for own in hits],
                    "bound": spent(stop=stop), "bound_of_one_step": spent(stop=start + 1), "chance": PRIOR,
                },
            )
        )  # fmt: skip
    return found


def _bound(ledger: Ledger, **steps) -> float | None:
    """The most that any adversary reaches; None where nothing is private."""
    if not ledger.private:
        return None
    return reconstruction.bound(ledger, PRIOR, adjacency=CLAIM.adjacency, **steps)


def images(workshop: Workshop, paths: dict[str, Path], config: AttackConfig) -> list[dict]:
    """The records of the image attack: each leak point and stage, each variant's noise times one factor."""
    n, size = config.victims, config.batch_size
    bench = Bench.of(
        workshop.dataset, workshop.loss_fn, victims=n, l2_norm_clip=1.0, iterations=config.iterations,
        settings={"data": workshop.name, "epsilon": config.image_epsilon},
    )  # fmt: skip
    dimension = sum(leaf.size for leaf in jax.tree.leaves(paths["fixed"].snapshots[0]))
    unit = paths["fixed"].noise[0] * np.sqrt(dimension)
    steps = len(paths["fixed"].noise)
    alone = [
        Case(
            variant=variant, stage=stage, step=step, params=path.at(step), point="noised", clip="flat",
            noise_std=np.full(n, level * path.noise[step] / unit, np.float32),
            bound=float(path.bounds[step]), facts={"level": level},
        )
        for variant, path in paths.items()
        for stage, step in {"early": 0, "middle": steps // 2, "late": steps - 1}.items()
        for level in config.levels
    ]  # fmt: skip
    together = [
        dataclasses.replace(case, point="noised batch", noise_std=case.noise_std[::size] / size)
        for case in alone
    ]
    few = dataclasses.replace(bench, x=bench.x[: config.exact_victims], y=bench.y[: config.exact_victims])
    nothing = {"noise_std": np.zeros(len(few.x), np.float32), "facts": {"level": None}}
    before = [
        dataclasses.replace(case, point=point, clip=clip, **nothing)
        for case in alone[:: len(config.levels)]
        if case.variant in config.exact_variants
        for point, clip in (("raw", "none"), ("clipped", "flat"))
    ]
    found = few.expose(before, batch_size=1, unnoised=True, seed=1) if before else []
    found += bench.expose(alone, batch_size=1, unnoised=False, seed=3)
    return found + bench.expose(together, batch_size=size, unnoised=False, seed=2)


def kept(path: pathlib.Path, wanted: Any, make: Callable[[], Sequence[dict]]) -> list[dict]:
    """The rows of a file, if it was made with the same settings; else made and written now."""
    wanted = plain(wanted)
    if path.exists():
        document = json.loads(path.read_text())
        if document["settings"] == wanted:
            return document["rows"]
    rows = plain(make())
    atomic.write_text(path, json.dumps({"settings": wanted, "rows": rows}, allow_nan=False) + "\n")
    return rows


def attack(
    workshop: Workshop, study: StudyConfig, config: AttackConfig, log: Callable[[str], Any] = print
) -> None:
    """Attacks the runs of a data set, at every epsilon that it was trained at."""
    sizes = {"candidate_sets": config.candidate_sets, "trials": config.trials}
    common = {"setup": dataclasses.asdict(workshop.setup), **sizes}

    def make(variant: str, epsilon: float | None) -> list[dict]:
        return informed(workshop, walk(workshop, variant, epsilon), variant, epsilon, config)

    for variant in (variant for variant in INFORMED_VARIANTS if variant in study.variants):
        for epsilon in targets(study, workshop.setup, variant):
            file = workshop.folder / f"informed-{variant}-eps{epsilon:g}.json"
            kept(file, common, functools.partial(make, variant, epsilon))
            log(f"{workshop.name} {variant} epsilon {epsilon:g}: informed adversary")


def attack_images(workshop: Workshop, study: StudyConfig, config: AttackConfig) -> None:
    """Attacks the images of a data set at one epsilon."""
    chosen = [variant for variant in IMAGE_VARIANTS if variant in study.variants]
    common = {"setup": dataclasses.asdict(workshop.setup), "variants": chosen, **dataclasses.asdict(config)}

    def make() -> list[dict]:
        paths = {variant: walk(workshop, variant, config.image_epsilon) for variant in chosen}
        return images(workshop, paths, config)

    kept(workshop.folder / "images.json", common, make)
