"""Losses in which an example could see others are refused; random numbers that all share are pointed out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from jaxdp import gradients

PARAMS, X = {"w": jnp.ones((3, 2))}, jnp.arange(12.0).reshape(4, 3)


@jax.custom_batching.custom_vmap
def centred(x):
    return x


@centred.def_vmap
def _centred_over_the_batch(size, batched, x):
    return x - x.mean(0), True


def like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def called_back(**options):
    return lambda x: jax.pure_callback(lambda v: v - np.mean(v, axis=0), like(x), x, **options)


def over_devices(collective):
    """Takes part in an operation over an axis that is mapped outside."""
    return lambda x: x + collective(x, "devices")


SEEING = {
    "custom_vmap_call": centred,
    "pure_callback": called_back(vmap_method="expand_dims"),
    "vmap_method='broadcast_all'": called_back(vmap_method="broadcast_all"),
    "io_callback": lambda x: io_callback(np.asarray, like(x), x),
    "psum": over_devices(jax.lax.psum),
    "pmax": over_devices(jax.lax.pmax),
    "all_gather": over_devices(lambda x, axis: jax.lax.all_gather(x, axis).sum(0)),
    "ppermute": over_devices(lambda x, axis: jax.lax.ppermute(x, axis, [(0, 1), (1, 0)])),
    "in a scan: psum": lambda x: jax.lax.scan(
        lambda c, _: (c + jax.lax.psum(c, "devices"), None), x, None, 2
    )[0],
    "in a jit: custom_vmap_call": jax.jit(centred),
}


@pytest.mark.parametrize("method", gradients.METHODS)
@pytest.mark.parametrize("name", SEEING)
def test_what_sees_other_examples_is_refused_by_name(name, method):
    def loss_fn(params, x):
        return jnp.sum((SEEING[name](jax.lax.stop_gradient(x)) @ params["w"]) ** 2)

    run = jax.vmap(gradients.per_example(loss_fn, method=method), (None, 0), axis_name="devices")
    with pytest.raises(ValueError, match=f"loss_fn: calls .*{name.split(': ')[-1]}"):
        run(PARAMS, jnp.stack([X, X]))


def test_what_takes_the_examples_one_by_one_is_not_refused():
    seen = []

    def loss_fn(params, x):
        jax.debug.callback(lambda v: seen.append(np.shape(v)), x)
        x = jax.pure_callback(lambda v: 2 * v, like(x), x, vmap_method="sequential")
        return jnp.sum(x @ params["w"]) * (1 + 0 * jax.lax.axis_index("devices"))

    run = jax.vmap(gradients.per_example(loss_fn), (None, 0), axis_name="devices")
    losses, grads = run(PARAMS, X[None])
    jax.effects_barrier()
    np.testing.assert_allclose(losses[0], 2 * X.sum(1) * 2)
    np.testing.assert_allclose(
        gradients.squared_norm(jax.tree.map(lambda g: g[0], grads)["w"]), 8 * (X**2).sum(1)
    )
    assert set(seen) == {(3,)}


def dropped(key, x):
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_one_dropout_mask_for_all_examples_is_pointed_out(make_key):
    key = make_key(0)
    closed_over = gradients.per_example(lambda p, x: jnp.sum(dropped(key, x) @ p["w"]))
    shared = gradients.per_example(lambda p, x, key: jnp.sum(dropped(key, x) @ p["w"]))
    for call in (lambda: closed_over(PARAMS, X), lambda: shared(PARAMS, X, key)):
        with pytest.warns(UserWarning, match="share one dropout mask; give each its key"):
            call()


def test_keys_that_differ_by_example_raise_no_warning():
    key = jax.random.key(0)
    numbered = gradients.per_example(
        lambda p, e: jnp.sum(dropped(jax.random.fold_in(key, e[1]), e[0]) @ p["w"])
    )
    own = gradients.per_example(lambda p, e: jnp.sum(dropped(e[1], e[0]) @ p["w"]))
    a = numbered(PARAMS, (X, jnp.arange(4)))
    b = own(PARAMS, (X, jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(4))))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_axis_that_numpy_counted_is_an_axis_of_an_array():
    """As attention layers give it to their softmax; a named axis is that of other devices."""

    def loss_fn(params, x):
        return jnp.max(params * x, axis=np.int64(0))

    _, grads = gradients.per_example(loss_fn)(jnp.ones(3), jnp.asarray([[1.0, 3.0, 2.0]]))
    np.testing.assert_array_equal(grads, [[0.0, 3.0, 0.0]])
