"""What per-example gradients are taken of: parameters, batches, masks, shared arguments, auxiliary outputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp import clipped_gradients, clipping, gradients
from jaxdp._privatize import privatize

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(7, 5)), jnp.float32)
CLIPPER = clipping.flat(0.5)


def loss_fn(params, x):
    return jnp.sum(jnp.tanh(x @ params["w"]) ** 2)


def clipped(batch, mask=None, loss=loss_fn, size=None, shared=(), **options):
    return clipped_gradients(loss, CLIPPER, microbatch_size=size, **options)(
        PARAMS, batch, mask, (), 0, *shared
    )


def by_hand(kept):
    """The clipped sum, one example after the other."""
    total = np.zeros((5, 3))
    for i in kept:
        g = np.asarray(jax.grad(loss_fn)(PARAMS, X[i])["w"], np.float64)
        total += g * min(1, 0.5 / np.linalg.norm(g))
    return total


# --- parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32])
def test_parameters_and_gradients_that_are_not_real_floats_are_refused_by_name(dtype):
    """(1, i) has the square 0, not 2."""
    params = {"layer": {"f": jnp.ones(2, dtype)}, "w": jnp.ones(2)}
    text = rf"\['layer'\]\['f'\]={np.dtype(dtype)}"
    with pytest.raises(ValueError, match=text):
        gradients.per_example(lambda p, x: jnp.sum(p["w"] * x))(params, X[:, :2])
    with pytest.raises(ValueError, match=text):
        privatize(CLIPPER, 1.0, 4.0).init(params)
    with pytest.raises(ValueError, match=text):
        CLIPPER.clip(jax.tree.map(lambda p: jnp.ones((4, *p.shape), p.dtype), params), (), 0)


def test_running_statistics_are_no_parameters():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(5, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)

    transform = privatize(CLIPPER, 1.0, 4.0)
    network = Network(nnx.Rngs(0))
    for params in (network, nnx.state(network)):
        with pytest.raises(ValueError, match=r"mean.*=BatchStat: is no nnx\.Param"):
            transform.init(params)
    transform.init(nnx.state(network, nnx.Param))

    variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"params\['batch_stats'\]"):
        gradients.per_example(lambda p, x: jnp.sum(x))(variables, X)
    transform.init(variables["params"])


# --- batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leaf, text",
    [
        ("digits", r"batch\['a'\]: is str of shape \(\)"),
        (3.0, r"batch\['a'\]: is float of shape \(\)"),
        (np.array(["x"] * 7), r"batch\['a'\]: is an array of <U1"),
        (np.ones((6, 2)), r"batch\['x'\]: has 7 rows where the first leaf has 6"),
    ],
)
def test_a_leaf_that_is_no_row_an_example_is_named(leaf, text):
    for size in (None, 2):
        with pytest.raises(ValueError, match=text):
            clipped({"a": leaf, "x": X}, loss=lambda p, e: loss_fn(p, e["x"]), size=size)


@pytest.mark.parametrize("method", gradients.METHODS)
@pytest.mark.parametrize("size", [None, 4, "auto"])
def test_no_rows_are_pure_noise(size, method):
    losses, summed = clipped(X[:0], size=size, method=method)
    assert losses.shape == (0,) and summed.examples == 0 and not summed.gradients["w"].any()
    transform = privatize(CLIPPER, 4.0, 8.0, key=jax.random.key(0))
    for updates in (summed, {"w": jnp.zeros((0, 5, 3))}):
        noise, state = transform.update(updates, transform.init(PARAMS), PARAMS)
        assert np.isfinite(noise["w"]).all() and np.std(noise["w"]) > 0.05 and state.examples == 0


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_keys_of_each_example_in_any_microbatch(size):
    """Dropout with a key an example: the same masks in pieces, padded or not, as one by one."""
    keys = jax.random.split(jax.random.key(5), len(X))

    def dropout(params, example):
        x, key = example
        return loss_fn(params, jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0))

    losses, summed = jax.jit(lambda: clipped((X, keys), loss=dropout, size=size))()
    expected, one_by_one = [], np.zeros((5, 3))
    for i in range(len(X)):
        value, g = jax.value_and_grad(dropout)(PARAMS, (X[i], keys[i]))
        expected.append(float(value))
        one_by_one += np.asarray(g["w"]) * min(1, 0.5 / max(np.linalg.norm(g["w"]), 1e-9))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(summed.gradients["w"], one_by_one, rtol=1e-4, atol=1e-5)
    assert summed.examples == len(X)


# --- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 3])
def test_masks_of_every_kind_count_what_they_say(size):
    ones = [1, 0, 1, 1, 0, 1, 1]
    kept = [i for i, one in enumerate(ones) if one]
    for mask in (jnp.array(ones, bool), jnp.array(ones), np.array(ones, np.uint8), ones):
        _, summed = clipped(X, mask, size=size)
        assert summed.examples == len(kept)
        np.testing.assert_allclose(summed.gradients["w"], by_hand(kept), rtol=1e-4, atol=1e-5)
    _, summed = clipped(X, None, size=size)
    assert summed.examples == len(X)
    np.testing.assert_allclose(summed.gradients["w"], by_hand(range(7)), rtol=1e-4, atol=1e-5)
    _, summed = jax.jit(lambda mask: clipped(X, mask, size=size))(2 * jnp.array(ones))
    assert summed.examples == len(kept)  # whole numbers whose values are not known


@pytest.mark.parametrize(
    "mask, text",
    [
        (jnp.full(7, 2), "mask: is int32"),
        (jnp.ones(7), "mask: is float32; must be boolean"),
        (jnp.ones(6, bool), r"mask: has shape \(6,\)"),
        (jnp.ones((7, 1), bool), r"mask: has shape \(7, 1\)"),
        (True, r"mask: has shape \(\)"),
    ],
)
def test_other_masks_are_refused(mask, text):
    grads = {"w": jnp.ones((7, 5, 3))}
    transform = privatize(CLIPPER, 1.0, 4.0)
    for call in (
        lambda: clipped(X, mask),
        lambda: clipped(X, mask, size=3),
        lambda: CLIPPER.clip(grads, (), 0, mask),
        lambda: transform.update(grads, transform.init(PARAMS), PARAMS, mask=mask),
    ):
        with pytest.raises(ValueError, match=text):
            call()


# --- shared arguments and auxiliary outputs ---------------------------------------------------------------


@pytest.mark.parametrize("method", gradients.METHODS)
@pytest.mark.parametrize("size", [None, 3])
def test_auxiliary_outputs_and_shared_arguments(size, method):
    """Frozen weights and a shared key, against `jax.value_and_grad` of one example after the other."""
    frozen, key = {"v": jnp.linspace(0.5, 2, 3)}, jax.random.key(2)

    def with_aux(params, example, frozen, key):
        x, number = example
        h = jnp.tanh(x @ params["w"]) * frozen["v"]
        h = h + jax.random.normal(jax.random.fold_in(key, number), h.shape)
        return jnp.sum(h**2), {"h": h, "largest": h.max()}

    batch = (X, jnp.arange(len(X)))
    (losses, aux), summed = jax.jit(
        lambda *shared: clipped(batch, loss=with_aux, size=size, shared=shared, has_aux=True, method=method)
    )(frozen, key)
    assert aux["h"].shape == (7, 3) and aux["largest"].shape == (7,)
    total = np.zeros((5, 3))
    for i in range(len(X)):
        (value, one), g = jax.value_and_grad(with_aux, has_aux=True)(PARAMS, (X[i], i), frozen, key)
        assert float(losses[i]) == pytest.approx(float(value), rel=1e-5)
        np.testing.assert_allclose(aux["h"][i], one["h"], rtol=1e-5)
        assert float(aux["largest"][i]) == pytest.approx(float(one["largest"]), rel=1e-5)
        total += np.asarray(g["w"]) * min(1, 0.5 / np.linalg.norm(g["w"]))
    np.testing.assert_allclose(summed.gradients["w"], total, rtol=1e-4, atol=1e-5)


def test_shared_arguments_are_traced_and_not_baked_in():
    traces = []

    @jax.jit
    def step(scale):
        traces.append(1)
        return clipped(X, loss=lambda p, x, scale: scale * loss_fn(p, x), shared=(scale,))[0]

    np.testing.assert_allclose(step(2.0), 2 * step(1.0), rtol=1e-6)
    assert len(traces) == 1
