"""Gaussian differential privacy and the rates of a membership test, against exact curves and dp_accounting."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from scipy import optimize, stats

from jaxdp.accounting import Claim, gaussian
from jaxdp.accounting.gdp import FALSE_POSITIVE_RATES, gdp
from jaxdp.accounting.ledger import Entry, Ledger, Sampling

CLAIM = Claim(delta=1e-5, adjacency="add_or_remove_one")


def ledger(sigma, steps, rate=1.0, **options):
    return Ledger(
        (
            Entry(
                start=0,
                stop=steps,
                noise_multipliers=((sigma, steps),),
                sampling=Sampling(rate=rate),
                **options,
            ),
        )
    )


@pytest.mark.parametrize(("adjacency", "factor"), [("add_or_remove_one", 1), ("replace_one", 2)])
def test_without_sampling_a_run_is_one_gaussian(adjacency, factor):
    found = gdp(ledger(20.0, 100), Claim(delta=1e-5, adjacency=adjacency))
    mu = factor * math.sqrt(100) / 20
    assert found.mu == pytest.approx(mu) and found.excess == found.regret == 0
    expected = [stats.norm.cdf(stats.norm.ppf(alpha) + mu) for alpha in FALSE_POSITIVE_RATES]
    assert found.true_positive_rates == pytest.approx(expected)


def test_the_rates_of_one_sampled_step_are_those_of_the_best_test():
    """The likelihood ratio rises with the output, so the best test is a threshold, in either direction."""
    rate, sigma = 0.1, 1.0
    found = gdp(ledger(sigma, 1, rate), CLAIM)
    far = lambda x: (1 - rate) * stats.norm.sf(x) + rate * stats.norm.sf(x - 1 / sigma)  # noqa: E731
    for alpha, reached in zip(FALSE_POSITIVE_RATES, found.true_positive_rates, strict=True):
        present = far(stats.norm.isf(alpha))
        threshold = optimize.brentq(lambda x: 1 - far(x) - alpha, -9, 9)  # noqa: B023
        best = max(present, stats.norm.cdf(threshold))
        assert best <= reached <= 1.01 * best


def test_mu_is_the_smallest_whose_curve_lies_above_that_of_another_accountant():
    sigma, steps, rate = 1.2, 500, 0.02
    found = gdp(ledger(sigma, steps, rate), CLAIM)
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma)), steps)
    epsilons = np.linspace(0, 3, 61)
    deltas = np.array([accountant.get_delta(epsilon) for epsilon in epsilons])
    assert found.mu is not None
    assert (deltas <= gaussian.gaussian_delta(found.mu, epsilons) + found.excess).all()
    assert not (deltas <= gaussian.gaussian_delta(0.985 * found.mu, epsilons) + found.excess).all()


def test_many_small_steps_are_the_gaussian_of_the_central_limit():
    """Bu, Dong, Long & Su 2020 (arXiv 1911.11607): mu = q (T (e^(1 / sigma^2) - 1))^(1/2)."""
    found = gdp(ledger(6.0, 10_000, 0.01), CLAIM)
    assert found.mu == pytest.approx(0.01 * 100 * math.sqrt(math.expm1(1 / 36)), rel=0.01)
    assert found.regret < 1e-3


def test_a_curve_that_is_no_gaussian_s_has_no_mu():
    """A step in which the example hardly ever takes part, and is seen when it does."""
    found = gdp(ledger(0.2, 1, 0.05), CLAIM)
    assert found.mu is None and found.regret > 0.01
    assert found.true_positive_rates[0] == pytest.approx(0.05, abs=2e-3)


def test_what_is_not_private_has_none():
    with pytest.raises(ValueError, match="private=False"):
        gdp(ledger(1.0, 10, private=False, reasons=("no reason",)), CLAIM)
