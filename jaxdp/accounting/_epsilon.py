"""Epsilon of a ledger, at a stated delta, adjacency and accountant."""

import dataclasses
import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

import numpy as np

from jaxdp import _validate
from jaxdp.accounting import pld, rdp
from jaxdp.accounting._divergences import REMEMBERED
from jaxdp.accounting._divergences import divergences as divergences
from jaxdp.accounting.generator import Charge, charge
from jaxdp.accounting.ledger import Entry, Ledger, epoch_minima
from jaxdp.accounting.pld import Steps
from jaxdp.accounting.sampling import Part, parts

ADJACENCIES = ("add_or_remove_one", "replace_one", "zero_out")
ACCOUNTANTS = ("rdp", "pld")
_DISTINCT = 32  # noise multipliers up to which dp_accounting's own accountant computes the divergences
_GROUPS = 20_000  # noise multipliers that are looked at one by one under replace-one
_REFINED = 100_000  # noise multipliers up to which the best orders are computed again without chords


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What an epsilon is claimed at, and by whom it is computed.

    Attributes:
      delta: the failure probability, in (0, 1/2); far below one over the number of examples, or it covers
        giving some of them away whole.
      adjacency: one of `ADJACENCIES`.
      accountant: one of `ACCOUNTANTS`.

    >>> Claim(delta=0.5, adjacency="zero_out")
    Traceback (most recent call last):
    ValueError: delta=0.5: must lie in (0, 0.5)
    """

    delta: float
    adjacency: str
    accountant: str = "pld"

    def warnings(self, examples: int) -> tuple[str, ...]:
        """What weakens the claim for a data set of so many examples, a sentence each; empty if nothing does."""
        if self.delta * examples < 1:
            return ()
        return (
            f"delta = {self.delta:g} is not below one over the number of examples, {examples}: a mechanism "
            "that gives an example away whole satisfies it.",
        )

    def __post_init__(self):
        _validate.between(0, 0.5, delta=self.delta)
        _validate.one_of(ADJACENCIES, adjacency=self.adjacency)
        _validate.one_of(ACCOUNTANTS, accountant=self.accountant)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epsilon:
    """An epsilon with all that it needs to mean something.

    Attributes:
      value: the upper bound: what is claimed.
      lower: a lower bound on what the composition of the worst-case pairs spends (`pld`); None for `rdp`.
      delta: the failure probability.
      accountant: `rdp` or `pld`; `renyi filter` for a run that chose its noise as it went.
      adjacency: one of `ADJACENCIES`.
      sampling: in words.
      ledger: SHA-256 of the ledger that it is of.
      order: the Renyi order that gave it (`rdp`, and `pld` where it has no bound of its own), or that was
        fixed in advance (`renyi filter`).
      nominal: the run is not private; the number reproduces a published claim and bounds nothing.
      unit: what is protected: one example, user or the like.
      generator: what the error of the generator adds to `value` and `delta`; None where it is not known how
        many numbers were noised, and nothing is charged.
    """

    value: float
    lower: float | None
    delta: float
    accountant: str
    adjacency: str
    sampling: str
    ledger: str
    order: float | None = None
    nominal: bool = False
    generator: Charge | None = None
    unit: str = "example"

    @property
    def caveat(self) -> str:
        """What keeps the number from being as small as it could be; empty if nothing does."""
        if self.accountant == "pld" and self.order is not None:
            return "privacy loss distributions have no upper bound here: the value is by RDP"
        ends = (rdp.ORDERS[0], rdp.ORDERS[-1])
        if self.accountant == "rdp" and self.order in ends and 0 < self.value < math.inf:
            side = "larger" if self.order == rdp.ORDERS[-1] else "smaller"
            return f"the best order is the grid's last, {self.order:g}: a {side} one would be tighter"
        return ""

    def __str__(self):
        bracket = "" if self.lower is None else f" (not below {rounded(self.lower, up=False)})"
        label = "NOMINAL, not a privacy guarantee: " if self.nominal else ""
        caveat = f"; {self.caveat}" if self.caveat else ""
        unit = "" if self.unit == "example" else f", for one {self.unit}"
        charged = ("", "")
        if self.generator is not None and not self.nominal:
            charged = (f" + {self.generator.epsilon:.1e}", f" + {self.generator.delta:.1e}")
        return (
            f"{label}epsilon = {rounded(self.value)}{charged[0]}{bracket} at delta = {self.delta:g}{charged[1]}"
            f", {self.accountant.upper()}, {self.adjacency}, {self.sampling}{unit}{caveat}"
        )


def rounded(value: float, *, up: bool = True) -> str:
    """A bound in five significant digits, rounded to the side on which it still holds.

    >>> rounded(1.779951), rounded(1.779951, up=False), rounded(1.56e-5), rounded(133107.2)
    ('1.7800', '1.7799', '0.000015600', '133108')
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    exact = Decimal(value)
    digits = max(5, exact.adjusted() + 1)
    towards = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR)
    return f"{exact.normalize(towards):.{max(0, 4 - exact.adjusted())}f}"


def _refuse_adaptive(ledger: Ledger) -> None:
    if ledger.filter is not None:
        raise ValueError(
            "filter: the noise multipliers followed noised outputs, so their sum proves nothing; the claim is "
            "the filter's (jaxdp.accounting.filters.epsilon)"
        )


def _refuse_not_private(ledger: Ledger, nominal: bool) -> None:
    _refuse_adaptive(ledger)
    if not ledger.private and not nominal:
        raise ValueError(
            f"private=False: no epsilon holds for this run, only a nominal one: {' '.join(ledger.reasons)}"
        )


def _participation(entry: Entry, adjacency: str, window: slice = slice(None)) -> tuple[float, np.ndarray]:
    """Rate and noise multipliers of the subsampled Gaussian steps that a part of an entry amounts to."""
    kind = entry.sampling.kind
    if kind == "without_replacement" and adjacency != "replace_one":
        raise ValueError(
            f"adjacency={adjacency!r}: sampling without replacement is accounted under replace_one only"
        )
    if kind == "shuffled":
        if adjacency == "add_or_remove_one":
            raise ValueError(
                f"adjacency={adjacency!r}: in shuffled batches an added example displaces others;"
                " choose zero_out or replace_one"
            )
        return 1.0, epoch_minima(entry, window)
    return entry.sampling.rate, entry.sigmas()[window]


def runs(ledger: Ledger, adjacency: str, start: int = 0, stop: int | None = None) -> list[Steps]:
    """The distinct steps of a ledger, or of its steps `start .. stop - 1`, one `Steps` for each sampling
    rate and limit.

    Raises:
      ValueError: a sampling that has no theorem under this adjacency.
    """
    _refuse_adaptive(ledger)
    alike: dict[tuple[float, tuple[Part, ...]], list[tuple[np.ndarray, np.ndarray]]] = {}
    stop = ledger.steps if stop is None else stop
    for entry in ledger.entries:
        window = slice(max(start - entry.start, 0), max(min(stop, entry.stop) - entry.start, 0))
        if window.start < window.stop:
            if entry.sampling.kind in (
                "poisson",
                "truncated_poisson",
            ):  # however many there are, equal neighbours stand once
                rate, counted = entry.sampling.rate, entry.counted(start, stop)
            else:
                rate, sigmas = _participation(entry, adjacency, window)
                counted = np.unique(sigmas, return_counts=True)
            alike.setdefault((rate, parts(entry.sampling, adjacency)), []).append(counted)
    return [Steps(rate, *_distinct(counted), made) for (rate, made), counted in alike.items()]


def _distinct(counted: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Noise multipliers, ascending, and how often each occurs in all parts together."""
    sigmas, where = np.unique(np.concatenate([part[0] for part in counted]), return_inverse=True)
    counts = np.concatenate([part[1] for part in counted])
    return sigmas, np.bincount(where.ravel(), counts).astype(np.int64)


def _describe(ledger: Ledger) -> str:
    return "; ".join(dict.fromkeys(str(entry.sampling) for entry in ledger.entries)) or "no step"


def epsilon(
    ledger: Ledger, claim: Claim, *, tolerance: float = pld.TOLERANCE, nominal: bool = False
) -> Epsilon:
    """Epsilon of the steps in a ledger.

    Args:
      ledger: what was done, or is planned.
      claim: delta, adjacency and accountant: `pld` is tighter than `rdp` and has a lower bound.  Where delta is
        below what the rounding of a long composition is charged (2e-16 a step), `pld` has no upper bound of
        its own and gives that of RDP.
      tolerance: relative width of the bracket of `pld`.
      nominal: give the number that the noise multipliers would mean for a run that is not private, labelled
        so.

    Raises:
      ValueError: a run that is not private, or a combination without a theorem.

    Formal guarantee: unless nominal, the run is (value, delta)-differentially private for one unit under the
    adjacency, if its noise multipliers and sampling are what the ledger says; where noise is made by a
    generator, (value + generator.epsilon, delta + generator.delta): see `jaxdp.accounting.generator`.
    """
    _refuse_not_private(ledger, nominal)
    _validate.positive(tolerance=tolerance)
    delta, adjacency = claim.delta, claim.adjacency
    steps = runs(ledger, adjacency)
    common = dict(
        delta=delta,
        accountant=claim.accountant,
        adjacency=adjacency,
        sampling=_describe(ledger),
        ledger=ledger.sha256,
        nominal=not ledger.private,
        unit=ledger.unit,
    )
    if claim.accountant == "rdp":
        value, order = _renyi(ledger, steps, claim)
        return Epsilon(value=value, lower=None, order=order, generator=charge(ledger, value, delta), **common)
    fixed_size = all(entry.sampling.kind == "without_replacement" for entry in ledger.entries)
    bounds = pld.bounds(
        steps, delta, replace=adjacency == "replace_one", fixed_size=fixed_size, tolerance=tolerance
    )
    upper, order = (bounds.upper, None) if math.isfinite(bounds.upper) else _renyi(ledger, steps, claim)
    added = charge(ledger, upper, delta)
    return Epsilon(value=upper, lower=min(bounds.lower, upper), order=order, generator=added, **common)


def _renyi(ledger: Ledger, steps: list[Steps], claim: Claim) -> tuple[float, float]:
    """Epsilon by RDP and its order: `dp_accounting`'s where the steps are few, else confirmed by it.

    It has no theorem for Poisson sampling under replace-one, nor for truncated batches, and is not asked there.
    """
    distinct = sum(run.counts.size for run in steps)
    asked = claim.adjacency != "replace_one" and not any(run.parts for run in steps)
    total = sum((_composed(run, claim.adjacency) for run in steps), np.zeros(rdp.ORDERS.size))
    if asked and distinct <= _DISTINCT:
        # The larger at each order: rounding in a sum of logarithms can swallow a divergence.
        from jaxdp.accounting import events

        parts: Any = events.event_of(ledger).events
        total = np.maximum(total, sum(part.count * events.divergences(part.event) for part in parts))
    value, order = rdp.epsilon(total, claim.delta)
    if asked and distinct > _DISTINCT:
        if distinct <= _REFINED:
            best = int(np.searchsorted(rdp.ORDERS, order))
            orders = rdp.ORDERS[max(best - 1, 0) : best + 2]
            rows = [run.counts @ rdp.exact(run.sampling_rate, run.noise_multipliers, orders) for run in steps]
            value, order = rdp.epsilon(np.sum(rows, axis=0), claim.delta, orders)
        _confirm(steps, float(order))
    return float(value), float(order)


def _composed(run: Steps, adjacency: str) -> np.ndarray:
    """RDP of all steps at one rate, never below the truth: many noise multipliers by chords or in groups."""
    rate, sigmas, counts, made = run
    if counts.size > REMEMBERED and adjacency != "replace_one" and not made:
        return rdp.composed(rate, sigmas, counts)
    if counts.size > _GROUPS:  # a group counts with its least noise
        first = np.linspace(0, counts.size, _GROUPS, endpoint=False).astype(int)
        sigmas, counts = sigmas[first], np.add.reduceat(counts, first)
    return counts @ divergences(rate, sigmas, adjacency, parts=made)


def _confirm(steps: list[Steps], order: float) -> None:
    """Refuses sums whose terms `dp_accounting` does not confirm at a few of the run's own noise multipliers.

    Asked at the whole orders around the one that is used: there its sums are finite and end, and the moments
    in between follow, since their logarithm is convex in the order.
    """
    from jaxdp.accounting import events

    orders = np.unique(np.maximum([math.floor(order), math.ceil(order)], 2.0))
    for run in steps:
        few = run.noise_multipliers[np.unique([0, run.counts.size // 2, run.counts.size - 1])]
        for sigma, row in zip(few, rdp.exact(run.sampling_rate, few, orders), strict=True):
            theirs = events.divergences(events.poisson_event(run.sampling_rate, float(sigma)), tuple(orders))
            if not np.allclose(row * (orders - 1), theirs * (orders - 1), rtol=1e-6, atol=1e-11):
                raise ArithmeticError(
                    f"noise_multiplier={sigma:g}, sampling_rate={run.sampling_rate:g}: divergences {row} are "
                    f"not dp_accounting's {theirs} at the orders {orders}, so no epsilon is given"
                )


def equivalent_noise_multiplier(ledger: Ledger) -> float:
    """The root-mean-square rule (mean sigma^-2)^(-1/2): the constant that spends about the same."""
    with np.errstate(divide="ignore"):
        total = sum(float(n @ sigmas**-2.0) for sigmas, n in (entry.counted() for entry in ledger.entries))
    mean = total / max(ledger.steps, 1)
    return math.inf if mean == 0 else float(mean**-0.5)
