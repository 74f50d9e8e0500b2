"""The parts of the report that show attacks: their success, what came back, and what they were granted."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdp.laboratory.records import STAGES, of_kind, unpack_images
from jaxdp.laboratory.report import figures, tables
from jaxdp.laboratory.report.elements import folded, framed, named, strip, table, tagged, text, words
from jaxdp.laboratory.report.tables import number

_MOST_PICTURES = 6


def _staged(records) -> dict[str, list[Mapping]]:
    """The attacks along training by where gradients leaked: before noise was added, then after."""
    points: dict[str, list[Mapping]] = {}
    for attack in sorted(of_kind(records, "attack"), key=lambda attack: attack["noise_std"] > 0):
        if attack["stage"] is not None:
            points.setdefault(attack["leak_point"], []).append(attack)
    return points


def _of(attacks: Sequence[Mapping], **wanted) -> list[Mapping]:
    return [attack for attack in attacks if all(attack[key] == value for key, value in wanted.items())]


def _stages(attacks: Sequence[Mapping]) -> list[str]:
    return [stage for stage in STAGES if _of(attacks, stage=stage)]


def by_leak_point(records: Sequence[Mapping]) -> str:
    """Success and error by variant, leak point and stage."""
    points = _staged(records)
    every = [attack for attacks in points.values() for attack in attacks]
    if not every:
        return ""
    stages = _stages(every)
    private = {row["variant"]: row["private"] for row in tables.summary(records).to_dict("records")}
    body = ""
    for point, attacks in points.items():
        body += f'<tr class="group"><th colspan="{len(stages) + 1}">leaked: {text(point)}</th></tr>'
        for name in tables.variants(records):
            own = _of(attacks, variant=name)
            cells = (named(records, name, private[name]), *(_cell(_of(own, stage=s)) for s in stages))
            body += f"<tr>{tagged('td', cells)}</tr>" if own else ""
    head = f'<thead class="plain"><tr>{tagged("th", ("variant", *stages))}</tr></thead>'
    shown = table(f"{head}<tbody>{body}</tbody>", "stages")
    return words("by_leak_point", table=shown, threshold=_threshold(every))


def _threshold(attacks) -> str:
    stated = {attack["metrics"]["threshold"] for attack in attacks if attack["metrics"].get("threshold")}
    return f" Recognised: RMSE below {', '.join(f'{value:g}' for value in sorted(stated))}." if stated else ""


def _cell(attacks) -> str:
    if not attacks:
        return "–"
    found = tables.resilience(attacks)
    interval = f"{100 * found['low']:.0f}–{100 * found['high']:.0f}"
    success, error = number(100 * found["success"], ".0f", " %"), number(found["rmse"], ".3f")
    return f"<span>{success}</span> <small>{interval}</small> <span>{error}</span>"


def reconstructions(records: Sequence[Mapping]) -> str:
    """Originals beside what came back, a card a leak point: the earliest stage in sight, the others folded."""
    cards = []
    for point, attacks in _staged(records).items():
        own = [attack for attack in attacks if attack.get("images")]
        stages = _stages(own)
        if stages:
            first, *others = stages
            shown = {stage: _faces(records, _of(own, stage=stage)) for stage in stages}
            rest = "".join(folded(f"{stage} in training", shown[stage]) for stage in others)
            title = f"<h3>{text(point)}, {first} in training</h3>"
            cards.append(f"<section>{title}{shown[first]}{rest}</section>")
    return words("reconstructions", cards="".join(cards)) if cards else ""


def _faces(records, attacks) -> str:
    """The images of one leak point at one stage, a row a variant."""
    rows, truth = [], None
    for variant in tables.variants(records):
        own = _of(attacks, variant=variant)
        if not own:
            continue
        best = tables.strongest(own)[0]
        originals, found = (
            unpack_images(best["images"][key])[:_MOST_PICTURES] for key in ("originals", "reconstructions")
        )
        if truth is None or not np.array_equal(truth, originals):
            truth = originals
            rows.append(strip("<b>originals</b>", truth, "original", "truth"))
        error = best["metrics"]["rmse"]
        title = named(records, variant) + ("" if error is None else f"<small>RMSE {error:.3f}</small>")
        rows.append(strip(title, found, f"reconstruction, {figures.label(variant)}"))
    return table(f"<tbody>{''.join(rows)}</tbody>", "faces")


def noise(records: Sequence[Mapping]) -> str:
    """Success and error over growing noise on undefended gradients."""
    caption = (
        "Above: the share of images recognised, with its 95 % interval. Below: the median error; beyond the "
        "dashed line the attacker would do better to guess the mean image."
    )
    shown = framed(figures.success_over_noise(records), "Undefended gradients with growing noise", caption)
    return words("noise", figure=shown) if shown else ""


def knowledge(records: Sequence[Mapping]) -> str:
    """What each attack was granted, folded."""
    granted: dict[str, dict[str, None]] = {}
    for attack in of_kind(records, "attack"):
        known = attack["knowledge"]
        if isinstance(known, Mapping):
            known = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in known.items())
        granted.setdefault(attack["attack"], {})[str(known)] = None
    entries = (
        folded(f"{text(name)} ({len(known)})", f"<ul>{tagged('li', map(text, known))}</ul>")
        for name, known in granted.items()
    )
    return words("knowledge", entries="".join(entries)) if granted else ""
