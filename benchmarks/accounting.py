"""Accounting: agreement with dp_accounting on a grid, and the time of everything that sits in a loop.

Run as `python -m benchmarks accounting`; writes `benchmarks/records/accounting.json`.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

import dp_accounting as dp
import numpy as np

from jaxdp import accounting, calibration, clipping, schedules
from jaxdp.accounting import pld, rdp, reconstruction
from jaxdp.accounting.ledger import Entry, Ledger, Sampling
from jaxdp.accounting.pld import Steps
from jaxdp.plan import Plan

RECORD = pathlib.Path(__file__).parent / "records" / "accounting.json"
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
SIGMAS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0, 60.0, 100.0)
CLAIM = accounting.Claim(delta=1e-5, adjacency="add_or_remove_one")
BY_RDP = dataclasses.replace(CLAIM, accountant="rdp")
TARGET = 0.4  # epsilon: 0.4497 is what the linear schedule spends unchanged
COMMAND = "account --schedule linear --steps 10000 --sampling-rate 0.01 --delta 1e-5"


def _cpu() -> float:
    """Seconds of processor time of this process and of those it waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _timed(function, repeats: int = 3) -> dict:
    seconds, cpu = [], []
    for _ in range(repeats):
        wall, process = time.perf_counter(), _cpu()
        function()
        seconds.append(time.perf_counter() - wall)
        cpu.append(_cpu() - process)
    return {
        "median_s": float(np.median(seconds)),
        "least_s": min(seconds),
        "most_s": max(seconds),
        "least_cpu_s": min(cpu),
    }


def agreement() -> dict:
    """The largest differences to `RdpAccountant` over the grid.

    At whole orders its sums are exact.  At the others its series is above the integral, or gives the order up.
    """
    whole = np.floor(rdp.ORDERS) == rdp.ORDERS
    worst, above, below, given_up = 0.0, 0.0, 0.0, 0
    logging.getLogger("absl").disabled = True  # to which it says which orders it gives up
    for q in RATES:
        ours = rdp.poisson_gaussian(q, np.array(SIGMAS))
        for sigma, row in zip(SIGMAS, ours, strict=True):
            event = dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma))
            reference = np.asarray(dp.rdp.RdpAccountant().compose(event).rdp)
            given_up += int(np.isinf(reference).sum())
            finite = np.isfinite(reference) & (row * (rdp.ORDERS - 1) > 1e-9)  # below, rounding is visible
            relative = np.where(finite, reference / row - 1, 0.0)
            worst = max(worst, float(np.abs(relative[whole]).max()))
            above = max(above, float(relative[~whole].max()))
            below = min(below, float(relative[~whole].min()))
    return {
        "points": len(RATES) * len(SIGMAS),
        "whole_orders_relative": worst,
        "series_above_integral": above,
        "series_below_integral": below,
        "orders_given_up_by_series": given_up,
    }


def _planned(name: str) -> Plan:
    """A published schedule over 10,000 steps."""
    return Plan(
        clipper=clipping.flat(1.0),
        noise_multiplier=schedules.create(name, 10_000),
        sampler=Sampling(rate=0.01),
        steps=10_000,
    )


def _spread(q: float, low: float, high: float) -> Ledger:
    """10,000 steps, all of different noise multipliers."""
    lengths = tuple((float(sigma), 1) for sigma in np.linspace(low, high, 10_000))
    return Ledger((Entry(start=0, stop=10_000, noise_multipliers=lengths, sampling=Sampling(rate=q)),))


def timings() -> dict:
    """Of 10,000 distinct noise multipliers, the linear schedule's."""
    plan = _planned("linear")
    ledger = plan.ledger()
    (steps,) = accounting.runs(ledger, "add_or_remove_one")
    runs = [Steps(*steps)]
    found = {
        "rdp": _timed(lambda: rdp.poisson_gaussian(0.01, steps.noise_multipliers)),
        "rdp_replace_one": _timed(lambda: rdp.replace_one(0.01, steps.noise_multipliers)),
        **{
            f"rdp_rate_{q:g}_sigma_{low:g}_to_{high:g}": _timed(
                functools.partial(accounting.epsilon, _spread(q, low, high), BY_RDP)
            )
            for q in (1e-3, 0.1, 0.5, 0.9)
            for low, high in ((0.6, 3.0), (4.85, 15.0))
        },
        "pld_half_percent": _timed(lambda: pld.bounds(runs, 1e-5, replace=False, tolerance=0.005)),
        "pld_tenth_percent": _timed(lambda: pld.bounds(runs, 1e-5, replace=False, tolerance=0.001), 1),
        "trajectory": _timed(lambda: accounting.epsilon_trajectory(ledger, CLAIM)),
        "matched_constant": _timed(lambda: calibration.matched_constant(ledger, BY_RDP)),
    }
    for what in calibration.WHAT:
        found[f"calibrate_{what}"] = _timed(
            lambda what=what: calibration.calibrate(plan, TARGET, BY_RDP, what)
        )
    found["calibrate_scale_by_pld"] = _timed(lambda: calibration.calibrate(plan, TARGET, CLAIM), 1)
    found["reconstruction_windows"] = _timed(
        lambda: reconstruction.windows(ledger, 0.1, adjacency="add_or_remove_one", tolerance=0.01), 1
    )
    command = [sys.executable, "-m", "jaxdp.cli", *COMMAND.split()]
    found["command"] = _timed(lambda: subprocess.run(command, check=True, capture_output=True))
    return found


def figures() -> dict:
    """Epsilon of the published schedules, by both accountants."""
    found = {}
    for name in ("fixed", "linear", "staircase", "exponential", "quarter_cosine"):
        ledger = _planned(name).ledger()
        bounds = accounting.epsilon(ledger, CLAIM)
        found[name] = {
            "rdp": accounting.epsilon(ledger, BY_RDP).value,
            "pld": bounds.value,
            "pld_lower": bounds.lower,
            "matched_constant": calibration.matched_constant(ledger, BY_RDP),
        }
    return found


def main() -> None:
    """Measures and writes the record."""
    record = {
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()},
        "agreement_with_dp_accounting": agreement(),
        "seconds_for_10000_distinct": timings(),
        "epsilon_at_1e-5": figures(),
    }
    RECORD.parent.mkdir(exist_ok=True)
    partial = RECORD.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, RECORD)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
