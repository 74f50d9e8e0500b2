"""Data sets as arrays in memory, all of one structure, `Dataset`.

| name                                    | where from                                        |
|-----------------------------------------|---------------------------------------------------|
| `digits`, `breast_cancer`               | scikit-learn, nothing to download                 |
| `FILE.npz`                              | the user's arrays                                 |
"""

import pathlib

from jaxdp.data.dataset import SCALINGS, Dataset, resized, standardized, stratified_split
from jaxdp.data.embedded import breast_cancer, digits
from jaxdp.data.user_arrays import load_npz

__all__ = ["NAMES", "SCALINGS", "Dataset", "load", "resized", "standardized", "stratified_split"]

_EMBEDDED = {"digits": digits, "breast_cancer": breast_cancer}
NAMES = tuple(_EMBEDDED)


def load(name_or_path: str | pathlib.Path, *, size: int | None = None, scaling: str = "public") -> Dataset:
    """The data set of that name, or the arrays of that `.npz` file.

    Args:
      name_or_path: one of `NAMES`, or the path of an `.npz` file.
      size: resample images to `size` x `size`; None leaves them as they are.
      scaling: `public`, by constants that no private data went into; or, for features, `standardized`, by
        the exact mean and deviation of the training split (which `Dataset.preprocessing` then says).

    Raises:
      ValueError: an unknown name or option, or data that are not what they should be.
      FileNotFoundError: no such file.

    >>> dataset = load("digits")
    >>> dataset.train_x.shape, dataset.test_x.shape, len(dataset.classes)
    ((1442, 8, 8, 1), (355, 8, 8, 1), 10)
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling={scaling!r}: choose from {', '.join(SCALINGS)}")
    if str(name_or_path).endswith(".npz"):
        dataset = load_npz(pathlib.Path(name_or_path))
    elif name_or_path in _EMBEDDED:
        dataset = _EMBEDDED[name_or_path]()
    else:
        raise ValueError(f"data={str(name_or_path)!r}: unknown; choose from {', '.join(NAMES)}, or FILE.npz")
    dataset = standardized(dataset) if scaling == "standardized" else dataset
    return dataset if size is None else resized(dataset, size)
