"""How private a run is in one number that hangs on no delta: mu of Gaussian differential privacy.

Whoever tries to tell from a run whether an example took part, and is wrong of other data in a share alpha of
cases (the false positive rate), is right of this data in at most a share 1 - f(alpha).  A run is mu-GDP if its
trade-off curve f lies above that of N(0, 1) against N(mu, 1) (Dong, Roth & Su 2019, arXiv 1905.02383):

    f(alpha) >= Phi(Phi^-1(1 - alpha) - mu)     for all epsilon >= 0:  delta(epsilon) <= delta_mu(epsilon)

A bound on delta(epsilon) that was computed has a floor at which no mu holds, so here the run is mu-GDP but for
an excess, added to the true positive rate.  How much of the curve the one number keeps is its `regret`, the
shift in both rates after which the curve of mu lies above the run's; beyond .01 it tells another story than
the run (Gomez, Gillenwater, Kulynych & others 2025, arXiv 2503.10945), and there is none.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float
from scipy import special

from jaxdp.accounting import gaussian, pld, reconstruction
from jaxdp.accounting._epsilon import Claim
from jaxdp.accounting.ledger import Ledger

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
MOST_REGRET = 0.01
_POINTS = 4096  # of epsilon at which the curves are compared
_RATES = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gdp:
    """What a membership test can do, and the Gaussian that allows it.

    Attributes:
      mu: the run is mu-GDP but for `excess`; None where that is a poor summary (a regret above .01).
      excess: what is added to the true positive rate; 0 where the run is a Gaussian mechanism.
      regret: how far the Gaussian's curve lies from the run's, in both rates.
      true_positive_rates: the largest at each of `FALSE_POSITIVE_RATES`, from the run's own curve.
    """

    mu: float | None
    excess: float
    regret: float
    true_positive_rates: tuple[float, ...]


def gdp(ledger: Ledger, claim: Claim, *, tolerance: float = pld.TOLERANCE) -> Gdp:
    """Gaussian differential privacy of a run, from its privacy loss distribution.

    Args:
      ledger: what was done, or is planned.
      claim: its adjacency; its delta is the excess.
      tolerance: fineness of the privacy loss distribution.

    Raises:
      ValueError: a run that is not private, or no theorem for the adjacency.

    Formal guarantee: where mu is given, every test of whether one example took part with false positive rate
    alpha has a true positive rate of at most Phi(Phi^-1(alpha) + mu) + excess, and of at most those given.
    """
    curve = reconstruction.curve(ledger, claim.adjacency, tolerance=tolerance)
    mu = mu_of(curve, claim.delta)
    rates = tuple(reconstruction.of_curve(curve, alpha) for alpha in FALSE_POSITIVE_RATES)
    if not isinstance(curve, pld.Divergence):
        return Gdp(mu=mu if mu < math.inf else None, excess=0.0, regret=0.0, true_positive_rates=rates)
    regret = _regret(curve, mu) if mu < math.inf else 1.0
    kept = mu if regret <= MOST_REGRET else None
    return Gdp(mu=kept, excess=claim.delta, regret=regret, true_positive_rates=rates)


def mu_of(curve: float | pld.Divergence, excess: float) -> float:
    """The smallest mu whose curve, and the excess, lie above that of a run; inf where none does.

    Args:
      curve: of `reconstruction.curve`.
      excess: what may be missing; of a curve that is no Gaussian's.

    Compared between points: delta falls with epsilon, so its value at a point must be below the Gaussian's at
    the next.
    """
    if not isinstance(curve, pld.Divergence):
        return curve
    last = curve.epsilon(excess)
    if not math.isfinite(last):
        return math.inf
    points = np.linspace(0.0, last, _POINTS)
    wanted = curve.deltas(points[:-1]) - excess

    def holds(mu: float) -> bool:
        return bool((wanted <= gaussian.gaussian_delta(mu, points[1:])).all())

    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _regret(divergence: pld.Divergence, mu: float) -> float:
    """The smallest shift of both rates that takes the run's curve below the Gaussian's."""
    alphas = np.concatenate([np.logspace(-8, -2, _RATES), np.linspace(0.01, 1, _RATES)])
    epsilons = np.linspace(0.0, max(divergence.epsilon(1e3 * divergence.charge + 1e-12), 1e-3), _RATES)
    deltas = divergence.deltas(epsilons)
    gaussian = special.ndtr(special.ndtri(alphas) + mu)

    def covered(shift: float) -> bool:
        moved = np.minimum(alphas + shift, 1.0)
        return bool((_true_positive_rate(epsilons, deltas, moved) + shift >= gaussian).all())

    low, high = 0.0, 1.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if covered(middle) else (middle, high)
    return high


def _true_positive_rate(
    epsilons: Float[np.ndarray, " e"], deltas: Float[np.ndarray, " e"], alphas: Float[np.ndarray, " a"]
) -> Float[np.ndarray, " a"]:
    """1 - f(alpha) from a curve delta(epsilon)."""
    factor = np.exp(np.minimum(epsilons, 700.0))[:, None]
    first = factor * alphas + deltas[:, None]
    second = 1 - (1 - deltas[:, None] - alphas) / factor
    return np.minimum(np.minimum(first, second).min(axis=0), 1.0)
