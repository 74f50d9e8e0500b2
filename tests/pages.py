"""The fenced blocks of the README and of the documentation's pages, and how those in Python are run."""

import io
import pathlib
import re
from contextlib import redirect_stdout
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
MIRRORED = ("_build", "benchmarks", "notebooks")  # copies that a build makes below docs/
PAGES = [
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if path.relative_to(ROOT / "docs").parts[0] not in MIRRORED
]
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.S | re.M)


class Block(NamedTuple):
    """A fenced block of a page: its language, its text, and the line on which the text begins."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in _FENCED.finditer(text)]


def run(block: Block, page: str, names: dict) -> str:
    """What a block prints; its lines are counted as in the page."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)
    return printed.getvalue()


def code(page: str) -> list[tuple[Block, Block | None]]:
    """The Python blocks of a page, each with the block of text that follows it, if one does."""
    found = blocks(page)
    after = [*found, None][1:]
    return [
        (one, next if next is not None and next.language == "text" else None)
        for one, next in zip(found, after, strict=True)
        if one.language == "python"
    ]
