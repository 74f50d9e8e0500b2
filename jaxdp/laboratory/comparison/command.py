"""Train, account for and attack every variant at the same epsilon; print the table, write the report page."""

import dataclasses
import pathlib
import time

from jaxdp import records
from jaxdp.laboratory.comparison.comparison import CompareConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CompareConfig):
    """What to compare, and where the records and the page go."""

    output: pathlib.Path = pathlib.Path("runs/compare")
    """Folder of the records and of report.html; records of an earlier comparison there are replaced."""


def run(config: Config) -> None:
    from jaxdp.laboratory.comparison import comparison
    from jaxdp.laboratory.report import page, tables

    began = time.perf_counter()
    folder = config.output / "records"
    folder.mkdir(parents=True, exist_ok=True)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(CompareConfig)}
    made = comparison.compare(CompareConfig(**fields))
    for old in folder.glob("*.json"):
        old.unlink()
    for record in made:
        records.write(record, folder)
    report = config.output / "report.html"
    page.write(made, report)
    print(f"\n{tables.table(made)}\n\nreport: {report} ({time.perf_counter() - began:.0f} s)")
