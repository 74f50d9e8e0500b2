"""What a training run carries from step to step, and what a step says of itself."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdp._privatize import PrivatizeState


class TrainState(NamedTuple):
    """All that changes during a run, and all that a checkpoint needs of it.

    Attributes:
      step: steps made.
      params: the model's parameters.
      opt_state: of the whole chain; its first part is `PrivatizeState` in a private run.
      sample_key: the secret that batches are derived from: the noise's own, in another stream, unless a run
        went on with shuffled batches.
      overflow: whether a Poisson batch ever outgrew its places; the run must not go on then.
      average: exponential moving average of the parameters after each step, see `averaged`; () without one.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    sample_key: Array
    overflow: Bool[Array, ""]
    average: PyTree = ()

    @property
    def evaluated(self) -> PyTree:
        """The parameters to evaluate and to use: the average where one is kept, else those of the step."""
        return self.average if jax.tree.leaves(self.average) else self.params

    @property
    def private(self) -> PrivatizeState | None:
        """The part that `privatize` owns; None in a run without privacy."""
        first = self.opt_state[0]
        return first if isinstance(first, PrivatizeState) else None

    def with_private(self, private: PrivatizeState) -> "TrainState":
        """The state with another of `privatize`."""
        return self._replace(opt_state=(private, *self.opt_state[1:]))


class Diagnostics(NamedTuple):
    """Of an epoch's last step, computed without noise: for the curator, covered by no epsilon.

    Attributes:
      loss: mean training loss of the batch.
      clipped: share of the batch that was scaled down; NaN without privacy.
      nonfinite: examples left out since the start, their gradient not being finite.
    """

    loss: Float[Array, ""]
    clipped: Float[Array, ""]
    nonfinite: Int[Array, ""]


def averaged(average: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """The exponential moving average of the parameters with those after one more step.

    After n steps their weights are decay^(n - 1), ..., decay, 1, divided by their sum: the initial parameters
    have none, and no bias is left to correct (it is what `optax.ema` gives with its debiasing).

    Formal guarantee: the average is a function of the noised parameters alone, which the run's epsilon covers
    all together (post-processing), so it costs no privacy.  Without noise it protects nothing, and it hides
    nothing: whoever sees the run sees the parameters of the steps, and those are what attacks are given.

    Args:
      average: the average before, of the structure of `params`; whatever it is before the first step.
      params: the parameters after the step.
      step: the number of the step, from 0.
      decay: in (0, 1).
    """
    sum_of_weights = -jnp.expm1(math.log(decay) * (step + 1)) / (1 - decay)
    return optax.incremental_update(params, average, 1 / sum_of_weights)


def nothing() -> Diagnostics:
    """Before any step."""
    return Diagnostics(jnp.float32(jnp.nan), jnp.float32(jnp.nan), jnp.int32(0))


def diagnostics(state: TrainState, losses: Array, mask: Array) -> Diagnostics:
    """Of a step that ended in this state."""
    private, loss = state.private, jnp.where(mask, losses, 0).sum()
    if private is None:
        return Diagnostics(loss / jnp.maximum(mask.sum(), 1), jnp.float32(jnp.nan), jnp.int32(0))
    count = jnp.maximum(private.examples, 1)
    return Diagnostics(loss / count, private.clipped / count, private.nonfinite)
