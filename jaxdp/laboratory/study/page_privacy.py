"""Parts of the page of a study: what runs of equal epsilon give away, by their recorded schedules."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdp import schedules
from jaxdp.accounting import pld, reconstruction
from jaxdp.laboratory.report.tables import markdown
from jaxdp.laboratory.study import claims
from jaxdp.laboratory.study.attacks import PRIOR
from jaxdp.laboratory.study.claims import INFORMED, Row, reported
from jaxdp.laboratory.study.page_parts import text
from jaxdp.laboratory.study.setups import CLAIM, planned

COMPARED = ("fixed", *schedules.DYNAMIC)
EPSILONS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # at which delta is shown
AT = 2.0  # epsilon of the runs whose mu and delta are shown first
_DETAILED = "mnist"
_TOLERANCE = 1e-2


def mus(head: Mapping[str, Any], rows: Sequence[Row]) -> dict[tuple[str, float], float]:
    """(schedule, epsilon) -> mu by the central limit theorem (Bu & others 2020, arXiv 1911.11607)."""
    settings, found = head["settings"], {}
    for name, epsilon, scale in _scales(rows):
        sigma = scale * schedules.values(schedules.create(name, settings["steps"]), settings["steps"])
        found[name, epsilon] = settings["sampling_rate"] * float(np.sqrt(np.expm1(sigma**-2.0).sum()))
    return found


def _scales(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Schedule, epsilon and scale of the runs, each once."""
    own = [row for row in reported(rows) if row["variant"] in COMPARED]
    return list(dict.fromkeys((row["variant"], row["target"], row["scale"]) for row in own))


def at_one_epsilon(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """mu of the dynamic schedules and of the fixed one."""
    found = {name: value for (name, epsilon), value in mus(head, rows).items() if epsilon == AT}
    dynamic = sorted(found[name] for name in schedules.DYNAMIC if name in found)
    if not dynamic or "fixed" not in found:
        return "–"
    return f"{dynamic[0]:.3f} to {dynamic[-1]:.3f} / {found['fixed']:.3f}"


def unequal(runs) -> str:
    """delta(epsilon) of the schedules on one data set at one epsilon."""
    if _DETAILED not in runs:
        return ""
    head, rows = runs[_DETAILED]
    settings, found, body = head["settings"], mus(head, rows), []
    rate, steps = settings["sampling_rate"], settings["steps"]
    for name, epsilon, scale in _scales(rows):
        if epsilon == AT:
            plan = planned(name, rate, steps)
            sigma = schedules.scaled(schedules.create(name, steps), scale)
            ledger = dataclasses.replace(plan, noise_multiplier=sigma).ledger()
            curve = reconstruction.curve(ledger, CLAIM.adjacency, tolerance=_TOLERANCE)
            assert isinstance(curve, pld.Divergence)
            shown = (f"{delta:.1e}" for delta in curve.deltas(np.asarray(EPSILONS)))
            bound = 100 * reconstruction.of_curve(curve, PRIOR)
            body.append((name, *shown, f"{found[name, epsilon]:.3f}", f"{bound:.1f}"))
    body.sort(key=lambda row: COMPARED.index(row[0]))
    return text(
        "unequal", name=_DETAILED, rate=rate, steps=steps, epsilon=AT, delta=head["delta"],
        table=markdown(("schedule", *(f"ε = {e:g}" for e in EPSILONS), "mu", "bound"), body),
    )  # fmt: skip


def every_cell(runs, attacks) -> str:
    """The section on mu and the reconstruction bound; attacks by data set."""
    every = sorted({e for _, rows in runs.values() for e in claims.epsilons(rows)})
    body = []
    for name, (head, rows) in runs.items():
        bounds = {
            (row["variant"], row["target"]): f"{100 * row['bound']:.1f}"
            for row in attacks[name][1]
            if row["attack"] == INFORMED and row["stage"] is None and row["bound"] is not None
        }
        found = mus(head, rows)
        for variant in COMPARED:
            own = {e: found.get((variant, e)) for e in every}
            shown = [f"{v:.3f} / {bounds.get((variant, e), '–')}" if v else "–" for e, v in own.items()]
            body.append((name, variant, *shown))
    return text("privacy", table=markdown(("data", "schedule", *(f"ε = {e:g}" for e in every)), body))
