"""The report page: one HTML file made from records, with everything inside it."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdp import atomic
from jaxdp.laboratory.records import of_kind
from jaxdp.laboratory.report import figures, findings, page_attacks, tables
from jaxdp.laboratory.report.elements import badge, folded, framed, named, table, tagged, text, words
from jaxdp.laboratory.report.tables import number

_ERRORS = {"rmse": 3, "psnr": 1, "ssim": 2}
_FIGURES = (
    (figures.sigma_over_steps, "Noise over steps", "The noise multiplier σ(t) that the run used."),
    (
        figures.epsilon_over_steps,
        "Privacy spent over steps",
        "From the same σ(t). Variants that are not private have no ε and are not drawn.",
    ),
    (
        figures.accuracy_over_steps,
        "Accuracy over steps",
        "Mean over seeds; the band is one standard deviation.",
    ),
)


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
        sections += [f'<h2 class="subject">{text(name)}</h2>'] if len(subjects) > 1 else []
        sections += _of_subject(own)
    sections.append(_footer(records))
    style = figures.SHEET.read_text(encoding="utf-8")
    return words("document", style=style, sections="\n".join(filter(None, sections))) + "\n"


def _of_subject(records) -> list[str]:
    """The sections on one data set and model; attacks alone have no variants to compare."""
    of_attacks = [page_attacks.noise(records), page_attacks.knowledge(records)]
    if not of_kind(records, "train"):
        return of_attacks
    shown, not_shown = (
        tagged("li", map(text, sentences(records))) for sentences in (findings.shown, findings.not_shown)
    )
    return [
        words("findings", shown=shown, not_shown=not_shown),
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
    shown = (f"{name}: <b>{text(value)}</b>" for name, value in facts.items() if value)
    return words("header", facts=tagged("span", shown))


def _four_metrics(records) -> str:
    rows = [_metrics(records, row) for row in tables.summary(records).to_dict("records")]
    content = words("four_metrics_table", rows=tagged("tr", rows))
    return words("four_metrics", table=table(content, "wide"), settings=_settings(records))


def _metrics(records, row: Mapping) -> str:
    interval = "" if np.isnan(row["low"]) else f"{100 * row['low']:.0f}–{100 * row['high']:.0f}"
    cells = (
        named(records, row["variant"], row["private"]),
        text(row["epsilon"]),
        tables.plus_minus(100 * row["accuracy"], 100 * row["accuracy_spread"], 1),
        tables.plus_minus(row["ms_per_step"], row["ms_spread"], 2),
        number(row["examples_per_second"], ",.0f"),
        f"{number(100 * row['success'], '.0f', ' %')} <small>{interval}</small>",
        *(number(row[key], f".{digits}f") for key, digits in _ERRORS.items()),
    )
    return tagged("td", cells)


def _settings(records) -> str:
    private = [run["privacy"] for run in of_kind(records, "train") if run["privacy"]["private"]]
    stated = dict.fromkeys(
        f"δ = {one['delta']:g}, {one['accountant']} accountant, {one['adjacency'].replace('_', ' ')}, "
        f"{one['sampling']}"
        for one in private
    )
    if not stated:
        return ""
    return f"ε holds for {text('; or '.join(stated))}{text(tables.checked_in_words(records))}. "


def _curves(records) -> str:
    shown = "".join(framed(draw(records), title, caption) for draw, title, caption in _FIGURES)
    legend = tagged("li", (named(records, variant) for variant in tables.variants(records)))
    return words("curves", legend=legend, figures=shown) if shown else ""


def _statements(records) -> str:
    entries = ""
    for variant in tables.variants(records):
        runs = [run for run in of_kind(records, "train") if run["variant"] == variant]
        if not all(run["privacy"]["private"] for run in runs):
            mark = badge("no", "not private")
        elif all(run.get("ledger") is not None for run in runs):
            mark = badge("yes", "private")
        else:
            mark = badge("open", "private, not checked")
        stated = dict.fromkeys(
            f"{run['privacy']['statement']}\n\nSeeds: {run['seed_policy']}" for run in runs
        )
        entries += folded(named(records, variant) + mark, tagged("pre", map(text, stated)))
    return words("statements", entries=entries)


def _footer(records) -> str:
    made_with = dict.fromkeys(_provenance(record["environment"]) for record in records)
    return f"<footer>{tagged('p', map(text, made_with))}</footer>"


def _provenance(environment: Mapping) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in environment.get("versions", {}).items() if version
    )
    return (
        f"{versions}; Python {environment.get('python')}; {environment.get('device')}, "
        f"{environment.get('cores')} cores; source revision {environment.get('git') or 'unknown'}"
    )
