"""`jaxdp attack --model decoder --data text`: from the text to the table, the records and the figure."""

import functools
import json

import numpy as np
import pytest

from jaxdp import cli
from jaxdp.laboratory import records
from jaxdp.laboratory.leakage import passages, text

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_passages_are_of_two_halves():
    found = passages.load(100, 6)
    assert found.public.shape[1] == found.private.shape[1] == 6 and len(found.words) == 100
    assert max(found.public.max(), found.private.max()) < 100
    assert not {tuple(p) for p in found.private if (p > 0).all()} <= {tuple(p) for p in found.public}
    assert found.chance == pytest.approx(
        np.mean([max(np.mean(found.private[:, i] == v) for v in range(100)) for i in range(6)])
    )


def test_text_is_attacked_from_end_to_end(tmp_path, capsys, monkeypatch):
    small = functools.partial(passages.load, 60, 6)
    monkeypatch.setattr(text.passages, "load", small)
    monkeypatch.setattr(text, "WIDTH", 32)
    options = ["--victims", "2", "--batch-size", "2", "--sigmas", "1000", "--output", str(tmp_path)]
    assert cli.main(["attack", "--model", "decoder", "--data", "text", *options]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in text.ATTACKS) and "fresh decoder" in said
    document = json.loads((tmp_path / "attack.json").read_text())
    by_leak = {(row["leak"], row["attack"]): row for row in document["rows"]}
    assert by_leak["raw batch", "plain"]["tokens"] == by_leak["clipped batch", "plain"]["tokens"] == 1
    assert by_leak["noised", "noise-aware"]["bound"] == pytest.approx(small().chance, abs=1e-3)
    assert by_leak["noised batch", "noise-aware"]["bound"] is None
    assert document["passages"][0]["truth"] == document["passages"][0]["found"]
    found = records.read_folder(tmp_path / "records")
    assert len(found) == len(document["rows"]) == 6
    assert (tmp_path / "attack.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--model", "decoder"], "model='decoder', data='digits'"),
        (["--data", "text", "--model", "lenet"], "model='lenet', data='text'"),
        (["--data", "text", "--checkpoint", "runs/x"], "checkpoint='runs/x'"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, word, tmp_path, capsys):
    assert cli.main(["attack", *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
