"""The figure of `jaxdp attack`: originals above reconstructions, and what noise does to each measure."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdp.laboratory.leakage.sweep import MEANING, break_down

_SHOWN = 6


def figure(
    rows: Sequence[dict],
    reconstructions: Sequence[np.ndarray],
    originals: np.ndarray,
    labels: Sequence[dict] = (),
    candidates: Sequence[dict] = (),
    errors: Sequence[dict] | None = None,
) -> bytes:
    """A PNG of the sweep's rows, each with its reconstructions [victims, *input_shape], and of `forecast`'s.

    Images are shown, tabular rows are not.
    """
    from matplotlib.figure import Figure

    images = originals.ndim == 4
    strips = _strips(rows, reconstructions, originals) if images else []
    height = max(6.0, 0.55 * len(strips) + 0.6)
    canvas = Figure(figsize=(12 if images else 6, height), layout="constrained")
    right = canvas
    if images:
        left, right = np.asarray(canvas.subfigures(1, 2, width_ratios=(1.2, 1))).ravel()
        _draw_strips(left, strips)
    top, middle, bottom = right.subplots(3, 1)
    _success(top, rows)
    _error(middle, rows, errors)
    _many_looks(bottom, labels, candidates)
    attacks = dict.fromkeys(row["attack"] for row in rows)
    canvas.supxlabel(
        "\n".join(f"{name}: {MEANING[name]}" for name in MEANING if name in attacks),
        x=0.01, ha="left", fontsize=8,
    )  # fmt: skip
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _strips(rows, reconstructions, originals):
    """Titles and images: the originals, then of each leak point and sigma the strongest attack."""
    best: dict[tuple, int] = {}
    for index, row in enumerate(rows):
        place = (row["leak"], row["sigma"])
        if place not in best or row["rmse"] < rows[best[place]]["rmse"]:
            best[place] = index
    titles = {i: leak + (f", σ {sigma:g}" if sigma else "") for (leak, sigma), i in best.items()}
    named = [(f"{title}: {rows[i]['attack']}", reconstructions[i]) for i, title in titles.items()]
    return [("original", originals), *named]


def _draw_strips(canvas, strips):
    shown = min(_SHOWN, len(strips[0][1]))
    axes = canvas.subplots(len(strips), shown, squeeze=False)
    for line, (title, strip) in zip(axes, strips, strict=True):
        for axis, image in zip(line, strip[:shown], strict=False):
            axis.imshow(np.clip(image, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
        for axis in line:
            axis.set_axis_off()
        line[0].text(-0.15, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=8)


def _noised(rows, attack):
    return [row for row in rows if (row["leak"], row["attack"]) == ("noised", attack) and row["sigma"] > 0]


def _shares(axis, sigmas, shares, style: str, name: str) -> Any:
    """Shares with their intervals over noise; the colour they are drawn in."""
    (drawn,) = axis.plot(sigmas, [share.estimate for share in shares], style, label=name)
    low, high = ([getattr(share, end) for share in shares] for end in ("low", "high"))
    axis.fill_between(sigmas, low, high, alpha=0.15, color=drawn.get_color())
    return drawn.get_color()


def _finish(axis, title: str, **settings) -> None:
    axis.set(xscale="log", **settings)
    axis.set_title(title, fontsize=9)
    if axis.has_data():
        axis.legend(fontsize=8)


def _success(axis, rows) -> None:
    """Success against noise, each attack's break-down marked."""
    for attack in ("published", "posterior"):
        line = _noised(rows, attack)
        if not line:
            continue
        shares = [row["recognisable"] for row in line]
        colour = _shares(axis, [row["sigma"] for row in line], shares, "o-", attack)
        limit = break_down(rows, attack)
        if limit is not None:
            axis.axvline(limit, color=colour, linestyle=":", linewidth=1)
    title = "one noised gradient; dotted: break-down (below half)"
    _finish(axis, title, ylim=(-0.03, 1.03), ylabel="share recognisable")


def _error(axis, rows, errors) -> None:
    """Measured error of the posterior attack, what linearisation expects, and the mean input's error."""
    line = _noised(rows, "posterior")
    if line:
        sigmas = [row["sigma"] for row in line]
        axis.plot(sigmas, [row["rmse"] for row in line], marker="o", label="posterior, measured")
        axis.axhline(line[0]["rmse_mean_image"], color="grey", linewidth=1, label="mean input")
    if errors:
        expected = [error["rmse"] for error in errors]
        axis.plot([error["sigma"] for error in errors], expected, "--", label="expected, linearised")
    _finish(axis, "error of one noised gradient's reconstruction", yscale="log", ylabel="RMSE")


def _many_looks(axis, labels, candidates) -> None:
    """Labels and candidates after the most looks, with the bound that no adversary passes."""
    looks = max((row["looks"] for row in (*labels, *candidates)), default=0)
    labels, candidates = ([row for row in rows if row["looks"] == looks] for rows in (labels, candidates))
    for rows, key, name, style in (
        (labels, "right", "label", "o-"),
        (candidates, "worst case", "candidate, worst case", "s-"),
        (candidates, "real", "candidate, real", "^-"),
    ):
        if rows:
            _shares(axis, [row["sigma"] for row in rows], [row[key] for row in rows], style, name)
    if candidates:
        bounds = [row["bound"] for row in candidates]
        axis.plot([row["sigma"] for row in candidates], bounds, "k--", label="bound")
        axis.axhline(candidates[0]["chance"], color="grey", linewidth=1, label="chance")
    title, share = f"labels and candidates after {looks} looks", "share right"
    _finish(axis, title, xlabel="noise multiplier σ (clip C)", ylim=(-0.03, 1.03), ylabel=share)
