"""Write the report page from records."""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where the records are, and where the page goes."""

    records: pathlib.Path = pathlib.Path("runs/compare/records")
    """Folder of records (*.json), as `jaxdp compare` and `jaxdp train` write them."""
    output: pathlib.Path = pathlib.Path("report.html")
    """The page: one HTML file that opens without a network."""


def run(config: Config) -> None:
    """Prints the table and writes the page.

    Raises:
      ValueError: a file that is no record, or no training record.
      OSError: no such folder, or an output that cannot be written.
    """
    from jaxdp import records as results
    from jaxdp.laboratory.report import page as report
    from jaxdp.laboratory.report import tables

    records = results.read_folder(config.records)
    report.write(records, config.output)
    print(tables.table(records))
    print(f"\n{config.output}")
