"""Data sets as arrays in memory, all of one structure, `Dataset`; `Source`, examples of any structure, held on
the device; and `Stream`, those that do not fit there.

| name                                            | where from                                        |
|-------------------------------------------------|---------------------------------------------------|
| `digits`, `breast_cancer`                       | scikit-learn, nothing to download                 |
| `mnist`, `fashion_mnist`, `cifar10`, `cifar100`,| prepared once: `jaxdp data prepare NAME`, from    |
| `lfw`, `adult`                                  | the network or from a folder of original files    |
| `FILE.npz`                                      | the user's arrays                                 |
"""

import importlib
import pathlib

from jaxdp import _validate
from jaxdp.data._grouped import grouped
from jaxdp.data.dataset import SCALINGS, Dataset, resized, standardized, stratified_split
from jaxdp.data.npz import load_npz
from jaxdp.data.source import Source, as_source
from jaxdp.data.stream import Stream

__all__ = [
    "EMBEDDED", "FETCHED", "NAMES", "SCALINGS", "Dataset", "Source", "Stream", "as_source", "grouped", "load",
    "prepare", "resized", "standardized", "stratified_split",
]  # fmt: skip

EMBEDDED = ("digits", "breast_cancer")
FETCHED = ("mnist", "fashion_mnist", "cifar10", "cifar100", "lfw", "adult")
NAMES = EMBEDDED + FETCHED


def load(name_or_path: str | pathlib.Path, *, size: int | None = None, scaling: str = "public") -> Dataset:
    """The data set of that name, or the arrays of that `.npz` file.

    Args:
      name_or_path: one of `NAMES`, or the path of an `.npz` file.
      size: resample images to `size` x `size`; None leaves them as they are.
      scaling: `public`, by constants that no private data went into; or, for features, `standardized`, by
        the exact mean and deviation of the training split (which `Dataset.preprocessing` then says).

    Raises:
      ValueError: an unknown name or option, a data set that is not prepared, or data that are not what they
        should be.
      FileNotFoundError: no such file.

    >>> dataset = load("digits")
    >>> dataset.train_x.shape, dataset.test_x.shape, len(dataset.classes)
    ((1442, 8, 8, 1), (355, 8, 8, 1), 10)
    """
    _validate.one_of(SCALINGS, scaling=scaling)
    if str(name_or_path).endswith(".npz"):
        dataset = load_npz(pathlib.Path(name_or_path))
    elif name_or_path in EMBEDDED:
        dataset = getattr(importlib.import_module("jaxdp.data.embedded"), str(name_or_path))()
    elif name_or_path in FETCHED:
        dataset = importlib.import_module("jaxdp.data.prepared").load(name_or_path)
    else:
        raise ValueError(f"data={str(name_or_path)!r}: unknown; choose from {', '.join(NAMES)}, or FILE.npz")
    dataset = standardized(dataset) if scaling == "standardized" else dataset
    return dataset if size is None else resized(dataset, size)


def prepare(name: str, originals: pathlib.Path | None = None) -> pathlib.Path:
    """Fetches (or takes from the folder `originals`), verifies and stores a data set of `FETCHED`."""
    return importlib.import_module("jaxdp.data.prepared").prepare(name, originals)
