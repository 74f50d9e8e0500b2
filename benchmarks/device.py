"""What one accelerator is asked, within six minutes: `python -m benchmarks device [--parts step,attacks]`.

In the order of worth: training steps, dynamic sigma in the loop, attacks at once, a language model, the noise
alone, other libraries' steps, memory.  Programs are compiled beside each other, and timed when none is being
compiled.  Every result is in the record, `device_BACKEND.json`, as soon as it is known; what fails, is not
installed or finds no time left is a row that says so.  With `--small` the same on sizes that any CPU can do.
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

SECONDS = 340.0  # after which nothing new is begun
THREADS = 8
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured."""

    steps: tuple[tuple[str, int], ...]
    peers: tuple[tuple[str, int], ...]
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
    peers=(("cnn", 256), ("cifar", 256), ("mlp", 256), ("cnn", 4096), ("cifar", 2048)),
    memory=(("cnn", 4096), ("cifar", 2048), ("transformer", 512)),
    schedules=("fixed", "linear", "quarter_cosine"),
    attacks=((256, 400), (2048, 400), (4096, 400)),
    language=(
        dict(vocabulary=50_257, tokens=512, width=768, heads=12, layers=12, dtype="bfloat16"), 512, 64
    ),  # GPT-2's shape, 124 million parameters
    noise=("532110", "10000000"),
    rounds=30,
    seconds=3.0,
)  # fmt: skip
SMALL = Sizes(
    steps=(("mlp", 8),),
    peers=(("mlp", 8),),
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
        self.pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        self.environment = timing.environment()

    def add(self, row: Row) -> None:
        """Writes and prints one more row."""
        self.rows.append(row)
        document = {"environment": self.environment, "records": self.rows}
        atomic.write_text(self.path, json.dumps(document, indent=1, default=float) + "\n")
        print(json.dumps(row, default=float), flush=True)

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

    def compile(self, build: Callable[[], variants.Step], model, x, y) -> concurrent.futures.Future:
        """A step, compiled beside others: `(step, seconds, bytes of temporary memory)`."""

        def compiled():
            began, step = time.perf_counter(), build()
            program = step.run.lower(model.params, step.state, x, y).compile()
            analysis = program.memory_analysis()
            seconds = time.perf_counter() - began
            return step._replace(run=program), seconds, getattr(analysis, "temp_size_in_bytes", None)

        return self.pool.submit(compiled)

    def timed(self, runs: dict[str, Callable]) -> dict[str, np.ndarray]:
        """Seconds of each, in turns."""
        clocks = {name: timing.timed(run) for name, run in runs.items()}
        for clock in clocks.values():
            clock()
        return timing.interleaved(clocks, self.sizes.rounds, self.sizes.seconds)


def _rows(seconds: dict[str, np.ndarray], examples: int, of: str, found: dict[str, tuple]) -> Iterator[Row]:
    """One row a variant: its time, and its ratio to that of `of`."""
    for variant, times in seconds.items():
        _, compile_seconds, temporary = found.get(variant, (None, None, None))
        yield {
            "variant": variant,
            "median_ms": 1e3 * float(np.median(times)),
            f"ratio_to_{of}": timing.ratio(times, seconds[of])["median"],
            "examples_per_second": examples / float(np.median(times)),
            "compile_seconds": compile_seconds,
            "temporary_mb": None if temporary is None else temporary / 2**20,
            "rounds": len(times),
        }


def _step_rows(session: Session, model, x, y, futures) -> Iterator[Row]:
    found = {variant: future.result() for variant, future in futures.items()}
    runs: dict[str, Callable] = {
        variant: Carried(step, model.params, x, y) for variant, (step, *_) in found.items()
    }
    runs["noise"] = noise_of(model.params)
    seconds = session.timed(runs)
    seconds["nonprivate + noise"] = seconds["nonprivate"] + seconds["noise"]
    return _rows(seconds, len(x), "nonprivate", found)


def steps(session: Session) -> None:
    """Ordinary and private steps."""
    waiting = {}
    for name, size in session.sizes.steps:
        model, (x, y) = networks.create(name), networks.batch(name, size)
        builds = {
            "nonprivate": functools.partial(variants.nonprivate, model),
            "private": functools.partial(variants.private, model, size),
        }
        futures = {variant: session.compile(build, model, x, y) for variant, build in builds.items()}
        waiting[f"{name} {size}"] = (model, x, y, futures)
    concurrent.futures.wait([f for *_, futures in waiting.values() for f in futures.values()])
    for case, given in waiting.items():
        session.attempt("step", case, functools.partial(_step_rows, session, *given))


def dynamic_sigma(session: Session) -> None:
    """A dynamic sigma against a fixed one, in the compiled loop of training."""
    sizes = session.sizes
    measure = functools.partial(dynamic.loop_rows, sizes.rounds, 4 * sizes.seconds, sizes.schedules)
    session.attempt("dynamic", "loop", measure)


def attacks(session: Session) -> None:
    """Whole attacks a minute, and how many are exact."""
    for victims, iterations in session.sizes.attacks:

        def measure(victims=victims, iterations=iterations):
            from benchmarks import attacks as of_attacks

            row = of_attacks.at_once(victims, iterations)
            kept = ("attacks_per_minute", "attack_steps_per_second", "seconds", "compile_seconds")
            yield {name: row[name] for name in kept} | {"exact": row["exact"]["estimate"]}

        session.attempt("attacks", f"{victims} victims", measure)


def language(session: Session) -> None:
    """A causal language model, the mean loss of its tokens."""
    shape, length, size = session.sizes.language

    def measure():
        model = decoder.create(jax.random.key(0), tied=True, **shape)
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        tokens = jax.random.randint(jax.random.key(1), (size, length + 1), 0, shape["vocabulary"])
        x, y = tokens[:, :-1], tokens[:, 1:]
        builds = {
            "nonprivate": functools.partial(variants.nonprivate, model),
            "private": functools.partial(variants.private, model, size, places=True),
        }
        futures = {variant: session.compile(build, model, x, y) for variant, build in builds.items()}
        concurrent.futures.wait(futures.values())
        for row in _step_rows(session, model, x, y, futures):
            yield {"parameters": count, **row}

    session.attempt("language model", f"T = {length}, B = {size}", measure)


def noise_alone(session: Session) -> None:
    """What the noise costs beside that of `jax.random.normal`."""
    for name in session.sizes.noise:
        session.attempt("noise", name, functools.partial(noise.cost, name, session.sizes.rounds))


def other_libraries(session: Session) -> None:
    """The same step by other libraries, each in turns with ours."""
    for name, size in session.sizes.peers:
        model, (x, y) = networks.create(name), networks.batch(name, size)
        builds = {
            "private": functools.partial(variants.private, model, size),
            "optax.contrib": functools.partial(peers.optax_aggregate, model, size),
            "jax-privacy": functools.partial(peers.jax_privacy_step, model, size, None),
        }
        futures = {label: session.compile(build, model, x, y) for label, build in builds.items()}
        concurrent.futures.wait(futures.values())
        ours = functools.partial(futures["private"].result)
        for label in ("optax.contrib", "jax-privacy"):

            def in_process(label=label, futures=futures, model=model, x=x, y=y):
                found = {variant: futures[variant].result() for variant in ("private", label)}
                runs: dict[str, Callable] = {
                    variant: Carried(step, model.params, x, y) for variant, (step, *_) in found.items()
                }
                return _rows(session.timed(runs), len(x), "private", found)

            session.attempt("peers", f"{name} {size}, {label}", in_process)
        of_opacus = functools.partial(_opacus_rows, session, name, size, ours, model, x, y)
        session.attempt("peers", f"{name} {size}, opacus", of_opacus)


def _opacus_rows(session: Session, name: str, size: int, ours, model, x, y) -> Iterator[Row]:
    if "opacus" in peers.missing():
        raise ModuleNotFoundError("No module named 'opacus'")
    found = {"private": ours()}
    worker = opacus_worker.Worker(name, size, dict(os.environ))
    try:
        for mode, reason in worker.failed.items():
            yield {"variant": mode, "failed": reason}
        modes = [mode for mode in opacus_worker.MODES if mode not in worker.failed]
        clocks = {mode: functools.partial(worker.seconds, mode) for mode in modes}
        clocks["private"] = timing.timed(Carried(found["private"][0], model.params, x, y))
        seconds = timing.interleaved(clocks, session.sizes.rounds, session.sizes.seconds)
        yield from _rows(seconds, size, "private", found)
    finally:
        worker.close()


def peak_memory(session: Session) -> None:
    """What XLA says that a compiled step needs for intermediate values."""
    waiting = {}
    for name, size in session.sizes.memory:
        model, (x, y) = networks.create(name), networks.batch(name, size)
        for variant in ("nonprivate", "factored", "private"):
            build = functools.partial(memory.BUILD[variant], model, size)
            waiting[f"{name} {size}", variant] = session.compile(build, model, x, y)
    for (case, variant), future in waiting.items():

        def measure(variant=variant, future=future):
            _, seconds, temporary = future.result()
            yield {"variant": variant, "temporary_mb": temporary / 2**20, "compile_seconds": seconds}

        session.attempt("memory", case, measure)


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
        for name in chosen:
            session.attempt(name, "all", lambda name=name: PARTS[name](session) or ())
    document = {"environment": session.environment, "records": session.rows}
    print(section([document]), flush=True)


if __name__ == "__main__":
    main()
