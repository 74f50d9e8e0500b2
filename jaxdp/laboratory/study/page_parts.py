"""What the parts of the page of a study are made with, and its parts on accuracy, accounting and cost."""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxdp import atomic, schedules
from jaxdp.intervals import Interval, t_interval
from jaxdp.laboratory import texts
from jaxdp.laboratory.report import figures
from jaxdp.laboratory.report.tables import markdown
from jaxdp.laboratory.study import claims
from jaxdp.laboratory.study.claims import (
    Comparison,
    Row,
    accuracies,
    by_seed,
    cell,
    chosen_rates,
    difference,
    reported,
)
from jaxdp.laboratory.study.published import accountants_table
from jaxdp.laboratory.study.setups import PUBLISHED, SELECTION_SEED, VARIANTS

_words = texts.parts("jaxdp.laboratory.study", "page.md")
_OTHERS = ("scheduled_clip", "quantile", "l2_max")


def text(part: str, /, **values: Any) -> str:
    """A part of the page, its words from `page.md`."""
    return _words(part, **values) + "\n"


def grid(names: Iterable[str], columns: Mapping[str, Any], cell: Callable[[str, Any], str]) -> str:
    """A table with a row a variant: the cell of its name and of what each column's title stands for."""
    rows = [(name, *(cell(name, key) for key in columns.values())) for name in names]
    return markdown(("variant", *columns), rows)


def spread(found: Interval | Comparison | None, form: str = ".1f", times: float = 100) -> str:
    """An estimate with its interval, in percent or `times` as much; a dash where there is none."""
    interval = found.gain if isinstance(found, Comparison) else found
    if interval is None:
        return "–"
    middle, low, high = (f"{times * value:{form}}" for value in interval)
    return middle if math.isnan(interval.low) else f"{middle} [{low}, {high}]"


def p_value(p: float | None) -> str:
    """To three places."""
    return "–" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


@dataclasses.dataclass(frozen=True)
class Sources:
    """Figures beside the collected files that a page is made from.

    Attributes:
      folder: of the files.
      root: of the page, which names files from there.
    """

    folder: pathlib.Path
    root: pathlib.Path

    def draw(self, kind: str, curves: Mapping, title: str) -> str:
        """The figure as Markdown, its file written; nothing where there is nothing to draw."""
        curves = {name: own for name, own in curves.items() if own}
        svg = figures.intervals(curves, "dynamic - fixed, points")
        if not svg:
            return ""
        path = self.folder / f"{kind}.svg"
        atomic.write_text(path, figures.standalone(svg) + "\n")
        with contextlib.suppress(ValueError):
            path = path.resolve().relative_to(self.root.resolve())
        return f"{title}:\n\n![{title}]({path.as_posix()})\n"


def _finalists(rows) -> str:
    """How many learning rates were judged by all selection seeds."""
    judges = Counter(
        (row["variant"], row["target"], row["learning_rate"]) for row in rows if row["seed"] >= SELECTION_SEED
    )
    if not judges:
        return "–"
    most = max(judges.values())
    # Cells other than the first that was judged by all may be under way.
    first = next(judged[:2] for judged, count in judges.items() if count == most)
    counts = [count for judged, count in judges.items() if judged[:2] == first]
    return "all" if min(counts) == most else str(counts.count(most))


def setting(runs) -> str:
    """The section on what was trained, and at which learning rates."""
    rows = []
    for name, (head, found) in runs.items():
        s = head["settings"]
        rows.append(
            (
                name, s["model"] + (f" ({s['activation']})" if s["activation"] else ""), s["steps"],
                f"{s['sampling_rate']:g}",
                len({row["seed"] for row in reported(found)}),
                len({row["seed"] for row in found if row["seed"] >= SELECTION_SEED}),
                _finalists(found),
                ", ".join(f"{rate:g}" for rate in sorted({row["learning_rate"] for row in found})),
            )
        )  # fmt: skip
    header = (
        *("data", "model", "steps", "q", "seeds", "seeds to choose", "of the best"),
        "learning rates tried",
    )
    every = [
        variant for variant in VARIANTS if any(variant == v for _, f in runs.values() for v, _ in by_seed(f))
    ]
    rates = markdown(("data", *every), [(name, *_rates(found, every)) for name, (_, found) in runs.items()])
    return text("setting", table=markdown(header, rows), rates=rates)


def _rates(rows, variants: Sequence[str]) -> list[str]:
    """Of each variant the rates over its epsilons, once where all are the same."""
    chosen = chosen_rates(rows)
    ends = [end(row["learning_rate"] for row in rows) for end in (min, max)]
    found = []
    for variant in variants:
        own = [chosen[key] for key in (cell(variant, e) for e in claims.epsilons(rows)) if key in chosen]
        shown = [f"({rate:g})" if rate in ends else f"{rate:g}" for rate in own]
        found.append(", ".join(shown if len(set(shown)) > 1 else shown[:1]) or "–")
    return found


def accuracy(runs) -> str:
    """The section on accuracy: a table a data set, and the variants that are no schedule of sigma."""
    parts = [text("accuracy")]
    for name, (_, rows) in runs.items():
        found, every = accuracies(rows), {f"ε = {e:g}": e for e in claims.epsilons(rows)}

        def shown(variant: str, epsilon: float, rows=rows, found=found) -> str:
            own = found[variant].get(epsilon)
            if variant in ("non_private", "fixed") or own is None:
                return spread(own)
            gain = difference(rows, [((variant, epsilon), ("fixed", epsilon))])
            return f"{100 * own.estimate:.1f}, {spread(gain, '+.1f')}"

        if every:
            parts.append(f"### {name}\n\n{grid(found, every, shown)}")
    gains = {v: claims.family({n: claims.gain(rows, [v]) for n, (_, rows) in runs.items()}) for v in _OTHERS}

    def other(name: str, variant: str) -> str:
        one, p = gains[variant].get(name, (None, None))
        return f"{spread(one, '+.2f')}, p {p_value(p)}" if one else "–"

    if any(gains.values()):
        parts.append(text("variants", table=grid(runs, {v: v for v in _OTHERS}, other)))
    return "\n".join(parts)


def accountants(rows) -> str:
    """The section on schedules that are equal by RDP."""
    header = ("q", "steps", "ε by RDP", "fixed", *schedules.DYNAMIC)
    return text("accountants", table=markdown(header, accountants_table(rows))) if rows else ""


def cost(costs: pathlib.Path) -> str:
    """The section on time and memory, from the records of the benchmarks."""
    parts = [text("cost")]
    dynamic, memory = sorted(costs.glob("dynamic_*.json")), sorted(costs.glob("memory_*.json"))
    for path in dynamic:
        found: dict[tuple[str, str], dict[str, str]] = {}
        for r in json.loads(path.read_text())["records"]:
            found.setdefault((r["model"], r["kind"]), {})[r["schedule"]] = (
                f"{r['ratio_to_fixed']['median']:.4f}"
            )
        body = [(*key, *(own.get(name, "–") for name in schedules.DYNAMIC)) for key, own in found.items()]
        parts.append(f"Time over that of the fixed schedule, from `records/{path.name}`.\n")
        parts.append(markdown(("model", "what", *schedules.DYNAMIC), body))
    parts += [f"Memory: `records/{path.name}`, shown in [README.md](README.md).\n" for path in memory]
    parts += [
        f"There is no record of `python -m benchmarks {name}` yet, so this page says nothing of it.\n"
        for name, paths in (("dynamic", dynamic), ("memory", memory))
        if not paths
    ]
    return "\n".join(parts)


def published_comparison(rows: Sequence[Row], runs) -> str:
    """The section on the published comparison, as published and at equal epsilon."""
    if not rows:
        return ""
    header = (
        *("schedule", "compared", "sigma", "epsilon", "matched constant"),
        *("bound, run", "first tenth", "last tenth"),
    )
    body = [
        (
            r["schedule"], r["at"], f"{r['start']:.2f} to {r['end']:.2f}", f"{r['epsilon']:.4f}",
            *(f"{r[name]:.3f}" for name in ("matched_constant", "bound", "first", "last")),
        )
        for r in rows
    ]  # fmt: skip
    candidates = round(1 / rows[0]["prior"])
    parts = [text("published", table=markdown(header, body), candidates=candidates, **rows[0])]
    for name, (_, found) in runs.items():
        if any(variant in PUBLISHED for variant, _ in by_seed(found)):
            parts.append(text("trained_as_published", name=name, table=_trained_as_published(found)))
    return "\n".join(parts)


def _trained_as_published(found: Sequence[Row]) -> str:
    cells = by_seed(found)
    spent = {row["variant"]: row["epsilon"] for row in reported(found)}
    body = []
    for variant in (v for v in PUBLISHED if (v, None) in cells):
        kind, _, schedule = variant.partition("_")
        constant = (f"matched_{schedule}", None)
        gain = difference(found, [((variant, None), constant)]) if kind == "published" else None
        accuracy = t_interval(list(cells[variant, None].values()))
        body.append((variant, f"{spent[variant]:.4f}", spread(accuracy), spread(gain, "+.1f")))
    return markdown(("variant", "epsilon", "test accuracy, %", "over its matched constant"), body)
