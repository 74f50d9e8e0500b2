"""The documentation's Python blocks run as they stand and print what is shown; its commands exist."""

import doctest
import re
import runpy

import pytest
from pages import PAGES, ROOT, blocks, code, run

from jaxdp import cli


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)])
@pytest.mark.usefixtures("quick_compilation")
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


def test_a_link_that_leads_nowhere_and_a_fetched_script_are_found(tmp_path):
    names = runpy.run_path(str(ROOT / "docs" / "check_links.py"))
    (tmp_path / "other.html").write_text("<h1 id='there'>x</h1>")
    good = "<a href='other.html#there'>x</a> <a href='https://arxiv.org'>x</a>"
    (tmp_path / "index.html").write_text(good)
    assert names["problems"](tmp_path) == []
    bad = "<a href='gone.html'></a><a href='other.html#gone'></a><script src='https://cdn.example/x.js'></script>"
    (tmp_path / "index.html").write_text(good + bad)
    assert [line.split(": ")[1] for line in names["problems"](tmp_path)] == [
        "gone.html leads nowhere",
        "fetches https://cdn.example/x.js",
        "other.html#gone leads to no part of other.html",
    ]
