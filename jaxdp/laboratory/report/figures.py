"""Figures from records, as inline SVG and PNG that follow the page's light or dark colours.

Matplotlib draws with stand-in colours; in the SVG each becomes a CSS variable of the page.  Where there is no
page (a notebook, a file), `standalone` puts the page's colours in; `palette` and `style` give them to other
figures.
"""

import collections
import contextlib
import functools
import html
import importlib.resources
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdp.intervals import Interval
from jaxdp.laboratory.records import of_kind
from jaxdp.laboratory.report.tables import variants

SHEET = importlib.resources.files("jaxdp.laboratory.report") / "report.css"

_INK, _GRID = "#010203", "#010204"
_MARK = "#0102{:02x}"  # stand-in of the series colours, from 0x10
SERIES = 9  # colours of the page's palette
_SPECIAL = {"non_private": ("--not-private", (0, (5, 2))), "l2_max": ("--danger", (0, (1, 1.5)))}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A CSS variable for each variant; the not-private ones have their own."""
    ordinary = [name for name in names if name not in _SPECIAL]
    return {
        **{name: f"--s{index % SERIES}" for index, name in enumerate(ordinary)},
        **{name: _SPECIAL[name][0] for name in names if name in _SPECIAL},
    }


def label(variant: str) -> str:
    """A variant's name for a reader."""
    known = {"non_private": "no privacy", "fixed": "fixed σ", "l2_max": "l2-max"}
    return known.get(variant, variant.replace("_", " "))


@functools.cache
def _page_colours() -> dict[str, str]:
    """The CSS variables of the light page."""
    style = SHEET.read_text(encoding="utf-8")
    light = style[style.index(":root {") : style.index("}")]
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", light))


def palette(names: Sequence[str]) -> dict[str, str]:
    """The colour of each variant on the light page, as Matplotlib takes it.

    >>> palette(["fixed", "linear"])
    {'fixed': '#1b5fc1', 'linear': '#c2580a'}
    """
    return {name: _page_colours()[variable] for name, variable in colours(names).items()}


def style() -> dict[str, Any]:
    """Matplotlib settings that make figures look like those of the page: `plt.rcParams.update(style())`."""
    from cycler import cycler

    page = _page_colours()
    background = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), page["--paper"])
    series = cycler(color=[page[f"--s{index}"] for index in range(SERIES)])
    plain = {"legend.frameon": False, "axes.titlesize": 10.5, "axes.prop_cycle": series}
    return _settings(page["--ink"], page["--grid"]) | background | plain


def standalone(svg: str) -> str:
    """A figure with the light page's colours and background inside: for a notebook, or a file of its own."""
    box = re.search(r'<svg viewBox="([^"]*)"', svg)
    if box is None:
        raise ValueError(f"svg={svg[:40]!r}: not a figure of this module")
    _, _, width, height = box[1].split()
    page = _page_colours()
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = (
        f'<svg {namespaces} width="{width}pt" height="{height}pt" '
        f'style="background: {page["--paper"]}; font-family: sans-serif"'
    )
    return re.sub(r"var\((--[\w-]+)\)", lambda found: page[found[1]], svg.replace("<svg", head, 1))


def epsilon_over_steps(records: Sequence[Mapping], *, legend: bool = False) -> str:
    """The epsilon spent after each step: private variants only; `legend` names them beside the axes."""
    return _curves(records, "epsilon", "ε spent", legend)


def sigma_over_steps(records: Sequence[Mapping], *, legend: bool = False) -> str:
    """The noise multiplier at each step."""
    return _curves(records, "noise_multiplier", "noise multiplier σ(t)", legend)


def accuracy_over_steps(records: Sequence[Mapping], *, legend: bool = False) -> str:
    """Test accuracy along training, mean over seeds; the band is their standard deviation."""
    return _curves(records, "test_accuracy", "test accuracy", legend)


def _curves(records, name: str, ylabel: str, legend: bool) -> str:
    """A line a variant: of the accuracy over all seeds, of what is the same for each over the first."""
    names = variants(records)
    variables = colours(names)
    with _figure(width=5.6 if legend else 4.1) as (figure, axes, painted):
        for variant in names:
            runs = [run for run in of_kind(records, "train") if run["variant"] == variant]
            if name == "epsilon":
                runs = [run for run in runs if run["privacy"]["private"]]
            own = [curves for curves in (run["curves"] for run in runs) if curves["step"]]
            own = [curves for curves in own if any(v is not None for v in curves[name] or ())]
            if not own:
                continue
            steps = np.asarray(own[0]["step"])
            lines = np.array([c[name] for c in own if c["step"] == own[0]["step"]], np.float64)
            values = lines.mean(axis=0) if name == "test_accuracy" else lines[0]
            seen = np.isfinite(values)
            look = {"color": painted[variables[variant]], "linestyle": _dashes(variant), "linewidth": 1.8}
            axes.plot(steps[seen], values[seen], label=label(variant), **look)
            if name == "test_accuracy" and len(lines) > 1:
                spread = lines.std(axis=0, ddof=1)
                _band(axes, steps[seen], (values - spread)[seen], (values + spread)[seen], look["color"])
        if not axes.lines:
            return ""
        axes.set(xlabel="step", ylabel=ylabel)
        if legend:
            figure.legend(loc="outside right upper", frameon=False)
        return _svg(figure, painted, f"{ylabel} over steps, a line a variant")


def _dashes(variant: str) -> Any:
    return _SPECIAL[variant][1] if variant in _SPECIAL else "-"


def _band(axes, x, low, high, colour: str) -> None:
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def success_over_noise(records: Sequence[Mapping]) -> str:
    """Share of successes and median error against noise on the leaked gradient; the mean image's error."""
    points: dict[tuple, list] = {}
    for attack in of_kind(records, "attack"):
        if attack["stage"] is None:
            points.setdefault((attack["attack"], attack["leak_point"]), []).append(attack)
    curves = {key: sorted(rows, key=lambda row: row["noise_std"]) for key, rows in points.items()}
    curves = {key: rows for key, rows in curves.items() if sum(row["noise_std"] > 0 for row in rows) > 1}
    if not curves:
        return ""
    with _figure(panels=2) as (figure, (top, bottom), painted):
        for index, ((attack, leak), rows) in enumerate(curves.items()):
            rows = [row for row in rows if row["noise_std"] > 0]
            colour, noise = painted[f"--s{index % SERIES}"], [row["noise_std"] for row in rows]
            share, low, high = np.array([row["metrics"]["success"] for row in rows], np.float64).T
            error = np.array([row["metrics"]["rmse"] for row in rows], np.float64)
            _band(top, noise, low, high, colour)
            for axes, values in ((top, share), (bottom, error)):
                axes.plot(noise, values, "o-", color=colour, markersize=3.5, linewidth=1.8)
            where = (0.02, 0.06 + 0.1 * index)
            top.annotate(f" {attack}, {leak}", where, xycoords="axes fraction", color=colour)
        every = [row["metrics"]["rmse_mean_image"] for rows in curves.values() for row in rows]
        mean_image = np.median(every)
        bottom.axhline(mean_image, color=_INK, linestyle=(0, (4, 3)), linewidth=1)
        bottom.annotate(
            "mean image: nothing learnt", (0.02, mean_image), xycoords=("axes fraction", "data"),
            xytext=(0, 4), textcoords="offset points", color=_INK,
        )  # fmt: skip
        top.set(xscale="log", ylim=(-0.03, 1.05), ylabel="recognised")
        bottom.set(xscale="log", ylim=(0, None), ylabel="RMSE (median)", xlabel="noise std on the gradient")
        return _svg(figure, painted, "share of recognised images and median error against noise")


def intervals(curves: Mapping[str, Mapping[float, Interval]], ylabel: str, xlabel: str = "ε") -> str:
    """A line a variant over x, on a logarithmic axis, each point with its interval.

    An interval that reaches far beyond the points is cut at the edge: it would flatten all lines.  Far is more
    than the points are apart, or than most intervals are wide.
    """
    if not any(curves.values()):
        return ""
    variables = colours(list(curves))
    with _figure(width=5.6) as (figure, axes, painted):
        for index, (variant, points) in enumerate(curves.items()):
            x = np.array(sorted(points))
            # Side by side, so that intervals at the same x can be told apart.
            shifted = x * 1.03 ** (index - len(curves) / 2)
            middle, low, high = np.array([points[value] for value in x], np.float64).T
            axes.errorbar(
                shifted, middle, yerr=[middle - low, high - middle], color=painted[variables[variant]],
                linestyle=_dashes(variant), linewidth=1.3, elinewidth=0.8, marker="o", markersize=2.5,
                label=label(variant),
            )  # fmt: skip
        axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
        every = sorted({value for points in curves.values() for value in points})
        axes.set_xticks(every, [f"{value:g}" for value in every])
        axes.minorticks_off()
        middles, lows, highs = np.array([point for own in curves.values() for point in own.values()]).T
        far = max(np.ptp(middles), np.median(highs - lows))
        if far > 0:
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(bottom, middles.min() - far), min(top, middles.max() + far))
        figure.legend(loc="outside right upper", frameon=False)
        return _svg(figure, painted, f"{ylabel} over {xlabel}, a line a variant")


def _settings(ink: str, grid: str) -> dict[str, Any]:
    """How all figures look."""
    return {
        "svg.fonttype": "none", "svg.hashsalt": "jaxdp", "font.size": 9.5, "font.family": "sans-serif",
        "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink,
        "axes.edgecolor": grid, "grid.color": grid, "axes.grid": True, "axes.spines.top": False,
        "axes.spines.right": False, "grid.linewidth": 0.7, "axes.axisbelow": True,
    }  # fmt: skip


@contextlib.contextmanager
def _figure(panels: int = 1, width: float = 4.1):
    """A figure, its axes and its colours."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # From a CSS variable of the page to the stand-in colour that it will replace.
    painted: dict[str, str] = collections.defaultdict(lambda: _MARK.format(0x10 + len(painted)))
    with mpl.rc_context(_settings(_INK, _GRID)):
        figure = Figure(figsize=(width, 2.8 if panels == 1 else 4.0), layout="constrained")
        axes: Any = figure.subplots(panels, 1, sharex=True)
        for one in np.atleast_1d(axes):
            one.tick_params(which="both", length=0)
        yield figure, axes, painted


def _svg(figure, painted, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    head = rf'<svg viewBox="\1" role="img" aria-label="{html.escape(description)}">'
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', head, svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    prefix = f"f{zlib.crc32(svg.encode()):x}-"  # identifiers are unique on the page
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}", svg)
    stand_ins = {_INK: "--ink", _GRID: "--grid", **{mark: name for name, mark in painted.items()}}
    for mark, name in stand_ins.items():
        svg = svg.replace(mark, f"var({name})")
    return svg
