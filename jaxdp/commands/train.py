"""Train a model with fixed, dynamic or no privacy parameters; write its checkpoints and its record."""

import dataclasses
import datetime
import pathlib
from typing import Annotated, Any, Literal

import jax
import tyro

from jaxdp import _validate, records
from jaxdp.training import checkpoints, configured, hosts, record
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
    devices: Literal["all"] | int = "all"
    """Devices to use, the data split over them: all, or 1."""
    coordinator: str | None = None
    """HOST:PORT of process 0, in a run of several processes: each is started with the same options, a folder
    that all can read, and its --process. None takes JAX_COORDINATOR_ADDRESS, if it is set."""
    processes: int | None = None
    """How many processes; None takes JAX_NUM_PROCESSES, or what JAX finds of the cluster."""
    process: int | None = None
    """Number of this one, from 0, which writes checkpoints and record; None takes JAX_PROCESS_ID, or what JAX
    finds."""
    peer_seconds: int = hosts.PATIENCE
    """Seconds after which a process that is not heard of is given up, and the run ends with an error."""

    def __post_init__(self):
        _validate.one_of(("all", 1), devices=self.devices)
        _validate.whole(peer_seconds=self.peer_seconds)


_OF_PROCESSES = ("devices", "coordinator", "processes", "process", "peer_seconds")


def begun(config: Config) -> Config | None:
    """The options of the run that goes on; None where none does."""
    if not jax.distributed.is_initialized():
        hosts.begin(config.coordinator, config.processes, config.process, config.peer_seconds)
    folder = None if config.output is None else config.output / "checkpoints"
    if not config.resume or folder is None or checkpoints.latest_step(folder) is None:
        return None
    given = {name: getattr(config, name) for name in _OF_PROCESSES}
    return Config(what=configured.going_on(folder), **given)


def run(config: Config) -> None:
    """Trains, and writes the record."""
    if config.resume and config.output is None:
        raise ValueError("resume=True: needs --output, the folder of the run to go on with")
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    output = pathlib.Path("runs") / f"train-{now}" if config.output is None else config.output
    folder, first = output / "checkpoints", jax.process_index() == 0
    if config.output is None and jax.process_count() > 1:
        raise ValueError("output=None: several processes need the same --output")
    try:
        made = configured.build(config.what, mesh="auto" if config.devices == "all" else None)
        if made.program.placement is not None and first:
            print(f"devices: {made.program.placement}")
        result = made.train(folder=folder, resume=config.resume, progress=config.progress and first)
        if not first:
            return
    except hosts.PeerError as error:
        hosts.leave(error)
        raise
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
