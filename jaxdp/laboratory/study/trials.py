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

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdp import atomic, data, gradients, models, records
from jaxdp.data import Dataset
from jaxdp.data.dataset import stratified_split
from jaxdp.laboratory.study.setups import SELECTION_SEED, SETUPS, Setup, StudyConfig, Trial, settings, targets
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig
from jaxdp.training.record import train_record
from jaxdp.training.run import Callback, TrainResult

# Options of files from before they were stated.
_DEFAULTS = records.plain(TrainConfig().options()) | {"accountant": "rdp"}


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
    def _network(self) -> models.Model:
        return configured.model(TrainConfig.of(**self.setup.network), self.dataset)

    @functools.cached_property
    def loss_fn(self) -> Callable:
        """The loss of one example: the same object for all runs, so that programs are compiled once."""
        return models.cross_entropy(self._network)

    @functools.cached_property
    def per_example(self) -> Callable:
        """`(params, (x, y)) -> (losses, gradients of each example)`, compiled once."""
        return jax.jit(gradients.per_example(self.loss_fn, method="dense"))

    @functools.cached_property
    def _validate(self) -> Callable[[PyTree], Any]:
        return configured.evaluator(self._network, self._splits[1])

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

        Callbacks, as of `jaxdp.train`, are called `every` so many steps; None for its start and end alone.
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
    for name in config.data:
        setup = SETUPS[name]
        steps, rates = config.steps or setup.steps, config.learning_rates or setup.learning_rates
        yield Workshop(name, dataclasses.replace(setup, steps=steps, learning_rates=rates), folder)


def train(config: StudyConfig, folder: pathlib.Path, log: Callable[[str], Any] = print) -> None:
    """Trains what has no record in `folder`, a folder a data set; logs a line for each variant and epsilon."""
    for workshop in workshops(config, folder):
        for epsilon in (None, *config.epsilons):
            for variant in config.variants:
                if epsilon in targets(config, workshop.setup, variant):
                    log(_train_cell(workshop, config.seeds, variant, epsilon))


def _train_cell(workshop: Workshop, seeds: int, variant: str, epsilon: float | None) -> str:
    """Trains a variant at an epsilon; a line that says so."""
    began, before = time.perf_counter(), workshop.trained
    rate = choose(workshop, variant, epsilon)
    trial = Trial(variant=variant, epsilon=epsilon, learning_rate=rate, seed=0)
    made = [workshop.record(dataclasses.replace(trial, seed=seed)) for seed in range(seeds)]
    accuracy = np.mean([record["metrics"]["test_accuracy"] for record in made])
    target = "" if epsilon is None else f" epsilon {epsilon:g}"
    return (
        f"{workshop.name} {variant}{target}: learning rate {rate:g}, accuracy {accuracy:.3f}; "
        f"{workshop.trained - before} runs in {time.perf_counter() - began:.1f} s"
    )
