"""The figure of `jaxdp attack`: originals above reconstructions, and what noise does to each measure."""

import io
from collections.abc import Sequence

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
    """A PNG.

    Args:
      rows: of the sweep.
      reconstructions: of each row, [victims, *input_shape].
      originals: the victims; images are shown, tabular rows are not.
      labels, candidates, errors: of `forecast`.
    """
    from matplotlib.figure import Figure

    images = originals.ndim == 4
    strips = _strips(rows, reconstructions, originals) if images else []
    height = max(6.0, 0.55 * len(strips) + 0.6)
    canvas = Figure(figsize=(12 if images else 6, height), layout="constrained")
    if images:
        left, right = np.asarray(canvas.subfigures(1, 2, width_ratios=(1.2, 1))).ravel()
        _draw_strips(left, strips)
    else:
        right = canvas
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
    named = []
    for (leak, sigma), i in best.items():
        noise = f", σ {sigma:g}" if sigma else ""
        named.append((f"{leak}{noise}: {rows[i]['attack']}", reconstructions[i]))
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


def _success(axis, rows) -> None:
    """Success against noise, each attack's break-down marked."""
    for attack in ("published", "posterior"):
        line = _noised(rows, attack)
        if not line:
            continue
        sigmas, shares = [row["sigma"] for row in line], [row["recognisable"] for row in line]
        (drawn,) = axis.plot(sigmas, [s.estimate for s in shares], marker="o", label=attack)
        axis.fill_between(sigmas, [s.low for s in shares], [s.high for s in shares], alpha=0.15)
        limit = break_down(rows, attack)
        if limit is not None:
            axis.axvline(limit, color=drawn.get_color(), linestyle=":", linewidth=1)
    axis.set(xscale="log", ylim=(-0.03, 1.03), ylabel="share recognisable")
    axis.set_title("one noised gradient; dotted: break-down (below half)", fontsize=9)
    if axis.has_data():
        axis.legend(fontsize=8)


def _error(axis, rows, errors) -> None:
    """Measured error of the posterior attack, what linearisation expects, and the mean input's error."""
    line = _noised(rows, "posterior")
    if line:
        sigmas = [row["sigma"] for row in line]
        axis.plot(sigmas, [row["rmse"] for row in line], marker="o", label="posterior, measured")
        axis.axhline(line[0]["rmse_mean_image"], color="grey", linewidth=1, label="mean input")
    if errors:
        axis.plot(
            [e["sigma"] for e in errors], [e["rmse"] for e in errors], "--", label="expected, linearised"
        )
    axis.set(xscale="log", yscale="log", ylabel="RMSE")
    axis.set_title("error of one noised gradient's reconstruction", fontsize=9)
    if axis.has_data():
        axis.legend(fontsize=8)


def _many_looks(axis, labels, candidates) -> None:
    """Labels and candidates after the most looks, with the bound that no adversary passes."""
    looks = max((row["looks"] for row in (*labels, *candidates)), default=0)
    lines = [(labels, "right", "label", "o-"), (candidates, "worst case", "candidate, worst case", "s-")]
    lines.append((candidates, "real", "candidate, real", "^-"))
    for rows, key, name, style in lines:
        last = [row for row in rows if row["looks"] == looks]
        if last:
            axis.plot([r["sigma"] for r in last], [r[key].estimate for r in last], style, label=name)
            low, high = zip(*((r[key].low, r[key].high) for r in last), strict=True)
            axis.fill_between([r["sigma"] for r in last], low, high, alpha=0.12)
    last = [row for row in candidates if row["looks"] == looks]
    if last:
        axis.plot([r["sigma"] for r in last], [r["bound"] for r in last], "k--", label="bound")
        axis.axhline(last[0]["chance"], color="grey", linewidth=1, label="chance")
        axis.legend(fontsize=7)
    axis.set(xscale="log", xlabel="noise multiplier σ (clip C)", ylim=(-0.03, 1.03), ylabel="share right")
    axis.set_title(f"labels and candidates after {looks} looks", fontsize=9)
