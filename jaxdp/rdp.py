"""Renyi differential privacy of subsampled Gaussian steps, for all noise multipliers at once.

A dynamic schedule has as many noise multipliers as steps.  `dp_accounting.rdp.RdpAccountant` takes them one
at a time (14-29 ms each); here the same formulas run over arrays [sigmas, orders].  What is summed over the
steps is then converted by the same bound as there (`epsilon`, for many steps at once).

The noise multiplier sigma is the standard deviation of the noise over the L2 sensitivity, as everywhere.

Sources: Mironov, Talwar & Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism" (arXiv
1908.10530), Sections 3.1 (whole orders) and 3.3 (fractional orders); Canonne, Kamath & Steinke (arXiv
2004.00010), Proposition 12, for the conversion; Zhu, Dong & Wang, "Optimal Accounting of Differential Privacy
via Characteristic Function" (arXiv 2106.08567) and Balle, Barthe & Gaboardi, "Privacy Amplification by
Subsampling" (arXiv 1807.01647) for replace-one.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

ORDERS = np.array([1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024], float)
_MAX_TERMS = 1000  # of the series at a fractional order; dp_accounting then gives the order up, and so do we
_NEGLIGIBLE = -150.0  # ln of a term that changes nothing in float64
_CHUNK = 1024  # noise multipliers at a time: keeps the arrays in the cache


def _log_add(a, b):
    """ln(e^a + e^b), exact where one is -inf."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    with np.errstate(invalid="ignore"):
        return np.where(low == -np.inf, high, high + np.log1p(np.exp(low - high)))


def _log_binomial(n, k):
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def _log_half_erfc(x):
    """ln(erfc(x) / 2), in dp_accounting's sequence of operations, whose rounding shows at tiny
    divergences.
    """
    return math.log(0.5) + (math.log(2) + special.log_ndtr(-x * 2**0.5))


def _log_weights(q: float, order: int) -> np.ndarray:
    """ln of the binomial weights of a whole order, [order + 1]."""
    i = np.arange(order + 1, dtype=float)
    return _log_binomial(order, i) + i * math.log(q) + (order - i) * math.log1p(-q)


def _log_moments_whole(q: float, sigmas: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """ln E[(P/Q)^order] at whole orders: ln sum_i of binomial weight x e^((i^2 - i) / 2 sigma^2).

    Where nothing overflows, the excess over one is summed, by one matrix product for all orders: weights x
    (e^.. - 1), and the weights' own excess over one, which is rounding that dp_accounting has as well.
    """
    result = np.empty((sigmas.size, orders.size))
    fits = (orders * orders - orders) / (2 * sigmas.min() ** 2) < 300
    if fits.any():
        i = np.arange(orders[fits].max() + 1)
        weights, rounding = np.zeros((i.size, fits.sum())), np.empty(fits.sum())
        for k, order in enumerate(orders[fits].astype(int)):
            log_weights = _log_weights(q, int(order))
            weights[: order + 1, k] = np.exp(log_weights)
            rounding[k] = math.expm1(np.logaddexp.reduce(log_weights))
        growth = np.expm1(((i * i - i) / 2)[None, :] / (sigmas * sigmas)[:, None])
        result[:, fits] = np.log1p(growth @ weights + rounding[None, :])
    for column in np.flatnonzero(~fits):
        result[:, column] = _log_moment_large(q, sigmas, int(orders[column]))
    return result


def _log_moment_large(q: float, sigmas: np.ndarray, order: int) -> np.ndarray:
    """The same at one order, where single terms may overflow."""
    i, log_weights = np.arange(order + 1, dtype=float), _log_weights(q, order)
    half = (i * i - i) / 2
    result = np.empty(sigmas.size)
    for rows in (slice(k, k + 128) for k in range(0, sigmas.size, 128)):
        inverse = 1 / sigmas[rows] ** 2  # descending
        kept = _terms_that_count(log_weights, half, inverse[-1], inverse[0])
        terms = inverse[:, None] * half[kept]
        terms += log_weights[kept]
        peak = terms.max(axis=1, keepdims=True)
        terms -= peak
        result[rows] = peak[:, 0] + np.log(np.exp(terms, out=terms).sum(axis=1))
    small = result < 1
    if small.any():
        exponents = half[None, :] / (sigmas[small] ** 2)[:, None]
        excess = (np.exp(exponents + log_weights) * -np.expm1(-exponents)).sum(axis=1)
        result[small] = np.log1p(excess + math.expm1(np.logaddexp.reduce(log_weights)))
    return result


def _terms_that_count(log_weights: np.ndarray, half: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which terms log_weights + half u can be within e^-50 of the largest for some u in [low, high].

    A term minus the largest is concave in u, with the slope half - half[largest]: left of the largest at
    `low` it is at most what it is at `low`, right of the largest at `high` what it is at `high`.
    """
    at_low, at_high = log_weights + half * low, log_weights + half * high
    first, last = at_low.argmax(), at_high.argmax()
    i = np.arange(half.size)
    left = (i < first) & (at_low > at_low[first] - 50)
    right = (i > last) & (at_high > at_high[last] - 50)
    return left | right | ((i >= first) & (i <= last))


def _log_moment_fractional(q: float, sigmas: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """ln E[(P/Q)^order] at fractional orders, [sigmas, orders]; inf where the series does not converge.

    The terms of Section 3.3 in absolute value, in the same sequence and with the same stop as in
    dp_accounting: the stop, at 1e-13 of the sum, is visible in the ninth digit of small divergences.
    """
    series = _Series(q, sigmas, orders)
    return series.sum_first() if series.second_is_negligible() else series.sum_both()


class _Series:
    """The integrals up to z0 (first) and from z0 on (second), term by term, in logarithms."""

    def __init__(self, q: float, sigmas: np.ndarray, orders: np.ndarray):
        self.log_q, self.log_1mq = math.log(q), math.log1p(-q)
        self.sigmas, self.orders = sigmas, orders
        self.z0 = sigmas**2 * math.log(1 / q - 1) + 0.5

    def first(self, i: int, orders: np.ndarray) -> np.ndarray:
        """Term i of the first integral, [sigmas, orders]."""
        weight = _log_binomial(orders, i) + i * self.log_q + (orders - i) * self.log_1mq
        tail = _log_half_erfc((i - self.z0) / (math.sqrt(2) * self.sigmas))
        return weight[None, :] + ((i * i - i) / (2 * self.sigmas**2) + tail)[:, None]

    def second(self, i: int, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Term i of the second integral at pairs of sigma and order."""
        sigma, order = self.sigmas[row], self.orders[column]
        j = order - i
        weight = (_log_binomial(self.orders, i) + (self.orders - i) * self.log_q + i * self.log_1mq)[column]
        tail = _log_half_erfc((self.z0[row] - j) / (math.sqrt(2) * sigma))
        return weight + (j * j - j) / (2 * sigma**2) + tail

    def second_is_negligible(self) -> bool:
        """Whether no term of the second integral changes a sum in float64.

        By erfc(x) < e^(-x^2) and z0, term i is below binomial(order, i) q^order (1/q - 1)^order
        e^(-z0^2 / 2 sigma^2) wherever z0 > order, and |binomial(order, i)| < 2^(order + 1).
        """
        top = self.orders.max()
        if self.z0.min() < 2 * top:
            return False
        return bool((top + 1) * math.log(2) - (self.z0**2 / (2 * self.sigmas**2)).min() < _NEGLIGIBLE)

    def sum_first(self) -> np.ndarray:
        """The sum where only the first integral counts; finished orders drop out."""
        result = np.full((self.sigmas.size, self.orders.size), np.inf)
        column = np.arange(self.orders.size)
        last = self.first(0, self.orders)
        total = last
        for i in range(1, _MAX_TERMS):
            orders = self.orders[column]
            term = self.first(i, orders)
            total = np.logaddexp(total, term)
            # The second integral's terms go as |binomial| / (z0 - order + i): dp_accounting waits for
            # their fall.
            falls = np.abs(orders - i + 1) / i * (1 - 1 / (self.z0[:, None] - orders + i)) < 1
            done = (term < last) & falls & (term < total - 30)
            fresh = np.isinf(result[:, column]) & done
            result[:, column] = np.where(fresh, total, result[:, column])
            going = ~np.isfinite(result[:, column]).all(axis=0)
            if not going.any():
                break
            column, last, total = column[going], term[:, going], total[:, going]
        return result

    def sum_both(self) -> np.ndarray:
        """The sum of both; finished pairs of sigma and order drop out."""
        result = np.full((self.sigmas.size, self.orders.size), np.inf)
        row, column = (a.ravel() for a in np.indices(result.shape))
        log_a0 = np.full(row.size, -np.inf)
        log_a1, last0, last1 = log_a0.copy(), log_a0.copy(), log_a0.copy()
        for i in range(_MAX_TERMS):
            s0, s1 = self.first(i, self.orders)[row, column], self.second(i, row, column)
            log_a0, log_a1 = np.logaddexp(log_a0, s0), np.logaddexp(log_a1, s1)
            total = np.logaddexp(log_a0, log_a1)
            done = (s0 < last0) & (s1 < last1) & (np.maximum(s0, s1) < total - 30)
            result[row[done], column[done]] = total[done]
            going = ~done
            if i == 32:  # the terms fall slowly from here: look whether they get there at all
                end = _MAX_TERMS - 1
                at_end = np.maximum(self.first(end, self.orders)[row, column], self.second(end, row, column))
                going &= at_end < total - 29
            if not going.any():
                break
            row, column, log_a0, log_a1, last0, last1 = (
                a[going] for a in (row, column, log_a0, log_a1, s0, s1)
            )
        return result


def _validate(q: float, sigmas: np.ndarray, orders: np.ndarray) -> None:
    if not 0 <= q <= 1:
        raise ValueError(f"sampling_rate={q}: must lie in [0, 1]")
    if np.any(~(sigmas >= 0)):
        raise ValueError(f"noise_multiplier={sigmas[~(sigmas >= 0)][0]}: must be >= 0")
    if np.any(~(orders > 1)):
        raise ValueError(f"order={orders[~(orders > 1)][0]}: must be > 1")


def gaussian(noise_multipliers: Float[np.ndarray, " n"], orders=ORDERS) -> Float[np.ndarray, "n orders"]:
    """RDP of one Gaussian step without sampling: order / (2 sigma^2)."""
    return poisson_gaussian(1.0, noise_multipliers, orders)


def poisson_gaussian(
    sampling_rate: float, noise_multipliers: Float[np.ndarray, " n"], orders=ORDERS
) -> Float[np.ndarray, "n orders"]:
    """RDP of one Poisson-sampled Gaussian step under add/remove-one (or zero-out) adjacency.

    Args:
      sampling_rate: q in [0, 1], the probability that an example takes part.
      noise_multipliers: sigma of each step; give each distinct value once.
      orders: Renyi orders > 1.

    Returns:
      The divergence at every noise multiplier and order, [n, orders]; inf where sigma = 0, and where the
      series of a fractional order does not converge (as in dp_accounting, the order is then not used).

    Formal guarantee: the larger of the two directions, by Theorem 5 of Mironov, Talwar & Zhang.
    """
    sigmas, orders = np.asarray(noise_multipliers, float), np.asarray(orders, float)
    q = float(sampling_rate)
    _validate(q, sigmas, orders)
    if q == 0:
        return np.zeros((sigmas.size, orders.size))
    with np.errstate(divide="ignore"):
        if q == 1:
            return orders[None, :] / (2 * sigmas**2)[:, None]
    result = np.full((sigmas.size, orders.size), np.inf)
    whole = orders == np.floor(orders)
    finite = np.isfinite(orders)
    ascending = np.argsort(sigmas)
    ascending = ascending[sigmas[ascending] > 0]
    for block in (ascending[k : k + _CHUNK] for k in range(0, ascending.size, _CHUNK)):
        if np.any(~whole):
            result[np.ix_(block, ~whole)] = _log_moment_fractional(q, sigmas[block], orders[~whole])
        if np.any(whole & finite):
            result[np.ix_(block, whole & finite)] = _log_moments_whole(
                q, sigmas[block], orders[whole & finite]
            )
    # A moment that rounding left at one or below says nothing: the order is not used.
    return np.where(result > 0, result, np.inf) / (orders - 1)[None, :]


def replace_one(
    sampling_rate: float, noise_multipliers: Float[np.ndarray, " n"], orders=ORDERS
) -> Float[np.ndarray, "n orders"]:
    """RDP of one subsampled Gaussian step under replace-one, by Poisson or fixed-size sampling.

    Replacing an example moves the sum by up to twice the clip bound, so sigma counts half.  That alone is
    not enough: the divergence of the halved sigma in one direction, as used for add/remove, is not a bound
    here, since both neighbours are mixtures.  By advanced joint convexity (Balle et al., Theorem 2) the
    hockey-stick divergence at e^t is at most q delta(e), e^t = 1 + q (e^e - 1), delta the curve of the
    Gaussian with sigma / 2, for t >= 0 in both directions; hence for all t by D_a(P, Q) = 1 - a + a D_1/a(Q,
    P). The moment is an integral over that curve: the add/remove moment plus

        order (order - 1) int_0^inf e^(-order t) [remove(t) - add(t)] dt.

    Args and returns as `poisson_gaussian`; `noise_multipliers` are relative to the clip bound C (they are
    halved here).
    """
    sigmas, orders = np.asarray(noise_multipliers, float) / 2, np.asarray(orders, float)
    q = float(sampling_rate)
    divergence = poisson_gaussian(q, sigmas, orders)
    if q in (0.0, 1.0):
        return divergence
    positive = np.flatnonzero(sigmas > 0)
    for block in (positive[k : k + _CHUNK] for k in range(0, positive.size, _CHUNK)):
        log_extra = _log_excess(q, sigmas[block], orders)
        scaled = (orders - 1)[None, :] * divergence[block]
        divergence[block] = _log_add(scaled, log_extra) / (orders - 1)[None, :]
    return divergence


def _log_excess(q: float, sigmas: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """ln of the integral in `replace_one`, [sigmas, orders], by Gauss-Legendre panels in ln t."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    edges = np.linspace(math.log(1e-9 * q), math.log(60.0), 65)
    half = np.diff(edges)[:, None] / 2
    t = np.exp((edges[:-1, None] + half + half * nodes).ravel())
    weights = (half * weights).ravel() * t
    excess = _remove_minus_add(q, sigmas[:, None], t[None, :])
    integral = (excess * weights) @ np.exp(-np.outer(t, orders))
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(integral, 0) * (orders * (orders - 1))[None, :])


def _remove_minus_add(q: float, sigma: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Difference of the two hockey-stick curves of the Poisson-sampled Gaussian at e^t, t > 0."""
    mu = 1 / sigma
    tilt = np.log1p(np.expm1(t) / q)  # e^tilt: the likelihood ratio of the Gaussians where the loss is t
    remove = q * special.ndtr(mu / 2 - tilt / mu) - (np.expm1(t) + q) * special.ndtr(-mu / 2 - tilt / mu)
    # add: mass where 1 - e^t (1 - q) > e^t q ratio
    room = -np.expm1(t) + q * np.exp(t)
    with np.errstate(divide="ignore", invalid="ignore"):
        edge = np.log(np.maximum(room, 0) / (q * np.exp(t)))
        add = room * special.ndtr(edge / mu + mu / 2) - q * np.exp(t) * special.ndtr(edge / mu - mu / 2)
    return np.maximum(remove, 0) - np.where(room > 0, np.maximum(add, 0), 0.0)


def epsilon(
    rdp: Float[np.ndarray, "... orders"], delta: float, orders=ORDERS
) -> tuple[np.ndarray | np.floating, np.ndarray | np.floating]:
    """Epsilon at delta and the order that gives it, for each row of divergences.

    The bound of `dp_accounting.rdp.compute_epsilon` (Canonne et al., Proposition 12; epsilon = 0 where
    delta^2 > 1 - e^-rdp), over arrays, except that an order with a divergence below zero, which can only be
    rounding, is not used; there it would prove epsilon = 0.

    Formal guarantee: (epsilon, delta)-differential privacy of a mechanism with these divergences.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: must lie in (0, 1)")
    rdp, orders = np.asarray(rdp, float), np.asarray(orders, float)
    constant = np.where(orders > 1.01, np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1), np.inf)
    candidates = np.where(delta**2 + np.expm1(-rdp) > 0, 0.0, rdp + constant)
    candidates = np.where(rdp < 0, np.inf, candidates)
    best = np.argmin(candidates, axis=-1)
    smallest = np.take_along_axis(candidates, best[..., None], axis=-1)[..., 0]
    return np.maximum(smallest, 0.0), orders[best]
