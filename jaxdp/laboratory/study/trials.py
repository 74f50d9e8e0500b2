"""Do dynamic privacy parameters protect better at equal privacy, and what do they cost: the runs of the study.

Each data set is trained with every variant at every epsilon.  The learning rate is chosen for each of them
from one grid, with as many runs for each, on a validation split that is taken from the training data and
trained on by nobody; then it is trained from several seeds and tested.  Each run leaves a record file, whole
or not at all, and a study that goes on skips what it finds.  Runs that differ in seeds, learning rate or
epsilon share one compiled program.

At one epsilon the fixed schedule and the constant that matches a dynamic one are the same run.  So matched
constants belong to the published comparison, whose variants spend different epsilons: `published_X` is the
schedule X as published, `matched_X` the constant that spends what X spends.
"""

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxdp import atomic, calibration, clipping, data, records, schedules
from jaxdp.accounting import Claim
from jaxdp.accounting.ledger import Sampling
from jaxdp.data import Dataset
from jaxdp.data.dataset import stratified_split
from jaxdp.plan import Plan
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig
from jaxdp.training.record import train_record
from jaxdp.training.run import Callback, TrainResult

VARIANTS = ("non_private", "fixed", *schedules.DYNAMIC, "scheduled_clip", "quantile", "l2_max")
PUBLISHED = (
    "published_fixed",
    *(f"{prefix}_{name}" for name in schedules.DYNAMIC for prefix in ("published", "matched")),
)
# RDP is no even judge of schedules: over few steps of small batches its epsilon is above the true one by a
# factor that depends on the schedule (1.6 for fixed sigma, 2.9 for the linear one at epsilon .5, q = .01, 100
# steps), so that runs equal by RDP are not equal.  Privacy loss distributions are within half a percent.
CLAIM = Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="pld")
_DEFAULTS = records.plain(TrainConfig().options()) | {
    "accountant": "rdp"
}  # of files from before it was stated
SELECTION_SEED = 1000  # first of those of the runs that choose a learning rate: none of these is reported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """How a data set is trained, whatever the variant.

    Attributes:
      image_size, model, activation, sampling_rate, steps: as in `TrainConfig`.
      learning_rates: the grid, the same for every variant: wide where a run is cheap, fine where it is not.
      published: whether the variants as published are trained as well.
      images: whether its images are attacked.
      selection_seeds: runs that judge a learning rate.
      finalists: how many learning rates get all of these runs, after one of each rate; None for all rates.
    """

    model: str
    sampling_rate: float
    steps: int
    image_size: int | None = None
    activation: str | None = None
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    published: bool = False
    images: bool = False
    selection_seeds: int = 3
    finalists: int | None = None

    @property
    def network(self) -> dict[str, Any]:
        """What `TrainConfig` is told of the network and its input."""
        return dict(image_size=self.image_size, model=self.model, activation=self.activation)


CONVOLUTIONAL: dict[str, Any] = dict(
    model="tanh_cnn",
    sampling_rate=0.01,
    steps=100,
    learning_rates=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    finalists=2,
)
SETUPS = {
    "digits": Setup(model="mlp", sampling_rate=0.05, steps=100, images=True),
    "breast_cancer": Setup(model="logistic", sampling_rate=0.1, steps=200),
    "adult": Setup(model="logistic", sampling_rate=0.01, steps=150),
    "mnist": Setup(**CONVOLUTIONAL, images=True, published=True),
    "fashion_mnist": Setup(**CONVOLUTIONAL),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is studied."""

    data: tuple[str, ...] = tuple(SETUPS)
    """Data sets."""
    variants: tuple[str, ...] = (*VARIANTS, *PUBLISHED)
    """Variants; those as published are trained on mnist alone."""
    epsilons: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    """epsilon that every private variant spends."""
    learning_rates: tuple[float, ...] | None = None
    """The grid, the same for every variant; None for each data set's own."""
    seeds: int = 5
    """Runs reported of each variant and epsilon; an interval needs two."""
    steps: int | None = None
    """Length of a run; None for each data set's own."""

    def __post_init__(self):
        for name, known in (("data", SETUPS), ("variants", (*VARIANTS, *PUBLISHED))):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"{name}={value}: choose from {', '.join(known)}")
        for name in ("data", "variants", "epsilons", "learning_rates"):
            if getattr(self, name) == ():
                raise ValueError(f"{name}=(): needs at least one")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: must be >= 1")
        if self.steps is not None and self.steps < 20:
            raise ValueError(f"steps={self.steps}: must be >= 20")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One run: its variant, the epsilon it is to spend (None: as published, or no privacy), its seed."""

    variant: str
    epsilon: float | None
    learning_rate: float
    seed: int

    @property
    def file(self) -> str:
        """The name of its record."""
        epsilon = "" if self.epsilon is None else f"-eps{self.epsilon:g}"
        return f"train-{self.variant}{epsilon}-lr{self.learning_rate:g}-seed{self.seed}.json"


def planned(schedule: str, sampling_rate: float, steps: int) -> Plan:
    """The plan of a published schedule, flat clipping and Poisson batches."""
    return Plan(
        clipper=clipping.flat(1.0),
        noise_multiplier=schedules.create(schedule, steps),
        sampler=Sampling(kind="poisson", rate=sampling_rate),
        steps=steps,
    )


@functools.cache
def matched_noise_multiplier(schedule: str, sampling_rate: float, steps: int) -> float:
    """The constant noise multiplier that spends what a published schedule spends."""
    return calibration.matched_constant(planned(schedule, sampling_rate, steps).ledger(), CLAIM)


def settings(name: str, setup: Setup, trial: Trial) -> TrainConfig:
    """The training run of a trial."""
    kind, _, schedule = trial.variant.partition("_")
    special: dict[str, Any] = {
        "non_private": dict(schedule="none"),
        "scheduled_clip": dict(schedule="fixed", l2_norm_clip=1.5, l2_norm_clip_end=0.5),
        "quantile": dict(schedule="fixed", clipping="quantile"),
        "l2_max": dict(schedule="fixed", clipping="l2_max"),
    }
    chosen: dict[str, Any]
    if kind == "published":
        chosen = dict(schedule=schedule)
    elif kind == "matched":
        sigma = matched_noise_multiplier(schedule, setup.sampling_rate, setup.steps)
        chosen = dict(schedule="fixed", noise_multiplier=sigma)
    else:
        chosen = special.get(trial.variant, dict(schedule=trial.variant))
    return TrainConfig.of(
        data=name,
        **setup.network,
        steps=setup.steps,
        sampling_rate=setup.sampling_rate,
        target_epsilon=trial.epsilon,
        learning_rate=trial.learning_rate,
        **dataclasses.asdict(CLAIM),
        evaluate_every=setup.steps,
        seed=trial.seed,
        noise_seed=trial.seed,  # a study that can be repeated: each statement says that the seed is known
        **chosen,
    )


def split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The data set without a fifth of its training examples, and the same tested on that fifth."""
    rest, held = stratified_split(np.asarray(dataset.train_y))
    x, y = dataset.train_x, dataset.train_y
    smaller = dataclasses.replace(dataset, train_x=x[rest], train_y=y[rest])
    return smaller, dataclasses.replace(smaller, test_x=x[held], test_y=y[held])


class Workshop:
    """One data set, with what was compiled and calibrated for it."""

    def __init__(self, name: str, setup: Setup, folder: pathlib.Path):
        self.name, self.setup, self.folder = name, setup, folder / name
        self._programs: dict[TrainConfig, configured.Run] = {}
        self._scales: dict[TrainConfig, float] = {}
        self.trained = 0

    @functools.cached_property
    def dataset(self) -> Dataset:
        """What is trained on and tested."""
        return self._splits[0]

    @functools.cached_property
    def _splits(self) -> tuple[Dataset, Dataset]:
        return split(data.load(self.name, size=self.setup.image_size))

    @functools.cached_property
    def _validate(self) -> Callable[[PyTree], Any]:
        network = configured.model(TrainConfig.of(**self.setup.network), self.dataset)
        return configured.evaluator(network, self._splits[1])

    def _resolved(self, config: TrainConfig) -> TrainConfig:
        """Its epsilon turned into a scale, once for all seeds and learning rates."""
        if config.target_epsilon is None:
            return config
        key = configured.program_of(config)
        if key not in self._scales:
            self._scales[key] = configured.resolved(config, self.dataset).scale
        return config.replace(target_epsilon=None, scale=self._scales[key])

    def train(
        self, trial: Trial, *callbacks: Callback, every: int | None = None
    ) -> tuple[configured.Run, TrainResult]:
        """Trains, with what was compiled for an earlier trial where that serves.

        Args:
          trial: the run.
          *callbacks: see `jaxdp.train`.
          every: steps between its calls, which change nothing in the run; None for its start and end alone.
        """
        config = self._resolved(settings(self.name, self.setup, trial))
        if every is not None:
            config = config.replace(evaluate_every=every)
        key = configured.program_of(config)
        if key not in self._programs:
            self._programs[key] = configured.build(config, dataset=self.dataset)
        run = self._programs[key] = self._programs[key].adjusted(config)
        return run, run.train(callbacks=callbacks)

    def record(self, trial: Trial) -> dict[str, Any]:
        """The record of a trial: what its file holds, if that is of the same configuration; else made."""
        path = self.folder / trial.file
        wanted = records.plain(settings(self.name, self.setup, trial).options())
        if path.exists():
            found = records.read(path)
            # An option that the file does not know had its default.
            if "settings" in found and {**_DEFAULTS, **found["settings"]} == wanted:
                return found
        run, result = self.train(trial)
        record = train_record(run, result, variant=trial.variant)
        record["settings"] = wanted
        record["metrics"]["validation_accuracy"] = float(self._validate(result.params)["test_accuracy"])
        atomic.write_text(path, json.dumps(record, allow_nan=False) + "\n")
        self.trained += 1
        return record


def targets(config: StudyConfig, setup: Setup, variant: str) -> tuple[float | None, ...]:
    """The epsilons that a variant is trained at; none where it is not trained."""
    if variant in PUBLISHED:
        return (None,) if setup.published else ()
    return (None,) if variant == "non_private" else config.epsilons


def best_rate(measured: Mapping[float, Sequence[float]]) -> float:
    """The learning rate of the best mean validation accuracy among those judged by the most runs."""
    most = max(map(len, measured.values()))
    return _ranked({rate: found for rate, found in measured.items() if len(found) == most})[0]


def _ranked(measured: Mapping[float, Sequence[float]]) -> list[float]:
    """Learning rates by mean validation accuracy, best first; of equals the smallest first.

    Rounded, so that neither the order of the runs nor the digits of a collected file decide between equals.
    """
    return sorted(
        measured, key=lambda rate: (-round(math.fsum(measured[rate]) / len(measured[rate]), 7), rate)
    )


def choose(workshop: Workshop, variant: str, epsilon: float | None) -> float:
    """The learning rate of a variant and epsilon, from the runs that judge it, which are made where missing."""
    setup = workshop.setup

    def judged(rate: float, seed: int) -> float:
        trial = Trial(variant=variant, epsilon=epsilon, learning_rate=rate, seed=SELECTION_SEED + seed)
        return workshop.record(trial)["metrics"]["validation_accuracy"]

    measured = {rate: [judged(rate, 0)] for rate in setup.learning_rates}
    for rate in _ranked(measured)[: setup.finalists]:
        measured[rate] += [judged(rate, seed) for seed in range(1, setup.selection_seeds)]
    return best_rate(measured)


def workshops(config: StudyConfig, folder: pathlib.Path) -> Iterator[Workshop]:
    """One for each data set, with what is configured in place of its own."""
    own = {"steps": config.steps, "learning_rates": config.learning_rates}
    chosen: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    for name in config.data:
        yield Workshop(name, dataclasses.replace(SETUPS[name], **chosen), folder)


def train(config: StudyConfig, folder: pathlib.Path, log: Callable[[str], Any] = print) -> None:
    """Trains what has no record in `folder` yet.

    Args:
      config: what to train.
      folder: of the record files, a folder a data set.
      log: called with a line for each variant and epsilon.
    """
    for workshop in workshops(config, folder):
        for epsilon in (None, *config.epsilons):
            for variant in config.variants:
                if epsilon in targets(config, workshop.setup, variant):
                    log(_train_cell(workshop, config, variant, epsilon))


def _train_cell(workshop: Workshop, config: StudyConfig, variant: str, epsilon: float | None) -> str:
    """Trains a variant at an epsilon; a line that says so."""
    began, before = time.perf_counter(), workshop.trained
    rate = choose(workshop, variant, epsilon)
    trials = [
        Trial(variant=variant, epsilon=epsilon, learning_rate=rate, seed=seed) for seed in range(config.seeds)
    ]
    accuracies = [workshop.record(trial)["metrics"]["test_accuracy"] for trial in trials]
    target = "" if epsilon is None else f" epsilon {epsilon:g}"
    return (
        f"{workshop.name} {variant}{target}: learning rate {rate:g}, accuracy {np.mean(accuracies):.3f}; "
        f"{workshop.trained - before} runs in {time.perf_counter() - began:.1f} s"
    )
