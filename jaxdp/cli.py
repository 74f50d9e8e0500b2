"""The command line: `jaxdp COMMAND [options]`.

A command is a module of `jaxdp.commands`, imported only when called, so that each starts fast.
"""

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Sequence

import tyro

from jaxdp import __version__, malloc

COMMANDS = {
    "train": "train a model with fixed, dynamic or no privacy parameters",
    "account": "the privacy that a schedule spends, before any training",
    "audit": "measure from the outside what steps reveal, and hold it against the epsilon claimed",
    "attack": "reconstruct training examples from leaked gradients",
    "compare": "train, account for and attack every variant at the same epsilon; write the report",
    "study": "train every variant on every data set at equal epsilon, attack the runs, write the study",
    "report": "write the report page from records",
    "data": "list, prepare and describe data sets",
}

_MODULES = {  # those of the laboratory stand beside what they do
    "attack": "jaxdp.laboratory.leakage.command",
    "audit": "jaxdp.laboratory.audit.command",
    "compare": "jaxdp.laboratory.comparison.command",
    "report": "jaxdp.laboratory.report.command",
    "study": "jaxdp.laboratory.study.command",
}


def _usage() -> str:
    rows = "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())
    return f"usage: jaxdp COMMAND [options]\n\n{rows}\n\njaxdp COMMAND --help lists a command's options."


def _parsed(command, name: str, arguments: list[str]):
    """The command's configuration; what the parser prints of an error becomes one line of a ValueError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(command.Config, prog=f"jaxdp {name}", description=command.__doc__, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """What a box of the parser says, without the title in its frame."""
    text = " ".join(re.sub("[^ -~]+|-{3,}", " ", box).split())
    refused = re.search(r"Error parsing [\w.]+: (.*?) For full helptext, ", text)
    if refused:
        return refused[1]
    text = re.sub(r"^(.+?) (?=\1\b)", "", text, flags=re.I)
    return re.sub(r"For full helptext, (?:see|run)", "See", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, what the command found wrong (1), or 2 after one line on stderr where the
    input was refused."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"jaxdp: command={name!r}: unknown; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    malloc.keep_freed_memory()
    command = importlib.import_module(_MODULES.get(name, f"jaxdp.commands.{name}"))
    try:
        return command.run(_parsed(command, name, rest)) or 0
    except (ValueError, OSError) as error:
        print(f"jaxdp {name}: {_in_one_line(error)}", file=sys.stderr)
        return 2


def _in_one_line(error: ValueError | OSError) -> str:
    """What went wrong; of the system's own errors the file and the reason, without their number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
