"""Privacy loss distributions of subsampled Gaussian steps on a grid, and their composition.

`jaxdp.accounting.pld` builds its two bounds from them.  A step is described by the loss L = ln(P/Q) of a pair
of output distributions; its law is put on the grid k x interval in one of two ways:

* `pessimistic`: connect-the-dots (Doroshenko et al., arXiv 2207.04380).  The mass of a cell goes to its two
  ends so that both the P-mass and the Q-mass are kept: every hockey-stick divergence grows, by a
  second-order amount.
* `rounded`: the loss to the nearest grid point, under P and under Q.  A function of the output, so any event
  that it defines bounds the divergence from below.

The masses come from differences of normal distribution functions, not of divergences, and so keep their
relative accuracy in the tails.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

_REACH = 9.0  # standard deviations of the output that the grid covers; the rest counts as infinite loss
_ZERO = 1e-300
TAIL = 1e-13  # probability that may leave the window of a composition; charged to delta


class Pmf(NamedTuple):
    """Probabilities at the losses (start + i) x interval, and what is left at an infinite loss."""

    start: int
    probabilities: np.ndarray
    infinite: float = 0.0


class Pair(NamedTuple):
    """One step's worst-case pair of output distributions.

    Attributes:
      kind: `remove`: (1-q) N(0) + q N(shift) against N(0); `add`: the reverse; `replace`: the curve that is
        `remove` for losses > 0 and `add` for losses < 0, a bound for replace-one (see `rdp.replace_one`);
        `antipodal`: (1-q) N(0) + q N(shift) against (1-q) N(0) + q N(-shift), attained under replace-one.
      q: sampling rate.
      shift: sensitivity over the noise's standard deviation.
    """

    kind: str
    q: float
    shift: float


def _normal_mass(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """P(left < N(0, 1) < right), accurate in both tails."""
    upper = left > 0
    return np.where(
        upper, special.ndtr(-left) - special.ndtr(-right), special.ndtr(right) - special.ndtr(left)
    )


def _log_ratio(q: float, shift: float, x: np.ndarray) -> np.ndarray:
    """ln(1 - q + q e^(shift x - shift^2 / 2)), the loss of `remove` at the output x."""
    exponent = np.asarray(shift * x - shift**2 / 2)
    if q == 1:
        return exponent
    return np.where(
        exponent < 50,
        np.log1p(q * np.expm1(np.minimum(exponent, 50))),
        np.logaddexp(math.log1p(-q), math.log(q) + exponent),
    )


def _output_at(pair: Pair, loss: np.ndarray) -> np.ndarray:
    """The output x where the loss of `remove` (or `antipodal`) has a value; -inf below its range."""
    q, shift = pair.q, pair.shift
    if q == 1:
        return loss / (2 * shift) if pair.kind == "antipodal" else loss / shift + shift / 2
    if pair.kind == "antipodal":
        size = np.abs(loss)
        rise = (1 - q) / 2 * -np.expm1(-size)  # over e^loss throughout
        scaled = q * math.exp(-(shift**2) / 2)
        root = np.sqrt(rise**2 + scaled**2 * np.exp(-size))
        return np.sign(loss) * (size + np.log((rise + root) / scaled)) / shift
    reached = np.expm1(loss) + q
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.where(reached > 0, np.log(np.maximum(reached, 0) / q), -np.inf)
    return (log_ratio + shift**2 / 2) / shift


def _masses(pair: Pair, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P-mass and Q-mass of the loss in each cell between ascending edges (which may be infinite)."""
    if pair.kind == "add":
        p, q = _masses(pair._replace(kind="remove"), -edges[::-1])
        return q[::-1], p[::-1]
    x = _output_at(pair, edges)
    centre = _normal_mass(x[:-1], x[1:])
    shifted = _normal_mass(x[:-1] - pair.shift, x[1:] - pair.shift)
    p_mass = (1 - pair.q) * centre + pair.q * shifted
    if pair.kind == "remove":
        return p_mass, centre
    return p_mass, (1 - pair.q) * centre + pair.q * _normal_mass(x[:-1] + pair.shift, x[1:] + pair.shift)


def loss_range(pair: Pair) -> tuple[float, float]:
    """The losses at outputs `_REACH` standard deviations outside both centres."""
    low, high = (float(_log_ratio(pair.q, pair.shift, np.array(x))) for x in (-_REACH, pair.shift + _REACH))
    if pair.kind == "remove":
        return low, high
    if pair.kind == "add":
        return -high, -low
    high -= float(_log_ratio(pair.q, pair.shift, np.array(-pair.shift - _REACH)))
    return -high, high


def mean_square_loss(pair: Pair) -> float:
    """E_P[L^2] of the `remove` pair with this rate and shift, by a sum over outputs: a scale, not a bound."""
    x = np.linspace(-_REACH, pair.shift + _REACH, 400)
    density = (1 - pair.q) * np.exp(-(x**2) / 2) + pair.q * np.exp(-((x - pair.shift) ** 2) / 2)
    return float(_log_ratio(pair.q, pair.shift, x) ** 2 @ density / density.sum())


def pessimistic(pair: Pair, interval: float) -> Pmf:
    """The step's loss on the grid, no divergence smaller than the true one."""
    if pair.kind == "replace":
        return _pessimistic_replace(pair, interval)
    low, high = loss_range(pair)
    start, stop = math.floor(low / interval), max(math.ceil(high / interval), math.floor(low / interval) + 1)
    edges = np.arange(start, stop + 1) * interval
    p, q = _masses(pair, np.concatenate(([-np.inf], edges, [np.inf])))
    masses = _connect(edges, p[1:-1], q[1:-1], interval)
    masses[0] += p[0]
    return Pmf(start, masses, float(p[-1]))


def _connect(edges, p, q, interval):
    """The P-mass of each cell at its two ends, keeping its Q-mass."""
    right = np.clip((p - q * np.exp(edges[:-1])) / -math.expm1(-interval), 0, p)
    masses = np.zeros(edges.size)
    masses[:-1] += p - right
    masses[1:] += right
    return masses


def _pessimistic_replace(pair: Pair, interval: float) -> Pmf:
    """Losses > 0 as of `remove`, < 0 as of `add`; what is left over has no loss."""
    _, high = loss_range(pair)
    size = max(math.ceil(high / interval), 1)
    edges = np.arange(size + 1) * interval
    p, q = _masses(pair._replace(kind="remove"), np.concatenate((edges, [np.inf])))
    masses = np.zeros(2 * size + 1)
    masses[size:] += _connect(edges, p[:-1], q[:-1], interval)
    infinite = float(p[-1])
    p, q = _masses(pair._replace(kind="add"), np.concatenate(([-np.inf], -edges[::-1])))
    masses[: size + 1] += _connect(-edges[::-1], p[1:], q[1:], interval)
    masses[0] += p[0]
    masses[size] += max(0.0, 1 - infinite - masses.sum())
    return Pmf(-size, masses, infinite)


def mixed(pmfs: list[Pmf], weights: list[float]) -> Pmf:
    """The loss of a step that is one of several, with these probabilities; which one is known."""
    if len(pmfs) == 1:
        return pmfs[0]
    start = min(pmf.start for pmf in pmfs)
    total = np.zeros(max(pmf.start + pmf.probabilities.size for pmf in pmfs) - start)
    for pmf, weight in zip(pmfs, weights, strict=True):
        at = pmf.start - start
        total[at : at + pmf.probabilities.size] += weight * pmf.probabilities
    return Pmf(start, total, sum(w * pmf.infinite for pmf, w in zip(pmfs, weights, strict=True)))


def rounded(pair: Pair, interval: float) -> tuple[Pmf, Pmf, float]:
    """The loss rounded to the grid: under P, under Q tilted by e^loss and normalised, and ln of its
    normaliser.
    """
    low, high = loss_range(pair)
    start, stop = round(low / interval), round(high / interval)
    edges = (np.arange(start, stop) + 0.5) * interval
    p, q = _masses(pair, np.concatenate(([-np.inf], edges, [np.inf])))
    tilted = q * np.exp(np.arange(start, stop + 1) * interval)
    total = tilted.sum()
    return Pmf(start, p), Pmf(start, tilted / total), math.log(total)


def compose(pmfs: list[Pmf], counts: np.ndarray, interval: float) -> Pmf:
    """The sum of independent losses, `counts[k]` of `pmfs[k]`, by one fast Fourier transform.

    The window leaves out less than `TAIL` on each side (Chernoff), which then appears at the other side: the
    caller charges it.
    """
    first, size = _window(pmfs, counts, interval)
    log_transform = np.zeros(size // 2 + 1, complex)
    for pmf, count in zip(pmfs, counts, strict=True):
        placed = np.zeros(size)
        index = (pmf.start + np.arange(pmf.probabilities.size)) % size
        if pmf.probabilities.size <= size:
            placed[index] = pmf.probabilities
        else:
            np.add.at(placed, index, pmf.probabilities)
        transform = np.fft.rfft(placed)[: log_transform.size]
        log_transform += count * np.log(np.where(transform == 0, _ZERO, transform))
        counting = np.flatnonzero(
            log_transform.real > -80
        )  # no factor exceeds one: the others stay below e^-80
        log_transform = log_transform[: counting[-1] + 1 if counting.size else 1]
    composed = np.fft.irfft(np.exp(log_transform), size)
    composed = np.maximum(np.roll(composed, -(first % size)), 0)
    finite = sum(c * math.log1p(-min(pmf.infinite, 0.5)) for pmf, c in zip(pmfs, counts, strict=True))
    return Pmf(first, composed, -math.expm1(finite))


def _window(pmfs, counts, interval):
    """First grid index and length (a fast one) of a window that the sum leaves with probability < TAIL a
    side.
    """
    mean = variance = 0.0
    for pmf, count in zip(pmfs, counts, strict=True):
        losses = (pmf.start + np.arange(pmf.probabilities.size)) * interval
        m = losses @ pmf.probabilities
        mean, variance = mean + count * m, variance + count * ((losses - m) ** 2 @ pmf.probabilities)
    scale = math.sqrt(2 * -math.log(TAIL) / max(variance, interval**2))
    thetas = scale * 4.0 ** np.arange(-6, 2)
    bounds = []
    for sign in (-1, 1):
        cumulant = np.zeros(thetas.size)
        for pmf, count in zip(pmfs, counts, strict=True):
            losses = sign * (pmf.start + np.arange(pmf.probabilities.size)) * interval
            top = losses.max() * thetas
            cumulant += count * (
                top + np.log(np.exp(np.outer(thetas, losses - losses.max())) @ pmf.probabilities)
            )
        ends = [p.start + (p.probabilities.size - 1 if sign > 0 else 0) for p in pmfs]
        extreme = max(0.0, sign * float(np.dot(counts, ends)))
        bounds.append(min(((cumulant - math.log(TAIL)) / thetas).min() / interval, extreme + 1))
    first, last = math.floor(-bounds[0]) - 1, math.ceil(bounds[1]) + 1
    length = max(last - first + 1, 16)
    exponent = math.ceil(math.log2(length))
    size = min(n for n in (2**exponent, 3 * 2 ** max(exponent - 2, 1)) if n >= length)
    return first, size
