"""Makes leaked observations of known examples: the ground truth side of an experiment."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxdp.attacks import leaks
from jaxdp.attacks.engine import Victims
from jaxdp.attacks.leaks import Leak, Loss
from jaxdp.gradients import convolution
from jaxdp.noise import noise_like


@functools.lru_cache(maxsize=128)
def _program(loss_fn: Loss, leak: Leak, own_params: bool):
    if convolution.uses_patches("auto"):
        loss_fn = convolution.with_patches(loss_fn)

    def clean(params, x, y, bound, learning_rate):
        return leaks.forward(loss_fn, leak, params, x, y, bound, learning_rate)

    leaked = jax.vmap(clean, in_axes=(0 if own_params else None, 0, 0, 0, 0))

    def observed(params, x, y, keys, noise_std, bound, learning_rate):
        return _noised(keys, leaked(params, x, y, bound, learning_rate), noise_std)

    return jax.jit(observed)


def _noised(keys: Array, gradients: PyTree, noise_std: Array) -> PyTree:
    """N(0, noise_std^2) on every coordinate of every victim's gradient.

    One victim after the other: a vmapped draw takes XLA minutes to compile.
    """

    def one(victim):
        key, gradient, std = victim
        scaled = lambda leaf, z: leaf + std.reshape(std.shape + (1,) * (leaf.ndim - std.ndim)) * z  # noqa: E731
        return jax.tree.map(scaled, gradient, noise_like(key, gradient))

    return jax.lax.map(one, (keys, gradients, noise_std))


def observe(
    loss_fn: Loss,
    leak: Leak,
    params: PyTree,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    key: Array,
    *,
    noise_std: Any = 0.0,
    bound: Any = 1.0,
    learning_rate: Any = 0.1,
    own_params: bool = False,
) -> Victims:
    """What leaks of N victims.

    Args:
      loss_fn: `(params, (x, y)) -> scalar` for one example.
      leak: the leak point.
      params: parameters at the leak; `own_params` for a leading axis [N].
      x: inputs [N, B, *input_shape].
      y: labels [N, B].
      key: of the noise.
      noise_std: per coordinate of the observation: scalar, [N] or [N, T]; zero for none.
      bound: clip bound C: scalar or [N].
      learning_rate: of local steps.
      own_params: whether `params` has a leading axis [N].

    Raises:
      ValueError: inputs and labels that do not fit the leak.
    """
    count = len(x)
    if x.shape[1:2] != (leak.batch_size,) or y.shape != (count, leak.batch_size):
        raise ValueError(f"x {x.shape}, y {y.shape}: need [N, batch_size={leak.batch_size}, ...] and [N, B]")
    std = np.asarray(noise_std, np.float32)
    rows = (count, leak.window) if leak.window > 1 else (count,)
    std = np.broadcast_to(std[:, None] if std.ndim == 1 and leak.window > 1 else std, rows)
    scalar = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (count,))  # noqa: E731
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    observed = _program(loss_fn, leak, own_params)(
        params, jnp.asarray(x), jnp.asarray(y), keys, jnp.asarray(std), scalar(bound), scalar(learning_rate)
    )
    return Victims(params, observed, std, bound, learning_rate, np.asarray(y))
