"""Clip, sum, add noise, divide: the one place where gradients become private."""

import math
import os
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdp import _validate, gradients, schedules
from jaxdp.clipping import ClippedSum, Clipper
from jaxdp.noise import noise_like
from jaxdp.schedules import Schedule


def entropy_key() -> Array:
    """A key from the operating system's entropy: all 64 bits of a threefry key."""
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(os.urandom(8), np.uint32)), impl="threefry2x32")


@runtime_checkable
class NoisePolicy(Protocol):
    """What chooses the noise multiplier of each step during the run, as `jaxdp.adaptive_noise` does."""

    noise_multipliers: Float[np.ndarray, " levels"]

    def init(self) -> PyTree:
        """Returns the state before the first step."""
        ...

    def charge(self, state: Any, bound: Any, step: Any) -> tuple[Any, Array]:
        """Returns the next state and the noise multiplier of this step, for the sensitivity `bound`."""
        ...


class PrivatizeState(NamedTuple):
    """State of `privatize`.

    Attributes:
      step: the number of updates made, which is also the t of sigma(t) and C(t).
      key: the secret from which the noise of every step is derived; never advanced.
      clip: the clipper's own state.
      noise: the state of the policy that chooses the noise multiplier; () where none does.
      examples: of the last step, the number of examples that counted.
      clipped: of the last step, the number that were scaled down.
      nonfinite: of all steps, the number left out since their gradient was not finite.

    The three counts are computed from private data without noise: they are for the curator's eyes, and not
    covered by any epsilon.
    """

    step: Int[Array, ""]
    key: Array
    clip: PyTree
    noise: PyTree
    examples: Int[Array, ""]
    clipped: Int[Array, ""]
    nonfinite: Int[Array, ""]


def privatize(
    clipper: Clipper,
    noise_multiplier: float | Schedule | NoisePolicy,
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
        (and no privacy).  A policy chooses it from noised outputs, and a filter says what may be claimed
        (`jaxdp.accounting.filters`).
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
    _validate.positive(expected_batch_size=expected_batch_size)
    start, choose = _chooser(clipper, noise_multiplier)

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
            noise=start(),
            examples=zero,
            clipped=zero,
            nonfinite=zero,
        )

    def update_fn(updates, state, params=None, *, mask=None, **extra):
        summed = updates
        if not isinstance(updates, ClippedSum):
            mask = jnp.ones(gradients.batch_size(updates), bool) if mask is None else mask
            summed = clipper.clip(updates, state.clip, state.step, mask)
        gradient_key, clipper_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        total = summed.gradients
        noise, multiplier = choose(state)
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
            noise=noise,
            examples=summed.examples,
            clipped=summed.clipped,
            nonfinite=state.nonfinite + summed.nonfinite,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _chooser(clipper: Clipper, noise_multiplier: float | Schedule | NoisePolicy):
    """Returns how the state of the noise begins, and `state -> (its next, the noise multiplier or None)`."""
    if isinstance(noise_multiplier, NoisePolicy):
        policy, sensitivity = noise_multiplier, clipper.sensitivity
        if sensitivity is None:
            raise ValueError(
                f"clipping={clipper.name!r}: has no sensitivity that a noise policy could follow"
            )
        clipper.check(policy.noise_multipliers)

        def charged(state):
            return policy.charge(state.noise, sensitivity(state.clip, state.step), state.step)

        return policy.init, charged
    if callable(noise_multiplier):
        schedule = noise_multiplier
        return tuple, lambda state: (state.noise, schedule(state.step))
    if noise_multiplier == 0:
        return tuple, lambda state: (state.noise, None)
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(f"noise_multiplier={noise_multiplier}: must be finite and >= 0, or a schedule")
    clipper.check([noise_multiplier])
    constant = schedules.constant(noise_multiplier)
    return tuple, lambda state: (state.noise, constant(state.step))


def _as_noised_for(clipper: Clipper, summed: ClippedSum, state: PrivatizeState) -> Bool[Array, ""] | bool:
    """Whether a sum has the sensitivity that its noise is made for; true where it does not say."""
    if clipper.sensitivity is None or isinstance(summed.sensitivity, tuple):
        return True
    own = clipper.sensitivity(state.clip, state.step)
    return jnp.abs(summed.sensitivity - own) <= 1e-5 * own


def find_state(opt_state: PyTree) -> PrivatizeState:
    """The state of `privatize` in the state of the optimizer that it is a part of.

    Raises:
      ValueError: there is none, or more than one.
    """
    is_state = lambda x: isinstance(x, PrivatizeState)  # noqa: E731
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(x)]
    if len(found) != 1:
        raise ValueError(f"opt_state: holds {len(found)} states of privatize; needs the one of its chain")
    return found[0]
