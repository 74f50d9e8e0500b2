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

from jaxdp.accounting.moments import log_moments

ORDERS = np.array([1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024], float)
_CHUNK = 1024  # noise multipliers at a time: keeps the arrays in the cache


def _log_add(a, b):
    """ln(e^a + e^b), exact where one is -inf."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    with np.errstate(invalid="ignore"):
        return np.where(low == -np.inf, high, high + np.log1p(np.exp(low - high)))


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
    ascending, finite = np.argsort(sigmas), np.isfinite(orders)
    ascending = ascending[sigmas[ascending] > 0]
    result[np.ix_(ascending, finite)] = log_moments(q, sigmas[ascending], orders[finite])
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
