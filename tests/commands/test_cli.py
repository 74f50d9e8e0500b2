"""The command line: bad input gives exit code 2 and one line, and leaves nothing behind."""

import pytest

from jaxdp import cli


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


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["train", "--steps", "-5"], "jaxdp train: steps=-5: must be >= 1\n"),
        (["report", "nowhere"], "jaxdp report: Unrecognized options: nowhere See jaxdp report --help\n"),
    ],
)
def test_what_the_parser_refuses_is_said_once(arguments, line, capsys):
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == line


def test_usage_lists_every_command(capsys):
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert all(name in usage for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code in (0, None) and "usage" in capsys.readouterr().out
