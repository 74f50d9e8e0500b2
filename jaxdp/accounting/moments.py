"""Moments of the Poisson-sampled Gaussian's likelihood ratio, for all noise multipliers at once.

What `jaxdp.rdp` is made of: ln E_Q[(P/Q)^order] with P = (1 - q) N(0, sigma^2) + q N(1, sigma^2) and
Q = N(0, sigma^2), for arrays of sigma and of orders, 0 < q < 1.  The formulas are those of Mironov, Talwar &
Zhang (arXiv 1908.10530), Sections 3.1 (whole orders) and 3.3 (fractional orders).

`dp_accounting` sums logarithms, one term after the other.  Where the moment is within 1e-5 of one, the
rounding of that sequence is visible in the divergence; there, and where a term would overflow, the same
sequence is followed here.  Everywhere else the terms themselves are summed, most as products of a factor
for sigma and a factor for the order.
"""

import functools
import math

import numpy as np

from jaxdp.accounting.moment_series import fractional, log_binomial

_BLOCK = 128  # noise multipliers at a time: keeps the arrays in the cache


def log_moments(q: float, sigmas: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """ln E[(P/Q)^order], [sigmas, orders]; inf where a series does not converge.

    Args:
      q: sampling rate in (0, 1).
      sigmas: ascending, > 0.
      orders: finite, > 1.
    """
    result = np.empty((sigmas.size, orders.size))
    whole = orders == np.floor(orders)
    for chosen, moments, block in ((~whole, fractional, 2 * _BLOCK), (whole, _whole, _BLOCK)):
        for rows in (slice(k, k + block) for k in range(0, sigmas.size, block)):
            if np.any(chosen):
                result[rows, chosen] = moments(q, sigmas[rows], orders[chosen])
    return result


@functools.lru_cache(maxsize=1024)
def _log_weights(q: float, order: int) -> tuple[np.ndarray, float]:
    """ln of the binomial weights of a whole order, [order + 1], and how far their sum is from one: rounding,
    which dp_accounting has as well.
    """
    i = np.arange(order + 1, dtype=float)
    log_weights = log_binomial(order, i) + i * math.log(q) + (order - i) * math.log1p(-q)
    log_weights.flags.writeable = False
    return log_weights, math.expm1(np.logaddexp.reduce(log_weights))


def _whole(q: float, sigmas: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Moments at whole orders.

    Where nothing overflows, the excess over one is summed, by one matrix product for all orders: weights x
    (e^.. - 1), and the weights' own excess over one.
    """
    result = np.empty((sigmas.size, orders.size))
    fits = (orders * orders - orders) / (2 * sigmas[0] ** 2) < 300
    if fits.any():
        i = np.arange(orders[fits].max() + 1)
        weights, rounding = np.zeros((i.size, fits.sum())), np.empty(fits.sum())
        for k, order in enumerate(orders[fits].astype(int)):
            log_weights, rounding[k] = _log_weights(q, int(order))
            weights[: order + 1, k] = np.exp(log_weights)
        exponents = ((i * i - i) / 2)[None, :] / (sigmas * sigmas)[:, None]
        small = int(np.searchsorted(exponents[-1], 1.0))  # beyond, e^x - 1 loses nothing, and is faster
        growth = np.concatenate((np.expm1(exponents[:, :small]), np.exp(exponents[:, small:]) - 1), axis=1)
        result[:, fits] = np.log1p(growth @ weights + rounding[None, :])
    for column in np.flatnonzero(~fits):
        result[:, column] = _whole_large(q, sigmas, int(orders[column]))
    return result


def _whole_large(q: float, sigmas: np.ndarray, order: int) -> np.ndarray:
    """The same at one order, where single terms may overflow."""
    i, (log_weights, rounding) = np.arange(order + 1, dtype=float), _log_weights(q, order)
    half, inverse = (i * i - i) / 2, 1 / sigmas**2  # inverse: descending
    kept = _terms_that_count(log_weights, half, inverse[-1], inverse[0])
    terms = inverse[:, None] * half[kept]
    terms += log_weights[kept]
    peak = terms.max(axis=1, keepdims=True)
    terms -= peak
    result = peak[:, 0] + np.log(np.exp(terms, out=terms).sum(axis=1))
    small = np.flatnonzero(result < 1)
    if small.size:  # the excess over one, without the terms that are below e^-80 at every sigma
        kept = (half > 0) & (log_weights + half * inverse[small[0]] > -80)
        exponents = inverse[small, None] * half[kept]
        excess = (np.exp(exponents + log_weights[kept]) * -np.expm1(-exponents)).sum(axis=1)
        result[small] = np.log1p(excess + rounding)
    return result


def _terms_that_count(log_weights: np.ndarray, half: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which terms log_weights + half u can be within e^-50 of the largest for some u in [low, high].

    Every term rises with u: none exceeds its value at `high`, and the largest is at least what it is at
    `low`.  And a term minus the largest is concave in u, with the slope half - half[largest]: left of the
    largest at `low` it is at most what it is at `low`, right of the largest at `high` what it is at `high`.
    """
    at_low, at_high = log_weights + half * low, log_weights + half * high
    first, last = at_low.argmax(), at_high.argmax()
    i = np.arange(half.size)
    left = (i >= first) | (at_low > at_low[first] - 50)
    right = (i <= last) | (at_high > at_high[last] - 50)
    return left & right & (at_high > at_low[first] - 50)
