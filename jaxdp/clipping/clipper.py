"""What a clipper is: a rule that bounds each example's contribution, and what it guarantees."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdp import _validate, gradients
from jaxdp.gradients import independence, inputs


class Bounds(NamedTuple):
    """What the parts of a sum were clipped to: sums over the parts, so that they add up as the parts do.

    Attributes:
      parts: how many.
      sensitivities: the sum of their sensitivities.
      squares: the sum of the squares of those: with it, parts of different sensitivities show.
    """

    parts: Int[Array, ""]
    sensitivities: Float[Array, ""]
    squares: Float[Array, ""]

    def all_are(self, sensitivity: Array) -> Bool[Array, ""]:
        """Whether every part had this sensitivity, to the rounding of such sums."""
        mean = self.sensitivities / self.parts / sensitivity
        square = self.squares / self.parts / sensitivity**2
        return (self.parts > 0) & (jnp.abs(mean - 1) <= 1e-5) & (jnp.abs(square - 1) <= 3e-5)


class ClippedSum(NamedTuple):
    """What clipping leaves of a batch.  Leaf-wise sums are sums of batches, by `jax.tree.map(jnp.add, a, b)`,
    `jax.lax.psum` or a scan; each example in one part only.

    `privatize` refuses a sum that was multiplied by anything but a whole number; times a whole number it is the
    sum of as many copies, and no test can tell: scale after `privatize`.

    A batch that comes in several parts (from calls, hosts, forward passes) is one step: clip every part at the
    step and clip state of the same optimizer state, add the parts up, update once.

    >>> import jax, jax.numpy as jnp, jaxdp
    >>> from jaxdp import clipping
    >>> clipper, loss_fn = clipping.flat(1.0), lambda w, x: (x @ w) ** 2
    >>> optimizer = jaxdp.privatize(clipper, 1.0, expected_batch_size=8, key=0)
    >>> params, x = jnp.ones(3), jnp.arange(24.0).reshape(8, 3)
    >>> state, gradient = optimizer.init(params), jaxdp.clipped_gradients(loss_fn, clipper)
    >>> parts = [gradient(params, part, None, state.clip, state.step)[1] for part in (x[:5], x[5:])]
    >>> summed = jax.tree.map(jnp.add, *parts)
    >>> int(summed.examples), float(summed.sensitivity)
    (8, 1.0)
    >>> update, state = optimizer.update(summed, state, params)
    >>> whole, _ = optimizer.update(gradient(params, x, None, (), 0)[1], optimizer.init(params), params)
    >>> bool(jnp.abs(update - whole).max() < 1e-6)
    True

    Attributes:
      gradients: the sum of the clipped gradients, in the parameters' structure, at least float32.
      examples: number of examples that count (padding does not).
      clipped: number of examples that were scaled down.
      nonfinite: number of examples left out since their gradient was not finite.
      statistic: what else the clipper sums over examples, for its noise scale or its next bound.
      bounds: what the parts were clipped to; () of a clipper without sensitivity.
    """

    gradients: PyTree
    examples: Int[Array, ""]
    clipped: Int[Array, ""]
    nonfinite: Int[Array, ""]
    statistic: PyTree
    bounds: Any = ()

    @property
    def sensitivity(self) -> Array:
        """The L2 sensitivity of the sum, where one example is in one part."""
        return self.bounds.sensitivities / self.bounds.parts


def _no_state(params: PyTree) -> tuple[()]:
    return ()


def _same_state(state, summed, step, release):
    return state


def _as_it_is(state, noised, step):
    return state, noised


def _same_multiplier(noise_multiplier):
    return noise_multiplier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clipper:
    """A rule that bounds each example's contribution, and what it guarantees.

    Attributes:
      name: one of the module's names.
      private: whether noise scaled by `noise_scale` gives differential privacy.
      reason: where not private, why not: a sentence for the privacy statement.
      rule: `(grads, state, step, mask [B]) -> ClippedSum`, of checked inputs; what `clip` calls.
      sensitivity: `(state, step) -> L2 sensitivity of the sum` under add-or-remove-one; None where there is
        none.
      noise_scale: `(summed, state, step) -> scalar`: the noise's standard deviation is this times the noise
        multiplier.  Equal to the sensitivity unless the published method says otherwise.
      noise_to_sensitivity: noise_scale / sensitivity, a constant: the accountant charges for sigma(t) times
        this, and `privatize` refuses a private clipper whose noise scale is another.
      init: `params -> state`.
      update: `(state, summed, step, release) -> state`, called once a step after all microbatches;
        `release(sums, std)` adds noise that is of this step alone, and is called once at most.
      after: `(state, noised, step) -> (state, noised)`: what becomes of the noised mean gradient, from what is
        public alone, and the next state.
      whole: whether the rule needs gradients in one piece: then they are not kept in factors.
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
    rule: Callable[..., ClippedSum]
    sensitivity: Callable[[PyTree, Any], Array] | None
    noise_scale: Callable[[ClippedSum, PyTree, Any], Array]
    noise_to_sensitivity: float = 1.0
    init: Callable[[PyTree], PyTree] = _no_state
    update: Callable[[PyTree, ClippedSum, Any, Callable[..., PyTree]], PyTree] = _same_state
    after: Callable[[PyTree, PyTree, Any], tuple[PyTree, PyTree]] = _as_it_is
    whole: bool = False
    gradient_noise: Callable[[Array], Array] = _same_multiplier
    noise_multiplier_limit: float = math.inf
    refusal: Callable[[float], str] = str
    charged: str = ""

    def __post_init__(self):
        if self.private and self.sensitivity is None:
            raise ValueError(f"sensitivity=None: clipper {self.name!r} has none, so private must be False")
        _validate.positive(noise_to_sensitivity=self.noise_to_sensitivity)

    def clip(self, grads: PyTree, state: PyTree, step: Any, mask: Any = None) -> ClippedSum:
        """The clipped sum of per-example gradients.

        Args:
          grads: leaves [B, ...] or `gradients.Factored`.
          state: of the clipper.
          step: number of the step.
          mask: boolean [B], False for padding, or of the whole numbers 0 and 1; None is all ones.

        Raises:
          ValueError: gradients that are not real floats, leaves of another B, another kind of mask.
        """
        inputs.check_real(gradients=grads)
        mask = inputs.as_mask(mask, inputs.batch_size(grads, "gradients"))
        return independence.vary_as(self.signed(self.rule(grads, state, step, mask), state, step), grads)

    def signed(self, summed: ClippedSum, state: PyTree, step: Any) -> ClippedSum:
        """The sum as one part that was clipped in this state at this step."""
        if self.sensitivity is None:
            return summed
        bound = jnp.asarray(self.sensitivity(state, step), jnp.float32)
        return summed._replace(bounds=Bounds(jnp.ones((), jnp.int32), bound, jnp.square(bound)))

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
    return jnp.sqrt(jnp.einsum("lb,lb->b", stacked, stacked, precision=jax.lax.Precision.HIGHEST))


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
