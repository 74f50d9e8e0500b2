"""Renyi differential privacy of subsampled Gaussian steps, for all noise multipliers at once.

A dynamic schedule has as many noise multipliers as steps.  `dp_accounting.rdp.RdpAccountant` takes them one
at a time (14-29 ms each) and gives an order up where its series does not converge.  Here the moments of the
likelihood ratio are integrals, over arrays of noise multipliers and orders.  What is summed over the steps is
converted by the same bound as there (`epsilon`, for many steps at once).

The noise multiplier sigma is the standard deviation of the noise over the L2 sensitivity, as everywhere.

**The integral.**  With z the output in units of sigma and r(z) = 1 - q + q exp(z / sigma - 1 / 2 sigma^2) the
likelihood ratio, the moment over one is the integral of phi(z) [r^a - 1 - a (r - 1)], whose integrand is never
negative.  It is analytic up to pi sigma from the real axis, where |r(z + iy)| <= r(z), so that the trapezoidal
rule of step h errs by at most 2 exp(d^2 / 2 - 2 pi d / h) of the moment for every d <= pi sigma: h is chosen
to make that e^-25.

**Between noise multipliers.**  ln of the moment is convex in v = 1 / sigma^2, so a chord is never below it.
As a function of v and of l, the log odds by which r is tilted, V = ln E[(1 - q + q e^l X_v)^a], X the geometric
Brownian motion of variance v, solves V_v = (V_ll - V_l + V_l^2) / 2; Z = V_vv then solves a linear equation
with the source V_vl^2 >= 0, and at v = 0 it is (a^2 - a) p^2 (1 - p) (1 + (2 a - 3) p) / 2 >= 0, p = q e^l /
(1 - q + q e^l).  By the maximum principle Z >= 0 everywhere.

Sources: Mironov, Talwar & Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism" (arXiv
1908.10530); Canonne, Kamath & Steinke (arXiv 2004.00010), Proposition 12, for the conversion; Zhu, Dong &
Wang, "Optimal Accounting of Differential Privacy via Characteristic Function" (arXiv 2106.08567) and Balle,
Barthe & Gaboardi, "Privacy Amplification by Subsampling" (arXiv 1807.01647) for replace-one.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from jaxdp import _validate

ORDERS = np.array([1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024], float)
_CHUNK = 1024  # noise multipliers at a time: keeps the arrays in the cache
NODES = 256  # noise multipliers that are integrated for, before chords stand between them
_REACH = 8.0  # standard deviations of the output beyond which nothing is left
_BLOCK = 2**15  # integrand values at a time


def _log_add(a, b):
    """ln(e^a + e^b), exact where one is -inf."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    with np.errstate(invalid="ignore"):
        return np.where(low == -np.inf, high, high + np.log1p(np.exp(low - high)))


def _validate_steps(q: float, sigmas: np.ndarray, orders: np.ndarray) -> None:
    if not 0 <= q <= 1:
        raise ValueError(f"sampling_rate={q}: must lie in [0, 1]")
    if np.any(~(sigmas >= 0)):
        raise ValueError(f"noise_multiplier={sigmas[~(sigmas >= 0)][0]}: must be >= 0")
    if np.any(~(orders > 1)):
        raise ValueError(f"order={orders[~(orders > 1)][0]}: must be > 1")


def poisson_gaussian(
    sampling_rate: float, noise_multipliers: Float[np.ndarray, " n"], orders=ORDERS
) -> Float[np.ndarray, "n orders"]:
    """RDP of one Poisson-sampled Gaussian step under add/remove-one (or zero-out) adjacency.

    Args:
      sampling_rate: q in [0, 1], the probability that an example takes part.
      noise_multipliers: sigma of each step; give each distinct value once.
      orders: Renyi orders > 1.

    Returns:
      The divergence at every noise multiplier and order, [n, orders]; inf where sigma = 0.  It is exact to
      about 1e-9 for up to `NODES` noise multipliers.  Beyond, chords in 1 / sigma^2 between so many stand for
      the rest, which are never below it.

    Formal guarantee: the larger of the two directions, by Theorem 5 of Mironov, Talwar & Zhang.
    """
    sigmas, orders = np.asarray(noise_multipliers, float), np.asarray(orders, float)
    q = float(sampling_rate)
    _validate_steps(q, sigmas, orders)
    inverse_square = sigmas[sigmas > 0] ** -2.0
    if q in (0.0, 1.0) or inverse_square.size <= NODES:
        return exact(q, sigmas, orders)
    nodes = np.linspace(inverse_square.min(), inverse_square.max(), NODES)
    at_nodes = exact(q, nodes**-0.5, orders)
    result = np.full((sigmas.size, orders.size), np.inf)
    for column in range(orders.size):
        result[sigmas > 0, column] = np.interp(inverse_square, nodes, at_nodes[:, column])
    return result


def composed(
    sampling_rate: float, noise_multipliers: Float[np.ndarray, " n"], counts, orders=ORDERS
) -> Float[np.ndarray, " orders"]:
    """The sum over steps of `poisson_gaussian`, in memory that does not grow with orders times steps.

    Args and guarantee as there; `counts` says how often each noise multiplier occurs.
    """
    sigmas, counts = np.asarray(noise_multipliers, float), np.asarray(counts, float)
    if sigmas.size <= NODES or not sigmas.min() > 0:
        return counts @ poisson_gaussian(sampling_rate, sigmas, orders)
    _validate_steps(float(sampling_rate), sigmas, orders)
    inverse_square = sigmas**-2.0
    nodes = np.linspace(inverse_square.min(), inverse_square.max(), NODES)
    place = (inverse_square - nodes[0]) / (nodes[1] - nodes[0])
    left = np.minimum(place.astype(int), NODES - 2)
    share = place - left
    weights = np.bincount(left, counts * (1 - share), NODES)
    weights += np.bincount(left + 1, counts * share, NODES)
    return weights @ exact(sampling_rate, nodes**-0.5, orders)


def exact(
    sampling_rate: float, noise_multipliers: Float[np.ndarray, " n"], orders: Float[np.ndarray, " orders"]
) -> Float[np.ndarray, "n orders"]:
    """As `poisson_gaussian`, an integral for each noise multiplier however many there are."""
    sigmas, q = np.asarray(noise_multipliers, float), float(sampling_rate)
    if q == 0:
        return np.zeros((sigmas.size, orders.size))
    if q == 1:
        with np.errstate(divide="ignore"):
            return orders[None, :] / (2 * sigmas**2)[:, None]
    result = np.full((sigmas.size, orders.size), np.inf)
    usable = np.ix_(sigmas > 0, np.isfinite(orders))
    sigma, order = (a.ravel() for a in np.broadcast_arrays(sigmas[usable[0]], orders[usable[1]]))
    moments = _log_moments(q, 1 / sigma, order)
    result[usable] = (moments / (order - 1)).reshape(result[usable].shape)
    return result


def _log_moments(q: float, s: Float[np.ndarray, " n"], orders: Float[np.ndarray, " n"]) -> np.ndarray:
    """ln E[r^a] at each pair of s = 1 / sigma and order, 0 < q < 1, by the trapezoidal rule.

    The mass lies between z = 0 and z = max(a, 2) s.  Where the peak at a s exceeds everything else by e^40
    (`far`), there alone.
    """
    kink = (math.log1p(-q) - math.log(q)) / s + s / 2  # where both parts of r are equal
    alone, peak = orders * s - kink, orders * s
    far = (alone > 0) & (alone**2 > 1.4 * orders + 80) & (s * (alone - _REACH) > np.log(orders) + 5)
    far &= peak * (alone - peak / 2) > orders * q + 40
    low = np.where(far, peak, 0.0) - _REACH
    width = np.where(far, 0.0, np.maximum(orders, 2) * s) + 2 * _REACH
    step = np.where(far, 0.8, np.minimum(0.8, 2 * np.pi**2 / (25 * s + np.pi**2 / (2 * s))))
    number = np.ceil(width / step).astype(int) + 1
    result, by_number, start = np.empty(s.size), np.argsort(-number), 0
    while start < s.size:
        points = number[by_number[start]]
        k = by_number[start : start + max(1, _BLOCK // points)]
        z = low[k, None] + np.linspace(0, 1, points) * width[k, None]
        result[k] = _log_moment(q, s[k, None], orders[k, None], z, width[k] / (points - 1))
        start += k.size
    return result


def _log_moment(q: float, s: np.ndarray, a: np.ndarray, z: np.ndarray, step: np.ndarray) -> np.ndarray:
    """ln of one plus the integral of phi(z) [r^a - 1 - a (r - 1)], by a series where a (r - 1) is small."""
    log_odds = s * z - s * s / 2
    over = q * np.expm1(np.minimum(log_odds, 700))  # r - 1
    first, log_density = a * over, -z * z / 2
    small = np.abs(first) < 0.02
    if small.all():
        peak, excess = np.zeros((z.shape[0], 1)), np.exp(log_density) * _series(a, over)
    else:
        log_ratio = np.log1p(over)
        if log_odds.max() > 700:
            beyond = np.logaddexp(math.log1p(-q), math.log(q) + log_odds)
            log_ratio = np.where(log_odds > 700, beyond, log_ratio)
        exponent = a * log_ratio + log_density
        peak = np.maximum(exponent.max(axis=1, keepdims=True), 0.0)
        density = np.exp(log_density - peak)
        excess = np.exp(exponent - peak) - density * (1 + first)
        order = np.broadcast_to(a, z.shape)[small]
        excess[small] = density[small] * _series(order, over[small])
    total = excess.sum(axis=1) * step / math.sqrt(2 * math.pi)
    with np.errstate(divide="ignore"):
        return np.logaddexp(0, peak[:, 0] + np.log(total))


def _series(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(1 + w)^a - 1 - a w for small a w, to its sixth power."""
    inner = 1 + (a - 4) / 5 * w * (1 + (a - 5) / 6 * w)
    return a * (a - 1) / 2 * w * w * (1 + (a - 2) / 3 * w * (1 + (a - 3) / 4 * w * inner))


def replace_one(
    sampling_rate: float, noise_multipliers: Float[np.ndarray, " n"], orders=ORDERS
) -> Float[np.ndarray, "n orders"]:
    """RDP of one subsampled Gaussian step under replace-one, by Poisson or fixed-size sampling.

    Replacing an example moves the sum by up to twice the clip bound, so sigma counts half.  That alone is
    not enough: the divergence of the halved sigma in one direction, as used for add/remove, is not a bound
    here, since both neighbours are mixtures.  By advanced joint convexity (Balle et al., Theorem 2) the
    hockey-stick divergence at e^t is at most q delta(e), e^t = 1 + q (e^e - 1), delta the curve of the
    Gaussian with sigma / 2, for t >= 0 in both directions; hence for all t by D_a(P, Q) = 1 - a + a D_1/a(Q,
    P).  The moment is an integral over that curve: the add/remove moment plus

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
    _validate.between(0, 1, delta=delta)
    rdp, orders = np.asarray(rdp, float), np.asarray(orders, float)
    constant = np.where(orders > 1.01, np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1), np.inf)
    candidates = np.where(delta**2 + np.expm1(-rdp) > 0, 0.0, rdp + constant)
    candidates = np.where(rdp < 0, np.inf, candidates)
    best = np.argmin(candidates, axis=-1)
    smallest = np.take_along_axis(candidates, best[..., None], axis=-1)[..., 0]
    return np.maximum(smallest, 0.0), orders[best]
