"""The page of a study, Markdown with figures beside it, made from its collected files alone."""

import pathlib
from collections.abc import Callable, Sequence

from jaxdp import atomic
from jaxdp.intervals import Interval
from jaxdp.laboratory.report.tables import markdown
from jaxdp.laboratory.study import claims
from jaxdp.laboratory.study.claims import INFORMED, LEVEL, STAGES, Comparison, by_seed
from jaxdp.laboratory.study.collected import ACCOUNTANTS, ATTACKS, PUBLISHED_FILE, RUNS, read
from jaxdp.laboratory.study.page_attacks import adversary, images
from jaxdp.laboratory.study.page_parts import (
    Sources,
    accountants,
    accuracy,
    cost,
    p_value,
    published_comparison,
    setting,
    spread,
    text,
)
from jaxdp.laboratory.study.page_privacy import AT, at_one_epsilon, every_cell, unequal
from jaxdp.laboratory.study.setups import SETUPS, VARIANTS


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
    head, _ = next(iter(runs.values()))
    parts = [
        text("head"),
        _answer(runs, attacks),
        _summary(runs, attacks),
        _figures(runs, attacks, sources),
        text("threat", **head | {"sampling": head["settings"]["sampling"].capitalize()}),
        unequal(runs),
        _missing(runs, attacks),
        text("appendix"),
        setting(runs),
        every_cell(runs, attacks),
        accuracy(runs),
        adversary(attacks),
        images(attacks),
        accountants(accounted),
        published_comparison(published, runs),
        cost(costs),
    ]
    atomic.write_text(output, "\n".join(filter(None, parts)))


def _gains(runs) -> dict[str, tuple[Comparison, float]]:
    """Data set -> accuracy of the dynamic schedules over the fixed one, with its p value by Holm."""
    return claims.family({name: claims.gain(rows) for name, (_, rows) in runs.items()})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _answer(runs, attacks) -> str:
    gains = _gains(runs)
    sure = [(name, one.gain, spread(one, "+.2f")) for name, (one, p) in gains.items() if p < LEVEL]
    head, _ = next(iter(runs.values()))
    sentences = [
        text(
            "answer_accuracy", **head,
            better=_listed([f"{name} ({shown} points)" for name, gain, shown in sure if gain.low > 0]),
            worse=_listed([f"{name} ({shown} points)" for name, gain, shown in sure if gain.high < 0]),
            equivalent=_listed([name for name, (one, _) in gains.items() if one.equivalent]),
        )
    ]  # fmt: skip
    pairs = {stage: [p for own in claims.informed(attacks, stage).values() for p in own] for stage in STAGES}
    if all(pairs.values()):
        family = claims.family({stage: claims.by_data_set(attacks, stage) for stage in STAGES})
        rates = {stage or "whole": _against(own, "success") for stage, own in pairs.items()}
        differing = _listed([stage or "over the whole run" for stage, (_, p) in family.items() if p < LEVEL])
        sentences.append(text("answer_adversary", **rates, differing=differing))
        last = max(row["target"] for row, _ in pairs[None])
        at = [pair for pair in pairs[None] if pair[0]["target"] == last]
        bounds = {"all": _against(pairs[None], "bound"), "last": _against(at, "bound")}
        sentences.append(text("answer_bound", **bounds, epsilon=last))
    return " ".join(sentence.strip() for sentence in sentences) + "\n"


def _against(pairs, measure: str) -> str:
    return "{:.1f} % against {:.1f} %".format(*(100 * value for value in claims.means(pairs, measure)))


def _both(pairs, measure: str) -> str:
    return (
        "{:.1f} / {:.1f}".format(*(100 * value for value in claims.means(pairs, measure))) if pairs else "–"
    )


def _summary(runs, attacks) -> str:
    gains, rows = _gains(runs), []
    for name, (head, found) in runs.items():
        one, p = gains.get(name, (None, None))
        early, late, whole = (claims.informed(attacks, stage).get(name) for stage in ("early", "late", None))
        rows.append(
            (
                name,
                *((spread(one, "+.2f"), p_value(p), f"{100 * one.detectable:.2f}") if one else ("–",) * 3),
                *(_both(pairs, "success") for pairs in (early, late, whole)),
                _both(whole, "bound"),
                at_one_epsilon(head, found),
            )
        )
    titles = ("data", "dynamic - fixed", "p", "detectable", "early", "late", "whole run", "its bound", "mu")
    return text("summary", table=markdown(titles, rows), epsilon=AT, **_single(runs))


def _single(runs) -> dict[str, int]:
    """How single comparisons fall, by themselves and corrected."""
    made = claims.single_gains(runs)
    undecided = [one for one in made if one.gain.low <= 0 <= one.gain.high]
    ps = [one.p for one in made]
    return {
        "cells": len(made),
        "baselines": sum(len(claims.epsilons(rows)) for _, rows in runs.values()),
        "better": sum(one.gain.low > 0 for one in made),
        "worse": sum(one.gain.high < 0 for one in made),
        "undecided": len(undecided),
        "equivalent": sum(one.equivalent for one in undecided),
        "holm": sum(p < LEVEL for p in claims.holm(ps)),
        "discoveries": claims.discoveries(ps),
    }


def _figures(runs, attacks, sources: Sources) -> str:
    """Over epsilon: differences in the accuracy of each data set, and in the informed adversary's success."""
    every = sorted({e for _, rows in runs.values() for e in claims.epsilons(rows)})

    def curve(of: Callable[[float], Comparison | None]) -> dict[float, Interval]:
        found = {epsilon: of(epsilon) for epsilon in every}
        return {e: Interval(*(100 * value for value in one.gain)) for e, one in found.items() if one}

    of_accuracy = {
        name: curve(lambda e, rows=rows: claims.gain(rows, at=[e])) for name, (_, rows) in runs.items()
    }
    of_success = {
        stage or "whole run": curve(lambda e, stage=stage: claims.by_data_set(attacks, stage, e))
        for stage in STAGES
    }
    drawn = (
        sources.draw("accuracy", of_accuracy, "Accuracy of dynamic schedules minus fixed over ε, by seed"),
        sources.draw(
            "informed",
            of_success,
            "Success of the informed adversary, dynamic minus fixed over ε, by data set",
        ),
    )
    return "\n".join(filter(None, drawn))


def _missing(runs, attacks) -> str:
    lines = [f"{name}: no run." for name in SETUPS if name not in runs]
    every = {epsilon for _, rows in runs.values() for _, epsilon in by_seed(rows) if epsilon is not None}
    for name, (_, rows) in runs.items():
        lines += _missing_runs(name, by_seed(rows), every)
    rows = [row for _, found in attacks.values() for row in found]
    leaked = {row["leak_point"] for row in rows if row["attack"] != INFORMED}
    unseen = [] if leaked & {"raw", "clipped"} else [text("no_gradients")]
    unseen += [] if leaked & {"noised", "noised batch"} else [text("no_images")]
    if any(row["attack"] == INFORMED and "success_of_each_set" not in row for row in rows):
        unseen.append(text("no_sets"))
    unattacked = [name for name in runs if not attacks[name][1]]
    lines += [f"Not attacked: {', '.join(unattacked)}."] if unattacked else []
    return "## Limits\n\n" + "".join([*(f"- {line}\n" for line in lines), *unseen, text("limits")])


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
