"""What the error of a real generator is charged: against the formula in mpmath, and in words."""

import dataclasses

import jax.numpy as jnp
import mpmath
import pytest
from written_ledgers import written

from jaxdp import Plan, accounting, clipping
from jaxdp.accounting import generator
from jaxdp.accounting.ledger import Ledger, Sampling, from_json
from jaxdp.accounting.statement import privacy_statement


def zeros(*shape):
    return jnp.zeros(shape)


CLAIM = accounting.Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="rdp")


def ledger(coordinates, steps=100, **changes):
    run = written(steps=steps, sampling=Sampling(rate=0.1))
    entries = tuple(dataclasses.replace(e, coordinates=coordinates, **changes) for e in run.entries)
    return Ledger(entries)


@pytest.mark.parametrize("epsilon", [0.1, 3.0, 20.0])
@pytest.mark.parametrize("coordinates", [10, 10**6, 10**11])
def test_the_charge_is_the_square_root_form(coordinates, epsilon):
    found = generator.charge(ledger(coordinates), epsilon, 1e-5)
    assert found.numbers == 100 * coordinates
    with mpmath.workdps(30):
        n, v = mpmath.mpf(found.numbers), mpmath.mpf(generator.DEVIATION) ** 2
        d = mpmath.mpf(1e-5) * mpmath.mpf("1e-6") / (1 + mpmath.exp(epsilon))
        a = mpmath.sqrt(2 * n * v * mpmath.log(1 / d)) + generator.LARGEST * mpmath.log(1 / d) / 3
        far = n * (mpmath.erfc(generator.FAR / mpmath.sqrt(2)) + mpmath.mpf(2) ** -79)
        delta = mpmath.expm1(a) * 1e-5 + (1 + mpmath.exp(epsilon + a)) * (d + far)
    assert found.epsilon == pytest.approx(float(2 * a), rel=1e-9)
    assert found.delta == pytest.approx(min(1.0, float(delta)), rel=1e-6)


def test_ten_billion_numbers_cost_less_than_the_printed_digits_of_most_claims():
    found = generator.charge(ledger(10**8), 3.0, 1e-5)
    assert found.epsilon < 2e-6 and found.delta < 1e-9


def test_a_ledger_that_does_not_say_how_many_numbers_is_charged_nothing_and_says_so():
    old = written(steps=20, sampling=Sampling(rate=0.1))
    spent = accounting.epsilon(old, CLAIM)
    assert spent.generator is None and "nothing is charged" in str(privacy_statement(old, spent))
    assert "generator" not in old.to_json() and "coordinates" not in old.to_json()
    assert from_json(old.to_json()).sha256 == old.sha256


def test_the_charge_and_the_generator_are_stated_beside_the_epsilon():
    plan = Plan(clipper=clipping.flat(1.0), noise_multiplier=6.0, sampler=Sampling(rate=0.1), steps=100)
    sized = plan.sized({"w": zeros(1000, 1000), "b": zeros(10)})
    assert sized.coordinates == 1_000_010
    ideal, spent = (accounting.epsilon(p.ledger(), CLAIM) for p in (plan, sized))
    assert spent.value == ideal.value and ideal.generator is None
    assert f" + {spent.generator.epsilon:.1e} at delta = 1e-05 + {spent.generator.delta:.1e}" in str(spent)
    said = str(privacy_statement(sized.ledger(), spent))
    assert "chacha12" in said and "1e+08 noised numbers" in said and "Floating-point sums" in said
    threefry = dataclasses.replace(sized, generator="threefry")
    said = privacy_statement(threefry.ledger(), accounting.epsilon(threefry.ledger(), CLAIM))
    assert any("64 bits" in warning for warning in said.warnings)
    assert from_json(sized.ledger().to_json()) == sized.ledger()


def test_the_counts_of_a_clipper_are_numbers_too():
    clipper = clipping.quantile_per_layer(1.0, 10.0)
    plan = Plan(clipper=clipper, noise_multiplier=1.0, sampler=Sampling(rate=0.1), steps=1)
    assert plan.sized([zeros(5), zeros(2, 2)]).coordinates == 9 + 2


def test_a_number_of_coordinates_below_zero_is_refused():
    with pytest.raises(ValueError, match="coordinates=-1: must be a whole number >= 0"):
        ledger(-1)
