"""How good is a reconstruction.

Images are float arrays [..., height, width, channels] in [0, 1].  A reconstruction is judged against two
declared thresholds on the root mean square error, and against the best guess without any gradient: without
that baseline an RMSE of .2 on dark images looks like success.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

EXACT = 0.03  # RMSE below which a reconstruction counts as exact
RECOGNISABLE = 0.1  # RMSE below which a person recognises the image


class Criterion(NamedTuple):
    """The two declared thresholds on the root mean square error."""

    exact: float
    recognisable: float


IMAGES = Criterion(EXACT, RECOGNISABLE)
# Rows of standardised features, in standard deviations: at .3 a guess explains 91 % of the variance.
TABULAR = Criterion(EXACT, 0.3)


def _same_shape(x, truth, axes):
    if x.shape != truth.shape:
        raise ValueError(f"x of shape {x.shape}: the truth has {truth.shape}")
    if x.ndim < axes:
        raise ValueError(f"x of shape {x.shape}: needs {axes} trailing axes for one example")


def mse(x: Array | np.ndarray, truth: Array | np.ndarray, axes: int = 3) -> Array:
    """Mean squared error over the last `axes` axes (3 for images, 1 for tabular rows).

    >>> print(mse(np.zeros((2, 4)), np.ones((2, 4)), axes=1))
    [1. 1.]
    """
    _same_shape(x, truth, axes)
    return jnp.square(jnp.asarray(x) - jnp.asarray(truth)).mean(tuple(range(-axes, 0)))


def rmse(x: Array | np.ndarray, truth: Array | np.ndarray, axes: int = 3) -> Array:
    """Root of `mse`."""
    return jnp.sqrt(mse(x, truth, axes))


def psnr(x: Array | np.ndarray, truth: Array | np.ndarray, axes: int = 3) -> Array:
    """Peak signal-to-noise ratio in dB for a data range of 1; infinite for equal images.

    >>> print(round(float(psnr(np.full((1, 8, 8, 1), 0.1), np.zeros((1, 8, 8, 1)))[0]), 4))
    20.0
    """
    return -10 * jnp.log10(mse(x, truth, axes))


def ssim(x: Array | np.ndarray, truth: Array | np.ndarray) -> Array:
    """Structural similarity with a Gaussian window, as Wang et al. (2004) define it, in [-1, 1].

    Window 11 x 11, standard deviation 1.5, K1 = .01, K2 = .03, data range 1, only where the window fits
    ("valid"), averaged over channels; from dm_pix.  For images smaller than 11 the window is the largest odd
    size that fits.

    Args:
      x: [..., height, width, channels].
      truth: of the same shape.
    """
    import dm_pix

    _same_shape(x, truth, 3)
    window = min(11, (min(x.shape[-3:-1]) - 1) // 2 * 2 + 1)
    one = x.shape[-3:]
    flat = [jnp.asarray(a, jnp.float32).reshape(-1, *one) for a in (x, truth)]
    return jnp.asarray(dm_pix.ssim(*flat, filter_size=window)).reshape(x.shape[:-3])


def gain_over_mean(
    x: Array | np.ndarray, truth: Array | np.ndarray, mean: Array | np.ndarray, axes: int = 3
) -> Array:
    """1 - mse(x) / mse(mean input): 1 is perfect, 0 no better than guessing the mean, negative worse.

    Args:
      x: reconstructions [..., *example].
      truth: of the same shape.
      mean: the mean public input [*example], the best constant guess.
      axes: number of axes of an example.
    """
    baseline = mse(jnp.broadcast_to(jnp.asarray(mean), truth.shape), truth, axes)
    return 1 - mse(x, truth, axes) / jnp.maximum(baseline, 1e-12)


def match(x: Array | np.ndarray, truth: Array | np.ndarray) -> Int[np.ndarray, " b"]:
    """The order of `x` that fits `truth` best: optimal assignment by squared error.

    A batch gradient does not say which image is which, so batches are compared up to their order.

    Args:
      x: reconstructions [B, ...].
      truth: of the same shape.

    Returns:
      `order` such that `x[order]` is to be compared with `truth`.
    """
    from scipy.optimize import linear_sum_assignment

    _same_shape(x, truth, 1)
    a, b = (np.asarray(array, np.float64).reshape(len(array), -1) for array in (truth, x))
    cost = np.square(a[:, None] - b[None]).mean(-1)
    return linear_sum_assignment(np.where(np.isfinite(cost), cost, 1e30))[1]


def matched(x: Array | np.ndarray, truth: Array | np.ndarray) -> np.ndarray:
    """Reconstructions [N, B, ...], each batch put in the order that fits the truth best."""
    _same_shape(x, truth, 2)
    x = np.asarray(x)
    return np.stack([batch[match(batch, t)] for batch, t in zip(x, truth, strict=True)])
