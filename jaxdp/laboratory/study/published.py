"""The published comparison, which compares variants of different epsilon, and what it is at equal epsilon.

Accounting alone: sigma 6 against 15 to 4.85, q = 0.01, 10,000 steps.
"""

import dataclasses
from typing import Any

from jaxdp import accounting, calibration, schedules
from jaxdp.accounting import reconstruction
from jaxdp.laboratory.study.trials import CLAIM, planned

STEPS, RATE, PRIOR = 10_000, 0.01, 0.1


def published() -> list[dict[str, Any]]:
    """The published comparison, as published and at the epsilon of its fixed run: accounting alone."""
    claim = dataclasses.replace(CLAIM, accountant="rdp")
    options = dataclasses.asdict(claim)
    rows, target = [], None
    for name in ("fixed", *schedules.DYNAMIC):
        plan = planned(name, RATE, STEPS)
        spent = accounting.epsilon(plan.ledger(), claim).value
        target = spent if target is None else target
        scaled = calibration.calibrate(plan, target, claim)
        for at, own in (("as published", plan), ("equal epsilon", scaled)):
            ledger = own.ledger()
            sigma = ledger.sigmas()
            rows.append(
                {
                    "schedule": name, "at": at, "steps": STEPS, "sampling_rate": RATE,
                    **options, "start": float(sigma[0]), "end": float(sigma[-1]),
                    "epsilon": accounting.epsilon(ledger, claim).value,
                    "matched_constant": calibration.matched_constant(ledger, claim),
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
