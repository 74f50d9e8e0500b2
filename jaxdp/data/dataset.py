"""One structure for every data set: arrays in memory, splits fixed, and where its numbers come from."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Num

from jaxdp import _validate

SCALINGS = ("public", "standardized")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A classification data set with a fixed split.

    Attributes:
      name: its name, or the file it was read from.
      train_x: training inputs [n, *input_shape], uint8 (images, 0..255) or float32.  Read through
        `to_float`, which gives what a model sees.  May be memory-mapped: treat as read-only.
      train_y: training labels [n], int32 in 0..classes-1.
      test_x: test inputs [m, *input_shape], of the same dtype as `train_x`.
      test_y: test labels [m].
      classes: a name for each label.
      preprocessing: what was done to the inputs, and whether its constants depend on private data; for
        the privacy statement of a run.
      public_preprocessing: True if no constant of the preprocessing was computed from the training split.
      licence: terms as the source states them.
      citation: who made it.

    Raises:
      ValueError: arrays that contradict each other: lengths, shapes, types, labels, values not finite.
    """

    name: str
    train_x: Num[np.ndarray, "..."]
    train_y: Num[np.ndarray, "..."]
    test_x: Num[np.ndarray, "..."]
    test_y: Num[np.ndarray, "..."]
    classes: tuple[str, ...]
    preprocessing: str
    public_preprocessing: bool = True
    licence: str = "not stated"
    citation: str = "not stated"

    def __post_init__(self):
        if len(self.classes) < 2:
            raise ValueError(f"data set {self.name}: classes={self.classes}: needs at least two classes")
        _check_split(self.name, "train", self.train_x, self.train_y, len(self.classes))
        _check_split(self.name, "test", self.test_x, self.test_y, len(self.classes))
        if self.train_x.shape[1:] != self.test_x.shape[1:] or self.train_x.dtype != self.test_x.dtype:
            raise ValueError(
                f"data set {self.name}: train_x {_described(self.train_x)} and test_x "
                f"{_described(self.test_x)} hold different kinds of examples"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example: (height, width, channels) or (features,)."""
        return self.train_x.shape[1:]

    @property
    def train_size(self) -> int:
        return len(self.train_x)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the training split: tells whether two runs saw the same examples.  As private as they."""
        digest = hashlib.sha256(f"{_described(self.train_x)} {_described(self.train_y)}".encode())
        for part in (self.train_x, self.train_y):
            digest.update(part.tobytes())
        return digest.hexdigest()

    def to_float(self, x: Num[Array, "..."] | Num[np.ndarray, "..."]) -> Float32[Array, "..."]:
        """Inputs as a model sees them: float32, images in [0, 1].

        Pure and traceable: keep the arrays of the data set on the device as they are (a quarter of the
        memory for images) and call this inside the compiled step.

        Args:
          x: any part of `train_x` or `test_x`, with any leading axes.
        """
        x = jnp.asarray(x)
        return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x.astype(jnp.float32)


def _described(x: np.ndarray) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _check_split(name: str, split: str, x: np.ndarray, y: np.ndarray, classes: int) -> None:
    where = f"data set {name}: {split}"
    if x.dtype not in (np.uint8, np.float32):
        raise ValueError(f"{where}_x is {x.dtype}: must be uint8 (0..255) or float32")
    if x.ndim not in (2, 4):
        raise ValueError(
            f"{where}_x has shape {list(x.shape)}: must be [n, features] or [n, height, width, channels]"
        )
    if y.dtype != np.int32 or y.ndim != 1 or len(y) != len(x):
        raise ValueError(f"{where}_y is {_described(y)}: must be int32[{len(x)}], one label per example")
    if x.size == 0:
        raise ValueError(f"{where}_x has shape {list(x.shape)}: it holds nothing")
    if x.dtype != np.uint8 and not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0][0])
        raise ValueError(f"{where}_x holds NaN or infinite values, the first in example {row}")
    if y.min() < 0 or y.max() >= classes:
        row = int(np.argmax((y < 0) | (y >= classes)))
        raise ValueError(f"{where}_y[{row}]={y[row]}: labels must lie in 0..{classes - 1}")


def stratified_split(y: Int32[np.ndarray, "n"], every: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a fixed split: of each class every `every`-th example, in file order, is for testing.

    No random numbers, so the split is the same with every version of every library.

    Returns:
      Sorted indices of the training and of the test examples.
    """
    rank = np.empty(len(y), np.int64)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        rank[members] = np.arange(len(members))
    is_test = rank % every == every - 1
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def resized(dataset: Dataset, size: int) -> Dataset:
    """The images resampled to `size` x `size`, bilinear, with antialiasing where they shrink.

    Raises:
      ValueError: inputs that are not images, or a size that is not a whole number >= 1.
    """
    if len(dataset.input_shape) != 3:
        raise ValueError(f"size={size}: data set {dataset.name} holds features, not images; only None suits")
    _validate.whole(size=size)
    height, width, _ = dataset.input_shape
    if (height, width) == (size, size):
        return dataset
    rows, columns = _resampling_matrix(height, size), _resampling_matrix(width, size)

    def resample(x):
        y = np.einsum("ih,nhwc,jw->nijc", rows, x.astype(np.float32), columns, optimize=True)
        return np.rint(y).astype(np.uint8) if x.dtype == np.uint8 else y.astype(np.float32)

    return dataclasses.replace(
        dataset,
        train_x=resample(dataset.train_x),
        test_x=resample(dataset.test_x),
        preprocessing=f"{dataset.preprocessing}; resampled from {height}x{width} to {size}x{size}, bilinear",
    )


def _resampling_matrix(source: int, target: int) -> np.ndarray:
    """Resampling is linear and separable, so one small matrix an axis does it for all images."""
    return np.asarray(jax.image.resize(jnp.eye(source), (target, source), "linear"))


def standardized(dataset: Dataset) -> Dataset:
    """Each feature shifted and scaled to mean 0 and variance 1 over the training split.

    The constants are exact statistics of private data: no privacy guarantee of a run covers them, and
    `preprocessing` says so.

    Raises:
      ValueError: images, which are scaled by their public range.
    """
    if len(dataset.input_shape) != 1:
        raise ValueError(
            f"scaling='standardized': data set {dataset.name} holds images; use scaling='public'"
        )
    mean = dataset.train_x.mean(0, dtype=np.float64)
    deviation = dataset.train_x.std(0, dtype=np.float64)
    deviation[deviation == 0] = 1

    def scale(x):
        return ((x - mean) / deviation).astype(np.float32)

    return dataclasses.replace(
        dataset,
        train_x=scale(dataset.train_x),
        test_x=scale(dataset.test_x),
        public_preprocessing=False,
        preprocessing=f"{dataset.preprocessing}; then standardised with the exact mean and deviation of the "
        "training split, which are private data that no privacy guarantee of the run covers",
    )
