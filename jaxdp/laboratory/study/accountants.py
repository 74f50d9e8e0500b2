"""What schedules equal by RDP spend by privacy loss distributions, by which the study makes them equal."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxdp import accounting, calibration, schedules
from jaxdp.laboratory.study import published
from jaxdp.laboratory.study.trials import CLAIM, SETUPS, planned

EPSILONS = (0.5, 2.0, 8.0)


def equal_by_rdp() -> list[dict[str, Any]]:
    """Each schedule scaled to the same epsilon by RDP, over the runs of the study and the published ones."""
    lengths = {(setup.sampling_rate, setup.steps): None for setup in SETUPS.values()}
    options = dict(delta=CLAIM.delta, adjacency=CLAIM.adjacency)
    by_rdp = dataclasses.replace(CLAIM, accountant="rdp")
    rows = []
    for rate, steps in (*sorted(lengths), (published.RATE, published.STEPS)):
        for target in EPSILONS:
            for name in ("fixed", *schedules.DYNAMIC):
                ledger = calibration.calibrate(planned(name, rate, steps), target, by_rdp).ledger()
                spent = accounting.epsilon(ledger, CLAIM).value
                rows.append(
                    {
                        "sampling_rate": rate, "steps": steps, "schedule": name, "by_rdp": target,
                        "by_pld": spent, **options,
                    }
                )  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each length and epsilon: the epsilons by PLD, of the fixed schedule first."""
    cells: dict[tuple, list[str]] = {}
    for row in rows:
        key = (f"{row['sampling_rate']:g}", f"{row['steps']:,}", f"{row['by_rdp']:g}")
        cells.setdefault(key, []).append(f"{row['by_pld']:.3f}")
    return [(*key, *spent) for key, spent in cells.items()]
