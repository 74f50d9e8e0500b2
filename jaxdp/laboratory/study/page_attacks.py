"""Parts of the page of a study: what adversaries made of its runs."""

from collections.abc import Callable, Sequence

from jaxdp.intervals import Interval, median_interval
from jaxdp.laboratory.report.tables import markdown
from jaxdp.laboratory.study.claims import INFORMED, STAGES, Row, errors, share
from jaxdp.laboratory.study.page_parts import FROM
from jaxdp.laboratory.study.setups import VARIANTS


def adversary(attacks, draw: Callable[..., str], where: Callable[[str], str]) -> str:
    """The section on the informed adversary, beside the reconstruction bound.

    Args:
      attacks: data set -> collected attacks.
      draw: makes a figure.
      where: data set -> the file that its attacks are read from.
    """
    parts = []
    for name, (_, found) in attacks.items():
        rows = [row for row in found if row["attack"] == INFORMED]
        if not rows:
            continue
        parts.append(f"### {name}\n")
        for stage, words in (("early", "early"), ("late", "late"), (None, "whole run")):
            kind = f"informed_{stage or 'whole'}"
            parts.append(draw(name, kind, _successes(rows, stage), f"informed adversary, {words}"))
        for epsilon in sorted({row["target"] for row in rows}):
            body = [
                (variant, *(_with_bound(rows, variant, epsilon, stage) for stage in STAGES))
                for variant in VARIANTS
                if any(row["variant"] == variant for row in rows)
            ]
            header = ("variant", "early", "middle", "late", "whole run")
            tables = (
                f"{FROM.format(where(name))}\n\n{markdown(header, body)}\nBound of one step.\n\n"
                f"{markdown(header, _of_one_step(rows, epsilon))}"
            )
            parts.append(_folded(f"{name}, ε = {epsilon:g}", tables))
    if not parts:
        return ""
    text = (
        "## (b), (c) The informed adversary and the reconstruction bound\n\n"
        "Attacks on pixels cannot rank variants where they fail on all, so the adversary is given "
        "more: the parameters at every twentieth of the run (taken to stay until the next), the rest of each "
        "batch, and ten candidates for one example. "
        "Share of right answers in percent (chance: 10) with its interval over trials; after the slash "
        "the bound that no attack passes, in percent. Early, middle and late: a tenth of the run's "
        "steps, the example known to be in every batch. Whole run: all steps, the example drawn at the "
        "sampling rate. `l2_max` has no bound. The table after it has the bound of the first step alone "
        "of each of these, in percent.\n"
    )
    return "\n".join([text, *parts])


def _folded(title: str, text: str) -> str:
    """A part of the page that opens on a click."""
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _successes(rows, stage: str | None) -> dict[str, dict[float, Interval]]:
    """Variant -> epsilon -> success at a stage."""
    found: dict[str, dict[float, Interval]] = {}
    for variant in VARIANTS:
        for row in rows:
            if (row["variant"], row["stage"]) == (variant, stage):
                found.setdefault(variant, {})[row["target"]] = share(row)
    return found


def _with_bound(rows, variant, epsilon, stage) -> str:
    own = [r for r in rows if (r["variant"], r["target"], r["stage"]) == (variant, epsilon, stage)]
    if not own:
        return "–"
    bound = "no bound" if own[0]["bound"] is None else f"{100 * own[0]['bound']:.1f}"
    found = share(own[0])
    return f"{100 * found.estimate:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}] / {bound}"


def _of_one_step(rows, epsilon) -> list[tuple[str, ...]]:
    bounds = {(r["variant"], r["stage"]): r["bound_of_one_step"] for r in rows if r["target"] == epsilon}
    named = dict.fromkeys(variant for variant in VARIANTS if bounds.get((variant, None)) is not None)
    return [(variant, *(f"{100 * bounds[variant, stage]:.1f}" for stage in STAGES)) for variant in named]


def images(attacks, draw: Callable[..., str], where: Callable[[str], str]) -> str:
    """The section on the attack on images; its arguments are those of `adversary`."""
    parts = []
    for name, (_, found) in attacks.items():
        rows = [row for row in found if row["attack"] != INFORMED]
        for stage in ("early", "late"):
            errors = _errors_over_noise(
                [r for r in rows if (r["stage"], r["leak_point"]) == (stage, "noised")]
            )
            what = f"median RMSE, {stage}"
            parts.append(draw(name, f"images_{stage}", errors, what, "norm of the noise of fixed over C"))
        for point in dict.fromkeys(row["leak_point"] for row in rows):
            for level in dict.fromkeys(row.get("level") for row in rows if row["leak_point"] == point):
                own = [row for row in rows if row["leak_point"] == point and row.get("level") == level]
                body = []
                for variant in dict.fromkeys(row["variant"] for row in own):
                    staged = {row["stage"]: row for row in own if row["variant"] == variant}
                    body.append((variant, *(_image_cell(staged.get(stage)) for stage in STAGES[:3])))
                noise = "no noise" if level is None else f"noise {level:g} of C for `fixed`"
                parts.append(f"### {name}, {point}, {noise}\n\n{FROM.format(where(name))}\n")
                parts.append(markdown(("variant", "early", "middle", "late"), body))
    if not any(parts):
        return ""
    text = (
        "## (b) Images\n\nShare of held-out images recognised (RMSE below 0.1) in percent with its interval, "
        "and the median RMSE with its own, over leaked gradients (of a batch: of the mean over its images), "
        "by the posterior attack that knows clip bound, "
        "noise and an image prior (without noise also by attacks that want exact gradients). All variants' "
        "noise is that of their runs at equal epsilon times **one common factor**, chosen so that the noise of "
        "`fixed` has the stated norm relative to the clip bound: far less noise than the run had, hence not at "
        "its epsilon. Without noise no parameter of the mechanism protects anything; where the raw gradient "
        "does not give the image back, the attack is the "
        "limit there and not the noise.\n"
    )
    return "\n".join([text, *(part for part in parts if part)])


def _errors_over_noise(rows: Sequence[Row]) -> dict[str, dict[float, Interval]]:
    """Variant -> relative noise of the fixed one -> median RMSE."""
    found: dict[str, dict[float, Interval]] = {}
    for row in rows:
        found.setdefault(row["variant"], {})[row["level"]] = median_interval(errors(row))
    return found


def _image_cell(row: Row | None) -> str:
    if row is None:
        return "–"
    found, error = share(row), median_interval(errors(row))
    recognised = f"{100 * found.estimate:.0f}"
    if row["batch_size"] == 1:  # images of one batch share their noise: no independent trials
        recognised += f" [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    return f"{recognised}, {error.estimate:.3f} [{error.low:.3f}, {error.high:.3f}]"
