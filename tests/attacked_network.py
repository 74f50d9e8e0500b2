"""A small dense network and its victims, which keep the programs of the attack tests small."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp import attacks
from jaxdp.attacks import Conditions, Setting

SHAPE, CLASSES = (6, 6, 1), 4


def loss_fn(params, example):
    """A two-layer network with a sigmoid."""
    x, y = example
    hidden = jax.nn.sigmoid(x.reshape(-1) @ params["first"]["kernel"] + params["first"]["bias"])
    logits = hidden @ params["second"]["kernel"] + params["second"]["bias"]
    return -jax.nn.log_softmax(logits)[y]


def network(seed):
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    uniform = lambda *shape: jax.random.uniform(next(keys), shape, minval=-0.5, maxval=0.5)  # noqa: E731
    return {
        "first": {"bias": uniform(24), "kernel": uniform(36, 24)},
        "second": {"bias": uniform(CLASSES), "kernel": uniform(24, CLASSES)},
    }


PARAMS = network(0)


def images(count, seed=0):
    """Smooth images with a label: blobs at places that depend on the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    grid = np.mgrid[:6, :6]
    centre = np.stack([1.5 + 2 * (y // 2), 1.5 + 2 * (y % 2)], 1) + rng.normal(0, 0.3, (count, 2))
    distance = np.square(grid[None] - centre[:, :, None, None]).sum(1)
    x = np.exp(-distance / (2 * rng.uniform(0.8, 1.6, count)[:, None, None] ** 2))
    return x[..., None].astype(np.float32), y.astype(np.int32)


PUBLIC = attacks.public_knowledge(*images(200, seed=1), classes=CLASSES)


def leaked(leak, count=2, params=PARAMS, own_params=False, **numbers):
    """The leaks of some victims, and the truth."""
    x, y = images(count * leak.batch_size, seed=2)
    x, y = x.reshape(count, leak.batch_size, *SHAPE), y.reshape(count, leak.batch_size)
    if leak.window > 1:
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(network(t) for t in range(leak.window)))
    key, conditions = jax.random.key(3), Conditions(**numbers)
    return attacks.observe(loss_fn, leak, params, x, y, key, conditions, own_params=own_params), x, y


def setting(leak, loss_fn=loss_fn, **options):
    """The network at a leak point."""
    options = {"public": PUBLIC, "input_shape": SHAPE, "classes": CLASSES, **options}
    return Setting(loss_fn=loss_fn, leak=leak, **options)


def invert(leak, attack, victims, **options):
    """Two lanes of one attack."""
    return attacks.invert_many(setting(leak, **options), attack, victims, jax.random.key(0), lanes=2)


def errors(result, x):
    """The root mean square error of each image."""
    return np.sqrt(np.square(result.x - x).mean((-1, -2, -3)))
