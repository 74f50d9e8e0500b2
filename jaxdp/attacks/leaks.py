"""What an adversary sees: the leak points as one forward map from examples to observed gradients.

| leak point (published name)                  | `Leak`                                        |
|----------------------------------------------|-----------------------------------------------|
| raw gradient of one example (type 2)         | `Leak()`                                      |
| clipped gradient of one example (type 2)     | `Leak(clip="flat")`                           |
| the same, noised (type 2)                    | `Leak(clip="flat")`, `noise_std` = sigma C    |
| noised mean of a batch of B (type 2)         | `Leak(clip="flat", batch_size=B)`, sigma C / B |
| update after k local steps (types 0, 1)      | `Leak(local_steps=k)`                         |
| a window of T steps that used the same batch | `Leak(window=T)`, `noise_std` [T]             |

The same map makes the observation and, inside the attack, its prediction: an attacker who models the clip
calls it with the clip, one who does not calls it without.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

Loss = Callable[[PyTree, tuple[Array, Array]], Float[Array, ""]]

_TINY = 1e-30


def square_norm(tree: PyTree) -> Array:
    """The squared L2 norm of all leaves together."""
    return jnp.asarray(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))


def norm(tree: PyTree) -> Array:
    """The L2 norm of all leaves together, with a finite derivative at zero."""
    return jnp.sqrt(square_norm(tree) + _TINY)


def _bounded(tree, bound):
    """The tree scaled to norm <= bound, without a kink's NaN where the norm is zero."""
    scale = bound / jnp.maximum(norm(tree), bound)
    return jax.tree.map(lambda leaf: leaf * scale, tree)


def _flat(gradient, bound):
    return _bounded(gradient, bound)


def _per_layer_published(gradient, bound):
    return jax.tree.map(lambda leaf: _bounded(leaf, bound), gradient)


def _per_layer(gradient, bound):
    return _per_layer_published(gradient, bound / math.sqrt(len(jax.tree.leaves(gradient))))


def _automatic(gradient, bound, gamma=0.01):
    scale = bound / (norm(gradient) + gamma)
    return jax.tree.map(lambda leaf: leaf * scale, gradient)


_CLIPS = {
    "none": lambda gradient, bound: gradient,
    "flat": _flat,
    "per_layer": _per_layer,
    "per_layer_published": _per_layer_published,
    "automatic": _automatic,
}
CLIPS = tuple(_CLIPS)


@dataclass(frozen=True, kw_only=True)
class Leak:
    """The shape of what leaks; static, so that one program serves every victim, bound and noise level.

    Attributes:
      batch_size: B, examples behind one observation; the observation is their mean.
      clip: what was done to each example's gradient, one of `CLIPS`; the bound itself is an argument.
      window: T, observations of the same batch at T (different) parameters.
      local_steps: k steps of gradient descent on the batch before anything leaks; the observation is then
        the update divided by -k times the learning rate, an average gradient.
    """

    batch_size: int = 1
    clip: str = "none"
    window: int = 1
    local_steps: int = 1

    def __post_init__(self):
        for name in ("batch_size", "window", "local_steps"):
            value = getattr(self, name)
            if value != int(value) or value < 1:
                raise ValueError(f"{name}={value}: must be a whole number >= 1")
        if self.clip not in _CLIPS:
            raise ValueError(f"clip={self.clip!r}: choose from {', '.join(CLIPS)}")


def _batch_gradient(loss_fn, leak, params, x, y, bound):
    """The mean over the batch of the clipped per-example gradients."""
    gradient = jax.grad(loss_fn)
    if leak.batch_size == 1:
        return _CLIPS[leak.clip](gradient(params, (x[0], y[0])), bound)
    if leak.clip == "none":
        losses = jax.vmap(loss_fn, in_axes=(None, 0))
        return jax.grad(lambda p: losses(p, (x, y)).mean())(params)
    each = jax.vmap(lambda x, y: _CLIPS[leak.clip](gradient(params, (x, y)), bound))(x, y)
    return jax.tree.map(lambda leaf: leaf.mean(0), each)


def _update(loss_fn, leak, params, x, y, bound, learning_rate):
    """(start - end) / (k learning_rate) of k local steps; the loop can be differentiated through."""

    def step(current, _):
        gradient = _batch_gradient(loss_fn, leak, current, x, y, bound)
        return jax.tree.map(lambda p, g: p - learning_rate * g, current, gradient), gradient

    _, gradients = jax.lax.scan(step, params, length=leak.local_steps)
    return jax.tree.map(lambda leaf: leaf.mean(0), gradients)


def forward(
    loss_fn: Loss,
    leak: Leak,
    params: PyTree,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    bound: Array | float = 1.0,
    learning_rate: Array | float = 0.1,
) -> PyTree:
    """What leaks before noise is added.

    Args:
      loss_fn: `(params, (x, y)) -> scalar` for one example.
      leak: the leak point.
      params: the parameters; with `window` > 1 each leaf has a leading axis [T].
      x: inputs [B, ...].
      y: labels [B] (or whatever `loss_fn` takes, [B, ...]).
      bound: the clip bound C, where `leak.clip` uses one.
      learning_rate: of the local steps.

    Returns:
      A pytree like `params`.
    """

    def observe(params):
        if leak.local_steps > 1:
            return _update(loss_fn, leak, params, x, y, bound, learning_rate)
        return _batch_gradient(loss_fn, leak, params, x, y, bound)

    return observe(params) if leak.window == 1 else jax.vmap(observe)(params)
