"""A user's own arrays, from an `.npz` file."""

import pathlib
import warnings
import zipfile

import numpy as np

from jaxdp.data.dataset import Dataset, stratified_split

_SPLIT = ("train_x", "train_y", "test_x", "test_y")
_WHOLE = ("x", "y")
_LARGE = 100  # inputs beyond it are warned of


def load_npz(path: pathlib.Path) -> Dataset:
    """Reads `train_x, train_y, test_x, test_y`, or `x, y` that are split here; `classes` names are optional.

    Inputs are [n, features], [n, height, width] or [n, height, width, channels]; uint8 stands for 0..255.
    Warns of inputs so large that what noise leaves of their gradients is little.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an archive of arrays, missing arrays, or arrays that contradict each other; what a network
        would learn nothing from: channels first, unscaled pixels, labels from 1 up, one class.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data file {path}: not found")
    arrays = _read(path)
    if all(key in arrays for key in _SPLIT):
        train_x, train_y, test_x, test_y = (arrays[key] for key in _SPLIT)
    elif all(key in arrays for key in _WHOLE):
        train_x, train_y, test_x, test_y = _split(path, *(arrays[key] for key in _WHOLE))
    else:
        raise ValueError(
            f"data file {path}: holds {', '.join(sorted(arrays)) or 'nothing'}; "
            f"needs {', '.join(_SPLIT)}, or {' and '.join(_WHOLE)}"
        )
    labels = [_labels(path, key, y) for key, y in (("train_y", train_y), ("test_y", test_y))]
    if "classes" in arrays:
        classes = tuple(str(name) for name in arrays["classes"].reshape(-1))
    else:
        classes = tuple(str(label) for label in range(max(int(y.max(initial=1)) for y in labels) + 1))
        if all(y.min(initial=1) == 1 for y in labels):
            raise ValueError(f"data file {path}: no label is 0: labels count from 0, or give `classes`")
    if len(labels[0]) and len(np.unique(labels[0])) < 2:
        raise ValueError(
            f"data file {path}: train_y is {labels[0][0]} throughout: needs at least two classes"
        )
    return Dataset(
        name=str(path),
        train_x=_inputs(path, "train_x", train_x),
        train_y=labels[0],
        test_x=_inputs(path, "test_x", test_x),
        test_y=labels[1],
        classes=classes,
        preprocessing="the user's arrays as given"
        + (", pixels divided by 255" if train_x.dtype == np.uint8 else "")
        + ("" if "classes" in arrays else ", the number of classes read from the labels (give `classes`)")
        + "; what was done to them before is outside this statement",
        public_preprocessing="classes" in arrays,
    )


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (
            Exception
        ) as error:  # what a damaged archive raises in zipfile, zlib and NumPy is of many types
            if not zipfile.is_zipfile(path):  # NumPy takes any other content for a pickle, and says so
                raise ValueError(f"data file {path}: not an .npz archive of arrays") from None
            raise ValueError(f"data file {path}: not a readable .npz of plain arrays ({error})") from None


def _split(path, x, y):
    y = _labels(path, "y", y)
    if x.ndim == 0 or len(x) != len(y):
        found = len(x) if x.ndim else "no axis of"
        raise ValueError(f"data file {path}: x has {found} examples but y has {len(y)}")
    train, test = stratified_split(y)
    return x[train], y[train], x[test], y[test]


def _labels(path, key: str, y: np.ndarray) -> np.ndarray:
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"data file {path}: {key} is {y.dtype}{list(y.shape)}: labels are integers [n]")
    if len(y) and (y.min() < 0 or y.max() > 100_000):
        raise ValueError(f"data file {path}: {key} has labels {y.min()}..{y.max()}: they count from 0")
    return y.astype(np.int32)


def _inputs(path, key: str, x: np.ndarray) -> np.ndarray:
    if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)):
        raise ValueError(f"data file {path}: {key} is {x.dtype}: inputs are numbers")
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim == 4 and x.shape[1] in (1, 3, 4) and min(x.shape[2:]) > 4:
        raise ValueError(
            f"data file {path}: {key} has shape {list(x.shape)}: images are [n, height, width, channels]; "
            f"{key}.transpose(0, 2, 3, 1) brings the channels last"
        )
    if x.dtype == np.uint8:
        return x
    with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite
        x = x.astype(np.float32)
    largest = float(np.abs(x).max(initial=0))
    if x.ndim == 4 and 1 < largest < 256 and x.min() >= 0 and (x == np.rint(x)).all():
        raise ValueError(
            f"data file {path}: {key} has pixels 0..{largest:g} in whole numbers: store 0..255 as uint8, or "
            "divide by the largest that can be"
        )
    if key == "train_x" and _LARGE < largest < np.inf:
        warnings.warn(
            f"data file {path}: {key} goes up to {largest:g}: scale features by public constants to about 1, "
            "or clipping and noise leave little of the rest",
            stacklevel=2,
        )
    return x
