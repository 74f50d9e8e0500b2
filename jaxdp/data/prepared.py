"""Prepared data sets: arrays in a folder of the user's, memory-mapped when loaded.

A prepared data set is a folder of four `.npy` files and `about.json`, which holds their checksums.  It is
written under another name and renamed when complete, so that it exists whole or not at all.
"""

import contextlib
import json
import os
import pathlib
import shutil

import numpy as np

from jaxdp import _validate, atomic
from jaxdp.data import fetching
from jaxdp.data.catalogue import CATALOGUE, original_files
from jaxdp.data.dataset import Dataset

ARRAYS = ("train_x", "train_y", "test_x", "test_y")
_LAYOUT = 1  # of the folder; another number is prepared anew


def data_folder() -> pathlib.Path:
    """`$JAXDP_DATA_DIR`, or `jaxdp` in the user's cache folder."""
    if folder := os.environ.get("JAXDP_DATA_DIR"):
        return pathlib.Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "jaxdp"


def _known(name: str) -> None:
    _validate.one_of(CATALOGUE, data=name)


def is_prepared(name: str) -> bool:
    """Whether the data set lies in the data folder, complete (its checksums are held when it is loaded)."""
    return (data_folder() / name / "about.json").is_file()


def prepare(name: str, originals: pathlib.Path | None = None) -> pathlib.Path:
    """Makes a data set ready: fetches or finds its original files, verifies, parses and stores them.

    Nothing is done where it lies prepared and intact.  Killed at any moment, the next call starts clean;
    called twice at once, the second call waits for the first.

    Args:
      name: a data set of the catalogue.
      originals: a folder with the original files; None downloads them.

    Returns:
      The folder of the prepared data set.

    Raises:
      ValueError: an unknown name, or a file that is not the original.
      OSError: a missing file, an unreachable server, a data folder that cannot be written.
    """
    _known(name)
    folder = data_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.alone(folder / f".{name}.lock"):
        for unfinished in folder.glob(f".{name}.partial*"):  # of a process that was killed
            shutil.rmtree(unfinished)
        if is_prepared(name):
            with contextlib.suppress(ValueError, OSError):
                load(name)
                return folder / name
        files = original_files(name)
        if originals is None:
            paths = fetching.from_network(folder / "downloads" / name, files)
        else:
            paths = fetching.from_folder(pathlib.Path(originals), files)
        partial = folder / f".{name}.partial"
        partial.mkdir()
        _store(partial, name, CATALOGUE[name].parse(paths), {k: v.sha256 for k, v in files.items()})
        if (folder / name).exists():
            os.replace(folder / name, folder / f".{name}.partial-old")
        atomic.to_disk(partial)
        os.replace(partial, folder / name)
        atomic.to_disk(folder)
        shutil.rmtree(folder / f".{name}.partial-old", ignore_errors=True)
    return folder / name


def _store(folder: pathlib.Path, name: str, parsed, originals: dict[str, str]) -> None:
    checksums = {}
    for array in ARRAYS:
        path = folder / f"{array}.npy"
        np.save(path, np.ascontiguousarray(getattr(parsed, array)))
        atomic.to_disk(path)
        checksums[path.name] = fetching.sha256(path)
    about = {"layout": _LAYOUT, "name": name, "classes": parsed.classes, "sha256": checksums}
    path = folder / "about.json"
    path.write_text(json.dumps({**about, "originals_sha256": originals}, indent=1))
    atomic.to_disk(path)


def load(name: str) -> Dataset:
    """A prepared data set, its arrays memory-mapped after their checksums are held.

    Raises:
      ValueError: not prepared, or files that are missing or altered; the message says how to repair it.
    """
    _known(name)
    folder, again = data_folder() / name, f"run: jaxdp data prepare {name} [--from FOLDER]"
    if not is_prepared(name):
        raise ValueError(f"data set {name} is not prepared in {folder.parent}; {again}")
    try:
        about = json.loads((folder / "about.json").read_text())
        layout, classes, checksums = about["layout"], tuple(about["classes"]), about["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'about.json'}: not readable ({error!r}); {again}") from None
    if layout != _LAYOUT:
        raise ValueError(f"{folder}: layout={layout}, not {_LAYOUT}: made by another version; {again}")
    arrays = {}
    for array in ARRAYS:
        path, expected = folder / f"{array}.npy", checksums.get(f"{array}.npy")
        if not path.is_file() or fetching.sha256(path) != expected:
            kind = "altered or truncated" if path.is_file() else "missing"
            raise ValueError(f"{path}: {kind}; expected sha256 {expected}; {again}")
        arrays[array] = np.load(path, mmap_mode="r")
    entry = CATALOGUE[name]
    return Dataset(
        name=name,
        **arrays,
        classes=classes,
        preprocessing=entry.preprocessing,
        licence=entry.licence,
        citation=entry.citation,
    )
