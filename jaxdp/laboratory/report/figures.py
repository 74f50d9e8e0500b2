"""Figures from records, as inline SVG and PNG that follow the page's light or dark colours.

Matplotlib draws with stand-in colours; in the SVG each becomes a CSS variable of the page.  Where there is no
page (a notebook, a file), `standalone` puts the page's colours in; `palette` and `style` give them to other
figures.
"""

import base64
import contextlib
import functools
import html
import importlib.resources
import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdp.intervals import Interval
from jaxdp.laboratory.records import of_kind
from jaxdp.laboratory.report.tables import variants

_SHEET = importlib.resources.files("jaxdp.laboratory.report") / "report.css"

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
    style = _SHEET.read_text(encoding="utf-8")
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
    return {**_settings(page["--ink"], page["--grid"]), **background, **plain}


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
    private = [run for run in of_kind(records, "train") if run["privacy"]["private"]]
    return _curves(records, private, "epsilon", "ε spent", _first, legend)


def sigma_over_steps(records: Sequence[Mapping], *, legend: bool = False) -> str:
    """The noise multiplier at each step."""
    noise = "noise multiplier σ(t)"
    return _curves(records, of_kind(records, "train"), "noise_multiplier", noise, _first, legend)


def accuracy_over_steps(records: Sequence[Mapping], *, legend: bool = False) -> str:
    """Test accuracy along training, mean over seeds; the band is their standard deviation."""
    return _curves(records, of_kind(records, "train"), "test_accuracy", "test accuracy", _mean, legend)


def _first(curves):
    return curves[0], None


def _mean(curves):
    spread = np.std(curves, axis=0, ddof=1) if len(curves) > 1 else None
    return np.mean(curves, axis=0), spread


def _curves(records, runs, name: str, ylabel: str, reduce: Callable, legend: bool) -> str:
    names = variants(records)
    variables = colours(names)
    with _figure(width=5.6 if legend else 4.1) as (figure, axes, painted):
        drawn = 0
        for variant in names:
            own = [run["curves"] for run in runs if run["variant"] == variant]
            own = [curves for curves in own if curves[name] and any(v is not None for v in curves[name])]
            if not own:
                continue
            own = [curves for curves in own if curves["step"] == own[0]["step"]]
            steps = np.asarray(own[0]["step"])
            values, spread = reduce(np.array([curves[name] for curves in own], np.float64))
            seen = np.isfinite(values)
            colour = painted(variables[variant])
            line = _SPECIAL[variant][1] if variant in _SPECIAL else "-"
            axes.plot(
                steps[seen], values[seen], color=colour, linestyle=line, linewidth=1.8, label=label(variant)
            )
            if spread is not None:
                low, high = (values - spread)[seen], (values + spread)[seen]
                axes.fill_between(steps[seen], low, high, color=colour, alpha=0.13, linewidth=0)
            drawn += 1
        if not drawn:
            return ""
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        if legend:
            figure.legend(loc="outside right upper", frameon=False)
        return _svg(figure, painted, f"{ylabel} over steps, a line a variant")


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
            colour, noise = painted(f"--s{index % SERIES}"), [row["noise_std"] for row in rows]
            share, low, high = np.array([row["metrics"]["success"] for row in rows], np.float64).T
            error = [row["metrics"]["rmse"] for row in rows]
            top.fill_between(noise, low, high, color=colour, alpha=0.13, linewidth=0)
            top.plot(noise, share, "o-", color=colour, markersize=3.5, linewidth=1.8)
            bottom.plot(noise, np.array(error, np.float64), "o-", color=colour, markersize=3.5, linewidth=1.8)
            top.annotate(
                f" {attack}, {leak}", (0.02, 0.06 + 0.1 * index), xycoords="axes fraction", color=colour
            )
        everything = [row for rows in curves.values() for row in rows]
        mean_image = np.median([row["metrics"]["rmse_mean_image"] for row in everything])
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

    Args:
      curves: variant -> x -> mean, median or share with its interval.
      ylabel: what it is.
      xlabel: what it is drawn over.
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
            line = _SPECIAL[variant][1] if variant in _SPECIAL else "-"
            axes.errorbar(
                shifted, middle, yerr=[middle - low, high - middle], color=painted(variables[variant]),
                linestyle=line, linewidth=1.3, elinewidth=0.8, marker="o", markersize=2.5, label=label(variant),
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


class _Painted:
    """From a CSS variable of the page to the stand-in colour that it will replace."""

    def __init__(self):
        self.used: dict[str, str] = {}

    def __call__(self, variable: str) -> str:
        return self.used.setdefault(variable, _MARK.format(0x10 + len(self.used)))


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

    painted = _Painted()
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
    size = r'<svg [^>]*viewBox="([^"]*)"[^>]*>'
    svg = re.sub(
        size, rf'<svg viewBox="\1" role="img" aria-label="{html.escape(description)}">', svg, count=1
    )
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    prefix = f"f{zlib.crc32(svg.encode()):x}-"  # identifiers are unique on the page
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}", svg)
    stand_ins = {_INK: "--ink", _GRID: "--grid", **{mark: name for name, mark in painted.used.items()}}
    for mark, name in stand_ins.items():
        svg = svg.replace(mark, f"var({name})")
    return svg


def picture(image: np.ndarray, description: str) -> str:
    """An image uint8 [height, width, 1 or 3] as an HTML element with its pixels inside."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def strip(title: str, images: np.ndarray, description: str, kind: str = "") -> str:
    """A row of a table: a title and images beside each other."""
    cells = "".join(f"<td>{picture(image, description)}</td>" for image in images)
    return f'<tr class="{kind}"><td>{title}</td>{cells}</tr>'


def swatch(variable: str) -> str:
    """A small square of a series' colour."""
    return f'<span class="swatch" style="background:var({variable})"></span>'


def framed(svg: str, title: str, caption: str) -> str:
    """A figure with its title and caption; nothing where there is no figure."""
    if not svg:
        return ""
    return f'<figure class="card"><h3>{title}</h3>{svg}<figcaption>{caption}</figcaption></figure>'
