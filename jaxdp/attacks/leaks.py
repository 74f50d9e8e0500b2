"""What an adversary sees: the leak points as one forward map from examples to observed gradients.

| leak point (published name)                  | `Leak`                                        |
|----------------------------------------------|-----------------------------------------------|
| raw gradient of one example (type 2)         | `Leak()`                                      |
| clipped gradient of one example (type 2)     | `Leak(clip="flat")`                           |
| the same, noised (type 2)                    | `Leak(clip="flat")`, `noise_std` = sigma C    |
| noised mean of a batch of B (type 2)         | `Leak(clip="flat", batch_size=B)`, sigma C / B |
| update after k local steps (types 0, 1)      | `Leak(local_steps=k)`                         |
| a window of T steps that used the same batch | `Leak(window=T)`, `noise_std` [T]             |

The same map makes the observation of known examples and, inside the attack, its prediction: an attacker who
models the clip calls it with the clip, one who does not calls it without.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxdp import _validate
from jaxdp.gradients import convolution
from jaxdp.noise import noise_like

Loss = Callable[[PyTree, tuple[Array, Array]], Float[Array, ""]]

_TINY = 1e-30


def precise(function: Callable) -> Callable:
    """Makes a function compute its matrix products in full float32 on every device.

    The ten bits that a GPU keeps by default are fewer than the differences that an attack lives on.
    """

    @functools.wraps(function)
    def precisely(*arguments, **options):
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **options)

    return precisely


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
        _validate.whole(batch_size=self.batch_size, window=self.window, local_steps=self.local_steps)
        _validate.one_of(CLIPS, clip=self.clip)

    @property
    def single(self) -> bool:
        """Whether one gradient of one example leaks."""
        return (self.batch_size, self.window, self.local_steps) == (1, 1, 1)


class Conditions(NamedTuple):
    """The numbers that a leak was made with; arguments of its programs, so that none compiles anew.

    Attributes:
      noise_std: standard deviation of the noise on every coordinate of an observation: a scalar, [N] or
        [N, T]; zero for none.
      bound: the clip bound C, a scalar or [N]; infinite where nothing was clipped.
      learning_rate: of the local steps, a scalar or [N].
    """

    noise_std: Any = 0.0
    bound: Any = 1.0
    learning_rate: Any = 0.1


RAW, NOISELESS = Leak(), Conditions()


class Victims(NamedTuple):
    """What leaked of N victims.

    Attributes:
      params: parameters at the leak; with `window` > 1 each leaf has an axis [T] (after [N], if `own_params`).
      observed: the leaked gradients, [N, ...].
      conditions: as the attacker knows them.
      labels: [N, B], used only by `labels="known"`.
      own_params: whether each victim has parameters of its own, on a leading axis [N].
    """

    params: PyTree
    observed: PyTree
    conditions: Conditions = NOISELESS
    labels: Any = None
    own_params: bool = False


class Observation(NamedTuple):
    """One victim as the attacker meets it, without the parameters.

    Attributes:
      observed: the leaked pytree.
      noise_std: standard deviation of its noise, [T].
      bound: the clip bound C.
      learning_rate: of local steps.
      labels: [B].
    """

    observed: PyTree
    noise_std: Any
    bound: Any
    learning_rate: Any
    labels: Any


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


@precise
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
    bound = jnp.minimum(bound, float(np.finfo(np.float32).max))  # that infinity over infinity is 1

    def observe(params):
        if leak.local_steps > 1:
            return _update(loss_fn, leak, params, x, y, bound, learning_rate)
        return _batch_gradient(loss_fn, leak, params, x, y, bound)

    return observe(params) if leak.window == 1 else jax.vmap(observe)(params)


@functools.lru_cache(maxsize=128)
def _program(loss_fn: Loss, leak: Leak, own_params: bool):
    loss_fn = convolution.with_patches(loss_fn)

    def clean(params, x, y, bound, learning_rate):
        return forward(loss_fn, leak, params, x, y, bound, learning_rate)

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
    conditions: Conditions = NOISELESS,
    *,
    own_params: bool = False,
) -> Victims:
    """What leaks of N known examples or batches: the ground truth side of an experiment.

    Args:
      loss_fn: `(params, (x, y)) -> scalar` for one example.
      leak: the leak point.
      params: parameters at the leak; `own_params` for a leading axis [N].
      x: inputs [N, B, *input_shape].
      y: labels [N, B].
      key: of the noise.
      conditions: noise, bound and learning rate.
      own_params: whether `params` has a leading axis [N].

    Raises:
      ValueError: inputs and labels that do not fit the leak.
    """
    count = len(x)
    if x.shape[1:2] != (leak.batch_size,) or y.shape != (count, leak.batch_size):
        raise ValueError(f"x {x.shape}, y {y.shape}: need [N, batch_size={leak.batch_size}, ...] and [N, B]")
    std = _per_step(conditions.noise_std, count, leak)
    scalar = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (count,))  # noqa: E731
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    observed = _program(loss_fn, leak, own_params)(
        params, jnp.asarray(x), jnp.asarray(y), keys, jnp.asarray(std if leak.window > 1 else std[:, 0]),
        scalar(conditions.bound), scalar(conditions.learning_rate),
    )  # fmt: skip
    return Victims(params, observed, conditions, np.asarray(y), own_params)


def _per_step(noise_std, count: int, leak: Leak) -> np.ndarray:
    """The noise of every victim at every step, [N, T]."""
    std = np.asarray(noise_std, np.float32)
    return np.broadcast_to(std[:, None] if std.ndim == 1 else std, (count, leak.window))


def observations(victims: Victims, leak: Leak, count: int) -> Observation:
    """The victims' observations as host arrays, every field with a leading [N]."""
    noise_std, bound, learning_rate = victims.conditions
    scalar = lambda value: np.broadcast_to(np.asarray(value, np.float32), (count,))  # noqa: E731
    labels = np.zeros((count, leak.batch_size)) if victims.labels is None else victims.labels
    labels = np.asarray(labels, np.int32)
    if labels.shape != (count, leak.batch_size):
        raise ValueError(f"labels of shape {labels.shape}: needs [{count}, {leak.batch_size}]")
    observed = jax.tree.map(np.asarray, victims.observed)
    std = _per_step(noise_std, count, leak)
    return Observation(observed, std, scalar(bound), scalar(learning_rate), labels)
