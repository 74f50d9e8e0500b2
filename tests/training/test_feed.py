"""Data that stay on disk: the bits of data on the device, in little memory, also killed and gone on with."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import clipping, data, sampling
from jaxdp.adaptive_noise import Adaptive
from jaxdp.data import Source, Stream
from jaxdp.training import checkpoints, feed, resume
from jaxdp.training.program import Program

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (200, 6), dtype=np.uint8), RNG.integers(0, 3, 200)
PARAMS = {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)}
CLAIM = jaxdp.Claim(delta=1e-5, adjacency="zero_out", accountant="rdp")


class Rows:
    """What Grain and TensorFlow Datasets give: examples by number."""

    def __init__(self, x=X, y=Y):
        self.x, self.y, self.read = x, y, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, number):
        self.read.append(number)
        return {"x": self.x[number], "y": int(self.y[number])}


class RowsAtOnce(Rows):
    def __getitem__(self, number):
        return super().__getitem__(number) if number == 0 else 1 / 0

    def __getitems__(self, numbers):
        return [{"x": self.x[i], "y": int(self.y[i])} for i in numbers]


def mapped(folder, **arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


def loss_fn(params, example):
    logits = example["x"].astype(jnp.float32) / 255 @ params["w"] + params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, example["y"])


def planned(kind="poisson", steps=30, **changes):
    sampler = sampling.create(kind, 200, 0.2, steps)
    parts = dict(clipper=clipping.flat(1.0), noise_multiplier=2.0, sampler=sampler, steps=steps, seed=1)
    return jaxdp.Plan(**{**parts, **changes})


def trained(examples, plan, **options):
    options = {"every": 7, "ema_decay": 0.9, **options}
    return jaxdp.train(loss_fn, PARAMS, examples, plan, optax.sgd(0.5, momentum=0.9), CLAIM, **options)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def adaptive():
    noise = Adaptive(epsilon=1.5, claim=CLAIM, start=8.0, end=2.0)
    return planned(noise_multiplier=noise, clipper=clipping.quantile(1.0, 40.0, count_noise=50.0))


PLANS = {
    "poisson": planned,
    "shuffled": lambda: planned("shuffled"),
    "full": lambda: planned("full", noise_multiplier=9.0),
    "adaptive": adaptive,
    "not private": lambda: planned(clipper=None, noise_multiplier=None),
}


@pytest.mark.parametrize("plan", PLANS)
def test_read_batch_by_batch_a_run_has_the_bits_of_one_on_the_device(plan, tmp_path, monkeypatch):
    """Windows of 16 steps, of 3, and of one; pauses every 7."""
    windows = [(2**24, mapped(tmp_path, x=X, y=Y)), (3_000, Rows()), (1, RowsAtOnce())]
    windows = windows if plan == "poisson" else windows[1:2]
    plan = PLANS[plan]()
    whole = trained({"x": X, "y": Y}, plan)
    for window, examples in windows:
        monkeypatch.setattr(feed, "_WINDOW", window)
        found = trained(examples, plan)
        assert bits(found.state) == bits(whole.state) and found.curves == whole.curves
        assert found.ledger == whole.ledger and found.epsilon == whole.epsilon
        assert len(found.program.traces) == 1


def test_a_step_reads_the_examples_that_are_drawn_for_it_each_once(monkeypatch):
    monkeypatch.setattr(feed, "_WINDOW", 1)
    plan, rows = planned(steps=8), Rows()
    result = trained(rows, plan)
    expected = []
    for step in range(8):
        drawn = plan.batches.draw(result.state.sample_key, step)
        expected += sorted({*np.asarray(drawn.indices).tolist()})  # and example 0, which fills places up
    assert rows.read[1:] == expected


def test_what_a_window_of_several_steps_holds_is_what_each_step_drew():
    plan = planned()
    with feed.Feed(Stream(rows={"x": X, "y": Y}), plan.batches) as windows:
        key = Program(plan=plan, loss_fn=loss_fn, optimizer=optax.sgd(1.0)).init(PARAMS).sample_key
        windows.begin(key, [3, 5])
        window = windows._waiting[0][1].result()
    for step in (3, 4):
        drawn, found = plan.batches.draw(key, step), window.drawn(jnp.int32(step))
        np.testing.assert_array_equal(found.mask, drawn.mask)
        np.testing.assert_array_equal(window.rows["x"][found.indices], X[drawn.indices])
        assert not found.overflow
    np.testing.assert_array_equal(np.unique(window.rows["x"][2 * len(drawn.mask) :], axis=0), X[:1])


def test_a_batch_that_outgrew_its_places_is_shown_to_nobody():
    whole = sampling.poisson(200, 0.2, 30)

    def draw(key, step):
        drawn = whole.draw(key, step)
        return sampling.Batch(drawn.indices[:8], drawn.mask[:8], drawn.mask.sum() > 8)

    small, shown = dataclasses.replace(whole, physical_batch_size=8, draw=draw), []
    with pytest.raises(ValueError, match="outgrew its places"):
        trained(Rows(), planned(sampler=small), callbacks=[lambda step, params: shown.append(step)])
    assert shown == [0]


def test_an_example_that_cannot_be_read_ends_the_run_with_its_reason():
    class Broken(Rows):
        def __getitem__(self, number):
            if number > 150:
                raise OSError("the disk is gone")
            return super().__getitem__(number)

    with pytest.raises(OSError, match="the disk is gone"):
        trained(Broken(), planned())


def test_another_rate_or_other_data_is_another_run(tmp_path):
    """The step's program does not say how batches are drawn; the identity does."""

    def identity(rate, examples):
        sampler = dataclasses.replace(sampling.poisson(200, rate, 30), physical_batch_size=120)
        plan = planned(sampler=sampler)
        program = Program(plan=plan, loss_fn=loss_fn, optimizer=optax.sgd(1.0))
        source = data.as_source(examples)
        with feed.Feed(source, sampler) as windows:
            return resume.identity(program, plan, source, program.init(PARAMS), windows)

    first, again, other = (identity(rate, Rows()) for rate in (0.2, 0.2, 0.21))
    assert first == again and first["program"] != other["program"]
    assert first["examples"] != identity(0.2, Rows(X[::-1]))["examples"]
    trained(Rows(), planned(steps=8), folder=tmp_path / "run")
    with pytest.raises(ValueError, match="not the training examples of the checkpoint"):
        trained(Rows(X[::-1]), planned(), folder=tmp_path / "run", resume=True)


@pytest.mark.parametrize("kind", ["stream", "source"])
def test_data_that_changed_behind_their_source_are_other_data(tmp_path, kind):
    """They would meet the noise that those before them did."""
    x = X.copy()
    source = Stream(rows=Rows(x)) if kind == "stream" else Source(arrays={"x": x, "y": Y})
    before, again = source.fingerprint, source.fingerprint
    x[7] += 1
    assert before == again != source.fingerprint


def test_a_tree_has_the_same_fingerprint_on_disk_and_in_memory(tmp_path):
    tree = {"x": X, "y": Y}
    assert data.as_source(mapped(tmp_path, **tree)).fingerprint == Source(arrays=tree).fingerprint
    assert Stream(rows=tree, digest="release 3").fingerprint == "given: release 3"


_WORKER = """
import sys
sys.path.insert(0, "tests/training")
import numpy as np, test_feed
arrays = {name: np.load(f"{sys.argv[1]}/{name}.npy", mmap_mode="r") for name in "xy"}
test_feed.trained(arrays, test_feed.planned(steps=3_000), folder=f"{sys.argv[1]}/run", every=40)
"""


def test_kill_9_and_resume_gives_the_same_bits(tmp_path):
    arrays, plan = mapped(tmp_path, x=X, y=Y), planned(steps=3_000)
    whole = trained({"x": X, "y": Y}, plan, every=40)
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)},
    )
    deadline = time.monotonic() + 200
    while (checkpoints.latest_step(tmp_path / "run") or 0) < 80 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 80 <= checkpoints.latest_step(tmp_path / "run") < 3_000
    found = trained(arrays, plan, folder=tmp_path / "run", resume=True, every=40)
    assert bits(found.state) == bits(whole.state) and found.curves == whole.curves
    assert found.epsilon == whole.epsilon and found.steps_timed < 3_000


_READS = """
import sys, numpy as np
from jaxdp.data import Stream
def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return [int(lines[name].split()[0]) >> 10 for name in ("RssAnon", "RssFile")]
stream, before = Stream(rows=np.load(sys.argv[1], mmap_mode="r")), memory()
for start in range(0, stream.examples, 500):
    stream.read(np.arange(start, start + 500))
stream.fingerprint
print(max(after - was for after, was in zip(memory(), before)))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not say")
def test_a_file_that_was_read_whole_is_not_in_the_memory_of_the_process(tmp_path):
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (16_000, 16_384))  # 250 MB
    rows[:] = 1
    rows.flush()
    command = [sys.executable, "-c", _READS, str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert int(done.stdout) < 64


# --- what is read -------------------------------------------------------------------------------------------


def test_rows_come_in_the_order_asked_for_whatever_the_layout(tmp_path):
    indices = np.array([7, 0, 7, 199, 3])
    for x in (X, np.asfortranarray(X), X[:, ::2], mapped(tmp_path, x=X)["x"][::-1], jnp.asarray(X)):
        np.testing.assert_array_equal(Stream(rows=x).read(indices), np.asarray(x)[indices])
    found = Stream(rows=Rows()).read(indices)
    np.testing.assert_array_equal(found["x"], X[indices])
    assert found["y"].dtype == np.int32  # as JAX holds it


def test_what_is_read_batch_by_batch_and_what_is_held(tmp_path):
    on_disk = mapped(tmp_path, x=X)
    for streamed in (on_disk, (on_disk["x"], Y), Rows(), range(5)):
        assert isinstance(data.as_source(streamed), Stream)
    for held in (X, {"x": X}, [X, Y], jnp.asarray(X), Source(arrays=on_disk), data.load("digits")):
        assert isinstance(data.as_source(held), Source)


def test_a_map_whose_changes_go_to_no_file_keeps_them(tmp_path):
    mapped(tmp_path, x=X)
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[5] = 77
    for _ in range(2):
        np.testing.assert_array_equal(Stream(rows=changed).read(np.array([5]))[0], np.full(6, 77))


class Odd(Rows):
    def __init__(self, second):
        super().__init__()
        self.second = second

    def __getitem__(self, number):
        return self.second if number == 1 else super().__getitem__(number)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: Stream(rows=len), "rows=builtin_function_or_method: needs arrays, or an object with __len__"),
        (lambda: Stream(rows=(Rows(), Rows())), "rows=tuple: needs arrays"),
        (lambda: Stream(rows={"x": X, "y": Y[:5]}), r"data\['y'\] has 5 examples, data\['x'\] has 200"),
        (lambda: Stream(rows=Rows(X[:0])), "data has 0 examples"),
        (lambda: Stream(rows=Rows(np.array([["a"]]), [0])), r"data\['x'\] is <U1: leaves are arrays"),
        (lambda: Stream(rows=Odd({"x": X[1, :3], "y": 0})).read(np.arange(3)), "differ in their shapes"),
        (lambda: Stream(rows=Odd({"x": X[1]})).read(np.arange(3)), "data: an example is PyTreeDef"),
        (lambda: Stream(rows=Odd({"x": X[1], "y": 0.5})).read(np.arange(3)), "is not like the first one"),
        (lambda: Stream(rows=Odd({"x": X[1], "y": 2**40})).read(np.arange(3)), "has values"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
