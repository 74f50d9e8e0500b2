"""Numbers and sentences made from the collected records of a study."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdp import schedules
from jaxdp.intervals import Interval, t_interval
from jaxdp.laboratory.study.setups import SELECTION_SEED, VARIANTS
from jaxdp.laboratory.study.trials import best_rate

Row = Mapping[str, Any]
Cell = tuple[str, float | None]
STAGES = ("early", "middle", "late", None)
INFORMED = "informed adversary"


def chosen_rates(rows: Iterable[Row]) -> dict[Cell, float]:
    """(variant, epsilon) -> the rate that `trials.choose` chose, where the rows are those of one grid."""
    measured: dict[Cell, dict[float, list[float]]] = {}
    for row in rows:
        if row["seed"] >= SELECTION_SEED:
            own = measured.setdefault((row["variant"], row["target"]), {})
            own.setdefault(row["learning_rate"], []).append(row["validation_accuracy"])
    return {key: best_rate(own) for key, own in measured.items()}


def cell(variant: str, epsilon: float) -> Cell:
    """Where a variant's runs are found that stand in the column of an epsilon."""
    return variant, None if variant == "non_private" else epsilon


def reported(rows: Sequence[Row]) -> list[Row]:
    """The runs that are reported: at the chosen learning rate, and not those that chose it."""
    rates = chosen_rates(rows)
    return [
        row
        for row in rows
        if row["seed"] < SELECTION_SEED and row["learning_rate"] == rates.get((row["variant"], row["target"]))
    ]


def by_seed(rows: Sequence[Row]) -> dict[Cell, dict[int, float]]:
    """(variant, epsilon) -> seed -> test accuracy."""
    found: dict[Cell, dict[int, float]] = {}
    for row in reported(rows):
        found.setdefault((row["variant"], row["target"]), {})[row["seed"]] = row["test_accuracy"]
    return found


def accuracies(rows: Sequence[Row]) -> dict[str, dict[float, Interval]]:
    """Variant -> epsilon -> mean test accuracy with its interval over seeds."""
    cells = by_seed(rows)
    epsilons = sorted({epsilon for _, epsilon in cells if epsilon is not None})
    found: dict[str, dict[float, Interval]] = {}
    for variant in VARIANTS:
        for epsilon in epsilons:
            seeds = cells.get(cell(variant, epsilon))
            if seeds:
                found.setdefault(variant, {})[epsilon] = t_interval(list(seeds.values()))
    return found


def difference(rows: Sequence[Row], first: Cell, second: Cell) -> Interval | None:
    """Mean of the differences between runs of the same seed, with Student's interval."""
    cells = by_seed(rows)
    a, b = cells.get(first, {}), cells.get(second, {})
    shared = sorted(set(a) & set(b))
    return t_interval([a[seed] - b[seed] for seed in shared]) if len(shared) > 1 else None


def _gains(rows: Sequence[Row], names: Sequence[str]) -> list[Interval]:
    """Differences of variants to fixed, at each epsilon of theirs."""
    cells = sorted((variant, e) for variant, e in by_seed(rows) if variant in names and e is not None)
    found = [difference(rows, own, ("fixed", own[1])) for own in cells]
    return [gain for gain in found if gain is not None]


class Claim(NamedTuple):
    """A sentence made from records, and whether it speaks for dynamic parameters; None: it decides nothing."""

    supports: bool | None
    sentence: str


def claims(runs, attacks, published: Sequence[Row]) -> list[Claim]:
    """What the records say of dynamic parameters at equal epsilon."""
    made = []
    for names, words in (
        (schedules.DYNAMIC, "the four dynamic schedules"),
        (("scheduled_clip",), "a falling clip bound (1.5 C to 0.5 C)"),
        (("quantile",), "quantile clipping"),
    ):
        gains = {name: _gains(rows, names) for name, (_, rows) in runs.items()}
        every = [gain for own in gains.values() for gain in own]
        if every:
            better, worse, mean = _tally(every)
            each = "; ".join(_of_data_set(name, own) for name, own in gains.items() if own)
            text = (
                f"Accuracy of {words} against fixed parameters: better in {better} of {len(every)} "
                f"comparisons of data set, variant and epsilon, worse in {worse}, undecided in "
                f"{len(every) - better - worse}; mean difference {100 * mean:+.2f} points. By data set, "
                f"better / worse / undecided, mean: {each}."
            )
            made.append(Claim(_sign(better, worse, len(every), mean), text))
    return made + _of_adversary(attacks) + _of_published(published)


def _tally(gains: Sequence[Interval]) -> tuple[int, int, float]:
    """How many are above 0, how many below it, and their mean."""
    mean = float(np.mean([gain.estimate for gain in gains]))
    return sum(gain.low > 0 for gain in gains), sum(gain.high < 0 for gain in gains), mean


def _of_data_set(name: str, gains: Sequence[Interval]) -> str:
    better, worse, mean = _tally(gains)
    return f"{name} {better} / {worse} / {len(gains) - better - worse}, {100 * mean:+.1f}"


def _sign(for_: int, against: int, of: int, gain: float) -> bool | None:
    """Decided where a side has twice the other, more than one, more than chance (1 in 40), and the mean."""
    least = max(1, of / 40)
    if for_ > least and for_ >= 2 * against and gain > 0:
        return True
    return False if against > least and against >= 2 * for_ and gain < 0 else None


def share(row: Row) -> Interval:
    """The success of an attack with its interval."""
    return Interval(*row["success"])


def _of_adversary(attacks) -> list[Claim]:
    rows = [{**row, "data": name} for name, (_, found) in attacks.items() for row in found]
    informed = [row for row in rows if row["attack"] == INFORMED]
    images = [row for row in rows if behind_noise(row)]
    made = [
        _compared(
            [row for row in informed if row["stage"] == stage],
            f"The informed adversary, {f'{stage} in the run' if stage else 'over the whole run'}",
        )
        for stage in STAGES
    ]
    made += [_images_compared([row for row in images if row["stage"] == s], s) for s in STAGES[:3]]
    bounded = [row for row in informed if row["bound"] is not None]
    if bounded:
        over = sum(share(row).low > row["bound"] for row in bounded)
        text = f"{over} of {len(bounded)} success rates have their whole interval above their bound."
        made.append(Claim(None, text))
    return [claim for claim in made if claim is not None]


def errors(row: Row) -> np.ndarray:
    """The RMSE of each leaked gradient: the mean over its images, which share their noise."""
    return np.asarray(row["rmse_of_each"], float).reshape(-1, row["batch_size"]).mean(axis=1)


def behind_noise(row: Row) -> bool:
    """Whether it is an attack on images, and on a noised gradient."""
    return row["attack"] != INFORMED and row["noise_std"] > 0


def _beside_fixed(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Each attack on a dynamic schedule with the same attack on the fixed one."""

    def leak(row: Row):
        return row["data"], row["target"], row["leak_point"], row.get("level")

    fixed = {leak(row): row for row in rows if row["variant"] == "fixed"}
    dynamic = [row for row in rows if row["variant"] in schedules.DYNAMIC]
    return [(row, fixed[leak(row)]) for row in dynamic if leak(row) in fixed]


def _images_compared(rows: Sequence[Row], stage: str | None) -> Claim | None:
    """Reconstruction errors on the dynamic schedules against those of the same images on the fixed one."""
    gains = [t_interval(errors(row) - errors(fixed)) for row, fixed in _beside_fixed(rows)]
    if not gains:
        return None
    farther, closer, mean = _tally(gains)
    text = (
        f"Images behind noise scaled down, {stage} in the run: reconstructions from dynamic schedules are "
        f"farther from the truth than from the fixed one in {farther} of {len(gains)} comparisons (paired by "
        f"gradient), closer in {closer}; mean difference in RMSE {mean:+.3f}."
    )
    return Claim(_sign(farther, closer, len(gains), mean), text)


def _compared(rows: Sequence[Row], what: str) -> Claim | None:
    """Successes against the dynamic schedules beside those of the same attacks on the fixed one."""
    pairs = [(share(row), share(fixed)) for row, fixed in _beside_fixed(rows)]
    if not pairs:
        return None
    less, more = (sum(a.high < b.low for a, b in pairs), sum(a.low > b.high for a, b in pairs))
    own, other = (100 * np.mean([pair[i].estimate for pair in pairs]) for i in (0, 1))
    text = (
        f"{what}: success against dynamic schedules is lower than against the fixed one in {less} of "
        f"{len(pairs)} comparisons, higher in {more}, intervals overlap in {len(pairs) - less - more}; "
        f"mean {own:.1f} % against {other:.1f} %."
    )
    return Claim(_sign(less, more, len(pairs), float(other - own)), text)


def _of_published(published: Sequence[Row]) -> list[Claim]:
    as_published, equal = (
        {row["schedule"]: row for row in published if row["at"] == at}
        for at in ("as published", "equal epsilon")
    )
    if not as_published:
        return []
    fixed, others = as_published["fixed"], [as_published[name] for name in schedules.DYNAMIC]
    bounds = [equal[name]["bound"] for name in schedules.DYNAMIC]
    spent, constants = (_span(r[name] for r in others) for name in ("epsilon", "matched_constant"))
    more = (
        f"As published the dynamic schedules spend epsilon {spent} against {fixed['epsilon']:.3f} of the "
        f"fixed one: as much as constants of {constants} against {fixed['matched_constant']:.3f}, so they "
        "have more noise on average."
    )
    same = (
        "Of the published comparison scaled to equal epsilon, the reconstruction bound of the whole run "
        f"is {_span(bounds)} for the dynamic schedules against {equal['fixed']['bound']:.3f}."
    )
    gain = equal["fixed"]["bound"] - max(bounds)
    return [Claim(False, more), Claim(gain > 0.005, same)]


def _span(values: Iterable[float]) -> str:
    low, *_, high = (f"{value:.3f}" for value in sorted(values))
    return low if low == high else f"{low} to {high}"
