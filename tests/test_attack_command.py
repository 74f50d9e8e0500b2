"""The attack command around the attack itself: settings, table, break-down, figure, record."""

import json

import numpy as np
import pytest

from jaxdp import cli
from jaxdp.commands import attack
from jaxdp.metrics import wilson

CONFIG = attack.Config(victims=4, sigmas=(0.01, 0.1))


def table_rows():
    """Rows as the command makes them, success falling with the noise."""
    rows = []
    for point, leak, sigma, name in attack.leak_points(CONFIG):
        hits = 8 if sigma == 0 else (6 if name == "posterior" and sigma < 0.1 else 1)
        shares = {"exact": wilson(hits, 8), "recognisable": wilson(hits, 8)}
        numbers = dict(rmse=0.1, gain=0.5, labels=1.0, iterations=10.0, seconds=1.0, ssim=0.5)
        facts = dict(leak=point, attack=name, sigma=sigma, batch_size=leak.batch_size)
        rows.append(facts | shares | numbers)
    return rows


def test_every_leak_point_is_tried_at_every_sigma():
    points = [(point, sigma, name) for point, _, sigma, name in attack.leak_points(CONFIG)]
    assert len(points) == len(set(points)) == 10
    for sigma in CONFIG.sigmas:
        assert ("noised", sigma, "plain") in points and ("noised batch", sigma, "posterior") in points


def test_break_down_is_the_first_sigma_below_half():
    rows = table_rows()
    assert attack.break_down(rows, "plain") == 0.01
    assert attack.break_down(rows, "posterior") == 0.1
    assert attack.break_down([row for row in rows if row["sigma"] == 0], "plain") is None


def test_table_record_and_figure_hold_every_row():
    rows = table_rows()
    assert len(attack.table(rows).splitlines()) == len(rows) + 1
    assert len(json.loads(json.dumps(attack.record(CONFIG, rows)))["rows"]) == len(rows)
    images = [np.zeros((4, 8, 8, 1)) for _ in rows]
    assert attack.figure(rows, images, np.ones((4, 8, 8, 1))).startswith(b"\x89PNG")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "attack.json"
    attack.write_atomically(path, b"{}")
    with pytest.raises(TypeError):
        attack.write_atomically(path, "not bytes")
    assert path.read_bytes() == b"{}" and [p.name for p in path.parent.iterdir()] == ["attack.json"]


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--victims", "0"], "victims=0"),
        (["--sigmas", "-1"], "sigmas=(-1.0,)"),
        (["--l2-norm-clip", "0"], "l2_norm_clip=0.0"),
        (["--public", "1"], "public=1"),
        (["--model", "vgg"], "model='vgg'"),
        (["--data", "nothing"], "data='nothing'"),
    ],
)
def test_bad_settings_leave_one_line_and_nothing_written(arguments, word, tmp_path, capsys):
    output = tmp_path / "out"
    assert cli.main(["attack", *arguments, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1 and not output.exists()
