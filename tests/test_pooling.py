"""Pooling by blocks: values are those of XLA's windows, and gradients too where the maximum is unique."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp.convolution import with_patches


def primitives(function, x):
    return {equation.primitive.name for equation in jax.make_jaxpr(with_patches(function))(x).eqns}


def agree(function, x):
    """Values, gradients of a sum with unequal weights, and the gradients again under jit."""
    y = function(x)
    weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
    loss = lambda f: lambda x: jnp.sum(weights * f(x))  # noqa: E731
    fast = with_patches(function)
    np.testing.assert_allclose(fast(x), y, rtol=1e-6)
    expected = jax.grad(loss(function))(x)
    for grad in (jax.grad(loss(fast)), jax.jit(jax.grad(loss(fast)))):
        np.testing.assert_allclose(grad(x), expected, rtol=1e-6)
    batched = jax.vmap(jax.grad(loss(fast)))(jnp.stack([x, x]))
    np.testing.assert_allclose(batched[1], expected, rtol=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    pool=st.sampled_from([nnx.max_pool, nnx.avg_pool]),
    seed=st.integers(0, 9),
)
def test_pooling_with_flax(window, size, pool, seed):
    x = np.random.default_rng(seed).permutation(size[0] * size[1] * 2).reshape(*size, 2).astype(np.float32)
    agree(lambda x: pool(x, window, strides=window), jnp.asarray(x))


def test_disjoint_windows_are_swapped_and_others_are_not():
    x = jnp.ones((6, 6, 1))
    swapped = lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2))  # noqa: E731
    assert "reduce_window_max" not in primitives(swapped, x)
    for kwargs in (dict(strides=(1, 1)), dict(strides=(3, 3)), dict(strides=(2, 2), padding="SAME")):
        other = lambda x, kwargs=kwargs: nnx.max_pool(x[:5, :5], (2, 2), **kwargs)  # noqa: E731
        assert "reduce_window_max" in primitives(other, x)
        agree(other, jnp.asarray(np.random.default_rng(1).normal(size=(6, 6, 1)).astype(np.float32)))


def test_equal_entries_share_the_gradient():
    """A subgradient: the same sum for each window as XLA's, which gives all to the first."""
    x = jnp.zeros((4, 4, 1)).at[0, 0, 0].set(1.0)
    function = lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)).sum()  # noqa: E731
    shared, first = jax.grad(with_patches(function))(x)[..., 0], jax.grad(function)(x)[..., 0]
    np.testing.assert_array_equal(shared[:2, :2], first[:2, :2])
    np.testing.assert_array_equal(shared[2:, 2:], np.full((2, 2), 0.25))
    assert shared[2:, 2:].sum() == first[2:, 2:].sum() == 1


@pytest.mark.parametrize("activation", [jnp.tanh, nnx.sigmoid, nnx.relu])
def test_gradient_after_a_convolution_is_that_of_finite_differences(activation):
    """Compiled together with what comes before: XLA may compute an activation twice, in two roundings."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(10, 10, 2)).astype(np.float32))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 4)).astype(np.float32) / 4)

    def loss_fn(kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "VALID", dimension_numbers=numbers)
        return jnp.sum(nnx.max_pool(activation(y), (2, 2), strides=(2, 2)) ** 2)

    fast = with_patches(loss_fn)
    compiled, eager = jax.jit(jax.grad(fast))(kernel), jax.grad(loss_fn)(kernel)
    np.testing.assert_allclose(compiled, eager, rtol=1e-4, atol=1e-4)
    direction = jnp.asarray(rng.normal(size=kernel.shape).astype(np.float32))
    with jax.enable_x64(True):
        wide = kernel.astype(jnp.float64)
        step = 1e-6 * direction.astype(jnp.float64)
        x = x.astype(jnp.float64)
        slope = (loss_fn(wide + step) - loss_fn(wide - step)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(compiled, direction), slope, rtol=1e-3)


def test_a_maximum_of_nan_is_nan():
    x = jnp.zeros((4, 4, 1)).at[0, 1, 0].set(jnp.nan)
    y = with_patches(lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)))(x)
    assert jnp.isnan(y[0, 0, 0]) and jnp.isfinite(y[1:]).all()
