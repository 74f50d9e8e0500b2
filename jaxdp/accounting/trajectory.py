"""Epsilon after every step of a ledger, and how many steps a budget allows."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jaxdp.accounting import pld, rdp
from jaxdp.accounting._epsilon import Claim, _participation, _refuse_not_private, divergences, epsilon
from jaxdp.accounting.ledger import Entry, Ledger
from jaxdp.accounting.sampling import parts

_CHUNK = 8192  # steps of a trajectory at a time


def _running_minima(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """For a shuffled entry: the smallest noise multiplier of the epoch so far, and where epochs begin."""
    sigmas = entry.sigmas()
    epoch = np.arange(entry.start, entry.stop) // (entry.sampling.steps_per_epoch or 1)
    begins = np.concatenate(([True], np.diff(epoch) > 0))
    pieces = np.split(sigmas, np.flatnonzero(begins)[1:])
    return np.concatenate([np.minimum.accumulate(piece) for piece in pieces]), begins


def _increments(entry: Entry, adjacency: str):
    """Rows of RDP that each step adds, in chunks."""
    rate, sigmas = _participation(entry, adjacency)
    shuffled, made = entry.sampling.kind == "shuffled", parts(entry.sampling, adjacency)
    begins = np.zeros(sigmas.size, bool)
    if shuffled:
        sigmas, begins = _running_minima(entry)
    for start in range(0, sigmas.size, _CHUNK):
        stop = min(start + _CHUNK, sigmas.size)
        first = max(start - 1, 0)
        distinct, index = np.unique(sigmas[first:stop], return_inverse=True)
        table, index = divergences(rate, distinct, adjacency, parts=made), index.ravel()
        rows = table[index[start - first :]]
        if shuffled:  # within an epoch only the growth of the largest divergence counts
            before = np.concatenate((index[:1], index))[: index.size][start - first :]
            fresh = begins[start:stop]
            same = ~fresh & (before == index[start - first :])
            rows = np.where(fresh[:, None], rows, rows - np.where(same[:, None], 0.0, table[before]))
            rows[same] = 0.0
        yield rows


def epsilon_trajectory(ledger: Ledger, claim: Claim, *, nominal: bool = False) -> Float[np.ndarray, " steps"]:
    """The epsilon spent after every step, by RDP whatever the claim's accountant, in one pass.

    Element t is after the steps 0 .. t.

    Args and errors as `epsilon`.
    """
    _refuse_not_private(ledger, nominal)
    total, spent = np.zeros(rdp.ORDERS.size), []
    for entry in ledger.entries:
        for rows in _increments(entry, claim.adjacency):
            cumulative = total + np.cumsum(rows, axis=0)
            total = cumulative[-1]
            spent.append(rdp.epsilon(cumulative, claim.delta)[0])
    return np.concatenate([np.empty(0), *spent])


def steps_within(ledger: Ledger, budget: float, claim: Claim, *, tolerance: float = pld.TOLERANCE) -> int:
    """The largest number of first steps of a ledger whose epsilon does not pass the budget.

    Args:
      ledger: what was done so far and the plan for the rest.
      budget: the epsilon that may be spent, >= 0.
      claim, tolerance: as `epsilon`.
    """
    if not budget >= 0:
        raise ValueError(f"budget={budget}: must be >= 0")
    guess = int(np.searchsorted(epsilon_trajectory(ledger, claim), budget, side="right"))

    def fits(steps: int) -> bool:
        return epsilon(ledger.until(steps), claim, tolerance=tolerance).value <= budget

    return _largest(fits, guess, ledger.steps)


def _largest(fits: Callable[[int], bool], guess: int, most: int) -> int:
    """The largest count in 0 .. most that fits, by bisection in a bracket grown around a guess."""
    if most == 0 or fits(most):
        return most
    low, width = guess, max(1, guess // 8)
    while low > 0 and not fits(low):
        low = max(0, low - width)
        width *= 2
    high = most
    while low + width < high:
        if not fits(low + width):
            high = low + width
            break
        low, width = low + width, 2 * width
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
