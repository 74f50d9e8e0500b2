"""Parts of the page of a study: what adversaries made of its runs."""

from collections.abc import Sequence

from jaxdp.intervals import Interval, median_interval
from jaxdp.laboratory.study.claims import INFORMED, STAGES, Row, errors, share
from jaxdp.laboratory.study.collected import ATTACKS
from jaxdp.laboratory.study.page_parts import Sources, grid, spread, text
from jaxdp.laboratory.study.setups import VARIANTS

_COLUMNS = {stage or "whole run": stage for stage in STAGES}


def adversary(attacks, sources: Sources) -> str:
    """The section on the informed adversary, beside the reconstruction bound; attacks by data set."""
    parts = []
    for name, (_, found) in attacks.items():
        rows = [row for row in found if row["attack"] == INFORMED]
        if rows:
            parts.append(f"### {name}\n")
            for words in ("early", "late", "whole run"):
                curves = _successes([row for row in rows if row["stage"] == _COLUMNS[words]])
                kind = f"informed_{words.split()[0]}"
                parts.append(sources.draw(name, kind, curves, f"informed adversary, {words}"))
        for epsilon in sorted({row["target"] for row in rows}):
            own = [row for row in rows if row["target"] == epsilon]
            parts.append(_of_epsilon(own, name=name, epsilon=epsilon, source=sources.stated(name, ATTACKS)))
    return "\n".join([text("adversary"), *parts]) if parts else ""


def _successes(rows: Sequence[Row]) -> dict[str, dict[float, Interval]]:
    """Variant -> epsilon -> success."""
    found = {v: {row["target"]: share(row) for row in rows if row["variant"] == v} for v in VARIANTS}
    return {variant: own for variant, own in found.items() if own}


def _of_epsilon(rows: Sequence[Row], **facts) -> str:
    cells = {(row["variant"], row["stage"]): row for row in rows}
    names = [variant for variant in VARIANTS if any(key[0] == variant for key in cells)]
    bounded = [v for v in names if (v, None) in cells and cells[v, None]["bound_of_one_step"] is not None]

    def success(variant: str, stage: str | None) -> str:
        row = cells.get((variant, stage))
        if row is None:
            return "–"
        bound = "no bound" if row["bound"] is None else f"{100 * row['bound']:.1f}"
        return f"{spread(share(row), '.0f')} / {bound}"

    return text(
        "of_epsilon", **facts,
        successes=grid(names, _COLUMNS, success),
        bounds=grid(bounded, _COLUMNS, lambda v, s: f"{100 * cells[v, s]['bound_of_one_step']:.1f}"),
    )  # fmt: skip


def images(attacks, sources: Sources) -> str:
    """The section on the attack on images; its arguments are those of `adversary`."""
    parts = []
    for name, (_, found) in attacks.items():
        rows = [row for row in found if row["attack"] != INFORMED]
        for stage in ("early", "late"):
            medians: dict[str, dict[float, Interval]] = {}
            for row in rows:
                if (row["stage"], row["leak_point"]) == (stage, "noised"):
                    medians.setdefault(row["variant"], {})[row["level"]] = median_interval(errors(row))
            over = "norm of the noise of fixed over C"
            parts.append(sources.draw(name, f"images_{stage}", medians, f"median RMSE, {stage}", over))
        leaks: dict[str, dict[float | None, list[Row]]] = {}
        for row in rows:
            leaks.setdefault(row["leak_point"], {}).setdefault(row.get("level"), []).append(row)
        for point, levels in leaks.items():
            for level, own in levels.items():
                noise = "no noise" if level is None else f"noise {level:g} of C for `fixed`"
                parts.append(f"### {name}, {point}, {noise}\n\n{sources.stated(name, ATTACKS)}\n")
                parts.append(_recognised(own))
    return "\n".join([text("images"), *filter(None, parts)]) if any(parts) else ""


def _recognised(rows: Sequence[Row]) -> str:
    cells = {(row["variant"], row["stage"]): row for row in rows}

    def cell(variant: str, stage: str) -> str:
        row = cells.get((variant, stage))
        if row is None:
            return "–"
        error = spread(median_interval(errors(row)), ".3f", 1)
        # Images of one batch share their noise: no independent trials.
        alone = row["batch_size"] == 1
        recognised = spread(share(row), ".0f") if alone else f"{100 * share(row).estimate:.0f}"
        return f"{recognised}, {error}"

    return grid(dict.fromkeys(row["variant"] for row in rows), {stage: stage for stage in STAGES[:3]}, cell)
