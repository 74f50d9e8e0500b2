"""The page of a study, Markdown with figures beside it, made from its collected files alone."""

import pathlib
from collections import Counter
from collections.abc import Sequence

from jaxdp import atomic, schedules
from jaxdp.laboratory.report.tables import markdown
from jaxdp.laboratory.study.claims import (
    INFORMED,
    Claim,
    accuracies,
    by_seed,
    cell,
    chosen_rates,
    claims,
    difference,
    reported,
)
from jaxdp.laboratory.study.collected import ACCOUNTANTS, ATTACKS, PUBLISHED_FILE, RUNS, read
from jaxdp.laboratory.study.page_attacks import adversary, images
from jaxdp.laboratory.study.page_parts import Sources, cost, grid, published_comparison, spread, text
from jaxdp.laboratory.study.published import accountants_table
from jaxdp.laboratory.study.setups import SELECTION_SEED, SETUPS, VARIANTS

_SIDES = {
    True: "Speaks for dynamic parameters",
    False: "Speaks against them, or explains their gain otherwise",
    None: "Mixed, or decides nothing",
}


def write(records: pathlib.Path, costs: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the page, from the collected files, to which figures are added, and the records of costs.

    Raises:
      FileNotFoundError: no collected file.
      ValueError: a file that is none.
    """
    runs = {name: read(records / name / RUNS) for name in SETUPS if (records / name / RUNS).exists()}
    if not runs:
        raise FileNotFoundError(f"records={records}: no collected study in it")
    attacks = {name: read(records / name / ATTACKS) for name in runs}
    (_, published), (_, accounted) = (read(records / name) for name in (PUBLISHED_FILE, ACCOUNTANTS))
    sources = Sources(records, output.parent)
    parts = [
        text("head"),
        _says(claims(runs, attacks, published)),
        _setting(runs),
        _accountants(accounted, sources),
        _accuracy(runs, sources),
        adversary(attacks, sources),
        images(attacks, sources),
        cost(costs),
        published_comparison(published, runs, sources),
        _missing(runs, attacks),
    ]
    atomic.write_text(output, "\n".join(filter(None, parts)))


def _says(made: Sequence[Claim]) -> str:
    sides = {title: [c.sentence for c in made if c.supports is side] for side, title in _SIDES.items()}
    listed = [f"**{title}.**\n\n{_listed(own)}" for title, own in sides.items() if own]
    return "\n".join([text("says"), *listed])


def _listed(sentences: Sequence[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)


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


def _setting(runs) -> str:
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
    head, _ = next(iter(runs.values()))
    return text("setting", table=markdown(header, rows), **head)


def _accountants(rows, sources: Sources) -> str:
    if not rows:
        return ""
    header = ("q", "steps", "ε by RDP", "fixed", *schedules.DYNAMIC)
    table = markdown(header, accountants_table(rows))
    return text("accountants", source=sources.stated(ACCOUNTANTS), table=table)


def _accuracy(runs, sources: Sources) -> str:
    parts = ["## (a) Accuracy at equal epsilon\n"]
    for name, (_, rows) in runs.items():
        found = accuracies(rows)
        columns = {f"ε = {e:g}": e for e in sorted({e for own in found.values() for e in own})}
        if columns:
            part = text(
                "accuracy", name=name, source=sources.stated(name, RUNS),
                accuracies=grid(found, columns, lambda v, e, found=found: spread(found[v].get(e))),
                differences=_differences(rows, [variant for variant in found if variant != "fixed"], columns),
                rates=_rates(rows, list(found), columns),
                figure=sources.draw(name, "accuracy", found, "test accuracy"),
            )  # fmt: skip
            parts.append(part)
    return "\n".join(parts)


def _rates(rows, variants: Sequence[str], columns) -> str:
    chosen = chosen_rates(rows)
    ends = [end(row["learning_rate"] for row in rows) for end in (min, max)]

    def shown(variant: str, epsilon: float) -> str:
        rate = chosen.get(cell(variant, epsilon))
        return "–" if rate is None else f"({rate:g})" if rate in ends else f"{rate:g}"

    return grid(variants, columns, shown)


def _differences(rows, variants: Sequence[str], columns) -> str:
    def shown(variant: str, epsilon: float) -> str:
        d = difference(rows, cell(variant, epsilon), ("fixed", epsilon))
        return f"**{spread(d, '+.1f')}**" if d and (d.low > 0 or d.high < 0) else spread(d, "+.1f")

    return grid(variants, columns, shown)


def _missing(runs, attacks) -> str:
    lines = [f"{name}: no run." for name in SETUPS if name not in runs]
    every = {epsilon for _, rows in runs.values() for _, epsilon in by_seed(rows) if epsilon is not None}
    for name, (_, rows) in runs.items():
        lines += _missing_runs(name, by_seed(rows), every)
    leaked = {row["leak_point"] for _, rows in attacks.values() for row in rows if row["attack"] != INFORMED}
    unseen = [] if leaked & {"raw", "clipped"} else [text("no_gradients")]
    unseen += [] if leaked & {"noised", "noised batch"} else [text("no_images")]
    unattacked = [name for name in runs if not attacks[name][1]]
    silent = _listed([f"Not attacked: {', '.join(unattacked)}."] if unattacked else [])
    limits = "".join([_listed(lines), *unseen, silent, text("limits")])
    return f"## What the records do not show\n\n{limits}"


def _missing_runs(name: str, cells, every: set[float]) -> list[str]:
    """Of one data set: epsilons at which nothing was run, and variants run at fewer or from fewer seeds."""
    most = max(map(len, cells.values()), default=0)
    none = {e for e in every if not any((variant, e) in cells for variant in VARIANTS)}
    lines = [f"{name}: nothing at ε = {_epsilons(none)}."] if none else []
    for variant in VARIANTS[1:]:
        without = {e for e in every - none if (variant, e) not in cells}
        few = {e for e in every if 0 < len(cells.get((variant, e), ())) < most}
        if without:
            lines.append(f"{name}, `{variant}`: not run at ε = {_epsilons(without)}.")
        if few:
            lines.append(f"{name}, `{variant}`: fewer seeds than the rest at ε = {_epsilons(few)}.")
    return lines


def _epsilons(values: set[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))
