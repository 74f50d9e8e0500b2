"""Checkpoints: whole or not there at all, whenever the process is killed; one writer a folder."""

import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import atomic
from jaxdp.training import checkpoints

KILLS = 4
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def state(step):
    return {"x": jnp.arange(5.0) * step, "key": jax.random.key(step), "step": jnp.int32(step)}


def save(folder, *steps):
    with checkpoints.Writer(folder) as writer:
        for step in steps:
            writer.save(step, state(step), {"ledger": step})


def assert_is(found, step):
    """State and document of one and the same save."""
    assert found.step == step and found.document == {"ledger": step}
    np.testing.assert_array_equal(found.state["x"], np.arange(5.0) * step)
    assert (
        jax.random.key_data(found.state["key"]).tolist() == jax.random.key_data(jax.random.key(step)).tolist()
    )


def test_what_was_saved_is_read_and_only_the_newest_are_kept(tmp_path):
    assert checkpoints.latest_step(tmp_path / "run") is None
    save(tmp_path / "run", 0, 3, 10)
    assert checkpoints.latest_step(tmp_path / "run") == 10
    assert_is(checkpoints.restore(tmp_path / "run", like=state(1)), 10)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", "10", "3"]
    save(tmp_path / "run", 20)
    assert_is(checkpoints.restore(tmp_path / "run", like=state(1)), 20)


_SAVES = """
import sys
import jax, jax.numpy as jnp
from jaxdp.training import checkpoints
with checkpoints.Writer(sys.argv[1]) as writer:
    step = (checkpoints.latest_step(sys.argv[1]) or 0) + 1
    while True:
        state = {"x": jnp.arange(5.0) * step, "key": jax.random.key(step), "step": jnp.int32(step)}
        writer.save(step, state, {"ledger": step})
        print(step, flush=True)
        step += 1
"""


def saving(folder):
    return subprocess.Popen(
        [sys.executable, "-c", _SAVES, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_killed_at_any_moment_the_newest_that_was_saved_is_read(tmp_path):
    """No save that returned is lost, none is read that is not whole, and nothing stops the next process."""
    for moment in np.random.default_rng(0).uniform(0, 0.3, KILLS):
        with saving(tmp_path / "run") as process:
            lines = [process.stdout.readline()]
            time.sleep(moment)
            process.kill()
            lines += process.stdout.readlines()
        saved = int(lines[-1])
        found = checkpoints.restore(tmp_path / "run", like=state(1))
        assert process.returncode == -signal.SIGKILL and found.step in (saved, saved + 1)
        assert_is(found, found.step)


class Killed(BaseException):
    """What no code between the kill and the test's end catches."""


def test_stopped_before_each_change_of_the_folder(tmp_path, monkeypatch):
    """Every writing, rename and removal in turn never happens, nor anything after it."""
    changes = (
        (checkpoints, "_orbax"),
        (pathlib.Path, "write_text"),
        (pathlib.Path, "rename"),
        (shutil, "rmtree"),
    )
    for point in itertools.count():
        folder, left = tmp_path / str(point), [point]
        save(folder, 1, 2)
        with checkpoints.Writer(folder) as writer, monkeypatch.context() as patch:
            for owner, name in changes:
                patch.setattr(owner, name, counted(getattr(owner, name), left))
            try:
                writer.save(3, state(3), {"ledger": 3})
                break
            except Killed:
                pass
        found = checkpoints.restore(folder, like=state(1))
        assert_is(found, found.step)
        assert found.step in (2, 3)
        save(folder, 7)
        assert_is(checkpoints.restore(folder, like=state(1)), 7)
        assert sorted(p.name for p in folder.iterdir()) == [".lock", str(found.step), "7"]
    assert point >= 5


def counted(function, left):
    def called(*arguments, **options):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return function(*arguments, **options)

    return called


def test_a_checkpoint_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Every file and folder of it, and afterwards the folder that holds the name."""
    done, to_disk, rename = [], atomic.to_disk, pathlib.Path.rename
    monkeypatch.setattr(atomic, "to_disk", lambda path: (done.append(path), to_disk(path)))
    monkeypatch.setattr(
        pathlib.Path, "rename", lambda path, new: (done.append("rename"), rename(path, new))[1]
    )
    save(tmp_path / "run", 5)
    before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
    written = {str(p.relative_to(tmp_path / "run" / "5")) for p in (tmp_path / "run" / "5").rglob("*")}
    assert {str(p.relative_to(tmp_path / "run" / ".partial-5")) for p in before} == {*written, "."}
    assert after == [tmp_path / "run"]


def test_a_checkpoint_that_was_not_finished_hides_no_other(tmp_path):
    """Step 100 without its manifest, its process killed, is not what the next one saves as 100."""
    folder = tmp_path / "run"
    save(folder, 50, 100)
    (folder / "100" / checkpoints.MANIFEST).unlink()
    (folder / "60").mkdir()
    (folder / "60" / checkpoints.MANIFEST).write_text("{}")
    (folder / "70.orbax-checkpoint-tmp").mkdir()
    (folder / "80").mkdir()
    (folder / "80" / "photograph").write_bytes(b"of someone's cat")
    assert_is(checkpoints.restore(folder, like=state(1)), 50)
    with checkpoints.Writer(folder) as writer:
        assert sorted(p.name for p in folder.iterdir()) == [".lock", "50", "80"]
        other = {**state(100), "x": jnp.ones(5)}
        writer.save(100, other, {"ledger": "of other noise"})
    found = checkpoints.restore(folder, like=state(1))
    assert found.step == 100 and found.document == {"ledger": "of other noise"}
    np.testing.assert_array_equal(found.state["x"], np.ones(5))


@pytest.mark.parametrize("step", [9, 10])
def test_a_step_that_would_not_be_the_newest_is_refused(tmp_path, step):
    with checkpoints.Writer(tmp_path) as writer:
        writer.save(10, state(10), {"ledger": 10})
        with pytest.raises(ValueError, match=f"step={step}: the folder holds a checkpoint of step 10"):
            writer.save(step, state(step), {"ledger": step})
    assert_is(checkpoints.restore(tmp_path, like=state(1)), 10)


def test_one_run_at_a_time_writes_in_a_folder(tmp_path):
    with checkpoints.Writer(tmp_path / "run"):
        with pytest.raises(ValueError, match="another run is writing its checkpoints there"):
            checkpoints.Writer(tmp_path / "run")
        checkpoints.Writer(tmp_path / "other").close()
    with saving(tmp_path / "run") as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match=r"folder='.*run': another run"):
            checkpoints.Writer(tmp_path / "run")
        process.kill()
    checkpoints.Writer(tmp_path / "run").close()


def test_ctrl_c_waits_for_the_checkpoint(tmp_path, monkeypatch):
    """Sent while orbax writes: what it says then are tracebacks; and twice, as people do."""
    orbax = checkpoints._orbax

    def interrupted():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        return orbax()

    monkeypatch.setattr(checkpoints, "_orbax", interrupted)
    with checkpoints.Writer(tmp_path) as writer, pytest.raises(KeyboardInterrupt):
        writer.save(1, state(1), {"ledger": 1})
    monkeypatch.undo()
    assert_is(checkpoints.restore(tmp_path, like=state(1)), 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_saves_as_well(tmp_path):
    thread = threading.Thread(target=save, args=(tmp_path, 1))
    thread.start()
    thread.join()
    assert_is(checkpoints.restore(tmp_path, like=state(1)), 1)


def test_a_document_that_is_none_is_refused(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "1" / "document" / "metadata").write_text("[1]")
    manifest = tmp_path / "1" / checkpoints.MANIFEST
    manifest.write_text(json.dumps(checkpoints._digests(tmp_path / "1")))
    with pytest.raises(ValueError, match="document is no JSON object; not resumed"):
        checkpoints.restore(tmp_path)
