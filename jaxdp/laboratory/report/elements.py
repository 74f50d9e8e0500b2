"""Pieces of HTML that the parts of the report share."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdp.laboratory import texts
from jaxdp.laboratory.report.figures import colours, label
from jaxdp.laboratory.report.tables import variants

words = texts.parts("jaxdp.laboratory.report", "page.html")


def text(value: Any) -> str:
    """A value as text of the page."""
    return html.escape(str(value))


def tagged(tag: str, contents: Iterable[str]) -> str:
    """Each content in an element of its own."""
    return "".join(f"<{tag}>{content}</{tag}>" for content in contents)


def folded(title: str, content: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{title}</summary>{content}</details>"


def badge(kind: str, words: str) -> str:
    """A mark beside a variant's name: `yes` for a guarantee, `no` for none, `open` for an unchecked one."""
    return f'<span class="badge {kind}">{words}</span>'


def named(records: Sequence[Mapping], variant: str, private: bool = True) -> str:
    """A variant's colour and name, marked where it is not private."""
    colour = colours(variants(records))[variant]
    swatch = f'<span class="swatch" style="background:var({colour})"></span>'
    return f"{swatch}{text(label(variant))}{'' if private else badge('no', 'not private')}"


def table(content: str, kind: str = "") -> str:
    """A table in a frame in which it can be moved where the screen is too narrow for it.

    Args:
      content: its rows.
      kind: `wide` for one that no phone shows whole: it then says so.
    """
    hint = '<p class="swipe" aria-hidden="true">More columns at the side: swipe the table →</p>'
    shown = f'<div class="card scroll" tabindex="0"><table class="{kind}">{content}</table></div>'
    return hint + shown if kind == "wide" else shown


def picture(image: np.ndarray, description: str) -> str:
    """An image uint8 [height, width, 1 or 3] with its pixels inside."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{text(description)}" src="data:image/png;base64,{data}">'


def strip(title: str, images: np.ndarray, description: str, kind: str = "") -> str:
    """A row of a table: a title and images beside each other."""
    cells = tagged("td", (title, *(picture(image, description) for image in images)))
    return f'<tr class="{kind}">{cells}</tr>'


def framed(svg: str, title: str, caption: str) -> str:
    """A figure with its title and caption; nothing where there is no figure."""
    if not svg:
        return ""
    return f'<figure class="card"><h3>{title}</h3>{svg}<figcaption>{caption}</figcaption></figure>'
