"""What is not private is refused or said, one claim at a time: an error, or a sentence in the statement."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import accounting, clipping, data
from jaxdp._privatize import privatize
from jaxdp.accounting.ledger import Sampling
from jaxdp.accounting.statement import privacy_statement
from jaxdp.training import configured, record
from jaxdp.training.config import TrainConfig

CLAIM = accounting.Claim(delta=1e-5, adjacency="add_or_remove_one")
CONFIG = TrainConfig.of(model="logistic", steps=2, noise_seed=1)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def recorded(digits, **changes):
    """A run, what it left, and its record."""
    run = configured.build(CONFIG.replace(**changes), dataset=digits)
    result = run.train()
    return result, record.train_record(run, result)


def trained(digits, **changes):
    return recorded(digits, **changes)[0]


def said(result):
    return str(result.statement)


def test_l2_max_has_no_epsilon(digits):
    result = trained(digits, clipping="l2_max")
    assert result.epsilon is None
    with pytest.raises(ValueError, match="private=False"):
        accounting.epsilon(result.ledger, CLAIM)
    assert "NOT PRIVATE" in said(result) and "norms of private gradients" in said(result)
    nominal = accounting.epsilon(result.ledger, CLAIM, nominal=True)
    with pytest.raises(ValueError, match="nominal=False"):
        privacy_statement(result.ledger, dataclasses.replace(nominal, nominal=False))
    with pytest.raises(ValueError, match="budget=1"):
        trained(digits, clipping="l2_max", budget_epsilon=1.0)


def test_per_tensor_clipping_is_charged_at_c_sqrt_layers_and_says_so(digits):
    result, flat = trained(digits, clipping="per_layer_published"), trained(digits)
    layers = len(jax.tree.leaves(result.state.params))
    np.testing.assert_allclose(result.ledger.sigmas() * np.sqrt(layers), flat.ledger.sigmas(), rtol=1e-6)
    assert result.epsilon.value > flat.epsilon.value
    assert "sigma / sqrt(layers), not for sigma" in said(result) and "sqrt(layers)" not in said(flat)
    wrong = clipping.per_layer_published(1.0, layers=layers + 1)
    with pytest.raises(ValueError, match=f"layers={layers + 1}"):
        wrong.clip({"a": jnp.ones((2, 3))}, (), 0, jnp.ones(2, bool))


def test_shuffled_batches_get_no_amplification(digits):
    result = trained(digits, sampling="shuffled", adjacency="zero_out")
    assert "not Poisson" in said(result)
    poisson = trained(digits, adjacency="zero_out")
    assert result.epsilon.value > 3 * poisson.epsilon.value
    with pytest.raises(ValueError, match="adjacency='add_or_remove_one'"):
        trained(digits, sampling="shuffled")
    with pytest.raises(ValueError, match="steps_per_epoch"):  # nor may shuffled batches pass for Poisson ones
        Sampling(kind="poisson", rate=0.1, steps_per_epoch=10)


def test_division_by_the_batch_at_hand_is_refused():
    unchecked = getattr(privatize, "__wrapped__", privatize)  # as it is without the type checks of the tests

    def step(mask):
        return unchecked(clipping.flat(1.0), 1.0, mask.sum())

    for call in (step, jax.jit(lambda mask: step(mask) and 0)):
        with pytest.raises(ValueError, match=r"expected_batch_size=.*private"):
            call(jnp.ones(4))


def test_division_is_by_a_constant_and_the_statement_assumes_it(digits):
    assert "sums are divided by a constant" in said(trained(digits))
    assert "number of examples: it is taken as public" in said(trained(digits))


def test_a_given_seed_is_predictable_noise(digits):
    assert "given seed" in said(trained(digits))
    assert "given seed" not in said(trained(digits, noise_seed=None))


def test_examples_that_are_not_finite_add_zero_and_their_number_stays_inside(digits):
    """The clip bounds them by zero; no record, claim or statement depends on how many there were."""
    broken = dataclasses.replace(digits, train_x=digits.train_x.astype(np.float32))
    broken.train_x[:600] = 3e38  # finite as data must be, overflows in the network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result, written = recorded(broken)
    _, whole = recorded(digits)
    assert result.nonfinite > 0 and all(np.isfinite(x).all() for x in jax.tree.leaves(result.state.params))
    assert written["privacy"]["statement_data"] == whole["privacy"]["statement_data"]
    assert "nonfinite" not in str(written)
    assert "not finite adds zero" in said(result) and "gradients that were not finite" in said(result)
    with pytest.warns(UserWarning, match="keep it as private as the data"):
        trained(broken)


def test_unnoised_diagnostics_leave_no_epsilon(digits):
    result = trained(digits, diagnostics=True)
    assert result.epsilon is None and "training loss" in said(result)


def test_decisions_on_private_data_leave_no_epsilon(digits):
    """A decay driven by validation on private data: no schedule can do it, and who did is told so."""
    result = trained(digits)
    statement = privacy_statement(result.ledger, result.epsilon, disclosed=("chosen_on_private_data",))
    assert not statement.private and statement.epsilon is None and "driven by validation" in str(statement)
    assert "epsilon = " not in str(statement)
    assert "Evaluation data" in said(result)


def test_no_noise_is_no_privacy(digits):
    result = trained(digits, schedule="none")
    assert result.epsilon is None and "no noise is added" in said(result)
    assert result.state.private is None
