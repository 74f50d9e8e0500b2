"""Bounding what one example can contribute.

A `Clipper` turns per-example gradients (dense or factored, see `jaxdp.gradients`) into their clipped sum and
knows the L2 sensitivity of that sum: how far it moves, at most, when one example is added or removed.  Its
parts add up over microbatches, so that a batch can be clipped piece by piece.

| clipper               | per example                              | sensitivity   | private |
|-----------------------|------------------------------------------|---------------|---------|
| `flat`                | g min(1, C / norm(g))                    | C             | yes     |
| `automatic`           | C g / (norm(g) + gamma)                  | C             | yes     |
| `per_layer`           | each tensor to C / sqrt(L)               | C             | yes     |
| `per_layer_published` | each tensor to C                         | C sqrt(L)     | yes     |
| `l2_max`              | each tensor to its own example's maximum | none          | NO      |
| `quantile`            | as `flat`, to C_t from noised counts     | C_t           | yes     |
| `quantile_per_layer`  | each tensor to its own C_t from counts   | |(C_t)|       | yes     |

The last two are in `jaxdp.adaptive_clipping`.  C is a number or a schedule C(t).  An example whose gradient is
not finite contributes exactly zero and is counted.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdp import gradients, schedules
from jaxdp.schedules import Schedule

NAMES = (
    *("flat", "automatic", "per_layer", "per_layer_published", "l2_max"),
    *("quantile", "quantile_per_layer"),
)


class ClippedSum(NamedTuple):
    """What clipping leaves of a batch; sums of two batches are leaf-wise sums.

    Attributes:
      gradients: the sum of the clipped gradients, in the parameters' structure, at least float32.
      examples: number of examples that count (padding does not).
      clipped: number of examples that were scaled down.
      nonfinite: number of examples left out since their gradient was not finite.
      statistic: what else the clipper sums over examples, for its noise scale or its next bound.
      sensitivity: of the sum as it was clipped, set where it leaves for `privatize`; () before.
    """

    gradients: PyTree
    examples: Int[Array, ""]
    clipped: Int[Array, ""]
    nonfinite: Int[Array, ""]
    statistic: PyTree
    sensitivity: Any = ()


def _no_state(params: PyTree) -> tuple[()]:
    return ()


def _same_state(state, summed, step, key):
    return state


def _same_multiplier(noise_multiplier):
    return noise_multiplier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clipper:
    """A rule that bounds each example's contribution, and what it guarantees.

    Attributes:
      name: one of the module's names.
      private: whether noise scaled by `noise_scale` gives differential privacy.
      reason: where not private, why not: a sentence for the privacy statement.
      clip: `(grads, state, step, mask [B]) -> ClippedSum`.
      sensitivity: `(state, step) -> L2 sensitivity of the sum` under add-or-remove-one; None where there is
        none.
      noise_scale: `(summed, state, step) -> scalar`: the noise's standard deviation is this times the noise
        multiplier.  Equal to the sensitivity unless the published method says otherwise.
      noise_to_sensitivity: noise_scale / sensitivity, a constant: the accountant charges for sigma(t) times
        this.
      init: `params -> state`.
      update: `(state, summed, step, key) -> state`, called once a step after all microbatches.
      gradient_noise: noise multiplier of the whole step -> that of the gradient, where the clipper spends a
        part of the budget itself.
      noise_multiplier_limit: what the noise multiplier of the whole step must stay below, for that part.
      refusal: why a noise multiplier at or above the limit is refused.
      charged: what the clipper releases beside the gradient, and how both are charged: a clause for the
        privacy statement.
    """

    name: str
    private: bool = True
    reason: str = ""
    clip: Callable[..., ClippedSum]
    sensitivity: Callable[[PyTree, Any], Array] | None
    noise_scale: Callable[[ClippedSum, PyTree, Any], Array]
    noise_to_sensitivity: float = 1.0
    init: Callable[[PyTree], PyTree] = _no_state
    update: Callable[[PyTree, ClippedSum, Any, Array], PyTree] = _same_state
    gradient_noise: Callable[[Array], Array] = _same_multiplier
    noise_multiplier_limit: float = math.inf
    refusal: Callable[[float], str] = str
    charged: str = ""

    def check(self, noise_multipliers: Iterable[float], first: int = 0) -> None:
        """Refuses noise multipliers that leave nothing for the gradient.

        Args:
          noise_multipliers: of the steps from `first` on.
          first: number of the first step, for the message.

        Raises:
          ValueError: one of them is at or above the limit.
        """
        for step, value in enumerate(noise_multipliers, first):
            if value >= self.noise_multiplier_limit:
                raise ValueError(f"step={step}: {self.refusal(value)}")


def _of_step(schedule: Schedule) -> Callable[[PyTree, Any], Array]:
    """A sensitivity that no state changes."""
    return lambda state, step: schedule(step)


def _as_schedule(l2_norm_clip: float | Schedule) -> Schedule:
    """A bound as a function of the step."""
    if callable(l2_norm_clip):
        return l2_norm_clip
    if not (math.isfinite(l2_norm_clip) and l2_norm_clip > 0):
        raise ValueError(f"l2_norm_clip={l2_norm_clip}: must be finite and > 0, or a schedule")
    return schedules.constant(l2_norm_clip)


def leaf_norms(grads: PyTree) -> list[Float[Array, " b"]]:
    """The L2 norm of each example's gradient of each parameter, one [B] array a parameter."""
    leaves = jax.tree.leaves(grads, is_leaf=gradients.is_leaf)
    return [jnp.sqrt(gradients.squared_norm(leaf)) for leaf in leaves]


def global_norm(norms: list[Float[Array, " b"]]) -> Float[Array, " b"]:
    """The L2 norm of each example's whole gradient, from those of its tensors."""
    stacked = jnp.stack(norms)
    return jnp.sqrt(jnp.einsum("lb,lb->b", stacked, stacked))


def clipped_sum(
    grads: PyTree,
    weights: list[Float[Array, " b"]],
    finite: Bool[Array, " b"],
    mask: Bool[Array, " b"],
    statistic: PyTree,
) -> ClippedSum:
    """The sum of weighted gradients, and the counts that go with it.

    Args:
      grads: per-example gradients.
      weights: for each parameter, the factor of each example.
      finite: which examples have a finite gradient.
      mask: which examples are real.
      statistic: see `ClippedSum`.
    """
    keep = finite & mask
    leaves, tree = jax.tree.flatten(grads, is_leaf=gradients.is_leaf)
    sums = [
        gradients.weighted_sum(leaf, jnp.where(keep, w, 0), keep)
        for leaf, w in zip(leaves, weights, strict=True)
    ]
    scaled_down = jnp.stack(weights).min(axis=0) < 1
    return ClippedSum(
        gradients=jax.tree.unflatten(tree, sums),
        examples=mask.sum(dtype=jnp.int32),
        clipped=(scaled_down & keep).sum(dtype=jnp.int32),
        nonfinite=(~finite & mask).sum(dtype=jnp.int32),
        statistic=statistic,
    )


def down_to(bound, norms):
    """The factor that takes a norm down to `bound`; 1 where it is below already."""
    return bound / jnp.maximum(norms, bound)


def flat(l2_norm_clip: float | Schedule) -> Clipper:
    """Clips the whole gradient of an example to norm C (Abadi et al. 2016, arXiv 1607.00133).

    Formal guarantee: adding or removing one example moves the sum by at most C(t) in L2 norm, up to the
    rounding of float32.
    """
    bound = _as_schedule(l2_norm_clip)

    def clip(grads, state, step, mask):
        norms = leaf_norms(grads)
        norm = global_norm(norms)
        weights = down_to(bound(step), norm)
        return clipped_sum(grads, [weights] * len(norms), jnp.isfinite(norm), mask, ())

    return Clipper(
        name="flat",
        clip=clip,
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
    bound = _as_schedule(l2_norm_clip)
    if not (math.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma={gamma}: must be finite and > 0")

    def clip(grads, state, step, mask):
        norms = leaf_norms(grads)
        norm = global_norm(norms)
        weights = bound(step) / (norm + gamma)
        return clipped_sum(grads, [weights] * len(norms), jnp.isfinite(norm), mask, ())

    return Clipper(
        name="automatic",
        clip=clip,
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
    bound = _as_schedule(l2_norm_clip)
    return Clipper(
        name="per_layer",
        clip=_clip_each(lambda step, layers: bound(step) / math.sqrt(layers)),
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
    bound = _as_schedule(l2_norm_clip)
    if layers != int(layers) or layers < 1:
        raise ValueError(f"layers={layers}: must be a whole number >= 1, the number of parameter tensors")

    def bound_of_layer(step, found):
        if found != layers:
            raise ValueError(f"layers={layers}: the gradient has {found} tensors")
        return bound(step)

    return Clipper(
        name="per_layer_published",
        clip=_clip_each(bound_of_layer),
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
        clip=clip,
        sensitivity=None,
        noise_scale=lambda summed, state, step: summed.statistic / jnp.maximum(summed.examples, 1),
    )


def create(
    name: str,
    l2_norm_clip: float | Schedule,
    *,
    layers: int = 1,
    expected_batch_size: float | None = None,
    **adaptation: float | None,
) -> Clipper:
    """The clipper called `name`.

    Args:
      name: one of `NAMES`.
      l2_norm_clip: the bound C, or C(t); of the quantile clippers the first bound; `l2_max` takes none and
        ignores it.
      layers: number of parameter tensors, for `per_layer_published`.
      expected_batch_size: for the quantile clippers.
      **adaptation: of the quantile clippers: `target_quantile`, `learning_rate`, `count_noise`.

    Raises:
      ValueError: an unknown name, or a bound that is refused.
    """
    if name in ("quantile", "quantile_per_layer"):
        from jaxdp import adaptive_clipping

        return adaptive_clipping.BY_NAME[name](l2_norm_clip, expected_batch_size, **adaptation)
    if name == "l2_max":
        return l2_max()
    if name == "per_layer_published":
        return per_layer_published(l2_norm_clip, layers)
    by_name = {"flat": flat, "automatic": automatic, "per_layer": per_layer}
    if name not in by_name:
        raise ValueError(f"clipping={name!r}: unknown; choose from {', '.join(NAMES)}")
    return by_name[name](l2_norm_clip)
