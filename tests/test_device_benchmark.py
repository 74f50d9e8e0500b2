"""The script for one accelerator, in its small form: every result kept as it comes, and no failure the end."""

import json

import jax
import numpy as np
import pytest

from benchmarks import device, peers, table

pytestmark = pytest.mark.usefixtures("quick_compilation")


def rows_of(folder):
    return json.loads((folder / f"device_{jax.default_backend()}.json").read_text())["records"]


def test_every_part_in_the_small_form(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "missing", lambda: ["jax_privacy", "opacus"])
    device.main(["--small", "--output", str(tmp_path)])
    rows = rows_of(tmp_path)
    failed = {row["case"]: row["failed"] for row in rows if "failed" in row}
    assert set(failed) == {"mlp 8, jax-privacy", "mlp 8, opacus"}
    assert all("ModuleNotFoundError" in reason for reason in failed.values())
    steps = {row["variant"]: row for row in rows if row["part"] == "step"}
    assert set(steps) == {"nonprivate", "private", "noise", "nonprivate + noise"}
    assert steps["nonprivate"]["ratio_to_nonprivate"] == 1 and steps["private"]["temporary_mb"] > 0
    assert {row["schedule"] for row in rows if row["part"] == "dynamic"} == {"fixed", "linear"}
    assert all(row["compilations"] == 1 for row in rows if row["part"] == "dynamic")
    assert [0 <= row["exact"] <= 1 for row in rows if row["part"] == "attacks"] == [True]
    assert {row["part"] for row in rows if "failed" not in row} == {
        "step", "dynamic", "attacks", "language model", "noise", "peers", "memory",
    }  # fmt: skip
    page = table.render(tmp_path)
    assert all(text in page for text in ("One accelerator", "ModuleNotFoundError", "language model"))


def test_a_case_that_fails_is_a_row_and_the_next_is_measured(tmp_path, monkeypatch):
    def broken(model):
        raise RuntimeError("RESOURCE_EXHAUSTED: out\nof memory")

    monkeypatch.setattr(device.variants, "nonprivate", broken)
    device.main(["--small", "--parts", "step,memory", "--output", str(tmp_path)])
    rows = rows_of(tmp_path)
    assert rows[0] == {
        "part": "step", "case": "mlp 8", "failed": "RuntimeError: RESOURCE_EXHAUSTED: out of memory",
    }  # fmt: skip
    assert {row["variant"] for row in rows[1:] if "failed" not in row} == {"factored", "private"}


def test_no_time_left_and_unknown_parts_are_said(tmp_path):
    device.main(["--small", "--parts", "attacks", "--seconds", "0", "--output", str(tmp_path)])
    assert [row["failed"] for row in rows_of(tmp_path)] == ["no time left"]
    with pytest.raises(SystemExit):
        device.main(["--parts", "speed"])


def test_a_row_is_on_disk_before_the_next_is_measured(tmp_path):
    session = device.Session(tmp_path / f"device_{jax.default_backend()}.json", device.SMALL, 100.0)

    def measure():
        yield {"variant": "first", "median_ms": np.float32(1.0)}
        assert rows_of(tmp_path)[-1]["variant"] == "first"
        raise MemoryError

    session.attempt("step", "mlp 8", measure)
    assert rows_of(tmp_path)[-1]["failed"].startswith("MemoryError")
