"""Ledgers written by hand: a published schedule, its factor, its sampling; nothing is planned or trained."""

from jaxdp import schedules
from jaxdp.accounting.ledger import Entry, Ledger, Sampling, run_lengths

POISSON = Sampling(kind="poisson", rate=0.01)


def written(name="fixed", steps=10_000, sampling=POISSON, factor=1.0, parameters=None, **changes):
    """The ledger of a schedule of `jaxdp.schedules`, its noise multipliers times a factor."""
    sigmas = factor * schedules.values(schedules.create(name, steps, **(parameters or {})), steps)
    entry = Entry(start=0, stop=steps, noise_multipliers=run_lengths(sigmas), sampling=sampling, **changes)
    return Ledger((entry,))
