"""Clip, sum, add noise, divide: the one place where gradients become private."""

import math
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, PyTree

from jaxdp import gradients, schedules
from jaxdp.clipping import ClippedSum, Clipper
from jaxdp.noise import noise_like
from jaxdp.schedules import Schedule


def entropy_key() -> Array:
    """A key from the operating system's entropy: all 64 bits of a threefry key."""
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(os.urandom(8), np.uint32)), impl="threefry2x32")


class PrivatizeState(NamedTuple):
    """State of `privatize`.

    Attributes:
      step: the number of updates made, which is also the t of sigma(t) and C(t).
      key: the secret from which the noise of every step is derived; never advanced.
      clip: the clipper's own state.
      examples: of the last step, the number of examples that counted.
      clipped: of the last step, the number that were scaled down.
      nonfinite: of all steps, the number left out since their gradient was not finite.

    The three counts are computed from private data without noise: they are for the curator's eyes, and not
    covered by any epsilon.
    """

    step: Int[Array, ""]
    key: Array
    clip: PyTree
    examples: Int[Array, ""]
    clipped: Int[Array, ""]
    nonfinite: Int[Array, ""]


def privatize(
    clipper: Clipper,
    noise_multiplier: float | Schedule | None,
    expected_batch_size: float,
    *,
    key: Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """DP-SGD's gradient, as the first link of an Optax chain.

    The update is (sum_i clip(g_i) + sigma(t) S(t) N(0, I)) / expected_batch_size, with S the clipper's noise
    scale.  The transformation takes per-example gradients (leaves [B, ...] or `gradients.Factored`), or a
    `ClippedSum` made by `clipped_gradients`, and returns gradients shaped like the parameters.  sigma is
    traced: one compilation serves the whole run, whatever the schedule.

    Args:
      clipper: from `jaxdp.clipping`.
      noise_multiplier: sigma, or the schedule sigma(t), relative to the clipper's noise scale; 0 for no noise
        (and no privacy).  None where it is chosen from noised outputs: each update then takes its own
        `noise_multiplier`, and a filter says what may be claimed (`jaxdp.filters`).
      expected_batch_size: q n for Poisson batches, the fixed size otherwise.  Never the size of the batch at
        hand, which is private.
      key: the noise key.  None takes the operating system's entropy; whoever knows a given key can remove the
        noise.

    Returns:
      A transformation whose `update` also takes `mask` [B], False for padding.

    Raises:
      ValueError: a negative or non-finite noise multiplier, one that the clipper refuses, an expected batch
        size that is not > 0 or was computed from a batch.

    Formal guarantee: with neighbouring batches that differ in one example, the noised sum of step t, with
    whatever the clipper releases for its next bound, is a Gaussian mechanism with noise multiplier
    sigma(t) * clipper.noise_to_sensitivity, for real numbers and ideal noise; the accountant must be told the
    same sigma and how batches were drawn.  None where `clipper.private` is False.  Noise of step t is derived
    from (key, t): no draw is used twice, and a resumed run repeats the same noise for the same step.

    >>> import optax
    >>> from jaxdp import clipping, schedules
    >>> sigma = schedules.linear(steps=1_000)
    >>> optimizer = optax.chain(privatize(clipping.flat(1.0), sigma, expected_batch_size=64), optax.sgd(0.1))
    """
    if isinstance(expected_batch_size, jax.Array):
        raise ValueError(
            f"expected_batch_size={expected_batch_size}: must be a number fixed before any batch is drawn; the "
            "size of the batch at hand is private"
        )
    if not (math.isfinite(expected_batch_size) and expected_batch_size > 0):
        raise ValueError(f"expected_batch_size={expected_batch_size}: must be finite and > 0")
    given_each_step = noise_multiplier is None
    if not (given_each_step or callable(noise_multiplier)) and not (
        math.isfinite(noise_multiplier) and noise_multiplier >= 0
    ):
        raise ValueError(f"noise_multiplier={noise_multiplier}: must be finite and >= 0, or a schedule")
    if given_each_step or callable(noise_multiplier):
        sigma = noise_multiplier
    else:
        clipper.check([noise_multiplier])
        sigma = schedules.constant(noise_multiplier) if noise_multiplier else None

    def init_fn(params):
        if key is None and any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
            raise ValueError(
                "key=None: under jit or vmap one key would serve every call and every member; call init "
                "outside of them, or give privatize a key"
            )
        zero = jnp.zeros((), jnp.int32)
        return PrivatizeState(
            step=zero,
            key=entropy_key() if key is None else key,
            clip=clipper.init(params),
            examples=zero,
            clipped=zero,
            nonfinite=zero,
        )

    def update_fn(updates, state, params=None, *, mask=None, noise_multiplier=None, **extra):
        if (noise_multiplier is not None) != given_each_step:
            raise ValueError(
                f"noise_multiplier={noise_multiplier}: an update takes one exactly where privatize was given "
                "None"
            )
        summed = updates
        if not isinstance(updates, ClippedSum):
            mask = jnp.ones(gradients.batch_size(updates), bool) if mask is None else mask
            summed = clipper.clip(updates, state.clip, state.step, mask)
        gradient_key, clipper_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        total = summed.gradients
        multiplier = noise_multiplier if sigma is None else sigma(state.step)
        if multiplier is not None:
            std = clipper.gradient_noise(multiplier) * clipper.noise_scale(summed, state.clip, state.step)
            std = jnp.where(_as_noised_for(clipper, summed, state), std, jnp.nan)
            total = jax.tree.map(lambda s, z: s + std * z, total, noise_like(gradient_key, total))
        like = total if params is None else params
        noised = jax.tree.map(lambda s, p: (s / expected_batch_size).astype(p.dtype), total, like)
        return noised, PrivatizeState(
            step=state.step + 1,
            key=state.key,
            clip=clipper.update(state.clip, summed, state.step, clipper_key),
            examples=summed.examples,
            clipped=summed.clipped,
            nonfinite=state.nonfinite + summed.nonfinite,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _as_noised_for(clipper: Clipper, summed: ClippedSum, state: PrivatizeState) -> Bool[Array, ""] | bool:
    """Whether a sum has the sensitivity that its noise is made for; true where it does not say."""
    if clipper.sensitivity is None or isinstance(summed.sensitivity, tuple):
        return True
    own = clipper.sensitivity(state.clip, state.step)
    return jnp.abs(summed.sensitivity - own) <= 1e-5 * own
