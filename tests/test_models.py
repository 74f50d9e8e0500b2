"""The networks: what holds for all of them, and what is particular to one."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradient_oracle import normal

from jaxdp import models
from jaxdp.training.config import Network

SHAPE = (16, 16, 1)


def test_the_command_line_offers_every_network():
    offered = inspect.getsource(Network)
    assert all(re.search(rf"\b{name}\b,", offered) for name in models.NAMES)
    assert all(f"| `{name}` " in models.__doc__ for name in models.NAMES)


@pytest.mark.parametrize("name", models.NAMES)
def test_one_example_or_any_leading_axes(name):
    model = models.create(name, jax.random.key(0), input_shape=SHAPE, classes=3)
    x = normal(2, 3, *SHAPE)
    logits = jax.jit(model.apply)(model.params, x)
    assert logits.shape == (2, 3, 3) and jnp.isfinite(logits).all()
    np.testing.assert_allclose(logits[1, 2], model.apply(model.params, x[1, 2]), atol=1e-5)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("cnn", (8, 8, 1)),
        ("tanh_cnn", (8, 8, 1)),
        ("cnn", (3, 32, 32)),
        ("cifar_cnn", (1, 28, 28)),
        ("cnn", (1, 1, 1)),
    ],
)
def test_an_image_of_which_nothing_is_left_is_refused(name, shape):
    """Channels first are one: of 3 rows nothing is left."""
    with pytest.raises(ValueError, match=rf"input_shape={re.escape(str(shape))}: too small"):
        models.create(name, jax.random.key(0), input_shape=shape)


@pytest.mark.parametrize(
    "name, changes, text",
    [
        ("resnet", {}, "model='resnet': choose from cnn, "),
        ("mlp", {"classes": 0}, "classes=0"),
        ("mlp", {"input_shape": ()}, r"input_shape=\(\): needs axes"),
        ("lenet", {"input_shape": (28, 28, 0)}, r"input_shape=\(28, 28, 0\): needs axes"),
        ("mlp", {"activation": "step"}, "activation='step': choose from relu"),
        ("mlp", {"initialization": "zero"}, "initialization='zero': choose from fan_in, uniform"),
    ],
)
def test_refusals(name, changes, text):
    with pytest.raises(ValueError, match=text):
        models.create(name, jax.random.key(0), **changes)


def test_the_tanh_cnn_is_the_published_one():
    """Its parameters, counted: 16 (64 + 1) + 32 (256 + 1) + 32 (512 + 1) + 10 (32 + 1)."""
    model = models.create("tanh_cnn", jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 26_010


def test_pooling_of_stride_1_shows_what_is_not_a_number():
    x = jnp.zeros((4, 4, 1)).at[2, 2].set(jnp.nan)
    assert jnp.isnan(models.max_pool_2x2_stride_1(x)).sum() == 4


def test_pooling_of_stride_1_is_that_of_flax():
    x, weights = normal(2, 5, 4, 3), normal(2, 4, 3, 3, seed=1)

    def pooled(pool):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(pool(x) * weights)))(x)

    ours = pooled(models.max_pool_2x2_stride_1)
    theirs = pooled(lambda x: nnx.max_pool(x, (2, 2), strides=(1, 1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)
