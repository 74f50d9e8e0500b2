"""delta(epsilon) of one Gaussian against another: a run without sampling (Balle & Wang, arXiv 1805.06530)."""

import math

import numpy as np
from jaxtyping import Float
from scipy import special


def gaussian_delta(mu: float, epsilon: Float[np.ndarray, "..."] | float):
    """delta(epsilon) of N(mu, 1) against N(0, 1)."""
    epsilon = np.asarray(epsilon, float)
    if mu == 0:
        return np.maximum(0.0, -np.expm1(epsilon))
    tail = np.exp(epsilon + special.log_ndtr(-mu / 2 - epsilon / mu))
    return np.maximum(special.ndtr(mu / 2 - epsilon / mu) - tail, 0.0)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at delta of Gaussian steps without sampling, mu^2 the sum of their 1 / sigma^2."""
    if mu == 0 or gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    if not math.isfinite(mu):
        return math.inf
    low, high = 0.0, mu * (mu / 2 + 40)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
        if high - low <= 1e-14 * high:
            break
    return high
