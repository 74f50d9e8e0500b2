"""The parts of the report that show attacks: their success, what came back, and what they were granted."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdp.laboratory.records import STAGES, of_kind, unpack_images
from jaxdp.laboratory.report import figures, tables
from jaxdp.laboratory.report.elements import named, table, text
from jaxdp.laboratory.report.figures import framed, label, swatch
from jaxdp.laboratory.report.findings import percent

_MOST_PICTURES = 6


def _staged(records) -> list[Mapping]:
    return [attack for attack in of_kind(records, "attack") if attack["stage"] is not None]


def _points(attacks) -> list[str]:
    """Where gradients leaked: before noise was added, then after."""
    return list(dict.fromkeys(a["leak_point"] for a in sorted(attacks, key=lambda a: a["noise_std"] > 0)))


def by_leak_point(records: Sequence[Mapping]) -> str:
    """Success and error by variant, leak point and stage."""
    attacks, names = _staged(records), tables.variants(records)
    if not attacks:
        return ""
    palette = figures.colours(names)
    stages = [stage for stage in STAGES if any(attack["stage"] == stage for attack in attacks)]
    private = {row["variant"]: row["private"] for row in tables.summary(records).to_dict("records")}
    body = []
    for point in _points(attacks):
        body.append(f'<tr class="group"><th colspan="{len(stages) + 1}">leaked: {text(point)}</th></tr>')
        for name in names:
            own = [a for a in attacks if a["variant"] == name and a["leak_point"] == point]
            if own:
                cells = [_cell([a for a in own if a["stage"] == stage]) for stage in stages]
                body.append(f"<tr><td>{named(name, palette, private[name])}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{stage}</th>" for stage in stages)
    return (
        "<h2>Attacks by leak point and stage of training</h2>"
        + table(
            f'<thead class="plain"><tr><th>variant</th>{head}</tr></thead><tbody>{"".join(body)}</tbody>',
            "stages",
        )
        + '\n<p class="soft">Share of images recognised, its 95 % interval, and the median RMSE, of the '
        f"strongest attack tried.{_threshold(attacks)}</p>\n"
    )


def _threshold(attacks) -> str:
    stated = {attack["metrics"]["threshold"] for attack in attacks if attack["metrics"].get("threshold")}
    return f" Recognised: RMSE below {', '.join(f'{value:g}' for value in sorted(stated))}." if stated else ""


def _cell(attacks) -> str:
    if not attacks:
        return "<td>–</td>"
    share = tables.resilience(attacks)
    interval = f"{100 * share['low']:.0f}–{100 * share['high']:.0f}"
    error = "–" if np.isnan(share["rmse"]) else f"{share['rmse']:.3f}"
    return f"<td><span>{percent(share['success'])}</span> <small>{interval}</small> <span>{error}</span></td>"


def reconstructions(records: Sequence[Mapping]) -> str:
    """Originals beside what came back, a card a leak point: the earliest stage in sight, the others folded."""
    attacks = [attack for attack in _staged(records) if attack.get("images")]
    cards = []
    for point in _points(attacks):
        own = [attack for attack in attacks if attack["leak_point"] == point]
        first, *others = [stage for stage in STAGES if any(attack["stage"] == stage for attack in own)]
        folded = "".join(
            f"<details><summary>{stage} in training</summary>{_faces(records, stage, own)}</details>"
            for stage in others
        )
        shown = f"<h3>{text(point)}, {first} in training</h3>{_faces(records, first, own)}"
        cards.append(f"<section>{shown}{folded}</section>")
    return f'<h2>What came back</h2><div class="grid">{"".join(cards)}</div>\n' if cards else ""


def _faces(records, stage: str, attacks) -> str:
    """The images of one leak point at one stage, a row a variant."""
    names = tables.variants(records)
    palette = figures.colours(names)
    rows, truth = [], None
    for variant in names:
        own = [attack for attack in attacks if attack["variant"] == variant and attack["stage"] == stage]
        if not own:
            continue
        best = tables.strongest(own)[0]
        originals, found = (
            unpack_images(best["images"][key])[:_MOST_PICTURES] for key in ("originals", "reconstructions")
        )
        if truth is None or not np.array_equal(truth, originals):
            truth = originals
            rows.append(figures.strip("<b>originals</b>", truth, "original", "truth"))
        error = best["metrics"]["rmse"]
        title = f"{swatch(palette[variant])}{text(label(variant))}"
        title += "" if error is None else f"<small>RMSE {error:.3f}</small>"
        rows.append(figures.strip(title, found, f"reconstruction, {label(variant)}"))
    return table(f"<tbody>{''.join(rows)}</tbody>", "faces")


def noise(records: Sequence[Mapping]) -> str:
    """Success and error over growing noise on undefended gradients."""
    caption = (
        "Above: the share of images recognised, with its 95 % interval. Below: the median error; beyond the "
        "dashed line the attacker would do better to guess the mean image."
    )
    shown = framed(figures.success_over_noise(records), "Undefended gradients with growing noise", caption)
    return f'<h2>How much noise stops the attack</h2><div class="grid">{shown}</div>\n' if shown else ""


def knowledge(records: Sequence[Mapping]) -> str:
    """What each attack was granted, folded."""
    granted: dict[str, list[str]] = {}
    for attack in of_kind(records, "attack"):
        known = attack["knowledge"]
        if isinstance(known, Mapping):
            known = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in known.items())
        granted.setdefault(attack["attack"], []).append(str(known))
    if not granted:
        return ""
    entries = ""
    for name, sentences in granted.items():
        different = list(dict.fromkeys(sentences))
        items = "".join(f"<li>{text(sentence)}</li>" for sentence in different)
        entries += f"<details><summary>{text(name)} ({len(different)})</summary><ul>{items}</ul></details>"
    return (
        "<h2>What the attacker knows</h2><p>An attack is as strong as what it is granted. The restart and "
        "the moment to stop are chosen by the attack's own objective, never by looking at the original.</p>"
        f'<div class="card">{entries}</div>\n'
    )
