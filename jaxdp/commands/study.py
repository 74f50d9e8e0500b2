"""Study fixed against dynamic privacy parameters at equal epsilon: train, attack, write the page.

`run` goes on where an earlier one was interrupted.
"""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jaxdp.study import StudyConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(StudyConfig):
    """Train what has no record yet."""

    output: pathlib.Path = pathlib.Path("runs/study")
    """Folder of the record files."""


Config = Annotated[Run, tyro.conf.subcommand("run")] | Annotated[Run, tyro.conf.subcommand("again")]


def run(config: Run) -> None:
    from jaxdp import study

    study.train(config, config.output)
