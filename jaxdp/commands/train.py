"""Train a model with fixed, dynamic or no privacy parameters; write its checkpoints and its record."""

import dataclasses
import datetime
import pathlib
from typing import Annotated, Any

import tyro

from jaxdp import records
from jaxdp.training import checkpoints, configured, record
from jaxdp.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to train, and where the run is kept."""

    what: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = dataclasses.field(
        default_factory=TrainConfig
    )
    output: pathlib.Path | None = None
    """Folder of the run: checkpoints, and the record at the end. None makes a new one under runs/."""
    resume: bool = False
    """Go on from the newest checkpoint in --output, with the options it was begun with; those that are given
    anew change it, or are refused by name."""
    progress: bool = True
    """Show a progress bar."""


def begun(config: Config) -> Config | None:
    """The options of the run that goes on; None where none does."""
    folder = None if config.output is None else config.output / "checkpoints"
    if not config.resume or folder is None or checkpoints.latest_step(folder) is None:
        return None
    return Config(what=configured.going_on(folder))


def run(config: Config) -> None:
    """Trains, and writes the record."""
    if config.resume and config.output is None:
        raise ValueError("resume=True: needs --output, the folder of the run to go on with")
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    output = pathlib.Path("runs") / f"train-{now}" if config.output is None else config.output
    folder = output / "checkpoints"
    try:
        made = configured.build(config.what)
        result = made.train(folder=folder, resume=config.resume, progress=config.progress)
    except KeyboardInterrupt:
        begun = checkpoints.latest_step(folder) is not None
        how = (
            f"go on with jaxdp train --output {output} --resume" if begun else "no checkpoint was written yet"
        )
        raise KeyboardInterrupt(how) from None
    report(config, made, result, output)


def report(config: Config, made: configured.Run, result: Any, output: pathlib.Path) -> None:
    """Writes the record and prints what came out."""
    written = record.train_record(made, result)
    path = records.write(written, output)
    metrics = written["metrics"]
    if result.stopped_by_budget:
        budget = config.what.budget_epsilon
        print(f"Stopped after step {metrics['steps']}: the next would pass epsilon {budget}.")
    speed = f", {metrics['ms_per_step']:.1f} ms a step" if result.steps_timed else "; no step was left to do"
    print(
        f"test accuracy {metrics['test_accuracy']:.4f} after {metrics['steps']} steps{speed}\n\n"
        f"{written['privacy']['statement']}\n\nrecord: {path}"
    )
