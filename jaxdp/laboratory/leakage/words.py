"""The figure of an attack on text: a passage as it came back from each leak, and what noise does to it."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxdp.laboratory.leakage.passages import Passages

_WORDS, _LETTERS = 9, 10  # shown of a passage, and of a word


def figure(
    rows: Sequence[dict],
    truths: Sequence[Int[np.ndarray, "_ l"]],
    guesses: Sequence[Int[np.ndarray, "_ l"]],
    text: Passages,
) -> bytes:
    """A PNG of the rows, each with its passages and what came back of them."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(13, max(5.0, 0.24 * len(rows) + 1)), layout="constrained")
    left, right = np.asarray(canvas.subplots(1, 2, width_ratios=(1.9, 1))).ravel()
    _passages(left, rows, truths, guesses, text)
    for name in dict.fromkeys((row["leak"], row["attack"]) for row in rows if row["sigma"] > 0):
        line = [row for row in rows if (row["leak"], row["attack"]) == name and row["sigma"] > 0]
        sigmas = [row["sigma"] for row in line]
        style = "-" if line[0]["attack"] == "noise-aware" else ":"
        right.plot(sigmas, [row["tokens"] for row in line], f"o{style}", label=", ".join(name))
    limits = {row["sigma"]: row["bound"] for row in rows if row["bound"] is not None}
    if limits:
        right.plot(
            list(limits), list(limits.values()), "k--", linewidth=1, label="bound, one passage unknown"
        )
    right.axhline(rows[0]["chance"], color="grey", linewidth=1, label="the commonest word at a place")
    right.set(xscale="log", xlabel="sigma", ylabel="share of words in place", ylim=(-0.03, 1.03))
    right.legend(fontsize=7)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _passages(axis, rows, truths, guesses, text):
    """The first passage of every row, its wrong words in red."""
    axis.set(xlim=(-5.5, _WORDS), ylim=(len(rows) + 0.5, -1))
    axis.set_axis_off()
    truth = truths[0][0][:_WORDS]
    _line(axis, -0.5, "original", truth, truth, text)
    for place, (row, guess) in enumerate(zip(rows, guesses, strict=True), start=1):
        title = f"{row['leak']}, {row['attack']}" + (f", σ {row['sigma']:g}" if row["sigma"] else "")
        _line(axis, place - 0.3, title, guess[0][:_WORDS], truths[place - 1][0][:_WORDS], text)


def _line(axis, height, title, shown, truth, text):
    axis.text(-0.2, height, title, ha="right", va="center", fontsize=7)
    for place, (token, right) in enumerate(zip(shown, truth, strict=True)):
        word = text.words[token][:_LETTERS].replace("$", r"\$")
        axis.text(
            place, height, word, va="center", fontsize=7, color="black" if token == right else "tab:red"
        )
