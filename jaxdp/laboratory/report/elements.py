"""Pieces of HTML that the parts of the report share."""

import html
from collections.abc import Mapping
from typing import Any

from jaxdp.laboratory.report.figures import label, swatch


def text(value: Any) -> str:
    """A value as text of the page."""
    return html.escape(str(value))


def badge(private: bool, words: str = "") -> str:
    """Whether a number is a guarantee, beside a variant's name."""
    return f'<span class="badge {"yes" if private else "no"}">{words or "not private"}</span>'


def named(variant: str, palette: Mapping[str, str], private: bool = True) -> str:
    """A variant's colour and name, marked where it is not private."""
    return f"{swatch(palette[variant])}{text(label(variant))}{'' if private else badge(False)}"


def table(content: str, kind: str = "") -> str:
    """A table in a frame of its own, which on a narrow screen says that there is more at its side."""
    opened = f'<table class="{kind}">' if kind else "<table>"
    hint = '<p class="swipe" aria-hidden="true">More columns at the side: swipe the table →</p>'
    return f'{hint}<div class="card scroll" tabindex="0">{opened}{content}</table></div>'
