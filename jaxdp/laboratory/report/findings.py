"""What a set of records shows and what it does not, in sentences made from the records."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdp.laboratory.records import of_kind
from jaxdp.laboratory.report import tables
from jaxdp.laboratory.report.figures import label


def shown(records: Sequence[Mapping]) -> list[str]:
    """What the records support: equal epsilon or not, accuracy against its spread, what attacks achieved."""
    rows = tables.summary(records).to_dict("records")
    private = [row for row in rows if row["private"] and not np.isnan(row["accuracy"])]
    sentences = []
    if private:
        values = [float(row["epsilon"]) for row in private]
        equal = max(values) - min(values) <= 0.01 * max(values)
        span = f"ε = {max(values):.2f}" if equal else f"different ε, {min(values):.2f} to {max(values):.2f}"
        consequence = "" if equal else "; their accuracy and resilience are not comparable at face value"
        have = "variant has" if len(private) == 1 else "variants have"
        sentences.append(f"{len(private)} private {have} {span}{consequence}.")
    if len(private) > 1:
        best, worst = (pick(private, key=lambda row: row["accuracy"]) for pick in (max, min))
        gap = best["accuracy"] - worst["accuracy"]
        spread = np.nanmax([0.0, best["accuracy_spread"], worst["accuracy_spread"]])
        verdict = f"{'within' if gap <= 2 * spread else 'beyond'} twice the spread over seeds"
        if spread == 0:
            verdict = "with one seed, nobody can say whether that is chance"
        sentences.append(
            f"Accuracy of the private variants lies between {100 * worst['accuracy']:.1f} % "
            f"({label(worst['variant'])}) and {100 * best['accuracy']:.1f} % "
            f"({label(best['variant'])}): {verdict}."
        )
    reference = [row for row in rows if row["variant"] == "non_private"]
    if reference and private:
        cost = reference[0]["accuracy"] - np.mean([row["accuracy"] for row in private])
        sentences.append(f"Privacy costs {100 * cost:.1f} points of accuracy on average.")
    attacks = of_kind(records, "attack")
    raw = [attack for attack in attacks if not attack["noise_std"]]
    noised = [attack for attack in attacks if attack["noise_std"] and attack["stage"]]
    for group, where in ((raw, "no noise was added to it"), (noised, "noise was added as in training")):
        if group:
            share = tables.resilience(group)
            sentences.append(
                f"From a leaked gradient, where {where}, {100 * share['success']:.0f} % of "
                f"{sum(attack['metrics']['victims'] for attack in group)} attacked images were recognised "
                f"(95 % interval {100 * share['low']:.0f}–{100 * share['high']:.0f} %)."
            )
    return sentences or ["There are too few records for a statement."]


def not_shown(records: Sequence[Mapping]) -> list[str]:
    """What nobody should conclude from them."""
    seeds = len({run["seed"] for run in of_kind(records, "train")})
    return [
        "Epsilon bounds what anyone can learn from everything the mechanism releases. An attack that fails "
        "here only shows that this attack failed: a stronger one may succeed.",
        "A leak before noise is added is protected by no privacy parameter, whatever its epsilon.",
        "Nominal numbers of variants marked not private reproduce a published claim. "
        "They bound nothing and cannot be compared with the others.",
        f"Spread comes from {seeds} seed{'s' if seeds != 1 else ''} on one data set and one model; "
        "differences within it are no differences.",
    ]
