"""Schedules: the published formulas, one conformance suite for the family, refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import schedules

STEPS = 10_000

# The published formulas, in float64 and plain Python: s is the elapsed share of the run.
FORMULAS = {
    "fixed": lambda s: 6.0,
    "linear": lambda s: 15 - 10.15 * s,
    "staircase": lambda s: 15 - 1.015 * math.floor(10 * s + 1e-12),
    "exponential": lambda s: math.exp(1.13 * (1 - s) + 1.58),
    "quarter_cosine": lambda s: 15 * math.cos(1.24 * s),
    "inverse_time": lambda s: 15 / (1 + (15 / 4.85 - 1) * s),
    "polynomial": lambda s: (15 - 4.85) * (1 - s) ** 2 + 4.85,
}


def family():
    members = {name: schedules.create(name, STEPS) for name in schedules.NAMES}
    members["piecewise"] = schedules.piecewise([3_000, 6_000], [9.0, 7.0, 5.0])
    members["scaled"] = schedules.scaled(schedules.linear(STEPS), 0.5)
    members["clip bound"] = schedules.create("linear", STEPS, start=6.0, end=2.0)
    return members


@pytest.mark.parametrize("name", schedules.NAMES)
def test_published_formula(name):
    values = schedules.values(schedules.create(name, STEPS), STEPS)
    expected = [FORMULAS[name](t / STEPS) for t in range(STEPS)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("name", family())
class TestEverySchedule:
    def test_traced_equals_eager_and_dtype(self, name):
        schedule = family()[name]
        for step in (0, 1, 4_999, 9_999):
            eager = schedule(step)
            traced = jax.jit(schedule)(jnp.int32(step))
            assert traced.dtype == jnp.float32 and traced.shape == ()
            np.testing.assert_allclose(eager, traced, rtol=2e-7)

    def test_positive_everywhere_and_held_after_the_end(self, name):
        values = schedules.values(family()[name], STEPS + 500)
        assert np.all(np.isfinite(values)) and values.min() > 0
        assert np.ptp(values[STEPS + 1 :]) == 0

    def test_values_start_anywhere(self, name):
        schedule = family()[name]
        whole = schedules.values(schedule, 100)
        np.testing.assert_array_equal(whole[40:], schedules.values(schedule, 60, start=40))

    def test_one_trace_for_all_steps(self, name):
        schedule, traces = family()[name], []

        @jax.jit
        def at(step):
            traces.append(1)
            return schedule(step)

        for step in range(5):
            at(jnp.int32(step))
        assert len(traces) == 1


def test_staircase_has_equal_plateaus_that_start_on_time():
    values = schedules.values(schedules.staircase(steps=1_000), 1_000)
    assert len(np.unique(values)) == 10
    starts = np.flatnonzero(np.diff(values)) + 1
    np.testing.assert_array_equal(starts, np.arange(100, 1_000, 100))


def test_scaled_multiplies():
    base = schedules.values(schedules.exponential(STEPS), 50)
    scaled = schedules.values(schedules.scaled(schedules.exponential(STEPS), 3.0), 50)
    np.testing.assert_allclose(scaled, 3 * base, rtol=1e-6)


@pytest.mark.parametrize(
    "build, names",
    [
        (lambda: schedules.constant(-1.0), ["value=-1.0"]),
        (lambda: schedules.constant(math.nan), ["value=nan"]),
        (lambda: schedules.linear(0), ["steps=0"]),
        (lambda: schedules.linear(10, start=math.inf), ["start=inf"]),
        (lambda: schedules.staircase(10, stairs=0), ["stairs=0"]),
        (lambda: schedules.quarter_cosine(10, angle=2.0), ["angle=2.0", "pi/2"]),
        (lambda: schedules.polynomial(10, power=-1.0), ["power=-1.0"]),
        (lambda: schedules.piecewise([5], [1.0]), ["values=[1.0]", "boundaries=[5]"]),
        (lambda: schedules.piecewise([5, 5], [1.0, 2.0, 3.0]), ["boundaries=[5, 5]"]),
        (lambda: schedules.scaled(schedules.constant(1.0), 0.0), ["factor=0.0"]),
        (lambda: schedules.create("cyclic", 10), ["schedule='cyclic'", "quarter_cosine"]),
        (lambda: schedules.create("fixed", 10, start=3.0), ["start=3.0", "value"]),
    ],
)
def test_refusals_name_the_value_and_what_is_possible(build, names):
    with pytest.raises(ValueError) as caught:
        build()
    assert all(name in str(caught.value) for name in names)
