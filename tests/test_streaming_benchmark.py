"""The benchmark of streaming, small: the same bits as the resident run, in hardly more memory."""

import os

import pytest

from benchmarks import streaming


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not say")
def test_a_run_on_a_file_ends_alike_and_holds_little_of_it(tmp_path):
    path = tmp_path / "rows.npy"
    streaming.write_file(path, 400)
    found = streaming.measure(path, "logistic", batch_size=32, steps=20, rounds=1)
    assert found["same_bits"] and found["file_mb"] >= 399
    assert found["peak_mb"] - found["baseline_mb"] < 300
    assert "| logistic | 32 |" in streaming.section([{"records": [found]}])
