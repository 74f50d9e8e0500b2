"""Other ways to add up the privacy of steps: the methods that published comparisons use, with what is wrong.

All but zCDP, RDP and PLD start from an (epsilon, delta) of each step: the classical Gaussian bound
sigma = sqrt(2 ln(1.25 / delta)) / epsilon, amplified by sampling to ln(1 + q (e^epsilon - 1)) and q delta.
The total delta is split: half to the steps, half to the composition where its theorem has a term of its own.

Sources: Dwork & Roth, "The Algorithmic Foundations of Differential Privacy", Theorems 3.16 and A.1; Kairouz,
Oh & Viswanath, "The Composition Theorem for Differential Privacy" (arXiv 1311.0776); Murtagh & Vadhan (arXiv
1507.03113) for unequal steps; Bun & Steinke, "Concentrated Differential Privacy" (arXiv 1605.02065).
"""

import dataclasses
import math

import numpy as np

from jaxdp.accounting import _epsilon as accounting
from jaxdp.accounting.ledger import Ledger


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One method's epsilon at the same total delta; inf where its conditions do not hold."""

    method: str
    epsilon: float
    caveat: str


def _steps(ledger: Ledger, adjacency: str, delta: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Epsilon of each distinct step and its count, with the steps' deltas summing to at most `delta`."""
    sensitivity = 2.0 if adjacency == "replace_one" else 1.0
    epsilons, counts = [], []
    runs = accounting.runs(ledger, adjacency)
    total = sum(int(run.counts.sum()) for run in runs)
    for q, sigmas, number in runs:
        if q == 0:
            continue
        own_delta = min(delta / total / q, 0.5)
        with np.errstate(divide="ignore", over="ignore"):
            epsilon = sensitivity * math.sqrt(2 * math.log(1.25 / own_delta)) / sigmas
            amplified = np.log1p(q * np.expm1(np.minimum(epsilon, 700)))
        epsilons.append(np.where(epsilon < 1, amplified, np.inf))  # the theorem is proved for epsilon < 1
        counts.append(number)
    return np.concatenate([np.empty(0), *epsilons]), np.concatenate([np.empty(0), *counts]), delta


def basic(ledger: Ledger, *, delta: float, adjacency: str) -> float:
    """The sum of the steps' epsilons."""
    epsilons, counts, _ = _steps(ledger, adjacency, delta)
    return float(counts @ epsilons)


def advanced(ledger: Ledger, *, delta: float, adjacency: str) -> float:
    """sqrt(2 ln(1/delta') sum e^2) + sum e (e^e - 1) / (e^e + 1) (Kairouz et al., Theorem 3.5, sharper
    than A.1).
    """
    epsilons, counts, _ = _steps(ledger, adjacency, delta / 2)
    with np.errstate(invalid="ignore"):
        drift = counts @ (epsilons * np.tanh(epsilons / 2))
        return float(math.sqrt(2 * math.log(2 / delta) * (counts @ epsilons**2)) + drift)


def optimal(ledger: Ledger, *, delta: float, adjacency: str) -> float:
    """The best total epsilon that the steps' (epsilon, delta) alone allow (Kairouz, Oh & Viswanath).

    Each step is taken as randomised response with its epsilon; their sum is composed exactly, unequal ones
    rounded up to a common grid.
    """
    epsilons, counts, _ = _steps(ledger, adjacency, delta / 2)
    if not np.all(np.isfinite(epsilons)):
        return math.inf
    if not epsilons.size:
        return 0.0
    grid = math.sqrt(float(counts @ epsilons**2) / counts.sum()) / 256
    levels = np.maximum(np.ceil(epsilons / grid), 1).astype(int)
    distinct, where = np.unique(levels, return_inverse=True)
    number = np.bincount(where, weights=counts)
    reach = math.sqrt(2 * math.log(4e6 / delta) * float(number @ distinct**2)) + float(
        number @ (distinct * np.tanh(distinct * grid / 2))
    )
    size = 2 ** math.ceil(math.log2(2 * min(reach, float(number @ distinct)) + 4))
    frequency = np.arange(size // 2 + 1) * (2 * math.pi / size)
    log_transform = np.zeros(frequency.size, complex)
    for level, n in zip(distinct, number, strict=True):
        up = 1 / (1 + math.exp(-level * grid))  # randomised response: loss +e with this probability, else -e
        transform = up * np.exp(-1j * level * frequency) + (1 - up) * np.exp(1j * level * frequency)
        log_transform += n * np.log(np.where(transform == 0, 1e-300, transform))
    probabilities = np.maximum(np.fft.irfft(np.exp(log_transform), size), 0)
    losses = np.fft.fftfreq(size, 1 / size) * grid
    room = delta / 2 * (1 - 1e-6) - 1e-15 * counts.sum()  # what leaves the window, and rounding
    low, high = 0.0, float(losses.max())
    for _ in range(60):
        middle = (low + high) / 2
        above = losses > middle
        spent = -np.expm1(middle - losses[above]) @ probabilities[above]
        low, high = (middle, high) if spent > room else (low, middle)
    return high


def zcdp(ledger: Ledger, *, delta: float, adjacency: str) -> float:
    """rho + 2 sqrt(rho ln(1/delta)), rho = sum 1 / (2 sigma^2): Gaussian steps as if without sampling."""
    sensitivity = 2.0 if adjacency == "replace_one" else 1.0
    runs = accounting.runs(ledger, adjacency)
    with np.errstate(divide="ignore"):
        rho = sum(float(r.counts @ r.noise_multipliers**-2.0) for r in runs if r.sampling_rate > 0)
    rho *= sensitivity**2 / 2
    return rho + 2 * math.sqrt(rho * -math.log(delta))


_METHODS = (
    ("basic", basic, "loose: grows with the number of steps; needs epsilon < 1 at every step before "
    "sampling"),
    ("advanced", advanced, "grows with the root of the steps, but keeps only an (epsilon, delta) of each"),
    ("optimal (KOV)", optimal, "the best from (epsilon, delta) alone; what the Gaussian has beyond that "
    "is lost"),
    ("zCDP", zcdp, "no amplification: zCDP has no useful theorem for sampling, published tables that "
    "add one are not proofs"),
)  # fmt: skip


def table(ledger: Ledger, *, delta: float, adjacency: str, tolerance: float = 0.005) -> list[Row]:
    """Every method's epsilon for the same run, delta and adjacency, with its caveat."""
    accounting.validate(delta, adjacency)
    settings = dict(delta=delta, adjacency=adjacency)
    tight = [
        accounting.epsilon(ledger, **settings, accountant="rdp"),
        accounting.epsilon(ledger, **settings, accountant="pld", tolerance=tolerance),
    ]
    rows = [Row(method=name, epsilon=f(ledger, **settings), caveat=text) for name, f, text in _METHODS]
    rows.append(
        Row(method="RDP", epsilon=tight[0].value, caveat="tight at each order, loses in the conversion")
    )
    rows.append(Row(method="PLD", epsilon=tight[1].value, caveat="upper bound, numerically tight: use this"))
    return rows
