"""Parts of the page of a study: what adversaries made of its runs."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdp import schedules
from jaxdp.laboratory.report.tables import markdown
from jaxdp.laboratory.study import claims
from jaxdp.laboratory.study.claims import INFORMED, STAGES, Row, behind_noise, errors, failed, share
from jaxdp.laboratory.study.page_parts import p_value, spread, text
from jaxdp.laboratory.study.setups import VARIANTS

_NAMES = {stage: stage or "whole run" for stage in STAGES}
_POINTS = ("noised", "noised batch")


def adversary(attacks) -> str:
    """The section on the informed adversary, beside the reconstruction bound; attacks by data set."""
    rows = [row for _, found in attacks.values() for row in found if row["attack"] == INFORMED]
    if not rows:
        return ""
    family = claims.family({stage: claims.by_data_set(attacks, stage) for stage in STAGES})
    sets = {
        (name, stage): one
        for stage in STAGES
        for name, pairs in claims.informed(attacks, stage).items()
        if (one := claims.by_set(pairs)) is not None
    }
    named = dict.fromkeys(name for name, _ in sets)
    body = []
    for stage in STAGES:
        one, p = family.get(stage, (None, None))
        each = (sets.get((name, stage)) for name in named)
        body.append(
            (
                _NAMES[stage], spread(one, "+.1f"), p_value(p),
                f"{100 * one.detectable:.1f}" if one else "–",
                *(spread(own, "+.1f") for own in each),
            )
        )  # fmt: skip
    bounded = [row for row in rows if row["bound"] is not None]
    return text(
        "adversary", table=markdown(("stage", "dynamic - fixed", "p", "detectable", *named), body),
        units="; of one data set they are the sets of candidates" if named else "",
        over=sum(row["success"][1] > row["bound"] for row in bounded), of=len(bounded),
        successes=_successes(attacks),
    )  # fmt: skip


def _successes(attacks) -> str:
    body = []
    for name, (_, found) in attacks.items():
        for variant in VARIANTS:
            own = [row for row in found if (row["attack"], row["variant"]) == (INFORMED, variant)]
            if own:
                body.append((name, variant, *(_beside_bound(own, stage) for stage in STAGES)))
    return markdown(("data", "variant", *_NAMES.values()), body)


def _beside_bound(rows: Sequence[Row], stage: str | None) -> str:
    own = [row for row in rows if row["stage"] == stage]
    if not own:
        return "–"
    bounds = [row["bound"] for row in own if row["bound"] is not None]
    return f"{100 * np.mean([*map(share, own)]):.1f} / {f'{100 * np.mean(bounds):.1f}' if bounds else 'none'}"


def images(attacks) -> str:
    """The section on the attack on images; attacks by data set."""
    rows = {name: [row for row in found if row["attack"] != INFORMED] for name, (_, found) in attacks.items()}
    rows = {name: own for name, own in rows.items() if own}
    if not rows:
        return ""
    keys = [(name, point, stage) for name in rows for point in _POINTS for stage in STAGES[:3]]
    made = {(n, p, s): claims.reconstructions(rows[n], s, p) for n, p, s in keys}
    family = claims.family({key: one for key, (one, _, _) in made.items()})
    body = []
    for name, point in itertools.product(rows, _POINTS):
        shown = []
        for stage in STAGES[:3]:
            _, out, of = made[name, point, stage]
            one, p = family.get((name, point, stage), (None, None))
            left = f"; {out} of {of} pairs left out" if out else ""
            shown.append(
                f"{spread(one, '+.3f', 1)}, p {p_value(p)}, {one.units} gradients{left}"
                if one
                else f"none{left}"
            )
        body.append((name, point, *shown))
    header = ("data", "what leaked", *STAGES[:3])
    medians = markdown((*header[:2], "noise", *header[2:]), _medians(rows))
    return text("images", comparisons=markdown(header, body), medians=medians)


def _medians(rows) -> list[tuple[Any, ...]]:
    body = []
    for name, own in rows.items():
        for point, level in dict.fromkeys((row["leak_point"], row.get("level")) for row in own):
            here = [row for row in own if (row["leak_point"], row.get("level")) == (point, level)]
            cells = (_median([row for row in here if row["stage"] == stage]) for stage in STAGES[:3])
            body.append((name, point, "none" if level is None else f"{level:g} C", *cells))
    return body


def _median(rows: Sequence[Row]) -> str:
    """Of the fixed schedule and of the dynamic ones, and how many of all variants' attacks failed."""
    found = {row["variant"]: float(np.median(errors(row))) for row in rows}
    dynamic = sorted(found[name] for name in schedules.DYNAMIC if name in found)
    shown = [f"{found['fixed']:.3f}"] if "fixed" in found else []
    shown += [f"{dynamic[0]:.3f} to {dynamic[-1]:.3f}"] if dynamic else []
    failures = sum(map(failed, filter(behind_noise, rows)))
    return "; ".join([*shown, *([f"{failures} of {len(rows)} failed"] if failures else [])]) or "–"
