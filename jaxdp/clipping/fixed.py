"""Bounds that are fixed before the run: a number C or a schedule C(t), and the published l2-max."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxdp import _validate, schedules
from jaxdp.clipping.clipper import Clipper, clipped_sum, down_to, global_norm, leaf_norms
from jaxdp.schedules import Schedule

# Of every bound.  Squares of what is smaller begin to leave float32's range: norms below 1e-19 count as 0.
SMALLEST = 1e-6


def _of_step(schedule: Schedule) -> Callable[[PyTree, Any], Array]:
    """A sensitivity that no state changes."""
    return lambda state, step: schedule(step)


def as_schedule(l2_norm_clip: float | Schedule) -> Schedule:
    """A bound as a function of the step, never below `SMALLEST`."""
    if callable(l2_norm_clip):
        return lambda step: jnp.maximum(l2_norm_clip(step), SMALLEST)
    _validate.positive(l2_norm_clip=l2_norm_clip)
    if l2_norm_clip < SMALLEST:
        raise ValueError(f"l2_norm_clip={l2_norm_clip}: must be >= {SMALLEST:g}, or scale the loss up")
    return schedules.constant(l2_norm_clip)


def flat(l2_norm_clip: float | Schedule) -> Clipper:
    """Clips the whole gradient of an example to norm C (Abadi et al. 2016, arXiv 1607.00133).

    Formal guarantee: adding or removing one example moves the sum by at most C(t) in L2 norm, up to the
    rounding of float32.
    """
    bound = as_schedule(l2_norm_clip)

    def clip(grads, state, step, mask):
        norms = leaf_norms(grads)
        norm = global_norm(norms)
        weights = down_to(bound(step), norm)
        return clipped_sum(grads, [weights] * len(norms), jnp.isfinite(norm), mask, ())

    return Clipper(
        name="flat",
        rule=clip,
        sensitivity=_of_step(bound),
        noise_scale=lambda summed, state, step: bound(step),
    )


def automatic(l2_norm_clip: float | Schedule, gamma: float = 0.01) -> Clipper:
    """Normalises instead of clipping: C g / (norm(g) + gamma) (Bu et al. 2022, arXiv 2206.07136).

    Args:
      l2_norm_clip: the norm C that large gradients get; it only scales the learning rate.
      gamma: keeps small gradients small.

    Formal guarantee: as `flat`.
    """
    bound = as_schedule(l2_norm_clip)
    _validate.positive(gamma=gamma)

    def clip(grads, state, step, mask):
        norms = leaf_norms(grads)
        norm = global_norm(norms)
        weights = bound(step) / (norm + gamma)
        return clipped_sum(grads, [weights] * len(norms), jnp.isfinite(norm), mask, ())

    return Clipper(
        name="automatic",
        rule=clip,
        sensitivity=_of_step(bound),
        noise_scale=lambda summed, state, step: bound(step),
    )


def _clip_each(bound_of_layer: Callable[[Any, int], Array]):
    """Clips every tensor of the gradient by itself to `bound_of_layer(step, layers)`."""

    def clip(grads, state, step, mask):
        norms = leaf_norms(grads)
        bound = bound_of_layer(step, len(norms))
        weights = [down_to(bound, norm) for norm in norms]
        return clipped_sum(grads, weights, jnp.isfinite(global_norm(norms)), mask, ())

    return clip


def per_layer(l2_norm_clip: float | Schedule) -> Clipper:
    """Clips each of the L tensors to C / sqrt(L), so that the whole stays within C.

    Formal guarantee: as `flat`.
    """
    bound = as_schedule(l2_norm_clip)
    return Clipper(
        name="per_layer",
        rule=_clip_each(lambda step, layers: bound(step) / math.sqrt(layers)),
        sensitivity=_of_step(bound),
        noise_scale=lambda summed, state, step: bound(step),
    )


def per_layer_published(l2_norm_clip: float | Schedule, layers: int) -> Clipper:
    """Clips each tensor to the full C and adds noise sigma C, as the authors' code does.

    The sensitivity of the whole gradient is then C sqrt(L), and the noise multiplier that counts is
    sigma / sqrt(L): the accountant charges for that one.

    Args:
      l2_norm_clip: the bound C of each tensor.
      layers: the number of tensors L; gradients with another number are refused.

    Formal guarantee: adding or removing one example moves the sum by at most C(t) sqrt(L) in L2 norm.
    """
    bound = as_schedule(l2_norm_clip)
    _validate.whole(layers=layers)

    def bound_of_layer(step, found):
        if found != layers:
            raise ValueError(f"layers={layers}: the gradient has {found} tensors")
        return bound(step)

    return Clipper(
        name="per_layer_published",
        rule=_clip_each(bound_of_layer),
        sensitivity=lambda state, step: bound(step) * jnp.float32(math.sqrt(layers)),
        noise_scale=lambda summed, state, step: bound(step),
        noise_to_sensitivity=1 / math.sqrt(layers),
    )


def l2_max(low: float = 0.1, high: float = 32.0) -> Clipper:
    """The published dynamic sensitivity: NOT differentially private.

    S_i, the largest tensor norm of example i, bounded to [low, high], is that example's clip bound for every
    tensor, and the noise scale is the mean of S_i over the batch (Wei & Liu 2021, arXiv 2112.13178).

    The noise scale is computed from private gradients and reveals their norms: one step tells apart a batch
    with one unusual example with near certainty.  No epsilon holds for it; a `nominal` one is what the paper
    prints.
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"low={low}, high={high}: need 0 < low <= high, both finite")

    def clip(grads, state, step, mask):
        norms = leaf_norms(grads)
        stacked = jnp.stack(norms)
        finite = jnp.isfinite(global_norm(norms))
        bounds = jnp.clip(stacked.max(axis=0), low, high)
        weights = [down_to(bounds, norm) for norm in norms]
        total = jnp.where(finite & mask, bounds, 0).sum()
        return clipped_sum(grads, weights, finite, mask, total)

    return Clipper(
        name="l2_max",
        private=False,
        reason="l2-max clipping scales the noise by norms of private gradients",
        rule=clip,
        sensitivity=None,
        noise_scale=lambda summed, state, step: summed.statistic / jnp.maximum(summed.examples, 1),
    )
