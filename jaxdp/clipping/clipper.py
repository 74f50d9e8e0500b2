"""What a clipper is: a rule that bounds each example's contribution, and what it guarantees."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdp import gradients


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
