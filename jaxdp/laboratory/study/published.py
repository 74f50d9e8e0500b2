"""What accounting alone says: of the published comparison, and of schedules that are equal by RDP.

The published comparison (sigma 6 against 15 to 4.85, q = 0.01, 10,000 steps) compares variants of different
epsilon: here is what it is at equal epsilon.  Schedules equal by RDP spend different epsilons by privacy loss
distributions, by which the study makes them equal.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxdp import accounting, calibration, schedules
from jaxdp.accounting import reconstruction
from jaxdp.laboratory.study.setups import CLAIM, SETUPS, planned

STEPS, RATE, PRIOR = 10_000, 0.01, 0.1
EPSILONS = (0.5, 2.0, 8.0)  # at which accountants are compared
_BY_RDP = dataclasses.replace(CLAIM, accountant="rdp")


def published() -> list[dict[str, Any]]:
    """The published comparison, as published and at the epsilon of its fixed run: accounting alone."""
    target = accounting.epsilon(planned("fixed", RATE, STEPS).ledger(), _BY_RDP).value
    rows = []
    for name in ("fixed", *schedules.DYNAMIC):
        plan = planned(name, RATE, STEPS)
        scaled = calibration.calibrate(plan, target, _BY_RDP)
        for at, own in (("as published", plan), ("equal epsilon", scaled)):
            ledger = own.ledger()
            sigma = ledger.sigmas()
            rows.append(
                {
                    "schedule": name, "at": at, "steps": STEPS, "sampling_rate": RATE,
                    **dataclasses.asdict(_BY_RDP), "start": float(sigma[0]), "end": float(sigma[-1]),
                    "epsilon": accounting.epsilon(ledger, _BY_RDP).value,
                    "matched_constant": calibration.matched_constant(ledger, _BY_RDP),
                    "prior": PRIOR,
                    "bound": _window_bound(ledger, 0, STEPS),
                    "first": _window_bound(ledger, 0, STEPS // 10),
                    "last": _window_bound(ledger, STEPS * 9 // 10, STEPS),
                }
            )  # fmt: skip
    return rows


def _window_bound(ledger, start: int, stop: int) -> float:
    return reconstruction.bound(
        ledger, PRIOR, adjacency=CLAIM.adjacency, start=start, stop=stop, tolerance=1e-2
    )


def equal_by_rdp() -> list[dict[str, Any]]:
    """Each schedule scaled to the same epsilon by RDP, over the runs of the study and the published ones."""
    lengths = {(setup.sampling_rate, setup.steps): None for setup in SETUPS.values()}
    rows = []
    for rate, steps in (*sorted(lengths), (RATE, STEPS)):
        for target in EPSILONS:
            for name in ("fixed", *schedules.DYNAMIC):
                ledger = calibration.calibrate(planned(name, rate, steps), target, _BY_RDP).ledger()
                row = {"sampling_rate": rate, "steps": steps, "schedule": name, "by_rdp": target}
                row["by_pld"] = accounting.epsilon(ledger, CLAIM).value
                rows.append(row | {"delta": CLAIM.delta, "adjacency": CLAIM.adjacency})
    return rows


def accountants_table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each length and epsilon: the epsilons by PLD, of the fixed schedule first."""
    cells: dict[tuple, list[str]] = {}
    for row in rows:
        key = (f"{row['sampling_rate']:g}", f"{row['steps']:,}", f"{row['by_rdp']:g}")
        cells.setdefault(key, []).append(f"{row['by_pld']:.3f}")
    return [(*key, *spent) for key, spent in cells.items()]
