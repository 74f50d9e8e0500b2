"""`jaxdp train` as several processes on loopback: killed, resumed alone, hung."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from on_devices import environment

from jaxdp.training import checkpoints

OPTIONS = (
    *("--steps", "50", "--evaluate-every", "10", "--noise-seed", "3", "--sampling-rate", "0.1"),
    *("--no-progress", "--model", "logistic"),
)


def started(folder, *options, **more):
    command = [sys.executable, "-m", "jaxdp.cli", "train", "--output", str(folder), *OPTIONS, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(1) | more, stdout=pipe, stderr=pipe, text=True)


def pair(folder, *options):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = f"localhost:{free.getsockname()[1]}"
    options = ("--coordinator", where, "--processes", "2", *options)
    return [started(folder, "--process", str(i), *options) for i in range(2)]


def finished(*processes, seconds=240):
    said = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, said, strict=True)]


def end(folder):
    return checkpoints.restore(folder / "checkpoints")


def is_the_same_run(folder, alone):
    found, expected = end(folder), end(alone)
    assert found.step == expected.step == 50 and found.document["ledger"] == expected.document["ledger"]
    for a, b in zip(found.state, expected.state, strict=True):
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    [(code, _, said)] = finished(started(folder))
    assert code == 0, said
    return folder


def test_two_processes_make_the_run_of_one_and_one_writes(tmp_path, alone):
    (first, said, error), (second, nothing, _) = finished(*pair(tmp_path))
    assert first == second == 0, error
    assert (
        "devices: 2 devices (cpu) of 2 processes, the examples in 2 parts" in said
        and "record:" not in nothing
    )
    is_the_same_run(tmp_path, alone)
    assert len(list(tmp_path.glob("*.json"))) == 1


def saved(folder, least: int, processes, seconds=200):
    until = time.monotonic() + seconds
    while (checkpoints.latest_step(folder / "checkpoints") or 0) < least:
        assert time.monotonic() < until and all(p.poll() is None for p in processes)
        time.sleep(0.02)


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_and_gone_on_with_by_one_process(tmp_path, alone, victim):
    """kill -9 of either process amid the run: the other ends, and one process finishes the same run."""
    processes = pair(tmp_path, "--peer-seconds", "20", "--steps", "50", "--evaluate-every", "2")
    saved(tmp_path, 4, processes)
    os.kill(processes[victim].pid, signal.SIGKILL)
    codes = [code for code, *_ in finished(*processes, seconds=120)]
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, None)
    [(code, _, error)] = finished(started(tmp_path, "--resume"))
    assert code == 0, error
    is_the_same_run(tmp_path, alone)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_hung_peer_ends_in_an_error(tmp_path, victim):
    processes = pair(tmp_path, "--peer-seconds", "10", "--evaluate-every", "2", "--steps", "5000")
    saved(tmp_path, 4, processes)
    os.kill(processes[victim].pid, signal.SIGSTOP)
    try:
        [(code, _, error)] = finished(processes[1 - victim], seconds=100)
    finally:
        os.kill(processes[victim].pid, signal.SIGKILL)
        finished(processes[victim])
    assert code not in (0, None)
    assert "another did not come" in error or "heartbeat" in error.lower(), error[-2000:]


def test_processes_without_a_coordinator_are_refused(tmp_path):
    [(code, _, error)] = finished(started(tmp_path, "--processes", "2", "--process", "0"))
    assert (code, error) == (
        2, "jaxdp train: processes=2: needs the coordinator, HOST:PORT of process 0\n"
    )  # fmt: skip
