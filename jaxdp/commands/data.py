"""List, prepare and describe data sets.

Prepared data sets lie in $JAXDP_DATA_DIR, by default in the user's cache folder.
"""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jaxdp import data


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """The data sets there are, and which of them are ready."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Download (or take from a folder), verify and store a data set."""

    name: tyro.conf.Positional[str]
    """The data set; see `jaxdp data list`."""
    originals: Annotated[pathlib.Path | None, tyro.conf.arg(name="from")] = None
    """A folder with the original files, for work without a network; they are verified as well."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What a data set holds, how it is preprocessed, its terms and its authors."""

    name: tyro.conf.Positional[str]
    """The data set, or an .npz file; see `jaxdp data list`."""


Config = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def run(config: List | Prepare | Info) -> None:
    """Prints the answer.

    Raises:
      ValueError: an unknown data set, or files that are not what they should be.
      OSError: missing files, no network, a data folder that cannot be written.
    """
    if isinstance(config, Prepare):
        print(f"{config.name} is ready in {data.prepare(config.name, config.originals)}")
    elif isinstance(config, Info):
        _describe(config.name)
    else:
        _list()


def _list() -> None:
    from jaxdp.data import catalogue, prepared

    for name in data.EMBEDDED:
        print(f"{name:<15}{'ready':<14}comes with scikit-learn")
    for name in data.FETCHED:
        state = "ready" if prepared.is_prepared(name) else "not prepared"
        print(f"{name:<15}{state:<14}{catalogue.CATALOGUE[name].summary}")
    print("FILE.npz       your arrays   x, y or train_x, train_y, test_x, test_y")
    print(f"\nin {prepared.data_folder()}")


def _describe(name: str) -> None:
    from jaxdp.data import catalogue, prepared

    if name in data.FETCHED and not prepared.is_prepared(name):
        _describe_unprepared(name, catalogue)
        return
    dataset = data.load(name)
    shown = ", ".join(dataset.classes[:10]) + (", ..." if len(dataset.classes) > 10 else "")
    shape, kind = dataset.input_shape, dataset.train_x.dtype
    rows = {
        "training": f"{dataset.train_size:,} examples of shape {shape}, {kind}",
        "test": f"{len(dataset.test_x):,} examples",
        "classes": f"{len(dataset.classes)}: {shown}",
        "inputs": dataset.preprocessing,
        "terms": dataset.licence,
        "by": dataset.citation,
    }
    _print_rows(name, rows)


def _describe_unprepared(name: str, catalogue) -> None:
    entry = catalogue.CATALOGUE[name]
    _print_rows(
        f"{name} (not prepared; run: jaxdp data prepare {name})",
        {"holds": entry.summary, "inputs": entry.preprocessing, "terms": entry.licence, "by": entry.citation},
    )
    for file, original in catalogue.original_files(name).items():
        print(f"  {file}  {original.size:,} bytes  sha256 {original.sha256}\n    {original.url}")


def _print_rows(title: str, rows: dict[str, str]) -> None:
    print(title)
    for label, text in rows.items():
        print(f"  {label:<10}{text}")
