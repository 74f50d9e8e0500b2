"""Whether noise is what the accounting takes it for: independent Gaussians of the deviation claimed.

An epsilon is computed for such noise.  Noise of another law may leak less than the audit's bounds can see and
still void the claim, so it is looked at by itself, where nothing but noise is: in the rows of the parameters
that no example touches.

| statistic           | sees                                                                                  |
|---------------------|---------------------------------------------------------------------------------------|
| scale               | a deviation that is not the one claimed (chi-square)                                  |
| shape               | another marginal distribution (Kolmogorov-Smirnov)                                    |
| tails               | values beyond 3 and 4 deviations that are missing or too many                         |
| lattice             | values that coincide: noise that is rounded                                           |
| grid                | values off the public grid on which noise is released: digits that may tell the sum   |
| sums and differences| dependence of two coordinates, of any tensors and steps: the variances of their sum   |
|                     | and difference differ exactly if they are correlated                                  |
| sizes               | dependence of their sizes, whatever their signs                                       |

What none of them sees: dependence that needs three or more coordinates to show, between other rows or between
runs, lattices far finer than a thousandth of a deviation, and departures too small for the number of values.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special, stats

_FAR = (3.0, 4.0)  # deviations
_CLOSE = (1e-2, 1e-3, 1e-4)  # between two values, in deviations
_OFF_GRID = 0.05  # of a cell: what parameters of float32 make of it


class Law(NamedTuple):
    """How probable each statistic is, at least as far out, if the noise is what is claimed.

    Attributes:
      p_values: of each statistic, after Bonferroni within it.
      values: how many were looked at.
      departs: whether the smallest p-value is below the allowed error over their number.
    """

    p_values: dict[str, float]
    values: int
    departs: bool


def examine(
    noise: Float[np.ndarray, "runs steps coordinates"],
    alpha: float,
    grid: Float[np.ndarray, "runs steps"] | None = None,
) -> Law:
    """Holds noise against independent standard normals.

    Args:
      noise: in units of the deviation claimed; runs are independent.
      alpha: probability that noise as claimed is said to depart from it.
      grid: step of the public grid on which noise was released, in the same unit; None for none.  Each value is
        then replaced by a normal one within its cell, which makes rounded normals normal again.

    Formal guarantee: independent standard normals depart with probability at most alpha (Bonferroni over the
    statistics, which are exact but for the asymptotic law of Kolmogorov and Smirnov).
    """
    noise = np.asarray(noise, np.float64)
    if not np.isfinite(noise).all():
        return Law({"finite": 0.0}, noise.size, True)
    p_values = {}
    if grid is not None:
        step = np.asarray(grid, np.float64)[:, :, None]
        cells = np.round(noise / step)
        p_values["grid"] = float(np.abs(noise / step - cells).max() < _OFF_GRID)
        noise = _within(cells, step)
    p_values |= {
        "scale": _two_sided(stats.chi2(noise.size), np.sum(noise**2)),
        "shape": float(stats.kstest(noise.ravel(), "norm").pvalue),
        "tails": _least(_beyond(noise, far) for far in _FAR),
        "lattice": _least(_coincidences(noise, close) for close in _CLOSE),
    }
    flat = noise.reshape(len(noise), -1)
    if flat.shape[1] > 1 and len(flat) > 2:
        p_values["sums and differences"] = _dependence(flat)
        p_values["sizes"] = _dependence(_sizes(flat))
    return Law(p_values, noise.size, min(p_values.values()) * len(p_values) < alpha)


def _within(cells, step):
    """Normals, given the cells of a grid that they lie in."""
    edges = step * (np.abs(cells) - 0.5), step * (np.abs(cells) + 0.5)
    near, far = special.ndtr(-edges[0]), special.ndtr(-edges[1])
    drawn = -special.ndtri(far + (near - far) * np.random.default_rng(0).random(cells.shape))
    return np.where(cells < 0, -drawn, drawn)


def _two_sided(law, value: float) -> float:
    return float(min(1.0, 2 * min(law.cdf(value), law.sf(value))))


def _least(p_values) -> float:
    """Of several tests of one kind the least, after Bonferroni."""
    p_values = list(p_values)
    return min(1.0, len(p_values) * min(p_values))


def _beyond(noise, far: float) -> float:
    law = stats.binom(noise.size, 2 * stats.norm.sf(far))
    count = int(np.sum(np.abs(noise) > far))
    return float(min(1.0, 2 * min(law.cdf(count), law.sf(count - 1))))


def _coincidences(noise, close: float) -> float:
    """Whether values of the same coordinate in two runs are more often close than those of normals are."""
    pairs = len(noise) // 2
    gaps = np.abs(noise[:pairs] - noise[pairs : 2 * pairs])
    expected = special.erf(close / 2)  # the difference has variance 2
    return float(stats.binom(gaps.size, expected).sf(int(np.sum(gaps < close)) - 1))


def _dependence(columns: Float[np.ndarray, "runs n"]) -> float:
    """The largest correlation of two columns, among all pairs: Student's law for normal columns."""
    runs, n = columns.shape
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.corrcoef(columns, rowvar=False)[np.triu_indices(n, 1)]
        largest = np.max(np.abs(np.nan_to_num(correlation, nan=1.0)))
        t = largest * np.sqrt((runs - 2) / np.maximum(1 - largest**2, 1e-300))
    return float(min(1.0, len(correlation) * 2 * stats.t.sf(t, runs - 2)))


def _sizes(noise):
    """Sizes of normals, made normal themselves."""
    return special.ndtri(np.clip(special.erf(np.abs(noise) / np.sqrt(2)), 1e-15, 1 - 1e-15))
