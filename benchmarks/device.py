"""What one accelerator is asked, within six minutes: `python -m benchmarks device [--parts step,attacks]`.

In the order of worth: training steps, dynamic sigma in the loop, attacks at once, a language model, the noise
alone, other libraries' steps, memory.  First of all, the programs of all parts are compiled beside each other.
A step is timed as in training, where the device has the next ones in hand before one is done: ten at a time.
Every result is in the record, `device_BACKEND.json`, as soon as it is known; what fails, is not installed or
finds no time left is a row that says so.  With `--small` the same on sizes that any CPU can do.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import dynamic, memory, networks, noise, opacus_worker, peers, timing, variants
from benchmarks.step import Carried, noise_of
from jaxdp import atomic, decoder
from jaxdp.laboratory.report.tables import markdown

SECONDS, COMPILING = (
    340.0,
    120.0,
)  # after which nothing new is begun; what is still compiled is not waited for
THREADS, IN_FLIGHT = 14, 10  # programs compiled, steps timed, at once
Row = dict[str, Any]
Case = tuple[str, str, Callable[[], Iterable[Row]]]  # part, case, what measures it


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured."""

    steps: tuple[tuple[str, int], ...]
    peers: tuple[tuple[str, int, bool], ...]  # and whether JAX's own are measured there, or PyTorch's alone
    memory: tuple[tuple[str, int], ...]
    schedules: tuple[str, ...]
    attacks: tuple[tuple[int, int], ...]  # victims, iterations
    language: tuple[dict[str, Any], int, int]  # the model's sizes, tokens, batch
    noise: tuple[str, ...]
    rounds: int
    seconds: float  # for the rounds of a case


DEVICE = Sizes(
    steps=(
        ("cnn", 256), ("cifar", 256), ("mlp", 256), ("transformer", 64),
        ("cnn", 4096), ("cifar", 2048), ("mlp", 4096), ("transformer", 512),
    ),
    peers=(
        ("cnn", 256, True), ("cifar", 256, True), ("mlp", 256, True),
        ("cnn", 4096, False), ("cifar", 2048, False),
    ),
    memory=(("cnn", 4096), ("cifar", 2048), ("transformer", 512)),
    schedules=("fixed", "linear", "quarter_cosine"),
    attacks=((2048, 400), (4096, 400)),
    language=(
        dict(vocabulary=50_257, tokens=512, width=768, heads=12, layers=12, dtype="bfloat16"), 512, 64
    ),  # GPT-2's shape, 124 million parameters
    noise=("532110", "10000000"),
    rounds=30,
    seconds=2.0,
)  # fmt: skip
SMALL = Sizes(
    steps=(("mlp", 8),),
    peers=(("mlp", 8, True),),
    memory=(("mlp", 8),),
    schedules=("fixed", "linear"),
    attacks=((2, 2),),
    language=(dict(vocabulary=17, tokens=8, width=8, heads=2, layers=1), 8, 4),
    noise=("26010",),
    rounds=2,
    seconds=1.0,
)


class Session:
    """The record that grows, and the time that is left."""

    def __init__(self, path: pathlib.Path, sizes: Sizes, seconds: float):
        self.path, self.sizes, self.rows = path, sizes, []
        self.began, self.seconds = time.perf_counter(), seconds
        self.pool, self.begun = concurrent.futures.ThreadPoolExecutor(THREADS), []
        self.environment = timing.environment()

    def add(self, row: Row) -> None:
        """Writes and prints one more row."""
        self.rows.append(row)
        document = {"environment": self.environment, "records": self.rows}
        atomic.write_text(self.path, json.dumps(document, indent=1, default=float) + "\n")
        print(json.dumps(row, default=float), flush=True)

    def prepared(self, name: str, part: Callable[["Session"], Iterator[Case]]) -> list[Case]:
        """The cases of a part, whose programs begin to be compiled."""
        cases: list[Case] = []

        def prepare():
            cases.extend(part(self))
            return ()

        self.attempt(name, "all", prepare)
        return cases

    def attempt(self, part: str, case: str, measure: Callable[[], Iterable[Row]]) -> None:
        """Adds the rows of a case, or why there are none."""
        head = {"part": part, "case": case}
        if time.perf_counter() - self.began > self.seconds:
            self.add({**head, "failed": "no time left"})
            return
        try:
            for row in measure():
                self.add({**head, **row})
        except Exception as error:  # whatever a device, a compiler or a peer raises
            words = " ".join(str(error).split())[:300]
            self.add({**head, "failed": f"{type(error).__name__}: {words}"})

    def compile(self, builds: dict[str, Callable[[], variants.Step]], model, x, y) -> "Programs":
        """Steps, compiled beside others."""

        def compiled(build):
            began, step = time.perf_counter(), build()
            program = step.run.lower(model.params, step.state, x, y).compile()
            analysis = program.memory_analysis()
            seconds = time.perf_counter() - began
            return step._replace(run=program), seconds, getattr(analysis, "temp_size_in_bytes", None)

        return Programs(model, x, y, {name: self.begin(compiled, build) for name, build in builds.items()})

    def begin(self, function: Callable, *arguments) -> concurrent.futures.Future:
        """Runs a function beside others."""
        self.begun.append(self.pool.submit(function, *arguments))
        return self.begun[-1]

    def timed(self, runs: dict[str, Callable], clocks: dict[str, Callable[[], float]] | None = None):
        """Seconds of each, in turns; `clocks` tell their own."""
        clocks = {name: timing.timed(_several(run)) for name, run in runs.items()} | (clocks or {})
        for clock in clocks.values():
            clock()
        seconds = timing.interleaved(clocks, self.sizes.rounds, self.sizes.seconds)
        return {name: times / IN_FLIGHT for name, times in seconds.items()}


@dataclasses.dataclass(frozen=True)
class Programs:
    """Steps of one model that are being compiled: `(step, seconds, bytes of temporary memory)` of each."""

    model: Any
    x: jax.Array
    y: jax.Array
    futures: dict[str, concurrent.futures.Future]

    def runs(self, *names: str) -> dict[str, Callable]:
        """Each goes on from where it was."""
        return {name: Carried(self.found(name)[0], self.model.params, self.x, self.y) for name in names}

    def found(self, name: str) -> tuple:
        """What is known of a step that was compiled here; nothing of others."""
        return self.futures[name].result(timeout=1.0) if name in self.futures else (None, None, None)

    def rows(self, seconds: dict[str, np.ndarray], of: str) -> Iterator[Row]:
        """One row a variant: its time, and its ratio to that of `of`."""
        for variant, times in seconds.items():
            _, compile_seconds, temporary = self.found(variant)
            yield {
                "variant": variant,
                "median_ms": 1e3 * float(np.median(times)),
                f"ratio_to_{of}": timing.ratio(times, seconds[of])["median"],
                "examples_per_second": len(self.x) / float(np.median(times)),
                "compile_seconds": compile_seconds,
                "temporary_mb": None if temporary is None else temporary / 2**20,
                "rounds": len(times),
            }


def _several(run: Callable) -> Callable:
    def steps():
        for _ in range(IN_FLIGHT - 1):
            run()
        return run()

    return steps


def _step_rows(session: Session, programs: Programs) -> Iterator[Row]:
    runs = programs.runs("nonprivate", "private") | {"noise": noise_of(programs.model.params)}
    seconds = session.timed(runs)
    seconds["nonprivate + noise"] = seconds["nonprivate"] + seconds["noise"]
    return programs.rows(seconds, "nonprivate")


def _both(model, size: int, **how) -> dict[str, Callable]:
    private = functools.partial(variants.private, model, size, **how)
    return {"nonprivate": functools.partial(variants.nonprivate, model), "private": private}


def steps(session: Session) -> Iterator[Case]:
    """Ordinary and private steps."""
    for name, size in session.sizes.steps:
        model, (x, y) = networks.create(name), networks.batch(name, size)
        programs = session.compile(_both(model, size), model, x, y)
        yield "step", f"{name} {size}", functools.partial(_step_rows, session, programs)


def dynamic_sigma(session: Session) -> Iterator[Case]:
    """A dynamic sigma against a fixed one, in the compiled loop of training."""
    sizes = session.sizes
    loops = session.begin(dynamic.loops, sizes.schedules)
    yield "dynamic", "loop", lambda: dynamic.loop_rows(loops.result(1.0), sizes.rounds, 4 * sizes.seconds)


def attacks(session: Session) -> Iterator[Case]:
    """Whole attacks a minute, and how many are exact."""
    for victims, iterations in session.sizes.attacks:

        def measure(victims=victims, iterations=iterations):
            from benchmarks import attacks as of_attacks

            row = of_attacks.at_once(victims, iterations)
            kept = ("attacks_per_minute", "attack_steps_per_second", "seconds", "compile_seconds")
            yield {name: row[name] for name in kept} | {"exact": row["exact"]["estimate"]}

        yield "attacks", f"{victims} victims", measure


def language(session: Session) -> Iterator[Case]:
    """A causal language model, the mean loss of its tokens."""
    shape, length, size = session.sizes.language
    model = decoder.create(jax.random.key(0), tied=True, **shape)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    tokens = jax.random.randint(jax.random.key(1), (size, length + 1), 0, shape["vocabulary"])
    programs = session.compile(_both(model, size, places=True), model, tokens[:, :-1], tokens[:, 1:])

    def measure():
        for row in _step_rows(session, programs):
            yield {"parameters": count, **row}

    yield "language model", f"T = {length}, B = {size}", measure


def noise_alone(session: Session) -> Iterator[Case]:
    """What the noise costs beside that of `jax.random.normal`."""
    for name in session.sizes.noise:
        yield "noise", name, functools.partial(noise.cost, name, session.sizes.rounds, ("chacha12",))


def other_libraries(session: Session) -> Iterator[Case]:
    """The same step by other libraries, each in turns with ours."""
    for name, size, both in session.sizes.peers:
        model, (x, y) = networks.create(name), networks.batch(name, size)
        builds = {"private": functools.partial(variants.private, model, size)}
        if both:
            builds["optax.contrib"] = functools.partial(peers.optax_aggregate, model, size)
            builds["jax-privacy"] = functools.partial(peers.jax_privacy_step, model, size, None)
        programs = session.compile(builds, model, x, y)
        worker = session.begin(_worker, name, size)
        yield "peers", f"{name} {size}, opacus", functools.partial(_opacus_rows, session, worker, programs)
        for label in list(builds)[1:]:

            def measure(label=label, programs=programs):
                return programs.rows(session.timed(programs.runs("private", label)), "private")

            yield "peers", f"{name} {size}, {label}", measure


def _worker(name: str, size: int) -> opacus_worker.Worker:
    if "opacus" in peers.missing():
        raise ModuleNotFoundError("No module named 'opacus'")
    return opacus_worker.Worker(name, size, dict(os.environ))


def _opacus_rows(session: Session, future, programs: Programs) -> Iterator[Row]:
    worker = future.result(timeout=1.0)
    try:
        for mode, reason in worker.failed.items():
            yield {"variant": mode, "failed": reason}
        modes = [mode for mode in opacus_worker.MODES if mode not in worker.failed]
        clocks: dict[str, Callable] = {
            mode: functools.partial(worker.seconds, mode, IN_FLIGHT) for mode in modes
        }
        yield from programs.rows(session.timed(programs.runs("private"), clocks), "private")
    finally:
        worker.close()


def peak_memory(session: Session) -> Iterator[Case]:
    """What XLA says that a compiled step needs for intermediate values."""
    for name, size in session.sizes.memory:
        model, (x, y) = networks.create(name), networks.batch(name, size)
        builds = {
            variant: functools.partial(memory.BUILD[variant], model, size)
            for variant in ("nonprivate", "factored", "private")
        }
        programs = session.compile(builds, model, x, y)
        for variant in builds:

            def measure(variant=variant, programs=programs):
                _, seconds, temporary = programs.found(variant)
                yield {"variant": variant, "temporary_mb": temporary / 2**20, "compile_seconds": seconds}

            yield "memory", f"{name} {size}", measure


PARTS = {
    "step": steps, "dynamic": dynamic_sigma, "attacks": attacks, "language": language,
    "noise": noise_alone, "peers": other_libraries, "memory": peak_memory,
}  # fmt: skip
_COLUMNS = {
    "part": "part", "case": "case", "variant": "variant", "schedule": "schedule", "generator": "noise",
    "median_ms": "ms", "ratio_to_nonprivate": "of nonprivate", "ratio_to_private": "of private",
    "ratio_to_fixed": "of fixed", "ratio_to_drawn": "of jax.random.normal",
    "attacks_per_minute": "attacks a minute", "exact": "exact", "temporary_mb": "temporary MB",
    "compile_seconds": "compiled in s", "failed": "not measured",
}  # fmt: skip


def _cell(value: Any) -> str:
    value = value.get("median") if isinstance(value, dict) else value
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def section(documents: list[dict[str, Any]]) -> str:
    """The record as Markdown, for `benchmarks.table`."""
    parts = ["## One accelerator in six minutes\n"]
    for document in documents:
        rows, where = document["records"], document["environment"]
        columns = [name for name in _COLUMNS if any(name in row for row in rows)]
        parts.append(f"{where['device']}, jax {where['jax']}.\n")
        cells = [[_cell(row.get(name)) for name in columns] for row in rows]
        parts.append(markdown([_COLUMNS[name] for name in columns], cells))
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Measures the parts asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks device", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, in this order")
    parser.add_argument("--small", action="store_true", help="sizes that any CPU can do")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which nothing new is begun")
    parser.add_argument("--output", type=pathlib.Path, default=timing.RECORDS, help="folder of the record")
    options = parser.parse_args(arguments)
    chosen = options.parts.split(",")
    for name in chosen:
        if name not in PARTS:
            parser.error(f"parts={name!r}: choose from {', '.join(PARTS)}")
    path = options.output / f"device_{jax.default_backend()}.json"
    session = Session(path, SMALL if options.small else DEVICE, options.seconds)
    with session.pool:
        cases = [case for name in chosen for case in session.prepared(name, PARTS[name])]
        concurrent.futures.wait(session.begun, min(options.seconds, COMPILING))
        for case in cases:
            session.attempt(*case)
    document = {"environment": session.environment, "records": session.rows}
    print(section([document]), flush=True)


if __name__ == "__main__":
    main()
