"""What noise from a real generator costs beside the ideal noise that epsilon is computed for.

The release of a step is a vector of whole numbers K (`jaxdp.noise.grid`).  For ideal noise it is
post-processing of the Gaussian mechanism.  The real one has cell probabilities p (1 + eta) for p: whatever the
sum, its fraction and the step's noise, the sum of p eta^2 over the cells within `FAR` deviations is at most
`DEVIATION`^2, and |eta| at most `LARGEST` (both measured, by bisection of the compiled function).

Of n numbers in all, the log-ratio of real and ideal probability is a martingale whose variance is at most
n DEVIATION^2, so by Bernstein's inequality it passes

    a = (2 n DEVIATION^2 ln(1 / d))^(1/2) + LARGEST ln(1 / d) / 3

with probability at most d, beside the draws beyond `FAR`, of which there is one with probability at most
n 2 Q(FAR).  The bound is uniform over batches, so it holds for the mixture that sampling makes, and over what
was released before.  Renyi divergences know no triangle inequality, and nothing is added to them: the two
legs, real to ideal on either side, enter by their events.  If the ideal run is (epsilon, delta)-private, the
real one is

    (epsilon + 2 a,  e^a delta + (1 + e^(epsilon + a)) (d + n (2 Q(FAR) + 2^-79)))-private,

the last for the bits that two numbers of a block share (`jaxdp.noise.grid`), given words that cannot be told
from random ones: the guarantee is against whoever cannot break ChaCha.
"""

import dataclasses
import math

from scipy import special

from jaxdp.accounting.ledger import Ledger

DEVIATION = 5e-13  # measured: 2.2e-13
LARGEST = 1e-8  # measured: 6e-9
FAR = 9.5
_SHARE = 1e-6  # of delta, that goes to each leg's own failure


@dataclasses.dataclass(frozen=True)
class Charge:
    """What is added to epsilon and to delta for so many noised numbers."""

    epsilon: float
    delta: float
    numbers: int


def charge(ledger: Ledger, epsilon: float, delta: float) -> Charge | None:
    """The charge for a run whose ideal noise gives (epsilon, delta).

    Returns:
      None where an entry does not say how many numbers its steps noised: nothing is charged then.
    """
    if not ledger.entries or any(entry.coordinates is None for entry in ledger.entries):
        return None
    numbers = sum((entry.stop - entry.start) * (entry.coordinates or 0) for entry in ledger.entries)
    if not math.isfinite(epsilon):
        return Charge(0.0, 0.0, numbers)
    log = math.log1p(math.exp(-epsilon)) + epsilon - math.log(_SHARE * delta)  # ln(1 / d)
    a = math.sqrt(2 * numbers * DEVIATION**2 * log) + LARGEST * log / 3
    far = numbers * (2 * float(special.ndtr(-FAR)) + 2.0**-79)
    grown = math.exp(min(epsilon + a, 700.0))
    more = math.expm1(a) * delta + (1 + grown) * (math.exp(-log) + far)
    return Charge(2 * a, min(more, 1.0), numbers)
