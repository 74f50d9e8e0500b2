"""What noise on a grid is held against."""

import math

import numpy as np
from scipy import stats


def grid_step(std: float) -> float:
    """The power of two with std / step in [6.4, 12.8)."""
    return 2.0 ** (math.floor(math.log2(std / 12.8)) + 1)


def smoothed(draws, std: float, seed: int = 0) -> np.ndarray:
    """Draws with their grid filled up: uniform within the cell, so that they are as good as continuous."""
    draws = np.asarray(draws, np.float64)
    return draws + grid_step(std) * (np.random.default_rng(seed).random(draws.shape) - 0.5)


def is_normal(draws, std: float, mean: float = 0.0) -> bool:
    """Whether draws on the grid of `std` are of that deviation and mean (Kolmogorov-Smirnov)."""
    return stats.kstest((smoothed(np.ravel(draws), std) - mean) / std, "norm").pvalue > 1e-4
