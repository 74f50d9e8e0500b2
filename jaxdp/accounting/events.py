"""Ledgers as events of `dp_accounting`, for any accountant of that library."""

import functools
import logging

import dp_accounting as dp
import numpy as np

from jaxdp.accounting import rdp
from jaxdp.accounting.ledger import Ledger, Sampling, epoch_minima


def to_event(ledger: Ledger) -> dp.ComposedDpEvent:
    """The ledger as a `dp_accounting.DpEvent`, equal noise multipliers of an entry grouped.

    The noise multipliers are for add/remove-one (or zero-out) adjacency.  Shuffled batches become one
    unsampled Gaussian an epoch, with the smallest noise multiplier in it.

    Raises:
      ValueError: a run that is not private, or one sampled without replacement, which these adjacencies do
        not cover.
    """
    if not ledger.private:
        raise ValueError(f"private=False: {' '.join(ledger.reasons)}")
    if ledger.filter is not None:
        raise ValueError(
            "filter: noise that followed noised outputs is no event; see jaxdp.accounting.filters"
        )
    return event_of(ledger)


def event_of(ledger: Ledger) -> dp.ComposedDpEvent:
    """As `to_event`, of noise multipliers that may be nominal."""
    events: list[dp.DpEvent] = []
    for entry in ledger.entries:
        kind = entry.sampling.kind
        if kind == "without_replacement":
            raise ValueError(f"sampling={kind!r}: has no event under add/remove-one; use jaxdp.accounting")
        sigmas, counts = entry.counted()
        if kind == "shuffled":
            sigmas, counts = np.unique(epoch_minima(entry), return_counts=True)
        for sigma in np.unique(sigmas):
            count = counts[sigmas == sigma].sum()
            event = _event(entry.sampling, float(sigma))
            events.append(dp.SelfComposedDpEvent(event, int(count)))
    return dp.ComposedDpEvent(events)


def _event(sampling: Sampling, sigma: float) -> dp.DpEvent:
    if sampling.kind == "truncated_poisson":
        assert sampling.examples is not None and sampling.batch_size_limit is not None
        return dp.TruncatedSubsampledGaussianDpEvent(
            sampling.examples, sampling.rate, sampling.batch_size_limit, sigma
        )
    return poisson_event(sampling.rate if sampling.kind == "poisson" else 1.0, sigma)


def poisson_event(rate: float, sigma: float) -> dp.DpEvent:
    """One Poisson-sampled Gaussian step as a `dp_accounting.DpEvent`."""
    event = dp.GaussianDpEvent(sigma)
    return event if rate == 1 else dp.PoissonSampledDpEvent(rate, event)


@functools.lru_cache(maxsize=1024)
def divergences(event, orders: tuple[float, ...] = tuple(rdp.ORDERS.tolist())) -> np.ndarray:
    """RDP of an event by `dp_accounting`, inf at orders that it gives up; remembered."""
    log = logging.getLogger("absl")  # to which it says what it gives up
    disabled, log.disabled = log.disabled, True
    try:
        return np.asarray(dp.rdp.RdpAccountant(list(orders)).compose(event).rdp, float)
    finally:
        log.disabled = disabled
