"""The Python blocks of README and documentation run as they stand, and print what stands below them."""

import doctest
import io
import pathlib
import re
from contextlib import redirect_stdout
from typing import NamedTuple

import numpy as np
import pytest

from jaxdp import cli

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


def test_the_library_example_and_the_loop_run():
    example, loop = (block for block, _ in code("README.md"))
    assert sum(bool(line.strip()) for line in example.text.splitlines()) <= 30
    names: dict = {}
    printed = run(example, "README.md", names)
    assert printed.startswith("epsilon = 3.0000") or printed.startswith("epsilon = 3.0 ")
    assert "For one example, epsilon = " in printed and names["result"].epsilon.value <= 3.0
    exec("import jax", names)
    run(loop, "README.md", names)
    batch = {name: leaf[:8] for name, leaf in names["data"].items()}
    state = names["optimizer"].init(names["params"])
    params, _ = names["step"](names["params"], state, batch, np.ones(8, bool))
    assert names["accounting"].epsilon(names["plan"].ledger(1), names["claim"]).value > 0
    kernels = [np.asarray(p["hidden"]["kernel"][...]) for p in (params, names["params"])]
    assert np.isfinite(kernels[0]).all() and not np.array_equal(*kernels)


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)])
def test_a_page_runs_from_top_to_bottom_and_prints_what_it_shows(page):
    names: dict = {}
    for block, shown in code(page):
        printed = run(block, page, names)
        if shown is not None:
            how = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(shown.text, printed, how), (
                f"{page}:{block.line} prints\n{printed}"
            )


COMMANDS = sorted(
    {
        line.removeprefix("$ ").split("#")[0].strip()
        for page in ["README.md", "CONTRIBUTING.md", *PAGES]
        for block in blocks(page)
        if block.language == "console"
        for line in block.text.splitlines()
        if line.startswith("$ ")
    }
)


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"jaxdp \w", c)])
def test_commands_and_their_options_exist(command, capsys):
    _, name, *arguments = command.split()
    with pytest.raises(SystemExit) as stop:
        cli.main([name, *[word for word in arguments[:1] if not word.startswith("-")], "--help"])
    offered = capsys.readouterr().out
    assert not stop.value.code
    for option in (word for word in arguments if word.startswith("--")):
        assert re.search(rf"{option}\b", offered), f"{command}: no option {option}"


def test_targets_of_make_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    asked = [command.split() for command in COMMANDS if command.startswith("make ")]
    named = {word for words in asked for word in words[1:] if "=" not in word}
    assert named and named <= set(targets)
