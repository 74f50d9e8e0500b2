"""The other composition methods: formulas by hand, their order, their conditions."""

import itertools
import math

import pytest

from jaxdp import accounting
from jaxdp.accounting import composition
from jaxdp.accounting.ledger import Sampling
from jaxdp.calibration import Plan

SETTINGS = dict(delta=1e-5, adjacency="add_or_remove_one")


def run(sigma=6.0, steps=1_000, rate=0.01, **changes):
    return Plan(parameters={"value": sigma}, steps=steps, sampling=Sampling(rate=rate), **changes).ledger()


def test_basic_and_zcdp_by_hand():
    per_step = math.sqrt(2 * math.log(1.25 / (1e-5 / 1000 / 0.01))) / 6.0
    expected = 1000 * math.log(1 + 0.01 * (math.exp(per_step) - 1))
    assert composition.basic(run(), **SETTINGS) == pytest.approx(expected, rel=1e-6)
    rho = 1000 / 72
    assert composition.zcdp(run(), **SETTINGS) == pytest.approx(
        rho + 2 * math.sqrt(rho * math.log(1e5)), rel=1e-6
    )


def test_optimal_is_the_exact_composition_of_randomised_response():
    ledger = run(steps=12, sigma=60.0, rate=1.0)
    (step,), _, _ = composition._steps(ledger, "add_or_remove_one", 0.5e-5)
    epsilon = composition.optimal(ledger, **SETTINGS)
    up, delta = 1 / (1 + math.exp(-step)), 0.0
    for ups in range(13):
        mass = math.comb(12, ups) * up**ups * (1 - up) ** (12 - ups)
        delta += mass * max(0.0, 1 - math.exp(epsilon - (2 * ups - 12) * step))
    assert delta <= 0.5e-5
    lower = epsilon - 12 * step * 0.01
    assert sum(
        math.comb(12, u) * up**u * (1 - up) ** (12 - u) * max(0.0, 1 - math.exp(lower - (2 * u - 12) * step))
        for u in range(13)
    ) > 0.5e-5  # fmt: skip


def test_the_methods_order_as_the_theory_says():
    rows = {row.method: row.epsilon for row in composition.table(run(), **SETTINGS)}
    order = ["PLD", "RDP", "optimal (KOV)", "advanced", "basic"]
    assert all(rows[a] < rows[b] for a, b in itertools.pairwise(order))
    assert rows["zCDP"] > rows["RDP"]
    whole = composition.zcdp(run(rate=1.0, steps=10), **SETTINGS)
    assert whole > accounting.epsilon(run(rate=1.0, steps=10), **SETTINGS).value


def test_unequal_steps_and_conditions():
    dynamic = Plan(schedule="staircase", steps=100, sampling=Sampling(rate=0.01)).ledger()
    rows = composition.table(dynamic, **SETTINGS)
    assert all(math.isfinite(row.epsilon) and row.epsilon > 0 and row.caveat for row in rows)
    assert composition.basic(run(sigma=0.5, rate=1.0), **SETTINGS) == math.inf
    assert composition.optimal(run(sigma=0.5, rate=1.0), **SETTINGS) == math.inf
    doubled = composition.basic(run(steps=10, sigma=60.0), delta=1e-5, adjacency="replace_one")
    assert doubled == pytest.approx(composition.basic(run(steps=10, sigma=30.0), **SETTINGS), rel=1e-9)
