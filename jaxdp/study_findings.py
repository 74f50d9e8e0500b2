"""Numbers and sentences made from the collected records of a study."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdp import schedules
from jaxdp.metrics import Interval, t_interval
from jaxdp.study import SELECTION_SEED, VARIANTS

Row = Mapping[str, Any]
STAGES = ("early", "middle", "late", None)


def chosen_rates(rows: Iterable[Row]) -> dict[tuple[str, float | None], float]:
    """(variant, epsilon) -> the learning rate with the best validation accuracy; of equals the smallest."""
    best: dict[tuple[str, float | None], tuple[float, float]] = {}
    for row in rows:
        if row["seed"] == SELECTION_SEED:
            key, candidate = _key(row), (row["validation_accuracy"], -row["learning_rate"])
            best[key] = max(best.get(key, candidate), candidate)
    return {key: -negative for key, (_, negative) in best.items()}


def _key(row: Row) -> tuple[str, float | None]:
    return row["variant"], row["target"]


def reported(rows: Sequence[Row]) -> list[Row]:
    """The runs that are reported: at the chosen learning rate, and not those that chose it."""
    rates = chosen_rates(rows)
    return [
        row for row in rows if row["seed"] != SELECTION_SEED and row["learning_rate"] == rates.get(_key(row))
    ]


def by_seed(rows: Sequence[Row]) -> dict[tuple[str, float | None], dict[int, float]]:
    """(variant, epsilon) -> seed -> test accuracy."""
    found: dict[tuple[str, float | None], dict[int, float]] = {}
    for row in reported(rows):
        found.setdefault(_key(row), {})[row["seed"]] = row["test_accuracy"]
    return found


def accuracies(rows: Sequence[Row]) -> dict[str, dict[float, Interval]]:
    """Variant -> epsilon -> mean test accuracy with its interval over seeds."""
    cells = by_seed(rows)
    epsilons = sorted({epsilon for _, epsilon in cells if epsilon is not None})
    found: dict[str, dict[float, Interval]] = {}
    for variant in VARIANTS:
        for epsilon in epsilons:
            seeds = cells.get((variant, None if variant == "non_private" else epsilon))
            if seeds:
                found.setdefault(variant, {})[epsilon] = t_interval(list(seeds.values()))
    return found


def difference(rows: Sequence[Row], first: tuple, second: tuple) -> Interval | None:
    """Mean of the differences between runs of the same seed, with Student's interval."""
    cells = by_seed(rows)
    a, b = cells.get(first, {}), cells.get(second, {})
    shared = sorted(set(a) & set(b))
    return t_interval([a[seed] - b[seed] for seed in shared]) if len(shared) > 1 else None


def verdicts(runs, names: Sequence[str]) -> dict[str, list[tuple[str, str, float, Interval]]]:
    """Differences to fixed at equal epsilon, sorted into better, worse and undecided by their intervals."""
    found: dict[str, list] = {"better": [], "worse": [], "undecided": []}
    for data, (_, rows) in runs.items():
        for variant in names:
            for epsilon in sorted({e for v, e in by_seed(rows) if v == variant and e is not None}):
                d = difference(rows, (variant, epsilon), ("fixed", epsilon))
                if d is not None:
                    kind = "better" if d.low > 0 else "worse" if d.high < 0 else "undecided"
                    found[kind].append((data, variant, epsilon, d))
    return found


def claims(runs, attacks, published: Sequence[Row]) -> list[str]:
    """What the records say, a sentence each."""
    lines = []
    for names, words in (
        (schedules.DYNAMIC, "the four dynamic schedules"),
        (("scheduled_clip",), "the falling clip bound (1.5 C to 0.5 C)"),
        (("quantile",), "quantile clipping"),
    ):
        v = verdicts(runs, names)
        every = [d.estimate for kind in v.values() for *_, d in kind]
        if every:
            lines.append(
                f"Accuracy of {words} against fixed parameters at equal epsilon, over data sets and "
                f"epsilons: better in {len(v['better'])} of {len(every)} comparisons, worse in "
                f"{len(v['worse'])}, undecided in {len(v['undecided'])} (intervals that exclude 0, not "
                f"corrected for their number); mean difference {100 * np.mean(every):+.2f} points."
            )
    lines += _of_adversary(attacks)
    as_published = {row["schedule"]: row for row in published if row["at"] == "as published"}
    equal = {row["schedule"]: row for row in published if row["at"] == "equal epsilon"}
    if as_published:
        fixed, others = as_published["fixed"], [as_published[name] for name in schedules.DYNAMIC]
        bounds = [equal[name]["bound"] for name in schedules.DYNAMIC]
        lines.append(
            f"As published the dynamic schedules spend epsilon {_span(r['epsilon'] for r in others)} "
            f"against {fixed['epsilon']:.3f} of the fixed one, since they add more noise: as much as a "
            f"constant sigma of {_span((r['matched_constant'] for r in others), 2)} against "
            f"{fixed['matched_constant']:.2f}. At equal epsilon the reconstruction bound of the whole run "
            f"is {_span(bounds)} against {equal['fixed']['bound']:.3f}."
        )
    return lines


def _span(values: Iterable[float], digits: int = 3) -> str:
    values = list(values)
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def share(row: Row) -> Interval:
    """The success of an attack with its interval."""
    return Interval(*row["success"])


def _of_adversary(attacks) -> list[str]:
    lines = []
    rows = [row for _, found in attacks.values() for row in found if row["attack"] == "informed adversary"]
    for stage in STAGES:
        fixed = {r["target"]: share(r) for r in rows if r["variant"] == "fixed" and r["stage"] == stage}
        below = above = same = 0
        for r in rows:
            if r["variant"] in schedules.DYNAMIC and r["stage"] == stage and r["target"] in fixed:
                own, other = share(r), fixed[r["target"]]
                below += own.high < other.low
                above += own.low > other.high
                same += not (own.high < other.low or own.low > other.high)
        if below + above + same:
            words = f"{stage} in the run" if stage else "over the whole run"
            lines.append(
                f"The informed adversary against the dynamic schedules, {words}: less often right than "
                f"against the fixed one in {below} of {below + above + same} comparisons at equal "
                f"epsilon, more often in {above}, intervals overlap in {same}."
            )
    over = [r for r in rows if r["bound"] is not None and share(r).low > r["bound"]]
    bounded = [r for r in rows if r["bound"] is not None]
    if bounded:
        lines.append(
            f"{len(over)} of {len(bounded)} measured success rates lie above their reconstruction bound "
            "(whole interval)."
        )
    return lines
