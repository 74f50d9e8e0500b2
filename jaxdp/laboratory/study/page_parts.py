"""Parts of the page of a study that stand on their own: its cost, and the published comparison."""

import json
import math
import pathlib
from collections.abc import Sequence

from jaxdp.intervals import Interval, t_interval
from jaxdp.laboratory.report.tables import markdown
from jaxdp.laboratory.study.claims import Row, by_seed, difference, reported
from jaxdp.laboratory.study.collected import RUNS
from jaxdp.laboratory.study.setups import PUBLISHED

FROM = "From `{}`, by `jaxdp study report`."


def points(interval: Interval | None, sign: str = "") -> str:
    """A share in percent with its interval, or a difference in points with its sign."""
    if interval is None:
        return "–"
    low, middle, high = (100 * v for v in (interval.low, interval.estimate, interval.high))
    if math.isnan(low):
        return f"{middle:{sign}.1f}"
    return f"{middle:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def cost(costs: pathlib.Path) -> str:
    """The section on time and memory, from the records of the benchmarks."""
    parts = [
        "## (d) Cost\n\nThe runs of this study shared their cores with other work, so their times are no "
        "measurement and are not shown; these are.\n"
    ]
    dynamic, memory = sorted(costs.glob("dynamic_*.json")), sorted(costs.glob("memory_*.json"))
    for path in dynamic:
        rows = [
            (r["model"], r["kind"], r["schedule"], f"{r['ratio_to_fixed']['median']:.4f}", r["compilations"])
            for r in json.loads(path.read_text())["records"]
        ]
        parts.append(
            f"Time over that of the fixed schedule. From `records/{path.name}`, by `jaxdp study report`.\n"
        )
        parts.append(markdown(("model", "what", "schedule", "of fixed", "compilations"), rows))
    for path in memory:
        parts.append(f"Memory: `records/{path.name}`, shown in [README.md](README.md).\n")
    for name, paths in (("dynamic", dynamic), ("memory", memory)):
        if not paths:
            parts.append(
                f"There is no record of `python -m benchmarks {name}` yet, so this page says nothing of it.\n"
            )
    return "\n".join(parts)


def published_comparison(rows: Sequence[Row], runs, source: str) -> str:
    """The section on the published comparison, as published and at equal epsilon."""
    if not rows:
        return ""
    header = (
        "schedule",
        "compared",
        "sigma",
        "epsilon",
        "matched constant",
        "bound, run",
        "first tenth",
        "last tenth",
    )
    body = [
        (
            r["schedule"], r["at"], f"{r['start']:.2f} to {r['end']:.2f}", f"{r['epsilon']:.4f}",
            f"{r['matched_constant']:.3f}", *(f"{r[name]:.3f}" for name in ("bound", "first", "last")),
        )
        for r in rows
    ]  # fmt: skip
    one = rows[0]
    parts = [
        "## (e) The published comparison\n",
        f"Sigma 6 against 15 to 4.85, q = {one['sampling_rate']:g}, {one['steps']:,} steps, delta = "
        f"{one['delta']:g}, {one['accountant']} accountant, {one['adjacency']}: the variants do not spend "
        f"the same. `bound` is the largest success of guessing among {round(1 / one['prior'])} candidates "
        f"from the released sums. {FROM.format(source)}\n",
        markdown(header, body),
    ]
    for name, (_, found) in runs.items():
        cells = by_seed(found)
        if any(variant in PUBLISHED for variant, _ in cells):
            parts.append(_trained_as_published(name, found, cells))
    return "\n".join(parts)


def _trained_as_published(name: str, found, cells) -> str:
    spent = {row["variant"]: row["epsilon"] for row in reported(found)}
    body = []
    for variant in (v for v in PUBLISHED if (v, None) in cells):
        matched = f"matched_{variant.removeprefix('published_')}"
        gain = (
            difference(found, (variant, None), (matched, None)) if variant.startswith("published_") else None
        )
        accuracy = points(t_interval(list(cells[variant, None].values())))
        body.append((variant, f"{spent[variant]:.4f}", accuracy, points(gain, "+")))
    return (
        f"Trained on {name} with these sigmas over this study's steps: `published_X` as published, "
        "`matched_X` the constant that spends what X spends. "
        f"{FROM.format(f'experiments/{name}/{RUNS}')}\n\n"
        + markdown(("variant", "epsilon", "test accuracy, %", "over its matched constant"), body)
    )
