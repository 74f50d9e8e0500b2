"""The command line: bad input gives exit code 2 and one line, and leaves nothing behind."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
import types
from typing import Any

import pytest
import tyro

import jaxdp
from jaxdp import cli

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["train", "--noise-multiplier", "-1"], "noise_multiplier=-1.0"),
        (["train", "--l2-norm-clip", "0"], "l2_norm_clip=0.0"),
        (["train", "--delta", "0"], "delta=0.0"),
        (["train", "--sampling-rate", "1.5"], "sampling_rate=1.5"),
        (["train", "--schedule", "cyclic"], "cyclic"),
        (["train", "--schedule", "linear", "--noise-multiplier", "2"], "noise_multiplier=2.0: of the fixed"),
        (["train", "--data", "nope"], "data='nope'"),
        (["train", "--output", "/proc/nowhere"], "/proc/nowhere"),
        (["train", "--output", "/dev/null/x"], "train: /dev/null/x/checkpoints: Not a directory"),
        (["train", "--resume"], "resume=True"),
        (["account", "--delta", "0", "--sampling-rate", "0.01"], "delta=0.0"),
        (["compare", "--seeds", "0"], "seeds=0"),
        (["report", "--records", "/nowhere"], "/nowhere"),
        (["dance"], "command='dance'"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert text in err and err.count("\n") == 1 and not out
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@dataclasses.dataclass(frozen=True)
class Group:
    small: int = 0

    def __post_init__(self):
        if self.small > 9:
            raise ValueError(f"small={self.small}: must be <= 9; see\n  the second line")


@dataclasses.dataclass(frozen=True)
class Config:
    group: tyro.conf.OmitArgPrefixes[Group] = dataclasses.field(default_factory=Group)
    large: int = 0


@pytest.fixture
def command(monkeypatch):
    """A command whose run does as the test says."""
    module: Any = types.ModuleType("command_of_this_test", "Does nothing.")
    module.Config, module.run = Config, lambda config: None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "dance", "")
    monkeypatch.setitem(cli._MODULES, "dance", module.__name__)
    before = signal.getsignal(signal.SIGINT)
    yield module
    signal.signal(signal.SIGINT, before)


def raising(error):
    def run(*_):
        raise error

    return run


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--small", "10"], "small=10: must be <= 9; see the second line"),
        (["--large", str(10**20)], f"large={10**20}: must lie in -2**63 .. 2**63 - 1"),
        (["--small", str(-(10**20))], f"small={-(10**20)}: must lie in -2**63 .. 2**63 - 1"),
    ],
)
def test_what_the_configuration_refuses_is_all_that_is_said(arguments, line, command, capsys):
    assert cli.main(["dance", *arguments]) == 2
    assert capsys.readouterr().err == f"jaxdp dance: {line}\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "Unrecognized options: nowhere For"),
        (["--large", "x"], "Error parsing --large: invalid literal for int() with base 10: 'x' Argument"),
        (["--large"], "Missing value for argument '--large'. Expected 1 values. For"),
    ],
)
def test_what_the_parser_refuses_is_said_in_one_line_without_its_frame(arguments, words, command, capsys):
    assert cli.main(["dance", *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"jaxdp dance: {words}") and "jaxdp dance --help" in err
    assert err.count("\n") == 1 and err.isascii() and not out


@pytest.mark.parametrize(
    "error, line",
    [
        (OverflowError("too large"), "too large"),
        (MemoryError("Unable to allocate 18 TiB"), "Unable to allocate 18 TiB"),
        (MemoryError(), "MemoryError"),
        (IsADirectoryError(21, "Is a directory", "/x"), "/x: Is a directory"),
    ],
)
def test_what_input_does_to_a_command_is_one_line(error, line, command, capsys):
    command.run = raising(error)
    assert cli.main(["dance"]) == 2
    assert capsys.readouterr().err == f"jaxdp dance: {line}\n"


def test_a_command_s_own_fault_is_not_hidden(command):
    command.run = raising(KeyError("field"))
    with pytest.raises(KeyError):
        cli.main(["dance"])


@pytest.mark.parametrize(
    "error, line",
    [
        (KeyboardInterrupt(), "interrupted"),
        (KeyboardInterrupt("go on with --resume"), "interrupted; go on with --resume"),
    ],
)
def test_an_interruption_is_one_line_that_says_how_to_go_on(error, line, command, capsys):
    command.run = raising(error)
    assert cli.main(["dance", "--large", "7"]) == 130
    assert capsys.readouterr().err == f"jaxdp dance: {line}\n"


def test_interrupted_before_there_is_a_configuration(command, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_parsed", raising(KeyboardInterrupt()))
    assert cli.main(["dance"]) == 130
    assert capsys.readouterr().err == "jaxdp dance: interrupted\n"


def test_ctrl_c_twice_during_training_leaves_one_line(tmp_path):
    """In a process of its own, amid checkpoints, and again while that process ends."""
    options = ["--model", "logistic", "--steps", "100000", "--evaluate-every", "3", "--no-progress"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxdp.cli", "train", *options, "--output", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / "9").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and not out
    assert err.startswith("jaxdp train: interrupted") and err.count("\n") == 1


def test_the_version_is_said(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{jaxdp.__version__}\n"


_HEAVY = "matplotlib pandas tyro tensorflow_datasets orbax sklearn PIL IPython tqdm"


def test_nothing_heavy_is_loaded_before_it_is_asked_for():
    """Nor the laboratory, by the library or by the command line that has not been told a command."""
    modules = "import jaxdp, jaxdp.cli, jaxdp.data, jaxdp.sampling, jaxdp.training.checkpoints, sys"
    program = f"{modules}; print([m for m in '{_HEAVY} jaxdp.laboratory'.split() if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_usage_lists_every_command(capsys):
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert all(name in usage for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code in (0, None) and "usage" in capsys.readouterr().out
