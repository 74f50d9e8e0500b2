"""Pooling without `reduce_window`: against `reduce_window` itself, values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxdp import clipping
from jaxdp.clipping import clipped_gradients
from jaxdp.gradients import convolution

WHOLE = st.integers(-3, 3).map(float)  # many equal entries in a window


def pooled(kind, window, strides, padding):
    """A loss that pools what a convolution with the identity leaves of its input."""
    start, combine = (-jnp.inf, lax.max) if kind == "max" else (0.0, lax.add)

    def loss(x, weights):
        kernel = jnp.eye(x.shape[-1], dtype=x.dtype)[None, None]
        x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = lax.reduce_window(
            x, start, combine, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
        )
        return jnp.sum(y * weights[: y.size].reshape(y.shape)), y

    return loss


def equations(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments))


@st.composite
def windows(draw):
    window = draw(st.tuples(*[st.integers(1, 3)] * 2))
    strides = draw(st.just(window) | st.tuples(*[st.integers(1, 3)] * 2))
    padding = tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in window)
    shape = (2, *(draw(st.integers(k, 8)) for k in window), 3)
    entries = draw(st.lists(WHOLE, min_size=64, max_size=64))
    return window, strides, padding, np.resize(np.asarray(entries, np.float32), shape)


@pytest.mark.parametrize("kind", ["max", "sum"])
@settings(max_examples=60, deadline=None)
@given(case=windows())
def test_pooling_is_that_of_reduce_window(kind, case):
    window, strides, padding, x = case
    loss = pooled(kind, window, strides, padding)
    weights = np.random.default_rng(0).normal(size=x.size * 4).astype(np.float32)
    (_, y), gradient = jax.value_and_grad(loss, has_aux=True)(x, weights)
    swapped = convolution.with_patches(loss)
    (_, same_y), same = jax.value_and_grad(swapped, has_aux=True)(x, weights)
    np.testing.assert_allclose(same_y, y, rtol=1e-6)
    np.testing.assert_allclose(same, gradient, rtol=1e-5, atol=1e-5)  # of equal entries the first has it all
    assert "reduce_window" not in equations(swapped, x, weights)


def test_dilated_windows_stay():
    def loss(x):
        x = lax.conv_general_dilated(x, jnp.ones((1, 1, 1, 1)), (1, 1), "VALID")
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 1, 1), "VALID", window_dilation=(1, 1, 2, 2)
        ).sum()

    x = jax.random.normal(jax.random.key(0), (1, 1, 6, 6))
    swapped = convolution.with_patches(loss)
    assert "reduce_window" in equations(swapped, x)
    np.testing.assert_allclose(swapped(x), loss(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_compiled_maximum_keeps_its_gradient(stride, dtype):
    """XLA computes a cheap operand a second time, and might round it otherwise."""
    pool = pooled("max", (3, 3), (stride, stride), ((1, 1), (1, 1)))

    def loss(x, weights):
        return pool(jnp.tanh(x / (1 + jnp.abs(x).mean())), weights)

    x = jax.random.normal(jax.random.key(0), (4, 9, 9, 3), dtype)
    weights = jax.random.normal(jax.random.key(1), (4 * 81 * 3,), dtype)
    gradient, _ = jax.grad(loss, has_aux=True)(x, weights)
    same, _ = jax.jit(jax.grad(convolution.with_patches(loss), has_aux=True))(x, weights)
    tolerance = 1e-5 if dtype == "float32" else 0.1
    np.testing.assert_allclose(*(g.astype(jnp.float32) for g in (same, gradient)), atol=tolerance)


def test_a_window_larger_than_its_input_leaves_nothing():
    loss = pooled("max", (3, 3), (3, 3), ((0, 0), (0, 0)))
    _, y = convolution.with_patches(loss)(jnp.ones((1, 2, 5, 1)), jnp.ones(9))
    assert y.shape == (1, 0, 1, 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_an_example_that_is_not_finite_is_counted(stride):
    loss = pooled("max", (2, 2), (stride, stride), ((0, 0), (0, 0)))
    gradients = clipped_gradients(
        lambda params, x: loss(x[None] * params["scale"], jnp.ones(9))[0], clipping.flat(1.0)
    )
    batch = jnp.ones((3, 4, 4, 1)).at[1, 2, 2].set(jnp.nan)
    _, summed = gradients({"scale": jnp.ones(())}, batch, jnp.ones(3, bool), (), 0)
    assert int(summed.nonfinite) == 1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_stays_visible(value, stride):
    loss = convolution.with_patches(pooled("max", (2, 2), (stride, stride), ((0, 0), (0, 0))))
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 0, 0].set(value)
    _, y = loss(x, jnp.ones(9))
    np.testing.assert_array_equal(y[0, 0, 0, 0], 0.0 if value == -jnp.inf else value)
    assert np.isfinite(y[0, 2 // stride :]).all()
