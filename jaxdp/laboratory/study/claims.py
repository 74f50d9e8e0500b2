"""Numbers made from the collected records of a study, and the tests that compare them.

What is compared is the mean over all cells (schedules, epsilons, levels of noise) that independent units
share: seeds, leaked gradients, sets of candidates, data sets.  Cells of one unit are no further evidence.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxdp import schedules
from jaxdp.intervals import Interval, t_interval
from jaxdp.laboratory.study.setups import SELECTION_SEED, VARIANTS
from jaxdp.laboratory.study.trials import best_rate

Row = Mapping[str, Any]
Cell = tuple[str, float | None]
Pair = tuple[Row, Row]
STAGES = ("early", "middle", "late", None)
INFORMED = "informed adversary"
LEVEL = 0.05  # of a test, two-sided
POWER = 0.8
EQUIVALENT = 0.01  # a point of accuracy


class Comparison(NamedTuple):
    """A mean difference over independent units.

    Attributes:
      gain: with Student's interval.
      p: of Student's test that there is none.
      detectable: the true difference that this test finds with probability .8.
      units: how many.
    """

    gain: Interval
    p: float
    detectable: float
    units: int

    @property
    def equivalent(self) -> bool:
        """Whether the whole interval is within a point."""
        return max(-self.gain.low, self.gain.high) < EQUIVALENT


def compared(differences: Sequence[float] | np.ndarray) -> Comparison | None:
    """Of the difference of each independent unit; None where there are fewer than two."""
    values = np.asarray(differences, float)
    free = values.size - 1
    if free < 1:
        return None
    gain, error = t_interval(values), float(values.std(ddof=1)) / values.size**0.5
    t = abs(gain.estimate) / error if error else np.inf if gain.estimate else 0.0
    p = 2 * stats.t.sf(t, free)
    quantiles = stats.t.ppf([1 - LEVEL / 2, POWER], free)
    return Comparison(gain, float(p), float(quantiles.sum()) * error, values.size)


def holm(ps: Sequence[float]) -> list[float]:
    """p values that hold for all of a family at once (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(ps)
    adjusted = np.maximum.accumulate(np.asarray(ps)[order] * np.arange(len(ps), 0, -1))
    found = np.empty(len(ps))
    found[order] = np.minimum(adjusted, 1.0)
    return found.tolist()


def discoveries(ps: Sequence[float]) -> int:
    """How many Benjamini and Hochberg's procedure finds at a false discovery rate of .05."""
    below = np.flatnonzero(np.sort(ps) <= LEVEL * np.arange(1, len(ps) + 1) / max(len(ps), 1))
    return int(below[-1]) + 1 if below.size else 0


def family(comparisons: Mapping[Any, Comparison | None]) -> dict[Any, tuple[Comparison, float]]:
    """Comparisons with their p values by Holm over all of them."""
    made = {key: one for key, one in comparisons.items() if one is not None}
    return dict(
        zip(made, zip(made.values(), holm([one.p for one in made.values()]), strict=True), strict=True)
    )


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


def epsilons(rows: Sequence[Row]) -> list[float]:
    """Those that variants were trained to."""
    return sorted({row["target"] for row in rows if row["target"] is not None})


def accuracies(rows: Sequence[Row]) -> dict[str, dict[float, Interval]]:
    """Variant -> epsilon -> mean test accuracy with its interval over seeds."""
    cells = by_seed(rows)
    found: dict[str, dict[float, Interval]] = {}
    for variant in VARIANTS:
        for epsilon in epsilons(rows):
            seeds = cells.get(cell(variant, epsilon))
            if seeds:
                found.setdefault(variant, {})[epsilon] = t_interval(list(seeds.values()))
    return found


def difference(rows: Sequence[Row], pairs: Iterable[tuple[Cell, Cell]]) -> Comparison | None:
    """Of pairs of cells, second from first: the mean over the pairs, by seeds that all of them have."""
    cells = by_seed(rows)
    both = [(cells[a], cells[b]) for a, b in pairs if a in cells and b in cells]
    if not both:
        return None
    shared = set.intersection(*(set(own) for pair in both for own in pair))
    return compared(np.array([np.mean([a[seed] - b[seed] for a, b in both]) for seed in sorted(shared)]))


def gain(
    rows: Sequence[Row], names: Sequence[str] = schedules.DYNAMIC, at: Sequence[float] | None = None
) -> Comparison | None:
    """Accuracy of variants over fixed, the mean over them and over epsilons (all by default), by seed."""
    pairs = [(cell(name, e), ("fixed", e)) for name in names for e in (epsilons(rows) if at is None else at)]
    return difference(rows, pairs)


def single_gains(runs, names: Sequence[str] = schedules.DYNAMIC) -> list[Comparison]:
    """Each data set, variant and epsilon alone, by seed."""
    found = [gain(rows, [v], [e]) for _, rows in runs.values() for v in names for e in epsilons(rows)]
    return [one for one in found if one is not None]


def share(row: Row) -> float:
    """The success of an attack."""
    return row["success"][0]


def errors(row: Row) -> np.ndarray:
    """The RMSE of each leaked gradient: the mean over its images, which share their noise."""
    return np.asarray(row["rmse_of_each"], float).reshape(-1, row["batch_size"]).mean(axis=1)


def failed(row: Row) -> bool:
    """Whether an attack on images is no better than the mean image, which needs no gradient.

    An attacker who knows the noise can always answer that: the search failed, and nothing was protected.
    """
    return row["rmse"] >= row["rmse_mean_image"]


def beside_fixed(rows: Sequence[Row]) -> list[Pair]:
    """Each attack on a dynamic schedule, of one data set, with the same attack on the fixed one."""

    def leak(row: Row):
        return row["target"], row["leak_point"], row.get("level"), row["stage"]

    fixed = {leak(row): row for row in rows if row["variant"] == "fixed"}
    return [
        (row, fixed[leak(row)]) for row in rows if row["variant"] in schedules.DYNAMIC and leak(row) in fixed
    ]


def informed(attacks, stage: str | None) -> dict[str, list[Pair]]:
    """Of each data set the informed adversary on dynamic schedules beside that on the fixed one, at a stage."""
    found = {
        name: beside_fixed([row for row in rows if (row["attack"], row["stage"]) == (INFORMED, stage)])
        for name, (_, rows) in attacks.items()
    }
    return {name: pairs for name, pairs in found.items() if pairs}


def means(pairs: Iterable[Pair], measure: str) -> tuple[float, float]:
    """Of the dynamic schedules and of the fixed one beside them: the mean `success` or `bound`."""
    found = [[share(row) if measure == "success" else row[measure] for row in pair] for pair in pairs]
    dynamic, fixed = np.mean(found, axis=0)
    return float(dynamic), float(fixed)


def by_data_set(attacks, stage: str | None, at: float | None = None) -> Comparison | None:
    """Success against dynamic schedules less that against the fixed one; the units are the data sets.

    Trials of one set of candidates, and all cells of a data set, share their candidates and their noise.
    """
    own = informed(attacks, stage).values()
    if at is not None:
        own = [kept for pairs in own if (kept := [pair for pair in pairs if pair[0]["target"] == at])]
    return compared(np.array([np.subtract(*means(pairs, "success")) for pairs in own]))


def by_set(pairs: Sequence[Pair]) -> Comparison | None:
    """The same of one data set; the units are the sets of candidates. None where records lack them."""
    if not all("success_of_each_set" in row for pair in pairs for row in pair):
        return None
    each = [np.subtract(*(row["success_of_each_set"] for row in pair)) for pair in pairs]
    return compared(np.mean(each, axis=0))


def reconstructions(rows: Sequence[Row], stage: str, point: str) -> tuple[Comparison | None, int, int]:
    """Errors on dynamic schedules less those on the fixed one behind noise, in one data set; by gradient.

    Returns:
      the comparison, None where nothing is left; pairs left out because an attack of them failed; all pairs.
    """
    pairs = beside_fixed(
        [row for row in rows if behind_noise(row) and (row["stage"], row["leak_point"]) == (stage, point)]
    )
    sound = [pair for pair in pairs if not any(map(failed, pair))]
    each = [errors(row) - errors(fixed) for row, fixed in sound]
    return compared(np.mean(each, axis=0)) if each else None, len(pairs) - len(sound), len(pairs)


def behind_noise(row: Row) -> bool:
    """Whether it is an attack on images, and on a noised gradient."""
    return row["attack"] != INFORMED and row["noise_std"] > 0
