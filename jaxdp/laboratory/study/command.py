"""Study fixed against dynamic privacy parameters at equal epsilon.

`run` trains and `attack` attacks what has no record yet, so both go on where they were interrupted; `collect`
gathers the records in one small file a data set, and `report` writes the page from those files.
"""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jaxdp.laboratory.study import attacks, collected, page, published, trials
from jaxdp.laboratory.study.setups import StudyConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(StudyConfig):
    """Train every variant on every data set at every epsilon."""

    output: pathlib.Path = pathlib.Path("runs/study")
    """Folder of the record files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(Run):
    """Attack the runs; account for the published comparison, and for what RDP makes of schedules."""

    images: bool = True
    """Whether images are attacked as well, the slowest part."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collect:
    """Gather the records of a study in one file a data set."""

    records: pathlib.Path = pathlib.Path("runs/study")
    """Folder of the record files."""
    output: pathlib.Path = pathlib.Path("benchmarks/experiments")
    """Where the collected files go."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Write the page and its figures from the collected files."""

    records: pathlib.Path = pathlib.Path("benchmarks/experiments")
    """Folder of the collected files."""
    costs: pathlib.Path = pathlib.Path("benchmarks/records")
    """Folder of the records of what a step costs."""
    output: pathlib.Path = pathlib.Path("benchmarks/STUDY.md")
    """The page; its figures go to the folder of the collected files."""


Config = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Attack, tyro.conf.subcommand("attack")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


def run(config: Run | Attack | Collect | Report) -> None:
    """Does one part of the study.

    Raises:
      ValueError: a setting out of range, a file that is no record.
      OSError: a data set that is not prepared, a folder that cannot be written, no records.
    """
    if isinstance(config, Attack):
        _attack(config)
    elif isinstance(config, Run):
        trials.train(config, config.output)
    elif isinstance(config, Collect):
        print(*collected.collect(config.records, config.output), sep="\n")
    else:
        page.write(config.records, config.costs, config.output)
        print(config.output)


def _attack(config: Attack) -> None:
    settings = attacks.AttackConfig()
    for workshop in trials.workshops(config, config.output):
        attacks.attack(workshop, config, settings)
        if config.images and workshop.setup.images:
            attacks.attack_images(workshop, config, settings)
    attacks.kept(config.output / "published.json", "published", published.published)
    attacks.kept(config.output / "accountants.json", "accountants", published.equal_by_rdp)
