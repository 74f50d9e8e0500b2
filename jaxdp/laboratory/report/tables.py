"""Tables over records: a row a variant, mean and spread over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdp.intervals import wilson
from jaxdp.laboratory.console import line
from jaxdp.laboratory.records import of_kind

if TYPE_CHECKING:
    import pandas as pd

_ORDER = (
    "non_private", "fixed", "matched_constant", "linear", "staircase", "exponential", "quarter_cosine",
    "inverse_time", "polynomial",
)  # fmt: skip
_WIDTHS = {  # of the console's columns, to the left where negative
    "variant": -18, "epsilon": 16, "accuracy %": 15, "ms / step": 16, "examples / s": 14,
    "attack success %": 20, "RMSE": 8,
}  # fmt: skip


def by_subject(records: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """The records of each data set and model apart, by their names: one table holds what can be compared.

    An attack that names no model is one on the runs with its data, where these are of one model.
    """
    parts: dict[tuple, list[Mapping]] = {}
    for run in of_kind(records, "train"):
        parts.setdefault((run["config"].get("data"), run["config"].get("model")), []).append(run)
    for attack in of_kind(records, "attack"):
        data, model = attack["config"].get("data"), attack["config"].get("model")
        same = [subject for subject in parts if subject[0] == data]
        subject = same[0] if model is None and len(same) == 1 else (data, model)
        parts.setdefault(subject, []).append(attack)
    return {", ".join(str(name) for name in subject if name): own for subject, own in parts.items()}


def variants(records: Sequence[Mapping]) -> list[str]:
    """The variants in reading order: not private, fixed, the schedules, the others, l2_max last."""
    names = dict.fromkeys(record["variant"] for record in of_kind(records, "train"))

    def rank(name):
        return (name == "l2_max", _ORDER.index(name) if name in _ORDER else len(_ORDER))

    return sorted(names, key=rank)


def _mean_and_spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where there are too few values."""
    present = [value for value in values if value is not None]
    mean = float(np.mean(present)) if present else math.nan
    return mean, float(np.std(present, ddof=1)) if len(present) > 1 else math.nan


def _epsilon(runs: Sequence[Mapping]) -> tuple[str, bool]:
    """The epsilon of a variant's runs in words, and whether it is a guarantee."""
    stated = [run["privacy"]["epsilon"] for run in runs]
    guaranteed = all(run["privacy"]["private"] for run in runs)
    if None in stated:
        return "none", False
    return f"{'' if guaranteed else 'nominal '}{max(stated):.3f}", guaranteed


def summary(records: Sequence[Mapping]) -> "pd.DataFrame":
    """The four metrics, a row a variant: privacy, utility, cost, resilience.

    Spread is the sample standard deviation over seeds; that of the time a step, over repeated timings where the
    records have it.  Resilience pools, over the noised leaks of a variant, the strongest attack on each: share
    of successes, median error.  What no record says is NaN.
    """
    import pandas as pd

    rows = []
    for variant in variants(records):
        runs, attacks = (
            [record for record in of_kind(records, kind) if record["variant"] == variant]
            for kind in ("train", "attack")
        )
        epsilon, guaranteed = _epsilon(runs)
        means, spreads = {}, {}
        for name in ("test_accuracy", "ms_per_step", "ms_per_step_spread", "examples_per_second"):
            means[name], spreads[name] = _mean_and_spread([run["metrics"].get(name) for run in runs])
        repeated = all("ms_per_step_spread" in run["metrics"] for run in runs)
        rows.append(
            {
                "variant": variant, "private": guaranteed, "epsilon": epsilon, "seeds": len(runs),
                "accuracy": means["test_accuracy"], "accuracy_spread": spreads["test_accuracy"],
                "ms_per_step": means["ms_per_step"],
                "ms_spread": means["ms_per_step_spread"] if repeated else spreads["ms_per_step"],
                "examples_per_second": means["examples_per_second"],
                # What leaks after noise was added; where nothing was (no privacy), all that leaks.
                **resilience([attack for attack in attacks if attack["noise_std"]] or attacks),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def strongest(attacks: Sequence[Mapping]) -> list[Mapping]:
    """Of several attacks on the same leak the one that did best: a defence is as good as against that one."""

    def strength(attack):
        error = attack["metrics"]["rmse"]
        return attack["metrics"]["success"][0], -math.inf if error is None else -error

    best: dict[tuple, Mapping] = {}
    for attack in attacks:
        leak = tuple(attack[key] for key in ("variant", "seed", "stage", "step", "leak_point", "noise_std"))
        if leak not in best or strength(attack) > strength(best[leak]):
            best[leak] = attack
    return list(best.values())


def resilience(attacks: Sequence[Mapping]) -> dict[str, float]:
    """The strongest attacks pooled: share of successes with its Wilson interval, medians of the errors."""
    found = [attack["metrics"] for attack in strongest(attacks)]
    share = [math.nan] * 3
    if found:
        hits = sum(round(metrics["success"][0] * metrics["victims"]) for metrics in found)
        share = wilson(hits, sum(metrics["victims"] for metrics in found))
    numbers = dict(zip(("success", "low", "high"), share, strict=True))
    for name in ("rmse", "psnr", "ssim", "iterations"):
        present = [metrics[name] for metrics in found if metrics.get(name) is not None]
        numbers[name] = float(np.median(present)) if present else math.nan
    return numbers


def number(value: float, form: str, unit: str = "") -> str:
    """A number with its unit, a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:{form}}{unit}"


def plus_minus(mean: float, spread: float, digits: int = 1) -> str:
    """`mean ± spread`, without the spread where there is one value, a dash where there is none."""
    return number(mean, f".{digits}f", "" if math.isnan(spread) else f" ± {spread:.{digits}f}")


def formatted(records: Sequence[Mapping]) -> "pd.DataFrame":
    """The summary as text with its spreads, a row a variant: for a notebook, or a console."""
    import pandas as pd

    def cells(row):
        interval = f" [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        return {
            "variant": row["variant"],
            "epsilon": row["epsilon"],
            "accuracy %": plus_minus(100 * row["accuracy"], 100 * row["accuracy_spread"]),
            "ms / step": plus_minus(row["ms_per_step"], row["ms_spread"], 2),
            "examples / s": number(row["examples_per_second"], ",.0f"),
            "attack success %": number(100 * row["success"], ".0f", interval),
            "RMSE": number(row["rmse"], ".3f"),
        }

    return pd.DataFrame([cells(row) for row in summary(records).to_dict("records")], columns=list(_WIDTHS))


def checked_in_words(records: Sequence[Mapping]) -> str:
    """Whether the claims were held against ledgers: those of records without one cannot be."""
    private = [run for run in of_kind(records, "train") if run["privacy"]["private"]]
    without = dict.fromkeys(run["variant"] for run in private if run.get("ledger") is None)
    return f"; not checked, for want of a ledger: {', '.join(without)}" if without else ""


def table(records: Sequence[Mapping]) -> str:
    """The four-metric tables for a console, one for each data set and model."""
    subjects = by_subject(records)
    if len(subjects) < 2:
        return _table(records)
    compared = {name: own for name, own in subjects.items() if of_kind(own, "train")}
    return "\n\n".join(f"{name}\n{_table(own)}" for name, own in compared.items())


def _table(records: Sequence[Mapping]) -> str:
    head = line(_WIDTHS, list(_WIDTHS))
    rows = formatted(records).to_dict("records")
    lines = [head, "-" * len(head), *(line(_WIDTHS, list(row.values())) for row in rows)]
    if not records:
        return "\n".join(lines)
    runs = of_kind(records, "train")
    private = next((run["privacy"] for run in runs if run["privacy"]["private"]), None)
    if private:
        lines.append(
            f"epsilon at delta = {private['delta']:g}, {private['accountant']}, {private['adjacency']}, "
            f"{private['sampling']}; 'nominal' and 'none' are no guarantees{checked_in_words(records)}"
        )
    lines.append(
        "± is the standard deviation over seeds, of ms / step over timings; attack success on leaks after "
        "noise, [95 % interval]"
    )
    return "\n".join(lines)


def markdown(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["a", "b"], [[1, 2]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    <BLANKLINE>
    """
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
