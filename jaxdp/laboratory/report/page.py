"""The report page: one HTML file made from records, with everything inside it."""

import html
import importlib.resources
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdp import atomic
from jaxdp import records as results
from jaxdp.laboratory.report import figures, findings, tables
from jaxdp.laboratory.report.figures import framed, label, swatch
from jaxdp.laboratory.report.findings import percent

_SHEET = importlib.resources.files("jaxdp.laboratory.report") / "report.css"

_STAGE_ORDER = (*results.STAGES, None)
_MOST_PICTURES = 6


def write(records: Sequence[Mapping], path: pathlib.Path) -> None:
    """Writes the page, whole or not at all.

    Raises:
      ValueError: no training record among the records.
      OSError: a folder that cannot be written.
    """
    atomic.write_text(pathlib.Path(path), page(records))


def page(records: Sequence[Mapping]) -> str:
    """The report as one HTML document that needs nothing beside itself.

    Raises:
      ValueError: no training record among them.
    """
    runs = results.of_kind(records, "train")
    if not runs:
        raise ValueError(f"records: none of the {len(records)} is of kind train; there is nothing to report")
    sections = (
        _header(records),
        _findings(records),
        _four_metrics(records),
        _curves(records),
        _attacks(records),
        _reconstructions(records),
        _noise(records),
        _knowledge(records),
        _statements(records),
        _footer(records),
    )
    style = _SHEET.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Privacy, utility, cost and resilience</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(section for section in sections if section)}</main>\n</body>\n</html>\n"
    )


def _text(value) -> str:
    return html.escape(str(value))


def _header(records) -> str:
    runs = results.of_kind(records, "train")

    def distinct(key):
        return ", ".join(dict.fromkeys(str(run["config"][key]) for run in runs if key in run["config"]))

    facts = {
        "data": distinct("data"),
        "model": distinct("model"),
        "variants": len(tables.variants(records)),
        "seeds": len({run["seed"] for run in runs}),
        "attacks": len(results.of_kind(records, "attack")),
        "made": max(record["created"] for record in records)[:10],
    }
    shown = "".join(f"<span>{name}: <b>{_text(value)}</b></span>" for name, value in facts.items() if value)
    return (
        "<header><h1>Training under gradient leakage</h1>"
        '<p class="soft">Every variant was trained, accounted for and attacked in the same way. '
        "Four metrics together say what protection it gives and what it costs.</p>"
        f'<div class="facts">{shown}</div></header>\n'
    )


def _findings(records) -> str:
    shown, not_shown = (
        "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
        for sentences in (findings.shown(records), findings.not_shown(records))
    )
    return (
        '<h2>In plain words</h2><div class="grid">'
        f'<section class="card"><h3>What this shows</h3><ul>{shown}</ul></section>'
        f'<section class="card"><h3>What it does not show</h3><ul>{not_shown}</ul></section></div>\n'
    )


def _badge(private: bool) -> str:
    return "" if private else '<span class="badge no">not private</span>'


def _name(variant: str, palette: Mapping[str, str], private: bool = True) -> str:
    return f"{swatch(palette[variant])}{_text(label(variant))}{_badge(private)}"


def _four_metrics(records) -> str:
    palette = figures.colours(tables.variants(records))
    body = []
    for row in tables.summary(records).to_dict("records"):
        interval = "" if np.isnan(row["low"]) else f"{100 * row['low']:.0f}–{100 * row['high']:.0f}"
        rate = row["examples_per_second"]
        cells = (
            _name(row["variant"], palette, row["private"]),
            _text(row["epsilon"]),
            tables.plus_minus(100 * row["accuracy"], 100 * row["accuracy_spread"], 1),
            tables.plus_minus(row["ms_per_step"], row["ms_spread"], 2),
            "–" if np.isnan(rate) else f"{rate:,.0f}",
            f"{percent(row['success'])} <small>{interval}</small>",
            *("–" if np.isnan(row[key]) else f"{row[key]:.{n}f}" for key, n in _ERRORS.items()),
        )
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return (
        '<h2>Four metrics</h2><div class="card scroll"><table><thead>'
        '<tr><th></th><th>Privacy</th><th>Utility</th><th colspan="2">Cost</th>'
        '<th colspan="4">Resilience</th></tr>'
        "<tr><th>variant</th><th>ε</th><th>test accuracy, %</th><th>ms / step</th><th>examples / s</th>"
        "<th>attack success</th><th>RMSE</th><th>PSNR, dB</th><th>SSIM</th></tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>\n{_settings(records)}"
    )


_ERRORS = {"rmse": 3, "psnr": 1, "ssim": 2}


def _settings(records) -> str:
    private = [run["privacy"] for run in results.of_kind(records, "train") if run["privacy"]["private"]]
    stated = dict.fromkeys(
        f"δ = {one['delta']:g}, {one['accountant']} accountant, {one['adjacency'].replace('_', ' ')}, "
        f"{one['sampling']}"
        for one in private
    )
    settings = f"ε holds for {_text('; or '.join(stated))}. " if stated else ""
    return (
        f'<p class="soft">{settings}Mean ± standard deviation over seeds, of ms / step over timings. '
        "Attack success is the share of images recognised by the strongest attack tried, with its 95 % "
        "interval, pooled over gradients that "
        "leaked <em>after</em> noise was added (without privacy: over all); errors are medians, and a larger "
        "error is better protection.</p>\n"
    )


def _curves(records) -> str:
    names = tables.variants(records)
    palette = figures.colours(names)
    legend = "".join(f"<li>{swatch(palette[name])}{_text(label(name))}</li>" for name in names)
    shown = "".join(
        (
            framed(
                figures.sigma_over_steps(records),
                "Noise over steps",
                "The noise multiplier σ(t) that the run used.",
            ),
            framed(
                figures.epsilon_over_steps(records),
                "Privacy spent over steps",
                "From the same σ(t). Variants that are not private have no ε and are not drawn.",
            ),
            framed(
                figures.accuracy_over_steps(records),
                "Accuracy over steps",
                "Mean over seeds; the band is one standard deviation.",
            ),
        )
    )
    if not shown:
        return ""
    return f'<h2>Along training</h2><ul class="legend">{legend}</ul><div class="grid three">{shown}</div>\n'


def _staged(records) -> list[Mapping]:
    return [attack for attack in results.of_kind(records, "attack") if attack["stage"] is not None]


def _attacks(records) -> str:
    """Success and error by variant, leak point and stage."""
    attacks, names = _staged(records), tables.variants(records)
    if not attacks:
        return ""
    palette = figures.colours(names)
    points = list(dict.fromkeys(attack["leak_point"] for attack in attacks))
    stages = [stage for stage in results.STAGES if any(attack["stage"] == stage for attack in attacks)]
    private = {row["variant"]: row["private"] for row in tables.summary(records).to_dict("records")}
    body = []
    for point in points:
        body.append(f'<tr class="group"><th colspan="{len(stages) + 1}">leaked: {_text(point)}</th></tr>')
        for name in names:
            own = [a for a in attacks if a["variant"] == name and a["leak_point"] == point]
            if own:
                cells = [_cell([a for a in own if a["stage"] == stage]) for stage in stages]
                body.append(f"<tr><td>{_name(name, palette, private[name])}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{stage}</th>" for stage in stages)
    return (
        "<h2>Attacks by leak point and stage of training</h2>"
        '<div class="card scroll"><table><thead class="plain">'
        f"<tr><th>variant</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>\n"
        '<p class="soft">Share of images recognised, its 95 % interval, and the median RMSE, of the '
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
    return f"<td>{percent(share['success'])} <small>{interval}</small> · {error}</td>"


def _reconstructions(records) -> str:
    """Originals beside what came back, a card a leak point, at the earliest stage that has pictures."""
    attacks = [attack for attack in _staged(records) if attack.get("images")]
    cards = []
    for point in dict.fromkeys(attack["leak_point"] for attack in attacks):
        own = sorted(
            (attack for attack in attacks if attack["leak_point"] == point),
            key=lambda attack: _STAGE_ORDER.index(attack["stage"]),
        )
        cards.append(_faces(records, point, own[0]["stage"], own))
    if not cards:
        return ""
    return f'<h2>What came back</h2><div class="grid">{"".join(cards)}</div>\n'


def _faces(records, point: str, stage: str, attacks) -> str:
    palette = figures.colours(tables.variants(records))
    rows, truth = [], None
    for variant in tables.variants(records):
        own = [attack for attack in attacks if attack["variant"] == variant and attack["stage"] == stage]
        own = tables.strongest(own)
        if not own:
            continue
        originals, found = (
            results.unpack_images(own[0]["images"][key])[:_MOST_PICTURES]
            for key in ("originals", "reconstructions")
        )
        if truth is None or not np.array_equal(truth, originals):
            truth = originals
            rows.append(figures.strip("<b>originals</b>", truth, "original", "truth"))
        error = own[0]["metrics"]["rmse"]
        title = f"{swatch(palette[variant])}{_text(label(variant))}"
        title += "" if error is None else f"<small>RMSE {error:.3f}</small>"
        rows.append(figures.strip(title, found, f"reconstruction, {label(variant)}"))
    return (
        f'<section><h3>{_text(point)}, {stage} in training</h3><div class="card scroll">'
        f'<table class="faces"><tbody>{"".join(rows)}</tbody></table></div></section>'
    )


def _noise(records) -> str:
    caption = (
        "Above: the share of images recognised, with its 95 % interval. Below: the median error; beyond the "
        "dashed line the attacker would do better to guess the mean image."
    )
    shown = framed(figures.success_over_noise(records), "Undefended gradients with growing noise", caption)
    return f'<h2>How much noise stops the attack</h2><div class="grid">{shown}</div>\n' if shown else ""


def _knowledge(records) -> str:
    granted: dict[str, list[str]] = {}
    for attack in results.of_kind(records, "attack"):
        known = attack["knowledge"]
        if isinstance(known, Mapping):
            known = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in known.items())
        granted.setdefault(attack["attack"], []).append(str(known))
    if not granted:
        return ""
    entries = ""
    for name, sentences in granted.items():
        different = list(dict.fromkeys(sentences))
        items = "".join(f"<li>{_text(sentence)}</li>" for sentence in different)
        entries += f"<details><summary>{_text(name)} ({len(different)})</summary><ul>{items}</ul></details>"
    return (
        "<h2>What the attacker knows</h2><p>An attack is as strong as what it is granted. The restart and "
        "the moment to stop are chosen by the attack's own objective, never by looking at the original.</p>"
        f'<div class="card">{entries}</div>\n'
    )


def _statements(records) -> str:
    palette = figures.colours(tables.variants(records))
    entries = ""
    for variant in tables.variants(records):
        runs = [run for run in results.of_kind(records, "train") if run["variant"] == variant]
        private = all(run["privacy"]["private"] for run in runs)
        badge = '<span class="badge yes">private</span>' if private else _badge(False)
        texts = dict.fromkeys(f"{run['privacy']['statement']}\n\nSeeds: {run['seed_policy']}" for run in runs)
        body = "".join(f"<pre>{_text(text)}</pre>" for text in texts)
        title = f"{swatch(palette[variant])}{_text(label(variant))}{badge}"
        entries += f"<details><summary>{title}</summary>{body}</details>"
    return f'<h2>Privacy statements</h2><div class="card">{entries}</div>\n'


def _footer(records) -> str:
    made_with = dict.fromkeys(_provenance(record["environment"]) for record in records)
    return f"<footer>{''.join(f'<p>{_text(line)}</p>' for line in made_with)}</footer>\n"


def _provenance(environment: Mapping) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in environment.get("versions", {}).items() if version
    )
    return (
        f"{versions}; Python {environment.get('python')}; {environment.get('device')}, "
        f"{environment.get('cores')} cores; source revision {environment.get('git') or 'unknown'}"
    )
