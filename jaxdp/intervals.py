"""Confidence intervals of shares, means and medians."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from jaxdp import _validate


class Interval(NamedTuple):
    """A share or a mean with its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The Wilson score interval of a share (Wilson 1927): sound for few trials and shares of 0 or 1.

    Raises:
      ValueError: counts or a confidence that make no sense.

    >>> print(wilson(8, 8))
    1.00 [0.68, 1.00]
    """
    from scipy.stats import binomtest

    _validate.between(0, 1, confidence=confidence)
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f"successes={successes}, trials={trials}: need 0 <= successes <= trials, trials >= 1"
        )
    interval = binomtest(int(successes), int(trials)).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(interval.low), float(interval.high))


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of independent values with Student's interval; bounds are NaN where there are fewer than two.

    >>> print(t_interval([1.0, 2.0, 3.0]))
    2.00 [-0.48, 4.48]
    """
    from scipy import stats

    values = np.asarray(values, float)
    mean = float(values.mean()) if values.size else float("nan")
    if values.size < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = stats.t.ppf((1 + confidence) / 2, values.size - 1) * values.std(ddof=1) / values.size**0.5
    return Interval(mean, mean - float(half), mean + float(half))


def median_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """The median of independent values with the interval of its order statistics, whatever their distribution.

    Where there are too few for the confidence (below six for 95 %) it is from the smallest to the largest.

    >>> print(median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    3.50 [1.00, 6.00]
    """
    from scipy.stats import binom

    values = np.sort(np.asarray(values, float))
    if not values.size:
        return Interval(*[float("nan")] * 3)
    outside = max(int(binom.ppf((1 - confidence) / 2, values.size, 0.5)), 1)
    return Interval(float(np.median(values)), float(values[outside - 1]), float(values[-outside]))


def success_rate(hits: Array | np.ndarray, confidence: float = 0.95) -> Interval:
    """The share of True with its Wilson interval."""
    hits = np.asarray(hits, bool)
    return wilson(int(hits.sum()), hits.size, confidence)
