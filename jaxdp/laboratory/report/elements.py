"""Pieces of HTML that the parts of the report share."""

import html
from collections.abc import Mapping
from typing import Any

from jaxdp.laboratory.report.figures import label, swatch


def text(value: Any) -> str:
    """A value as text of the page."""
    return html.escape(str(value))


def badge(kind: str, words: str) -> str:
    """A mark beside a variant's name: `yes` for a guarantee, `no` for none, `open` for an unchecked one."""
    return f'<span class="badge {kind}">{words}</span>'


def named(variant: str, palette: Mapping[str, str], private: bool = True) -> str:
    """A variant's colour and name, marked where it is not private."""
    return f"{swatch(palette[variant])}{text(label(variant))}{'' if private else badge('no', 'not private')}"


def table(content: str, kind: str = "") -> str:
    """A table in a frame in which it can be moved where the screen is too narrow for it.

    Args:
      content: its rows.
      kind: `wide` for one that no phone shows whole: it then says so.
    """
    hint = '<p class="swipe" aria-hidden="true">More columns at the side: swipe the table →</p>'
    shown = f'<div class="card scroll" tabindex="0"><table class="{kind}">{content}</table></div>'
    return hint + shown if kind == "wide" else shown
