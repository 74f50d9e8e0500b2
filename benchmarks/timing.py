"""Interleaved timing: every round runs every step in an order of its own, once untimed, then timed.

In training a step follows its like; the first run would meet the caches and the allocator as another left them.
What is shorter than 20 ms is run again until that has passed, 20 times at most, and its mean taken.
Ratios are medians of the ratios within a round, so that what slows the machine for a while slows both sides.
"""

import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import numpy as np

from benchmarks import malloc
from jaxdp import atomic

LEAST_SECONDS, MOST_RUNS = 0.02, 20  # of what is timed at once
RECORDS = pathlib.Path(__file__).parent / "records"


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def environment() -> dict[str, Any]:
    """Where a record was measured."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "timed": f"after a first run: the mean of those in {1e3 * LEAST_SECONDS:g} ms, of {MOST_RUNS} at most",
        "malloc": malloc.setting(),
    }


def write(name: str, rows: list[dict], **more: Any) -> pathlib.Path:
    """Writes `records/NAME.json` in one go."""
    path = RECORDS / f"{name}.json"
    text = json.dumps({"environment": environment(), **more, "records": rows}, indent=1)
    atomic.write_text(path, text + "\n")
    return path


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """A function that makes one run, waits for it, and returns its seconds."""

    def measure():
        began = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - began

    return measure


def first_call(run: Callable[[], Any]) -> float:
    """Seconds of the first call: tracing, compiling and one run."""
    return timed(run)()


def interleaved(
    clocks: Mapping[str, Callable[[], float]], rounds: int, budget_seconds: float = float("inf")
) -> dict[str, np.ndarray]:
    """Seconds of each in each round; no further round begins after `budget_seconds`, two at least.

    Args:
      clocks: name -> a function that makes one run and returns its seconds, see `timed`.
      rounds: how often each is timed.
      budget_seconds: when to begin no further round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    order, names, start = np.random.default_rng(0), list(clocks), time.perf_counter()
    for turn in range(rounds):
        if turn >= 2 and time.perf_counter() - start > budget_seconds:
            break
        for name in order.permutation(names):
            clocks[name]()
            seconds[name].append(_mean(clocks[name]))
    return {name: np.asarray(times) for name, times in seconds.items()}


def _mean(clock: Callable[[], float]) -> float:
    runs = [clock()]
    while sum(runs) < LEAST_SECONDS and len(runs) < MOST_RUNS:
        runs.append(clock())
    return sum(runs) / len(runs)


def ratio(times: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Median and quartiles of the ratios within a round."""
    quartiles = np.quantile(times / reference, (0.25, 0.5, 0.75))
    return {"median": float(quartiles[1]), "quartiles": [float(q) for q in quartiles[[0, 2]]]}
