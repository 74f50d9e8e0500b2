"""Upper and lower bounds on epsilon from privacy loss distributions, for schedules of any length.

Distinct noise multipliers are sorted and grouped.  A group counted with its smallest value, each step's loss
discretised pessimistically, bounds epsilon from above; counted with its largest, and tested by an event of
the rounded loss, from below (more noise is post-processing, so a step with the larger value is less
informative).  Groups and grid are refined until the two agree.  What is claimed is the upper bound.

`dp_accounting`'s distributions are the reference these are tested against; its optimistic estimate, though,
loses half an interval a step (0.05 of 0.60 at an interval of 1e-5 and 10,000 steps), so it cannot close a
bracket.  Without sampling everything is one Gaussian and both bounds are exact (Balle & Wang, arXiv
1805.06530).  With so little noise that the tails of one step leave what float64 can hold, there is no
distribution: the upper bound is then infinite and the lower zero.
"""

import bisect
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdp.accounting import privacy_loss
from jaxdp.accounting.gaussian import gaussian_epsilon
from jaxdp.accounting.privacy_loss import Pair, Pmf
from jaxdp.accounting.sampling import Part

TOLERANCE = 0.005
_ROUNDING = 2e-16  # of the transform, a step, charged to delta
_REFINEMENTS = 6
_FINEST = 2**19  # grid points for the loss of one step
_LEAST_INTERVAL = 1e-12
_FARTHEST = 28.0  # sensitivity over noise: beyond, probabilities under Q underflow


class Steps(NamedTuple):
    """Distinct steps: noise multipliers with how often each occurs, at one sampling rate.

    Attributes:
      sampling_rate: q.
      noise_multipliers: distinct, ascending.
      counts: occurrences.
      parts: what a step with truncated batches is made of; () for every other.
    """

    sampling_rate: float
    noise_multipliers: np.ndarray
    counts: np.ndarray
    parts: tuple[Part, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every example takes part in every step."""
        return self.sampling_rate == 1 and not self.parts

    @property
    def participation(self) -> float:
        """The probability, at least, that an example is in the batch in the end."""
        if not self.parts:
            return self.sampling_rate
        return sum(part.weight * part.rate for part in self.parts[:2])


class Bounds(NamedTuple):
    """Epsilon between `lower` and `upper` at delta; `groups` is how many distinct steps were composed."""

    upper: float
    lower: float
    groups: int


class Divergence(NamedTuple):
    """An upper bound on delta(epsilon) of a composition: its pessimistic losses, one law for each direction."""

    pmfs: tuple[Pmf, ...]
    interval: float
    charge: float  # of truncation and rounding

    def delta(self, epsilon: float) -> float:
        """The largest delta over the directions, never above one."""
        return min(1.0, max(_delta(pmf, self.interval, epsilon) for pmf in self.pmfs) + self.charge)

    def deltas(self, epsilons: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """`delta` at many epsilons >= 0, by running sums."""
        largest = np.max([_deltas(pmf, self.interval, epsilons) for pmf in self.pmfs], axis=0)
        return np.minimum(largest + self.charge, 1.0)

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon >= 0 with delta(epsilon) <= delta; inf where there is none."""
        return max(_epsilon(pmf, self.interval, delta - self.charge) for pmf in self.pmfs)


def _delta(pmf: Pmf, interval: float, epsilon: float) -> float:
    k = max(0, math.floor(epsilon / interval) + 1 - pmf.start)
    losses = (pmf.start + np.arange(k, pmf.probabilities.size)) * interval
    return float(pmf.infinite - np.expm1(np.minimum(epsilon - losses, 0)) @ pmf.probabilities[k:])


def _deltas(pmf: Pmf, interval: float, epsilons: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    first = max(1 - pmf.start, 0)  # of the losses above zero
    losses = (pmf.start + first + np.arange(max(pmf.probabilities.size - first, 0))) * interval
    above = [
        p[::-1].cumsum()[::-1]
        for p in (pmf.probabilities[first:], pmf.probabilities[first:] * np.exp(-losses))
    ]
    beyond, weighted = (np.append(x, 0.0) for x in above)
    k = np.clip(np.floor(epsilons / interval).astype(np.int64) + 1 - pmf.start - first, 0, losses.size)
    return pmf.infinite + np.maximum(beyond[k] - np.exp(np.minimum(epsilons, 700.0)) * weighted[k], 0.0)


def _epsilon(pmf: Pmf, interval: float, delta: float) -> float:
    if pmf.infinite >= delta:
        return math.inf
    if _delta(pmf, interval, 0.0) <= delta:
        return 0.0
    low, high = max(pmf.start, 0), pmf.start + pmf.probabilities.size
    while high - low > 1:  # delta(low) > delta >= delta(high)
        middle = (low + high) // 2
        low, high = (middle, high) if _delta(pmf, interval, middle * interval) > delta else (low, middle)
    # Between grid points delta(epsilon) is linear in e^epsilon.
    tail = pmf.probabilities[high - pmf.start :]
    above = pmf.infinite + tail.sum() - delta
    weighted = np.exp(-np.arange(tail.size) * interval) @ tail
    return (
        high * interval + min(0.0, math.log(above / weighted))
        if above > 0 and weighted > 0
        else high * interval
    )


def _groups(steps: Steps, allowed: float) -> list[slice]:
    """Consecutive noise multipliers together, so that taking each group's smallest adds at most the share
    `allowed` to the sum of squared losses."""
    square = steps.noise_multipliers**-2.0
    cost = np.expm1(np.minimum(square, 50.0)) * np.maximum(square / 50.0, 1.0) ** 2
    number = np.concatenate(([0], np.cumsum(steps.counts)))
    total = np.concatenate(([0], np.cumsum(cost * steps.counts)))
    budget = allowed * total[-1]
    each = budget / 4
    while True:
        groups, error, first = [], 0.0, 0
        while first < cost.size:

            def added(stop, first=first):
                return cost[first] * (number[stop] - number[first]) - (total[stop] - total[first])

            stop = bisect.bisect_right(range(cost.size + 1), each, lo=first + 1, key=added) - 1
            stop = max(stop, first + 1)
            groups.append(slice(first, stop))
            error, first = error + added(stop), stop
        if error <= budget or len(groups) == cost.size:
            return groups
        each *= 0.7


def representable(runs: list[Steps], shift: float) -> bool:
    """Whether float64 holds the loss of every step, whose sensitivity is `shift` times the clip bound."""
    return all((2.0 if run.parts else shift) <= _FARTHEST * run.noise_multipliers[0] for run in runs)


def _kinds(replace: bool) -> tuple[str, ...]:
    return ("replace",) if replace else ("remove", "add")


def _interval(runs: list[Steps], shift: float, tolerance: float) -> float:
    """A grid fine enough that discretising adds about tolerance / 5 to the variance of the loss."""
    square, count = 0.0, 0
    for run in runs:
        chosen = np.unique(np.linspace(0, run.counts.size - 1, 33).astype(int))
        sizes = [
            privacy_loss.mean_square_loss(Pair("remove", run.sampling_rate, shift / s))
            for s in run.noise_multipliers[chosen]
        ]
        square += float(np.interp(np.arange(run.counts.size), chosen, sizes) @ run.counts)
        count += int(run.counts.sum())
    widest = max(
        np.ptp(privacy_loss.loss_range(Pair("remove", part.rate, part.shift / r.noise_multipliers[0])))
        for r in runs
        for part in _parts(r, shift)
    )
    fine = math.sqrt(square / count) * math.sqrt(1.2 * tolerance)
    return max(fine, float(widest) / _FINEST, _LEAST_INTERVAL)


def _parts(run: Steps, shift: float) -> list[Part]:
    """The subsampled Gaussian steps that a step is with some probability, mostly one."""
    return [part for part in run.parts if part.weight * part.rate > 0] or [
        Part(1.0, run.sampling_rate, shift)
    ]


def _pessimistic(run: Steps, kind: str, shift: float, sigma: float, interval: float) -> Pmf:
    """The loss of one step, no divergence smaller than the true one; which of its parts it was is known."""
    found = []
    for part in _parts(run, shift):  # who takes another's place is bounded as who is exchanged
        of = "replace" if part.shift > shift else kind
        found.append(privacy_loss.pessimistic(Pair(of, part.rate, part.shift / sigma), interval))
    return privacy_loss.mixed(found, [part.weight for part in _parts(run, shift)])


def divergence(runs: list[Steps], *, replace: bool, tolerance: float = TOLERANCE, kinds=None) -> Divergence:
    """The upper bound on delta(epsilon), for all epsilon, of a composition of subsampled Gaussian steps.

    Args:
      runs: the steps, one entry for each sampling rate; rates and noise multipliers > 0.
      replace: replace-one adjacency (sensitivity 2) instead of add/remove-one or zero-out.
      tolerance: about the relative error of epsilon.
      kinds: the directions to bound; all by default.
    """
    shift = 2.0 if replace else 1.0
    interval = _interval(runs, shift, tolerance)
    composed, counts = [], []
    for kind in kinds or _kinds(replace):
        pmfs, counts = [], []
        for run in runs:
            for group in _groups(run, 0.7 * tolerance):
                smallest = run.noise_multipliers[group.start]
                pmfs.append(_pessimistic(run, kind, shift, smallest, interval))
                counts.append(int(run.counts[group].sum()))
        composed.append(privacy_loss.compose(pmfs, np.array(counts), interval))
    return Divergence(tuple(composed), interval, 2 * privacy_loss.TAIL + _ROUNDING * sum(counts))


def _upper(runs: list[Steps], delta: float, replace: bool, tolerance: float) -> float:
    """Epsilon over all directions; the direction that is seldom the larger is first bounded roughly."""
    first, *others = _kinds(replace)
    upper = divergence(runs, replace=replace, tolerance=tolerance, kinds=(first,)).epsilon(delta)
    for kind in others:
        for fineness in (6 * tolerance, tolerance):
            other = divergence(runs, replace=replace, tolerance=fineness, kinds=(kind,)).epsilon(delta)
            if other <= upper:
                break
        upper = max(upper, other)
    return upper


def _lower(runs: list[Steps], pair: Pair, delta: float, tolerance: float) -> float:
    """A lower bound on epsilon: the best event {sum of rounded losses >= w}, its Q-mass kept as a logarithm."""
    interval = _interval(runs, pair.shift, tolerance)
    under_p, under_q, counts, log_total = [], [], [], 0.0
    for run in runs:
        for group in _groups(run, 0.7 * tolerance):
            largest = run.noise_multipliers[group.stop - 1]
            step = pair._replace(q=run.participation, shift=pair.shift / largest)
            p, q, log_step = privacy_loss.rounded(step, interval)
            count = int(run.counts[group].sum())
            under_p.append(p), under_q.append(q), counts.append(count)
            log_total += count * log_step
    p = privacy_loss.compose(under_p, np.array(counts), interval)
    q = privacy_loss.compose(under_q, np.array(counts), interval)
    charge = 2 * privacy_loss.TAIL + _ROUNDING * sum(counts)
    tail_p = np.cumsum(p.probabilities[::-1])[::-1] - charge - delta
    log_weights = log_total - (q.start + np.arange(q.probabilities.size)) * interval
    with np.errstate(divide="ignore"):
        log_q = np.log(q.probabilities) + log_weights
    log_tail_q = np.logaddexp(np.logaddexp.accumulate(log_q[::-1])[::-1], math.log(charge) + log_weights)
    start, stop = max(p.start, q.start), min(p.start + tail_p.size, q.start + log_tail_q.size)
    if stop <= start:
        return 0.0
    tail_p, log_tail_q = (
        tail_p[start - p.start : stop - p.start],
        log_tail_q[start - q.start : stop - q.start],
    )
    useful = tail_p > 0
    return max(0.0, float((np.log(tail_p[useful]) - log_tail_q[useful]).max(initial=0.0)))


def bounds(
    runs: list[Steps], delta: float, *, replace: bool, fixed_size: bool = False, tolerance: float = TOLERANCE
) -> Bounds:
    """Epsilon at delta of a composition of subsampled Gaussian steps, from both sides.

    Args:
      runs: the steps, one entry for each sampling rate.
      delta: in (0, 1).
      replace: replace-one adjacency.
      fixed_size: sampling without replacement (replace-one only), else Poisson.
      tolerance: refined until upper - lower <= tolerance x upper, or six times.  Under replace-one the gap
        stays larger, as with truncated batches: the known worst case does not attain the proved upper bound.

    Formal guarantee: the composition is (upper, delta)-differentially private, up to the rounding of float64
    inside the normal distribution function; it is not (epsilon, delta)-differentially private for any
    epsilon < lower.
    """
    runs = [r for r in runs if r.sampling_rate > 0 and r.counts.size]
    if not runs:
        return Bounds(0.0, 0.0, 0)
    if any(r.noise_multipliers[0] == 0 for r in runs):
        return Bounds(math.inf, math.inf, 0)
    shift = 2.0 if replace else 1.0
    if all(r.whole for r in runs):
        exact = gaussian_epsilon(
            shift * math.sqrt(sum(float(r.counts @ r.noise_multipliers**-2.0) for r in runs)), delta
        )
        return Bounds(exact, exact, sum(r.counts.size for r in runs))
    if not representable(runs, shift):
        return Bounds(math.inf, 0.0, 0)
    pair = Pair(
        "remove" if fixed_size or not replace else "antipodal",
        1.0,
        shift if fixed_size or not replace else 1.0,
    )
    upper, lower, target, groups = math.inf, 0.0, tolerance, 0
    for _ in range(_REFINEMENTS):
        previous, upper = upper, min(upper, _upper(runs, delta, replace, target))
        groups = sum(len(_groups(r, 0.7 * target)) for r in runs)
        lower = max(lower, _lower(runs, pair, delta, target))
        settled = (replace or any(r.parts for r in runs)) and previous - upper <= tolerance / 4 * upper
        if upper - lower <= tolerance * upper or settled or upper == 0:
            break
        target /= 2
    return Bounds(upper, min(lower, upper), groups)
