"""Train a model with fixed, dynamic or no privacy parameters; write its checkpoints and its record."""

import dataclasses
import datetime
import pathlib

from jaxdp import records as results
from jaxdp.training import record as recording
from jaxdp.training import run as runs
from jaxdp.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """What to train, and where the run is kept."""

    output: pathlib.Path | None = None
    """Folder of the run: checkpoints, and the record at the end. None makes a new one under runs/."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    progress: bool = True
    """Show a progress bar."""


def run(config: Config) -> None:
    if config.resume and config.output is None:
        raise ValueError("resume=True: needs --output, the folder of the run to go on with")
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    output = pathlib.Path("runs") / f"train-{now}" if config.output is None else config.output
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    result = runs.train(
        TrainConfig(**fields), folder=output / "checkpoints", resume=config.resume, progress=config.progress
    )
    record = recording.train_record(result)
    path = results.write(record, output)
    metrics = record["metrics"]
    if result.stopped_by_budget:
        print(f"Stopped after step {metrics['steps']}: the next would pass epsilon {config.budget_epsilon}.")
    print(
        f"test accuracy {metrics['test_accuracy']:.4f} after {metrics['steps']} steps, "
        f"{metrics['ms_per_step']:.1f} ms a step\n\n{record['privacy']['statement']}\n\nrecord: {path}"
    )
