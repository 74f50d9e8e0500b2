"""The report page: one HTML file made from records, with everything inside it."""

import importlib.resources
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdp import atomic
from jaxdp.laboratory.records import of_kind
from jaxdp.laboratory.report import figures, findings, page_attacks, tables
from jaxdp.laboratory.report.elements import badge, named, table, text
from jaxdp.laboratory.report.figures import framed, label, swatch
from jaxdp.laboratory.report.findings import percent

_SHEET = importlib.resources.files("jaxdp.laboratory.report") / "report.css"


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
    runs = of_kind(records, "train")
    if not runs:
        raise ValueError(f"records: none of the {len(records)} is of kind train; there is nothing to report")
    subjects = tables.by_subject(records)
    sections = [_header(records)]
    for name, own in subjects.items():
        sections += [f'<h2 class="subject">{text(name)}</h2>\n'] if len(subjects) > 1 else []
        sections += _of_subject(own)
    sections.append(_footer(records))
    style = _SHEET.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Privacy, utility, cost and resilience</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _of_subject(records) -> list[str]:
    """The sections on one data set and model; attacks alone have no variants to compare."""
    of_attacks = [page_attacks.noise(records), page_attacks.knowledge(records)]
    if not of_kind(records, "train"):
        return of_attacks
    return [
        _findings(records),
        _four_metrics(records),
        _curves(records),
        page_attacks.by_leak_point(records),
        page_attacks.reconstructions(records),
        *of_attacks,
        _statements(records),
    ]


def _header(records) -> str:
    runs = of_kind(records, "train")

    def distinct(key):
        return ", ".join(dict.fromkeys(str(run["config"][key]) for run in runs if key in run["config"]))

    facts = {
        "data": distinct("data"),
        "model": distinct("model"),
        "variants": len(tables.variants(records)),
        "seeds": len({run["seed"] for run in runs}),
        "attacks": len(of_kind(records, "attack")),
        "made": max(record["created"] for record in records)[:10],
    }
    shown = "".join(f"<span>{name}: <b>{text(value)}</b></span>" for name, value in facts.items() if value)
    return (
        "<header><h1>Training under gradient leakage</h1>"
        '<p class="soft">Every variant was trained, accounted for and attacked in the same way. '
        "Four metrics together say what protection it gives and what it costs.</p>"
        f'<div class="facts">{shown}</div></header>\n'
    )


def _findings(records) -> str:
    shown, not_shown = (
        "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
        for sentences in (findings.shown(records), findings.not_shown(records))
    )
    return (
        '<h2>In plain words</h2><div class="grid">'
        f'<section class="card"><h3>What this shows</h3><ul>{shown}</ul></section>'
        f'<section class="card"><h3>What it does not show</h3><ul>{not_shown}</ul></section></div>\n'
    )


def _four_metrics(records) -> str:
    palette = figures.colours(tables.variants(records))
    body = []
    for row in tables.summary(records).to_dict("records"):
        interval = "" if np.isnan(row["low"]) else f"{100 * row['low']:.0f}–{100 * row['high']:.0f}"
        rate = row["examples_per_second"]
        cells = (
            named(row["variant"], palette, row["private"]),
            text(row["epsilon"]),
            tables.plus_minus(100 * row["accuracy"], 100 * row["accuracy_spread"], 1),
            tables.plus_minus(row["ms_per_step"], row["ms_spread"], 2),
            "–" if np.isnan(rate) else f"{rate:,.0f}",
            f"{percent(row['success'])} <small>{interval}</small>",
            *("–" if np.isnan(row[key]) else f"{row[key]:.{n}f}" for key, n in _ERRORS.items()),
        )
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return (
        "<h2>Four metrics</h2>"
        + table(f"{_FOUR}<tbody>{''.join(body)}</tbody>", "wide")
        + f"\n{_settings(records)}"
    )


_FOUR = (
    '<thead><tr><th></th><th>Privacy</th><th>Utility</th><th colspan="2">Cost</th>'
    '<th colspan="4">Resilience</th></tr>'
    "<tr><th>variant</th><th>ε</th><th>test accuracy, %</th><th>ms / step</th><th>examples / s</th>"
    "<th>attack success</th><th>RMSE</th><th>PSNR, dB</th><th>SSIM</th></tr></thead>"
)
_ERRORS = {"rmse": 3, "psnr": 1, "ssim": 2}


def _settings(records) -> str:
    private = [run["privacy"] for run in of_kind(records, "train") if run["privacy"]["private"]]
    stated = dict.fromkeys(
        f"δ = {one['delta']:g}, {one['accountant']} accountant, {one['adjacency'].replace('_', ' ')}, "
        f"{one['sampling']}"
        for one in private
    )
    settings = (
        f"ε holds for {text('; or '.join(stated))}{text(tables.checked_in_words(records))}. "
        if stated
        else ""
    )
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
    legend = "".join(f"<li>{swatch(palette[name])}{text(label(name))}</li>" for name in names)
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


def _statements(records) -> str:
    palette = figures.colours(tables.variants(records))
    entries = ""
    for variant in tables.variants(records):
        runs = [run for run in of_kind(records, "train") if run["variant"] == variant]
        private = all(run["privacy"]["private"] for run in runs)
        checked = all(run.get("ledger") is not None for run in runs)
        mark = badge("yes", "private") if checked else badge("open", "private, not checked")
        mark = mark if private else badge("no", "not private")
        texts = dict.fromkeys(f"{run['privacy']['statement']}\n\nSeeds: {run['seed_policy']}" for run in runs)
        body = "".join(f"<pre>{text(own)}</pre>" for own in texts)
        title = f"{swatch(palette[variant])}{text(label(variant))}{mark}"
        entries += f"<details><summary>{title}</summary>{body}</details>"
    return f'<h2>Privacy statements</h2><div class="card">{entries}</div>\n'


def _footer(records) -> str:
    made_with = dict.fromkeys(_provenance(record["environment"]) for record in records)
    return f"<footer>{''.join(f'<p>{text(line)}</p>' for line in made_with)}</footer>\n"


def _provenance(environment: Mapping) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in environment.get("versions", {}).items() if version
    )
    return (
        f"{versions}; Python {environment.get('python')}; {environment.get('device')}, "
        f"{environment.get('cores')} cores; source revision {environment.get('git') or 'unknown'}"
    )
