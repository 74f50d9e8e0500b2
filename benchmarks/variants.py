"""The training steps that are compared: each is `(params, state, x, y) -> (params, state)`, compiled.

`nonprivate` is the usual formulation: the network as it is, XLA's convolution, mean loss over the batch, SGD.
`nonprivate_patches` and `nonprivate_pieces` have no privacy either, but the convolutions that the private step
uses on a CPU, on the whole batch, or in the pieces it uses.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp import clipping, gradients, models, schedules
from jaxdp._privatize import privatize
from jaxdp.clipping import clipped_gradients
from jaxdp.gradients import convolution, microbatches

LEARNING_RATE, L2_NORM_CLIP, SIGMA, RUN_STEPS = 0.05, 4.0, 6.0, 10_000


class Step(NamedTuple):
    """A compiled step and the state that it starts from."""

    run: Any  # a jitted function of (params, state, x, y), which tells how often it was compiled
    state: Any


def _mean_loss(model: models.Model):
    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

    return loss


def nonprivate(model: models.Model, *, patches: bool = False, piece_size: int | None = None) -> Step:
    """Mean loss of the batch (and of the places that have a label), SGD.

    With `piece_size` its gradient is accumulated over pieces of that size.
    """
    optimizer, loss = optax.sgd(LEARNING_RATE), _mean_loss(model)
    gradient = jax.grad(convolution.with_patches(loss) if patches else loss)

    def accumulated(params, x, y):
        if piece_size is None or piece_size >= len(x):
            return gradient(params, x, y)
        pieces = jax.tree.map(lambda a: a.reshape(-1, piece_size, *a.shape[1:]), (x, y))

        def add(total, piece):
            return jax.tree.map(jnp.add, total, gradient(params, *piece)), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), pieces)
        return jax.tree.map(lambda g: g * (piece_size / len(x)), total)

    def step(params, state, x, y):
        updates, state = optimizer.update(accumulated(params, x, y), state)
        return optax.apply_updates(params, updates), state

    return Step(jax.jit(step), optimizer.init(model.params))


def private(
    model: models.Model,
    batch_size: int,
    sigma=SIGMA,
    *,
    microbatch_size: int | str | None = "auto",
    method: str = "factored",
    places: bool = False,
) -> Step:
    """DP-SGD as the library does it: clip, sum, noise, divide, SGD; with `places` many labels an example."""
    clipper = clipping.flat(L2_NORM_CLIP)
    chain = optax.chain(privatize(clipper, sigma, batch_size), optax.sgd(LEARNING_RATE))
    mean_loss = _mean_loss(model)
    gradient = clipped_gradients(
        (lambda params, example: mean_loss(params, *example)) if places else models.cross_entropy(model),
        clipper, microbatch_size=microbatch_size, method=method,
    )  # fmt: skip

    def step(params, state, x, y):
        mask = jnp.ones(batch_size, bool)
        _, summed = gradient(params, (x, y), mask, state[0].clip, state[0].step)
        updates, state = chain.update(summed, state, params)
        return optax.apply_updates(params, updates), state

    return Step(jax.jit(step), chain.init(model.params))


def piece_size(model: models.Model, x, y) -> int:
    """The microbatch that the private step picks, made to divide the batch."""
    per_example = gradients.per_example(models.cross_entropy(model))
    size = microbatches.automatic_size(microbatches.example_bytes(per_example, model.params, (x, y)))
    return int(np.gcd(size, len(x)))


# A dense step holds B gradients at once: beyond this many bytes it is left to microbatches.
_DENSE_LIMIT = 3 * 2**30


def dense_microbatch(model: models.Model, batch_size: int) -> int | None:
    """None where all dense gradients fit in memory, else the largest power of two that does."""
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(model.params))
    return None if size * batch_size <= _DENSE_LIMIT else 2 ** int(np.log2(_DENSE_LIMIT / size))


def build(model: models.Model, x, y, *, dynamic: bool = True) -> dict[str, Step]:
    """Name -> step, of everything that runs in one process."""
    batch_size = len(x)
    found = {
        "nonprivate": nonprivate(model),
        "nonprivate_patches": nonprivate(model, patches=True),
        "nonprivate_pieces": nonprivate(model, patches=True, piece_size=piece_size(model, x, y)),
        "dense": private(
            model, batch_size, method="dense", microbatch_size=dense_microbatch(model, batch_size)
        ),
        "factored": private(model, batch_size, microbatch_size=None),
        "private": private(model, batch_size),
    }
    for name in schedules.DYNAMIC if dynamic else ():
        found[f"private {name}"] = private(model, batch_size, schedules.create(name, RUN_STEPS))
    return found
