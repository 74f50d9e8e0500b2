"""Write the report page from records."""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where the records are, and where the page goes."""

    records: tuple[pathlib.Path, ...] = (pathlib.Path("runs/compare/records"),)
    """Folders of records (*.json), as `jaxdp compare`, `jaxdp train` and `jaxdp attack` write them."""
    output: pathlib.Path = pathlib.Path("report.html")
    """The page: one HTML file that opens without a network."""


def run(config: Config) -> None:
    """Prints the table and writes the page.

    Raises:
      ValueError: a file that is no record, or no training record.
      OSError: no such folder, or an output that cannot be written.
    """
    from jaxdp.laboratory import records
    from jaxdp.laboratory.report import page, tables

    found = records.read_folder(*config.records)
    page.write(found, config.output)
    print(tables.table(found))
    print(f"\n{config.output}")
