"""One leaked gradient of a network of one's own, in the words of its framework."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from scipy import ndimage

from jaxdp import attacks
from jaxdp.attacks import Conditions, Leak

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE, LABEL = (8, 8, 1), 3


def image():
    """A smooth image that uses all of [0, 1]."""
    x = ndimage.gaussian_filter(np.random.default_rng(0).uniform(size=SHAPE[:2]), 1.0)
    return ((x - x.min()) / np.ptp(x))[..., None].astype(np.float32)


X = image()


class Dense(nnx.Module):
    """The hidden layer is as wide as the classes and comes last by name."""

    def __init__(self, rngs):
        self.z, self.a = nnx.Linear(64, 10, rngs=rngs), nnx.Linear(10, 10, rngs=rngs)

    def __call__(self, x):
        return self.a(nnx.relu(self.z(x.reshape(-1))))


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.z, self.a = nnx.Conv(1, 8, (5, 5), strides=2, rngs=rngs), nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        return self.a(jnp.tanh(self.z(x)).reshape(-1))


def of_nnx(network):
    graph, params = nnx.split(network(nnx.Rngs(0)), nnx.Param)
    return params, lambda params, x: nnx.merge(graph, params)(x)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(10, name="a")(linen.relu(linen.Dense(10, name="z")(x.reshape(-1))))


def of_linen():
    network = Linen()
    return network.init(jax.random.key(0), X), network.apply


def of_equinox():
    network = eqx.nn.MLP(64, 10, 10, 1, key=jax.random.key(0))
    params, static = eqx.partition(network, eqx.is_inexact_array)
    return params, lambda params, x: eqx.combine(params, static)(x.reshape(-1))


NETWORKS = {
    "nnx dense": lambda: of_nnx(Dense),
    "nnx convolutional": lambda: of_nnx(Convolutional),
    "linen": of_linen,
    "equinox": of_equinox,
}


def cross_entropy(apply):
    def loss_fn(params, example):
        x, y = example
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)

    return loss_fn


@pytest.mark.parametrize("name", NETWORKS)
def test_one_gradient_of_ones_own_network_gives_the_image_and_its_label_away(name):
    params, apply = NETWORKS[name]()
    loss_fn = cross_entropy(apply)
    gradient = jax.jit(jax.grad(loss_fn))(params, (X, LABEL))

    found = attacks.invert(loss_fn, params, gradient, input_shape=SHAPE)
    scores = attacks.judge(found, X[None], np.array([LABEL]))

    assert found.x.shape == (1, *SHAPE) and found.labels.tolist() == [LABEL]
    assert np.sqrt(np.square(found.x - X).mean()) < 0.03 and scores["exact"].estimate == 1
    assert found.objective < 1e-6


def test_a_clipped_gradient_gives_as_much_away_and_a_drowned_one_nothing():
    params, apply = NETWORKS["nnx convolutional"]()
    loss_fn, key = cross_entropy(apply), jax.random.key(1)
    x, y = X[None, None], np.array([[LABEL]])
    error = {}
    for std in (0.0, 100.0):
        leak, conditions = Leak(clip="flat"), Conditions(noise_std=std, bound=0.1)
        victims = attacks.observe(loss_fn, leak, params, x, y, key, conditions)
        gradient = jax.tree.map(lambda leaf: leaf[0], victims.observed)
        found = attacks.invert(
            loss_fn, params, gradient, input_shape=SHAPE, leak=leak, conditions=conditions, given_labels=y[0]
        )
        error[std] = np.sqrt(np.square(found.x - X).mean())
    assert error[0.0] < 0.03 and error[100.0] > 0.1


def test_inputs_outside_of_0_and_1_come_back_in_their_own_box():
    params, apply = NETWORKS["nnx convolutional"]()
    loss_fn = cross_entropy(lambda params, x: apply(params, (x + 1) / 2))
    gradient = jax.jit(jax.grad(loss_fn))(params, (2 * X - 1, LABEL))
    found = attacks.invert(loss_fn, params, gradient, input_shape=SHAPE, box=(-1.0, 1.0))
    assert np.sqrt(np.square(found.x - (2 * X - 1)).mean()) < 0.03
    assert found.x.min() >= -1 and found.x.max() <= 1


def test_what_cannot_be_attacked_is_refused_in_one_line():
    params, apply = NETWORKS["nnx dense"]()
    loss_fn, other = cross_entropy(apply), NETWORKS["linen"]()[0]
    squared = lambda params, example: jnp.square(apply(params, example[0])).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss_fn))(params, (X, LABEL))
    for call, word in (
        (lambda: attacks.invert(loss_fn, params, other, input_shape=SHAPE), "observed: its tree"),
        (lambda: attacks.invert(loss_fn, params, gradient, input_shape=SHAPE, classes=7), "classes=7"),
        (lambda: attacks.invert(squared, params, gradient, input_shape=SHAPE), "classes=None"),
    ):
        with pytest.raises(ValueError, match=word) as caught:
            call()
        assert "\n" not in str(caught.value)
