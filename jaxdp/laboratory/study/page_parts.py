"""What the parts of the page of a study are made with, and its parts that stand on their own."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxdp import atomic
from jaxdp.intervals import Interval, t_interval
from jaxdp.laboratory import texts
from jaxdp.laboratory.report import figures
from jaxdp.laboratory.report.tables import markdown
from jaxdp.laboratory.study.claims import Row, by_seed, difference, reported
from jaxdp.laboratory.study.collected import ATTACKS, PUBLISHED_FILE, RUNS
from jaxdp.laboratory.study.setups import PUBLISHED

_words = texts.parts("jaxdp.laboratory.study", "page.md")


def text(part: str, /, **values: Any) -> str:
    """A part of the page, its words from `page.md`."""
    return _words(part, **values) + "\n"


def grid(names: Iterable[str], columns: Mapping[str, Any], cell: Callable[[str, Any], str]) -> str:
    """A table with a row a variant: the cell of its name and of what each column's title stands for."""
    rows = [(name, *(cell(name, key) for key in columns.values())) for name in names]
    return markdown(("variant", *columns), rows)


def spread(interval: Interval | None, form: str = ".1f", times: float = 100) -> str:
    """An estimate with its interval, in percent or `times` as much; a dash where there is none."""
    if interval is None:
        return "–"
    middle, low, high = (f"{times * value:{form}}" for value in interval)
    return middle if math.isnan(interval.low) else f"{middle} [{low}, {high}]"


@dataclasses.dataclass(frozen=True)
class Sources:
    """The collected files that a page is made from, and figures that go beside them.

    Attributes:
      folder: of the files.
      root: of the page, which names files from there.
    """

    folder: pathlib.Path
    root: pathlib.Path

    def where(self, *parts: str) -> str:
        """A file as the page names it."""
        path = self.folder.joinpath(*parts)
        try:
            return path.resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError:
            return path.as_posix()

    def stated(self, *parts: str) -> str:
        """The sentence that says where numbers are from."""
        return f"From `{self.where(*parts)}`, by `jaxdp study report`."

    def draw(self, name: str, kind: str, curves: Mapping, ylabel: str, xlabel: str = "ε") -> str:
        """The figure as Markdown, its file written; nothing where there is nothing to draw."""
        svg = figures.intervals(curves, ylabel, xlabel)
        if not svg:
            return ""
        atomic.write_text(self.folder / name / f"{kind}.svg", figures.standalone(svg) + "\n")
        shown = f"![{ylabel} over {xlabel}, {name}]({self.where(name, f'{kind}.svg')})"
        return f"{shown}\n\n{self.stated(name, RUNS if kind == 'accuracy' else ATTACKS)}\n"


def cost(costs: pathlib.Path) -> str:
    """The section on time and memory, from the records of the benchmarks."""
    parts = [text("cost")]
    dynamic, memory = sorted(costs.glob("dynamic_*.json")), sorted(costs.glob("memory_*.json"))
    for path in dynamic:
        rows = [
            (r["model"], r["kind"], r["schedule"], f"{r['ratio_to_fixed']['median']:.4f}", r["compilations"])
            for r in json.loads(path.read_text())["records"]
        ]
        stated = f"From `records/{path.name}`, by `jaxdp study report`."
        parts.append(f"Time over that of the fixed schedule. {stated}\n")
        parts.append(markdown(("model", "what", "schedule", "of fixed", "compilations"), rows))
    parts += [f"Memory: `records/{path.name}`, shown in [README.md](README.md).\n" for path in memory]
    parts += [
        f"There is no record of `python -m benchmarks {name}` yet, so this page says nothing of it.\n"
        for name, paths in (("dynamic", dynamic), ("memory", memory))
        if not paths
    ]
    return "\n".join(parts)


def published_comparison(rows: Sequence[Row], runs, sources: Sources) -> str:
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
    facts = {"candidates": round(1 / rows[0]["prior"]), "source": sources.stated(PUBLISHED_FILE)}
    parts = [text("published", table=markdown(header, body), **facts, **rows[0])]
    for name, (_, found) in runs.items():
        if any(variant in PUBLISHED for variant, _ in by_seed(found)):
            table = _trained_as_published(found)
            parts.append(
                text("trained_as_published", name=name, source=sources.stated(name, RUNS), table=table)
            )
    return "\n".join(parts)


def _trained_as_published(found: Sequence[Row]) -> str:
    cells = by_seed(found)
    spent = {row["variant"]: row["epsilon"] for row in reported(found)}
    body = []
    for variant in (v for v in PUBLISHED if (v, None) in cells):
        kind, _, schedule = variant.partition("_")
        constant = (f"matched_{schedule}", None)
        gain = difference(found, (variant, None), constant) if kind == "published" else None
        accuracy = t_interval(list(cells[variant, None].values()))
        body.append((variant, f"{spent[variant]:.4f}", spread(accuracy), spread(gain, "+.1f")))
    return markdown(("variant", "epsilon", "test accuracy, %", "over its matched constant"), body)
