"""Tables over records: a row a variant, mean and spread over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdp.intervals import wilson
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


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where there are too few values."""
    present = [value for value in values if value is not None]
    mean = float(np.mean(present)) if present else float("nan")
    return mean, float(np.std(present, ddof=1)) if len(present) > 1 else float("nan")


def epsilons(runs: Sequence[Mapping]) -> tuple[str, bool]:
    """The epsilon of a variant's runs in words, and whether it is a guarantee."""
    stated = [run["privacy"]["epsilon"] for run in runs]
    guaranteed = all(run["privacy"]["private"] for run in runs)
    if any(epsilon is None for epsilon in stated):
        return "none", False
    span = f"{max(stated):.3f}"
    return (span, True) if guaranteed else (f"nominal {span}", False)


def summary(records: Sequence[Mapping]) -> "pd.DataFrame":
    """The four metrics, a row a variant: privacy, utility, cost, resilience.

    Spread is the sample standard deviation over seeds; that of the time a step, over repeated timings where the
    records have it.  Resilience pools, over the noised leaks of a variant, the strongest attack on each: share
    of successes, median error.  What no record says is NaN.
    """
    import pandas as pd

    rows = []
    for variant in variants(records):
        runs = [record for record in of_kind(records, "train") if record["variant"] == variant]
        epsilon, guaranteed = epsilons(runs)
        accuracy, accuracy_spread = mean_and_spread([run["metrics"]["test_accuracy"] for run in runs])
        ms, ms_spread = mean_and_spread([run["metrics"]["ms_per_step"] for run in runs])
        if runs and all("ms_per_step_spread" in run["metrics"] for run in runs):
            ms_spread, _ = mean_and_spread([run["metrics"]["ms_per_step_spread"] for run in runs])
        throughput, _ = mean_and_spread([run["metrics"]["examples_per_second"] for run in runs])
        attacks = [record for record in of_kind(records, "attack") if record["variant"] == variant]
        rows.append(
            {
                "variant": variant, "private": guaranteed, "epsilon": epsilon, "seeds": len(runs),
                "accuracy": accuracy, "accuracy_spread": accuracy_spread, "ms_per_step": ms,
                "ms_spread": ms_spread, "examples_per_second": throughput, **resilience(protected(attacks)),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def protected(attacks: Sequence[Mapping]) -> list[Mapping]:
    """The attacks on what leaks after noise was added; all of them where nothing was (no privacy)."""
    noised = [attack for attack in attacks if attack["noise_std"]]
    return noised or list(attacks)


def strongest(attacks: Sequence[Mapping]) -> list[Mapping]:
    """Of several attacks on the same leak the one that did best: a defence is as good as against that one."""

    def strength(attack):
        error = attack["metrics"]["rmse"]
        return attack["metrics"]["success"][0], -(float("inf") if error is None else error)

    best: dict[tuple, Mapping] = {}
    for attack in attacks:
        leak = tuple(attack[key] for key in ("variant", "seed", "stage", "step", "leak_point", "noise_std"))
        if leak not in best or strength(attack) > strength(best[leak]):
            best[leak] = attack
    return list(best.values())


def resilience(attacks: Sequence[Mapping]) -> dict[str, float]:
    """The strongest attacks pooled: share of successes with its Wilson interval, medians of the errors."""
    numbers = {
        name: float("nan") for name in ("success", "low", "high", "rmse", "psnr", "ssim", "iterations")
    }
    if not attacks:
        return numbers
    attacks = strongest(attacks)
    victims = sum(attack["metrics"]["victims"] for attack in attacks)
    hits = sum(round(attack["metrics"]["success"][0] * attack["metrics"]["victims"]) for attack in attacks)
    share = wilson(hits, victims)
    numbers.update(success=share.estimate, low=share.low, high=share.high)
    for name in ("rmse", "psnr", "ssim", "iterations"):
        values = [attack["metrics"].get(name) for attack in attacks]
        present = [value for value in values if value is not None]
        numbers[name] = float(np.median(present)) if present else float("nan")
    return numbers


def plus_minus(mean: float, spread: float, digits: int = 1, unit: str = "") -> str:
    """`mean ± spread`, without the spread where there is one value, a dash where there is none."""
    if np.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if np.isnan(spread) else f" ± {spread:.{digits}f}") + unit


def formatted(records: Sequence[Mapping]) -> "pd.DataFrame":
    """The summary as text with its spreads, a row a variant: for a notebook, or a console."""
    import pandas as pd

    def cells(row):
        success = "–" if np.isnan(row["success"]) else f"{100 * row['success']:.0f}"
        if success != "–":
            success += f" [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        rate = row["examples_per_second"]
        return {
            "variant": row["variant"],
            "epsilon": row["epsilon"],
            "accuracy %": plus_minus(100 * row["accuracy"], 100 * row["accuracy_spread"]),
            "ms / step": plus_minus(row["ms_per_step"], row["ms_spread"], 2),
            "examples / s": "–" if np.isnan(rate) else f"{rate:,.0f}",
            "attack success %": success,
            "RMSE": "–" if np.isnan(row["rmse"]) else f"{row['rmse']:.3f}",
        }

    return pd.DataFrame([cells(row) for row in summary(records).to_dict("records")], columns=list(_WIDTHS))


def _line(cells: Mapping[Any, str]) -> str:
    """Cells side by side, each as wide as its column."""
    return "".join(f"{cells[name]:{'<' if w < 0 else '>'}{abs(w)}}" for name, w in _WIDTHS.items())


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
    head = _line({name: name for name in _WIDTHS})
    lines = [head, "-" * len(head), *(_line(row) for row in formatted(records).to_dict("records"))]
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
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
