"""Clip, sum, add noise, divide: the one place where gradients become private."""

import concurrent.futures
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.interpreters import mlir
from jaxtyping import Array, Float, Int, PyTree, UInt32

from jaxdp import _updates, _validate, noise, schedules
from jaxdp.clipping import ClippedSum, Clipper
from jaxdp.schedules import Schedule


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
      key: the secret of 256 bits from which the noise of every step is derived: plain words that any serialiser
        can write.  Never advanced.
      clip: the clipper's own state.
      noise: the state of the policy that chooses the noise multiplier; () where none does.
      examples: of the last step, the number of examples that counted.
      clipped: of the last step, the number that were scaled down.
      nonfinite: of all steps, the number left out since their gradient was not finite.

    The three counts are computed from private data without noise: they are for the curator's eyes, and not
    covered by any epsilon.
    """

    step: Int[Array, ""]
    key: UInt32[Array, "8"]
    clip: PyTree
    noise: PyTree
    examples: Int[Array, ""]
    clipped: Int[Array, ""]
    nonfinite: Int[Array, ""]


def privatize(
    clipper: Clipper,
    noise_multiplier: float | Array | Schedule | NoisePolicy,
    expected_batch_size: float,
    *,
    key: Array | int | None = None,
    generator: str = "chacha12",
    platform: str = "auto",
) -> optax.GradientTransformationExtraArgs:
    """DP-SGD's gradient, as the first link of an Optax chain.

    The update is (sum_i clip(g_i) + sigma(t) S(t) N(0, I)) / expected_batch_size, with S the clipper's noise
    scale and the noised sum rounded to a public grid (`jaxdp.noise.grid`).  The transformation takes
    per-example gradients (leaves [B, ...] or `gradients.Factored`), or a `ClippedSum` made by
    `clipped_gradients`, and returns gradients shaped like the parameters.  sigma is
    traced: one compilation serves the whole run, whatever the schedule.

    Args:
      clipper: from `jaxdp.clipping`.
      noise_multiplier: sigma, or the schedule sigma(t), relative to the clipper's noise scale; 0 for no noise
        (and no privacy).  A policy chooses it from noised outputs, and a filter says what may be claimed
        (`jaxdp.accounting.filters`).
      expected_batch_size: q n for Poisson batches, the fixed size otherwise.  Never the size of the batch at
        hand, which is private.
      key: the secret of the noise, see `jaxdp.noise.secret`.  None takes the operating system's entropy;
        whoever knows a given key can remove the noise.
      generator: what the noise is drawn with: `chacha12`, `chacha20`, or `threefry`, of 64 bits and not made to
        keep a secret.
      platform: what the program will run on, see `platforms.resolved`; the draws are the same on all.

    Returns:
      A transformation whose `update` also takes `mask` [B], False or 0 for padding.  It comes first in a chain,
      and what wraps an optimizer (`optax.MultiSteps`, `apply_if_finite`, `masked`, `partition`) goes around the
      links behind it: before it, gradients are private.  To freeze parameters give them to the loss as a shared
      argument; where they are frozen behind it, what the clip spends on their gradients is lost.
      `nnx.Optimizer` takes per-example gradients, no `ClippedSum`.

    Raises:
      ValueError: a negative or non-finite noise multiplier, one that the clipper refuses, an expected batch
        size that is not > 0 or was computed from a batch.  From `init`: parameters that are none, a trace under
        way without a key.  From `update`: updates that are not what it takes, where `params` is given; a sum
        that was clipped to another bound or a noise multiplier that the clipper refuses, where their values
        are known.  Where they are not (in a compiled update) its result is not a number.

    Formal guarantee: with neighbouring batches that differ in one example, the noised sum of step t, with
    whatever the clipper releases for its next bound, is a Gaussian mechanism with noise multiplier
    sigma(t) * clipper.noise_to_sensitivity, rounded to a public grid, if sums are exact and ChaCha's words
    cannot be told from random ones (`jaxdp.accounting.generator` charges for what is not ideal beside them);
    the accountant must be told the same sigma and how batches were drawn.  None where `clipper.private` is
    False.  Noise of step t is derived from (key, t): no draw is used twice, and a resumed run repeats the same
    noise for the same step.

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
    _validate.one_of(noise.GENERATORS, generator=generator)
    start, choose = _chooser(clipper, noise_multiplier)

    def init_fn(params):
        _updates.check_parameters(params)
        # No two leaves share a buffer, nor any with the caller's key: the state may be donated.
        return PrivatizeState(
            step=jnp.zeros((), jnp.int32),
            key=_fresh_key() if key is None else jnp.array(noise.secret(key), copy=True),
            clip=clipper.init(params),
            noise=start(),
            examples=jnp.zeros((), jnp.int32),
            clipped=jnp.zeros((), jnp.int32),
            nonfinite=jnp.zeros((), jnp.int32),
        )

    def update_fn(updates, state, params=None, *, mask=None, **extra):
        _updates.check(updates, params)
        summed = updates
        if not isinstance(updates, ClippedSum):
            summed = clipper.clip(updates, state.clip, state.step, mask)
        secret = noise.secret(state.key)

        def release(tree, std, purpose=noise.CLIPPER):
            stream = noise.Stream(secret, state.step, purpose, generator, platform)
            return noise.released(stream, tree, std)

        total = summed.gradients
        chosen, multiplier = choose(state)
        if multiplier is not None:
            std = _gradient_noise(clipper, multiplier, state.step)
            std = std * clipper.noise_scale(summed, state.clip, state.step)
            std = jnp.where(_updates.are_noised_for(clipper, summed, state), std, jnp.nan)
            total = release(total, std, noise.GRADIENTS)
        like = total if params is None else params
        clip = clipper.update(state.clip, summed, state.step, release)
        mean = jax.tree.map(lambda s: s / expected_batch_size, total)
        clip, mean = clipper.after(clip, mean, state.step)
        noised = jax.tree.map(lambda g, p: g.astype(p.dtype), mean, like)
        return noised, PrivatizeState(
            step=state.step + 1,
            key=state.key,
            clip=clip,
            noise=chosen,
            examples=summed.examples,
            clipped=summed.clipped,
            nonfinite=state.nonfinite + summed.nonfinite,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def privatize_state(opt_state: Any) -> PrivatizeState:
    """The state of `privatize` in the state of any optimizer that holds it, however it was wrapped.

    Args:
      opt_state: of `optax.chain`, `inject_hyperparams` and others, or an `nnx.Optimizer`.

    Raises:
      ValueError: it holds none, or several.
    """
    opt_state = getattr(opt_state, "opt_state", opt_state)
    is_state = lambda x: isinstance(x, PrivatizeState)  # noqa: E731
    found = [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(leaf)]
    if len(found) != 1:
        raise ValueError(f"opt_state: holds {len(found)} states of privatize; must hold one")
    is_variable = lambda x: hasattr(x, "get_value")  # of nnx, around every array  # noqa: E731
    return jax.tree.map(lambda x: x.get_value() if is_variable(x) else x, found[0], is_leaf=is_variable)


def _chooser(clipper: Clipper, noise_multiplier: float | Array | Schedule | NoisePolicy):
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
    traced = isinstance(noise_multiplier, jax.core.Tracer)
    if traced or not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ValueError(f"noise_multiplier={noise_multiplier}: must be finite and >= 0, or a schedule")
    if noise_multiplier == 0:
        return tuple, lambda state: (state.noise, None)
    clipper.check([float(noise_multiplier)])
    constant = schedules.constant(float(noise_multiplier))
    return tuple, lambda state: (state.noise, constant(state.step))


def _gradient_noise(clipper: Clipper, multiplier: Any, step: Any) -> Array:
    """Returns the gradient's own noise multiplier; not a number where the clipper leaves none.

    Raises:
      ValueError: the same, where both are known.
    """
    bounded = clipper.noise_multiplier_limit < math.inf
    if bounded and not any(isinstance(x, jax.core.Tracer) for x in (multiplier, step)):
        clipper.check([float(multiplier)], int(step))
    return clipper.gradient_noise(multiplier)


# Stands where the key would be drawn while something is traced: it has a shape, so that `jax.eval_shape` works,
# and refuses to be compiled or evaluated.
_traced_key = jax.extend.core.Primitive("entropy_key_under_a_trace")


def _refuse(*arguments: Any) -> Any:
    raise ValueError(
        "key=None: under jit, vmap or scan one key would serve every call and every member; call init outside "
        "of them, or give privatize a key"
    )


_traced_key.def_impl(_refuse)
_traced_key.def_abstract_eval(lambda: jax.core.ShapedArray((8,), jnp.uint32))
mlir.register_lowering(_traced_key, _refuse)


def _trace_state() -> Any:
    return jax.extend.core.get_opaque_trace_state(convention="nnx")


with concurrent.futures.ThreadPoolExecutor(1) as _thread:
    _NO_TRACE = _thread.submit(_trace_state).result()  # a new thread traces nothing, whatever imports this


def _fresh_key() -> UInt32[Array, "8"]:
    """Returns a secret from entropy, where no trace is under way."""
    outside = _trace_state() == _NO_TRACE
    return noise.entropy_key() if outside else _traced_key.bind()
