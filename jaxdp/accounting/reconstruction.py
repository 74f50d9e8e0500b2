"""The largest success of any reconstruction attack that the privacy of a run allows.

An attacker who knows everything but one example, and who guesses it right with probability kappa before
seeing anything, is right with probability at most

    gamma(kappa) = min over epsilon >= 0 of  { e^epsilon kappa + delta(epsilon),
                                               1 - e^-epsilon (1 - delta(epsilon) - kappa) }

after seeing the run (reconstruction robustness: Balle, Cherubin & Hayes, arXiv 2201.04845; Hayes,
Mahloujifar & Balle, arXiv 2302.07225).  The two branches are the two directions of the trade-off curve; the
first alone is valid but says 1 where little privacy is left.  Without sampling gamma = Phi(Phi^-1(kappa) +
mu), mu^2 the sum of 1 / sigma^2.

What is bounded is an attacker who sees the released sums of the steps concerned, hence the whole run by
default.  Who sees single batches, and knows that the example was in them, has no amplification:
`amplified=False`.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from jaxdp import _validate
from jaxdp.accounting import _epsilon as accounting
from jaxdp.accounting import pld
from jaxdp.accounting.ledger import Ledger
from jaxdp.accounting.pld import Steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The bounds for an attacker who sees the steps `start .. stop - 1`.

    Attributes:
      name: the window in words.
      start, stop: its steps.
      released: against the sums of its steps, which steps the example took part in unknown.
      seen: if the example is known to take part in every step.
    """

    name: str
    start: int
    stop: int
    released: float
    seen: float


def gaussian_bound(mu: float, prior: float | Sequence[float]) -> np.ndarray | np.floating:
    """Phi(Phi^-1(prior) + mu): the bound for Gaussian steps without sampling."""
    return special.ndtr(special.ndtri(np.asarray(prior, float)) + mu)


def curve_bound(divergence: pld.Divergence, prior: float) -> float:
    """The bound from an upper bound on delta(epsilon)."""
    best, low, high = 1.0, 0.0, max(divergence.epsilon(1e-12 + 1e3 * divergence.charge), 1.0)
    high = high if math.isfinite(high) else -2 * math.log(prior)
    for _ in range(4):  # finer around the best so far; every epsilon gives a valid bound
        grid = np.linspace(low, high, 65)
        values = [_at(d, e, prior) for d, e in zip(divergence.deltas(grid), grid, strict=True)]
        k = int(np.argmin(values))
        best = min(best, values[k])
        low, high = grid[max(k - 1, 0)], grid[min(k + 1, grid.size - 1)]
    return best


def _at(delta: float, epsilon: float, prior: float) -> float:
    first = math.exp(min(epsilon, 700.0)) * prior + delta
    return min(first, 1 - math.exp(-epsilon) * (1 - delta - prior), 1.0)


def bound(
    ledger: Ledger,
    prior: float,
    *,
    adjacency: str,
    start: int = 0,
    stop: int | None = None,
    amplified: bool = True,
    tolerance: float = pld.TOLERANCE,
) -> float:
    """An upper bound on the probability of reconstructing one example from a window of steps.

    Args:
      ledger: the run.
      prior: the attacker's probability of success without the run (kappa), in (0, 1): 1/k for k candidates.
      adjacency: as `accounting.epsilon`.  `replace_one` bounds an attacker who chooses among examples;
        `zero_out` one who compares with a run without the example.
      start, stop: the steps that are seen, `start .. stop - 1`; the whole run by default.
      amplified: count the attacker's ignorance of which steps the example took part in.  Without it the
        example takes part in every step of the window.
      tolerance: fineness of the privacy loss distribution.

    Raises:
      ValueError: a run that is not private, an empty window, or no theorem for the adjacency.

    Formal guarantee: no attacker does better, whatever it computes.
    """
    _validate.between(0, 1, prior=prior)
    return of_curve(curve(ledger, adjacency, start, stop, amplified=amplified, tolerance=tolerance), prior)


def of_curve(curve: float | pld.Divergence, prior: float) -> float:
    """The bound from what `curve` gives."""
    return (
        curve_bound(curve, prior)
        if isinstance(curve, pld.Divergence)
        else float(gaussian_bound(curve, prior))
    )


def curve(
    ledger: Ledger,
    adjacency: str,
    start: int = 0,
    stop: int | None = None,
    *,
    amplified: bool = True,
    tolerance: float = pld.TOLERANCE,
) -> float | pld.Divergence:
    """All that a window of steps gives away: mu where it is exactly N(mu, 1) against N(0, 1) (inf where nothing
    is known to bound it), else an upper bound on delta(epsilon).

    Args and errors as `bound`.
    """
    stop = ledger.steps if stop is None else stop
    if not 0 <= start < stop <= ledger.steps:
        raise ValueError(f"start={start}, stop={stop}: need 0 <= start < stop <= {ledger.steps}")
    if not ledger.private:
        raise ValueError(f"private=False: no bound holds for this run: {' '.join(ledger.reasons)}")
    _validate.one_of(accounting.ADJACENCIES, adjacency=adjacency)
    shift = 2.0 if adjacency == "replace_one" else 1.0
    runs = _window(ledger, adjacency, start, stop, amplified)
    if any(run.noise_multipliers[0] == 0 for run in runs):
        return math.inf
    if all(run.whole for run in runs):
        return shift * math.sqrt(sum(float(run.counts @ run.noise_multipliers**-2.0) for run in runs))
    if not pld.representable(runs, shift):
        return math.inf
    return pld.divergence(runs, replace=shift == 2, tolerance=tolerance)


def windows(
    ledger: Ledger,
    prior: float,
    *,
    adjacency: str,
    length: int | None = None,
    tolerance: float = pld.TOLERANCE,
) -> list[Window]:
    """What a schedule allows early and late: the bound for one step, a window and the whole run.

    Args:
      ledger, prior, adjacency, tolerance: as `bound`.
      length: steps of the first and the last window; a tenth of the run by default.
    """
    steps = ledger.steps
    length = max(1, steps // 10) if length is None else length
    if not 1 <= length <= steps:
        raise ValueError(f"window={length}: must lie in [1, {steps}], the steps of the run")
    named = {
        "first step": (0, 1),
        "last step": (steps - 1, steps),
        f"first {length} steps": (0, length),
        f"last {length} steps": (steps - length, steps),
        f"whole run, {steps} steps": (0, steps),
    }
    found = []
    for name, (start, stop) in named.items():
        released, seen = (
            bound(
                ledger, prior, adjacency=adjacency, start=start, stop=stop, amplified=amplified,
                tolerance=tolerance,
            )
            for amplified in (True, False)
        )  # fmt: skip
        found.append(Window(name=name, start=start, stop=stop, released=released, seen=seen))
    return found


def _moves(ledger: Ledger) -> np.ndarray:
    """By how many clip bounds an example can move the sum of each step that it is known to take part in."""
    bounds = [2.0 if entry.sampling.kind == "truncated_poisson" else 1.0 for entry in ledger.entries]
    return np.repeat(bounds, [entry.stop - entry.start for entry in ledger.entries])


def _window(ledger: Ledger, adjacency: str, start: int, stop: int, amplified: bool) -> list[Steps]:
    if not amplified:
        sigmas = ledger.sigmas()[start:stop]
        if adjacency != "replace_one":  # who takes part in a truncated batch may have taken another's place
            sigmas = sigmas / _moves(ledger)[start:stop]
        sigmas, counts = np.unique(sigmas, return_counts=True)
        return [Steps(1.0, sigmas, counts)]
    runs = accounting.runs(ledger, adjacency, start, stop)
    return [run for run in runs if run.sampling_rate > 0] or [Steps(1.0, np.array([math.inf]), np.array([1]))]
