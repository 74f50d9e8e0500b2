"""The command line: `jaxdp COMMAND [options]`.

A command is a module of `jaxdp.commands`, imported only when called, so that each starts fast.
"""

import contextlib
import dataclasses
import importlib
import io
import signal
import sys
from collections.abc import Sequence
from typing import Any

from jaxdp import __version__, compilation, malloc

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

_COMPILE = ("train", "audit", "attack", "compare", "study")

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


def _configured(command: Any, name: str, arguments: list[str]) -> Any:
    """The command's configuration; what is not given is as in the run that goes on, if one does."""
    config = _parsed(command, name, arguments, None)
    begun = command.begun(config) if hasattr(command, "begun") else None
    return config if begun is None else _parsed(command, name, arguments, begun)


def _parsed(command: Any, name: str, arguments: list[str], default: Any) -> Any:
    """What the arguments say; what the parser prints of an error becomes one line of a ValueError."""
    import tyro

    given = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = tyro.cli(
                command.Config, prog=f"jaxdp {name}", description=command.__doc__, args=arguments, **given
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        cause = stop.__context__
        if cause and isinstance(getattr(cause, "arg", None), str):  # the parser's, of a group of options
            cause = cause.__context__
        if isinstance(cause, ValueError):  # the configuration's own refusal
            raise cause from None
        _title, *lines = said.getvalue().splitlines()
        words = (word for line in lines for word in line.split())
        raise ValueError(
            " ".join(word for word in words if any(map(str.isalnum, word)))
        ) from None  # no frame
    _refuse_large(config)
    return config


def _refuse_large(config: Any) -> None:
    """Refuses whole numbers that no array holds, as of a seed."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _refuse_large(value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{field.name}={value}: must lie in -2**63 .. 2**63 - 1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    A command is a module with `Config`, `run(config)` and perhaps `begun(config)`, whose options stand for
    those that are not given.  The text of a KeyboardInterrupt says how to go on.

    Returns:
      0; what the command found wrong (1); 2 after one line on stderr where the input was refused; 130 after one
      line where it was interrupted, and from then on the process is deaf to Ctrl-C, since it is ending.
    """
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
    try:
        malloc.keep_freed_memory()
        command = importlib.import_module(_MODULES.get(name, f"jaxdp.commands.{name}"))
        config = _configured(command, name, rest)
        if name in _COMPILE:
            compilation.keep_programs()
        return command.run(config) or 0
    except (ValueError, OSError, OverflowError, MemoryError) as error:
        print(f"jaxdp {name}: {_in_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        advice = str(interrupt)
        below = "\n" * sys.stderr.isatty()  # of ^C and a progress bar
        print(f"{below}jaxdp {name}: interrupted{advice and '; '}{advice}", file=sys.stderr)
        return 130


def _in_one_line(error: Exception) -> str:
    """What went wrong; of the system's own errors the file and the reason, without their number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
