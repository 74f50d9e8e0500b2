"""Training on a memory-mapped file against the same run with its data held: `python -m benchmarks streaming`.

The file is made in a temporary folder and deleted.  Both kinds of run draw the same batches and must end with
the same bits; they are timed in turns, without compilation.  `peak_mb` is the largest resident size of a
process that trains on the file, memory-mapped pages included; `baseline_mb` that of the same run on a few
batches' worth of examples that it holds.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import numpy as np
import optax

import jaxdp
from benchmarks import timing
from jaxdp import clipping, models, sampling
from jaxdp.data import Source, Stream
from jaxdp.laboratory.report.tables import markdown
from jaxdp.training.run import TrainResult, train

SHAPE = (64, 64, 3)  # 12 KB a row
CLAIM = jaxdp.Claim(delta=1e-9, adjacency="add_or_remove_one", accountant="rdp")


def write_file(path: pathlib.Path, megabytes: int) -> None:
    """Random bytes as images, in pieces."""
    examples = megabytes * 2**20 // int(np.prod(SHAPE))
    rows, rng = np.lib.format.open_memmap(path, "w+", np.uint8, (examples, *SHAPE)), np.random.default_rng(0)
    for start in range(0, examples, 1_000):
        rows[start : start + 1_000] = rng.integers(0, 256, rows[start : start + 1_000].shape, np.uint8)
    rows.flush()


class Runs:
    """One model's runs, all by one program for each kind of data."""

    def __init__(self, name: str, examples: int, batch_size: int, steps: int):
        self._network = models.create(name, jax.random.key(0), input_shape=SHAPE, classes=10)
        of_floats = models.cross_entropy(self._network)
        self._loss = lambda params, example: of_floats(
            params, (example[0].astype(np.float32) / 255, example[1])
        )
        sampler = sampling.poisson(examples, batch_size / examples, steps)
        self._plan = jaxdp.Plan(
            clipper=clipping.flat(1.0), noise_multiplier=1.0, sampler=sampler, steps=steps, seed=1
        )
        self._optimizer, self._programs = optax.sgd(0.1), {}

    def run(self, kind: str, source: Source | Stream) -> TrainResult:
        """One run, from the first step to the last."""
        done = train(
            self._loss, self._network.params, source, self._plan, self._optimizer, CLAIM,
            every=self._plan.steps, program=self._programs.get(kind),
        )  # fmt: skip
        self._programs[kind] = done.program
        return done


def sources(path: pathlib.Path) -> dict[str, Source | Stream]:
    """The file's examples, read batch by batch and held."""
    rows = np.load(path, mmap_mode="r")
    labels = np.random.default_rng(1).integers(0, 10, len(rows))
    return {"streamed": Stream(rows=(rows, labels)), "resident": Source(arrays=(rows, labels))}


def speed(path: pathlib.Path, name: str, batch_size: int, steps: int, rounds: int) -> dict:
    """Steps a second of both, and whether they end alike."""
    kinds = sources(path)
    runs = Runs(name, kinds["streamed"].examples, batch_size, steps)
    ends = {kind: runs.run(kind, source).params for kind, source in kinds.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, source in kinds.items():
            seconds[kind].append(runs.run(kind, source).seconds / steps)
    times = {kind: np.asarray(found) for kind, found in seconds.items()}
    ratio = timing.ratio(times["resident"], times["streamed"])
    return {
        **{f"{kind}_ms": 1e3 * float(np.median(found)) for kind, found in times.items()},
        "speed_of_resident": ratio["median"],
        "quartiles": ratio["quartiles"],
        "same_bits": all(map(np.array_equal, *(jax.tree.leaves(params) for params in ends.values()))),
    }


def peak(path: pathlib.Path, name: str, batch_size: int, steps: int, streamed: bool) -> float:
    """The largest resident size of this process after one run, in MB; without the file on a few examples."""
    source = sources(path)["streamed"] if streamed else None
    if source is None:
        examples = 8 * batch_size
        source = Source(arrays=(np.zeros((examples, *SHAPE), np.uint8), np.zeros(examples, np.int32)))
    Runs(name, source.examples, batch_size, steps).run("one", source)
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()  # the parent's is no part of it
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def apart(path: pathlib.Path, *arguments: object) -> float:
    """`peak` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "streaming", "--peak", str(path), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(path: pathlib.Path, name: str, batch_size: int, steps: int, rounds: int) -> dict:
    """The record of one model."""
    peaks = {
        f"{word}_mb": apart(path, name, batch_size, steps, int(streamed))
        for word, streamed in (("peak", True), ("baseline", False))
    }
    return {
        "model": name,
        "batch": batch_size,
        "file_mb": path.stat().st_size >> 20,
        "row_bytes": int(np.prod(SHAPE)),
        "steps": steps,
        "rounds": rounds,
        **peaks,
        **speed(path, name, batch_size, steps, rounds),
    }


def section(documents: list[dict[str, Any]]) -> str:
    """The records as Markdown, for `benchmarks.table`."""
    digits = {"streamed_ms": 1, "resident_ms": 1, "speed_of_resident": 2, "peak_mb": 0, "baseline_mb": 0}
    shown = ("model", "batch", "file_mb", "row_bytes", *digits, "same_bits")
    rows = [
        [f"{row[name]:.{digits[name]}f}" if name in digits else str(row[name]) for name in shown]
        for document in documents
        for row in document["records"]
    ]
    note = (
        "The same run on a memory-mapped file and with its data held, in turns. `peak` is of a whole process "
        "that trains on the file, `baseline` of the same run on a few examples.\n"
    )
    return "\n".join(
        ["## Data that do not fit\n", note, markdown([name.replace("_", " ") for name in shown], rows)]
    )


def main() -> None:
    """Measures the models asked for and writes `records/streaming_DEVICE.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks streaming", description=__doc__)
    parser.add_argument("--models", default="logistic,mlp,cnn", help="comma-separated")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--megabytes", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", nargs=5, metavar=("FILE", "MODEL", "BATCH", "STEPS", "STREAMED"))
    options = parser.parse_args()
    if options.peak:
        path, name, *numbers = options.peak
        batch_size, steps, streamed = map(int, numbers)
        print(json.dumps(peak(pathlib.Path(path), name, batch_size, steps, bool(streamed))), flush=True)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.npy"
        write_file(path, options.megabytes)
        for name in options.models.split(","):
            rows.append(measure(path, name, options.batch, options.steps, options.rounds))
            print(
                "{model:<10}{streamed_ms:9.2f} ms {speed_of_resident:6.3f} of resident, {peak_mb:.0f} MB "
                "({baseline_mb:.0f})".format(**rows[-1]),
                flush=True,
            )
    timing.write(f"streaming_{jax.default_backend()}", rows)


if __name__ == "__main__":
    main()
