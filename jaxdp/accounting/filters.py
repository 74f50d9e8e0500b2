"""A privacy filter: a budget that holds although the noise follows what was released.

Composition theorems add up privacy parameters that were fixed before the run.  Where the noise multiplier of
a step depends on noised outputs of earlier steps, the sum is itself random, and the theorems do not apply:
one may not compute epsilon from the noise multipliers that happened to be used.  A filter fixes the sum
instead: it admits a step only if the total stays within a budget chosen beforehand, whatever happens.

The one used here is the Renyi filter at one fixed order (Feldman & Zrnic, "Individual Privacy Accounting via a
Renyi Filter", NeurIPS 2021, arXiv 2008.11193; the notion is Rogers, Roth, Ullman & Vadhan's, 2016, arXiv
1605.08294; Whitehouse et al. 2023, arXiv 2203.05481, for other kinds).

**Theorem.**  Let step t be (a, rho_t)-RDP given all that was released before, with rho_t a function of what was
released before.  If sum_t rho_t <= B always, all releases together are (a, B)-RDP.

**Why.**  Let P, Q be the laws of the releases for neighbours, L_t = p_t / q_t the conditional likelihood ratio
of step t.  Under Q, M_t = prod_(s<=t) L_s^a exp(-(a - 1) rho_s) is a supermartingale: given the past rho_t is a
number, and E[L_t^a] <= exp((a - 1) rho_t) says that step t is (a, rho_t)-RDP.  So E[M_T] <= 1, and since
sum rho_t <= B, E[prod L_t^a] <= exp((a - 1) B); the same with P and Q exchanged.  A step that is not taken has
rho = 0, so the run may stop anywhere, for any reason that it can see.

**One order, fixed in advance.**  The theorem is for one a.  Taking the order that turns out best for the noise
multipliers that were used would make B itself depend on the outputs, for which nothing is proved; nor is the
analogue of this filter for whole privacy profiles (as `pld` computes them) valid.  So `create` chooses the
order before the first step, from the budget and a public guess of the noise, and nothing changes it after.

**Whole units.**  The budget is 2^30 units, and the cost of each noise multiplier is rounded up to whole units:
the account kept on the device is exact in int32, and what the host adds up from the ledger is the same number.
The rounding costs at most one unit a step: 1e-5 of the budget in 10,000 steps.
"""

import numpy as np
from jaxtyping import Float, Int

from jaxdp import _validate
from jaxdp.accounting import _epsilon as accounting
from jaxdp.accounting import rdp
from jaxdp.accounting.generator import charge
from jaxdp.accounting.ledger import Filter, Ledger

UNITS = 2**30
_SLACK = 1e-9  # relative error allowed for in a computed divergence
ACCOUNTANT = "renyi filter"


def conversion(order, delta: float):
    """epsilon - RDP at an order and delta (Canonne, Kamath & Steinke 2020, Proposition 12)."""
    return np.log1p(-1 / order) - np.log(delta * order) / (order - 1)


def create(
    epsilon: float, claim: accounting.Claim, *, sampling_rate: float, noise_multiplier: float
) -> Filter:
    """The filter for a budget (epsilon, delta), at the order that would admit most steps of a public guess.

    Args:
      epsilon: the budget of the whole run, and what it claims.
      claim: delta and adjacency; its accountant is not asked, a filter adds up Renyi divergences.
      sampling_rate: q of the guess; 1 for full batches.
      noise_multiplier: of the guess.  It decides the order and with it how far the budget goes; the guarantee
        holds whatever is used.

    Raises:
      ValueError: a budget that no order can turn into a positive amount of RDP.

    Formal guarantee: a run whose costs at the order stay within the budget is (epsilon, delta)-differentially
    private, by the theorem of this module and the conversion.
    """
    _validate.positive(budget_epsilon=epsilon)
    orders = rdp.ORDERS[rdp.ORDERS > 1.01]
    budgets = epsilon - conversion(orders, claim.delta)
    cost = accounting.divergences(sampling_rate, np.array([noise_multiplier]), claim.adjacency, orders)[0]
    steps = np.where(budgets > 0, budgets / cost, 0)
    best = int(np.argmax(steps))
    if steps[best] <= 0:
        raise ValueError(
            f"budget_epsilon={epsilon}, delta={claim.delta}: leaves nothing to spend at any order"
        )
    return Filter(
        order=float(orders[best]),
        budget=float(budgets[best]),
        epsilon=float(epsilon),
        delta=claim.delta,
        adjacency=claim.adjacency,
    )


def units(
    filter: Filter, sampling_rate: float, noise_multipliers: Float[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """What one step at each noise multiplier costs, in units rounded up; above `UNITS` if never admitted."""
    orders = np.array([filter.order])
    cost = accounting.divergences(sampling_rate, noise_multipliers, filter.adjacency, orders)[:, 0]
    share = np.minimum(cost / filter.budget * (1 + _SLACK), 2.0)
    return np.minimum(np.ceil(share * UNITS), UNITS + 1).astype(np.int64)


def spent(ledger: Ledger) -> int:
    """The units that the steps of a ledger cost under its filter.

    Raises:
      ValueError: no filter, or steps that it cannot charge for.
    """
    if ledger.filter is None:
        raise ValueError("filter=None: the ledger was not kept under a filter")
    total = 0
    for entry in ledger.entries:
        if entry.sampling.kind not in ("poisson", "full"):
            raise ValueError(
                f"sampling={entry.sampling.kind!r}: a filter charges for Poisson and full batches"
            )
        sigmas, steps = np.array(entry.noise_multipliers).T
        total += int(units(ledger.filter, entry.sampling.rate, sigmas) @ steps.astype(np.int64))
    return total


def epsilon(ledger: Ledger) -> accounting.Epsilon:
    """The claim of a run under a filter: the filter's budget, wherever it stopped.

    Raises:
      ValueError: no filter, a run that is not private, one that spent more than the filter admits, or a filter
        whose epsilon does not follow from its budget.

    Formal guarantee: the run is (epsilon, delta)-differentially private for one example, if the filter was
    fixed before the first step, the noise multipliers depended on noised outputs only, and they and the
    sampling are what the ledger says.
    """
    filter, total = ledger.filter, spent(ledger)
    assert filter is not None
    if not ledger.private:
        raise ValueError(f"private=False: no epsilon holds for this run: {' '.join(ledger.reasons)}")
    if filter.budget + conversion(filter.order, filter.delta) > filter.epsilon * (1 + 1e-9):
        raise ValueError(f"epsilon={filter.epsilon}: does not follow from a budget of {filter.budget:g}")
    if total > UNITS:
        raise ValueError(
            f"spent={total / UNITS:.6f} of the filter's budget: a step was taken that it did not admit"
        )
    return accounting.Epsilon(
        value=filter.epsilon,
        lower=None,
        delta=filter.delta,
        accountant=ACCOUNTANT,
        adjacency=filter.adjacency,
        sampling="; ".join(dict.fromkeys(str(entry.sampling) for entry in ledger.entries)),
        ledger=ledger.sha256,
        order=filter.order,
        generator=charge(ledger, filter.epsilon, filter.delta),
        unit=ledger.unit,
    )
