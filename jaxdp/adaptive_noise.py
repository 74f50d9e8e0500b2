"""A noise multiplier that follows the noised clip bound, under a Renyi filter, inside the compiled loop.

Where gradients become small, the bound of quantile clipping falls; so does sigma here, in proportion:

    sigma(t) = start C_t / max_(s<=t) C_s,    held in [end, start].

Little is spent while gradients are large and clear of the noise, more once they are not.  C_t is made of noised
counts, so sigma(t) depends on released values only; but it does depend on them, so the run is fully adaptive:
`accounting.filters` says what may be claimed for it, and stops it before the step that would pass the budget.

sigma takes one of `LEVELS` values, in geometric steps.  The device knows the cost of each in whole units,
rounded up, and remembers the level of every step; the ledger is read back from there.

`Adaptive` says what is wanted, `Following` is the policy that does it for one sampling rate and length; its
state is a part of `PrivatizeState`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdp import _validate, schedules
from jaxdp.accounting import Claim, filters
from jaxdp.accounting.ledger import Filter

LEVELS = 256


class FollowState(NamedTuple):
    """What the loop carries.

    Attributes:
      spent: units of the filter's budget spent.
      peak: the largest bound so far.
      levels: which noise multiplier each step of the run used; -1 where it was not taken by this process.
    """

    spent: Int[Array, ""]
    peak: Float[Array, ""]
    levels: Any  # Int[Array, " steps"]; nothing in a checkpoint, where the ledger says it


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Following:
    """Chooses the noise multiplier of each step, and whether there is one.

    Attributes:
      filter: the budget, fixed before the first step.
      noise_multipliers: the values that sigma can take, ascending.
      units: what a step at each costs.
      steps: length of the run.
    """

    filter: Filter
    noise_multipliers: Float[np.ndarray, " levels"]
    units: Int[np.ndarray, " levels"]
    steps: int

    def init(self) -> FollowState:
        """Nothing spent, no step taken."""
        return FollowState(
            spent=jnp.zeros((), jnp.int32),
            peak=jnp.zeros((), jnp.float32),
            levels=jnp.full(self.steps, -1, jnp.int32),
        )

    def level(self, state: FollowState, bound: Float[Array, ""]) -> Int[Array, ""]:
        """The smallest noise multiplier that is not below the one that the bound asks for."""
        values = jnp.asarray(self.noise_multipliers, jnp.float32)
        wanted = values[-1] * (bound / jnp.maximum(state.peak, bound))
        return jnp.minimum(jnp.searchsorted(values, wanted), len(values) - 1).astype(jnp.int32)

    def admits(self, state: FollowState, bound: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether the filter admits the next step."""
        cost = jnp.asarray(self.units, jnp.int32)[self.level(state, bound)]
        return cost <= filters.UNITS - state.spent

    def charge(
        self, state: FollowState, bound: Float[Array, ""], step: Int[Array, ""]
    ) -> tuple[FollowState, Float[Array, ""]]:
        """Charges for the next step; returns its noise multiplier, not a number if it is not admitted."""
        level, admitted = self.level(state, bound), self.admits(state, bound)
        cost = jnp.asarray(self.units, jnp.int32)[level]
        sigma = jnp.asarray(self.noise_multipliers, jnp.float32)[level]
        charged = FollowState(
            spent=state.spent + jnp.where(admitted, cost, 0),
            peak=jnp.maximum(state.peak, bound),
            levels=state.levels.at[step].set(jnp.where(admitted, level, -1)),
        )
        return charged, jnp.where(admitted, sigma, jnp.nan)

    def used(self, state: FollowState, start: int, stop: int) -> Float[np.ndarray, " steps"]:
        """The noise multipliers of the steps `start .. stop - 1`, read back from the device.

        Raises:
          ValueError: one of them was not taken here.
        """
        levels = np.asarray(state.levels)[start:stop]
        if levels.size != stop - start or (levels < 0).any():
            raise ValueError(
                f"steps={start}..{stop - 1}: not all were taken, so the ledger has no entry for them"
            )
        return self.noise_multipliers[levels]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """A noise multiplier that is chosen during the run: what a `Plan` takes in place of a schedule.

    Attributes:
      epsilon: what the run may spend: the budget of its filter, and what is claimed.
      claim: its delta and adjacency; a Renyi filter, whatever its accountant.
      start: the largest noise multiplier, of the first step.
      end: the smallest.
      kept: the filter of a run that goes on; None makes one, at the order that suits the geometric mean of the
        range.

    Raises:
      ValueError: a range that is none, or a filter that was fixed for another claim.
    """

    epsilon: float
    claim: Claim
    start: float = schedules.PUBLISHED_START
    end: float = schedules.PUBLISHED_END
    kept: Filter | None = None

    def __post_init__(self):
        _validate.positive(budget_epsilon=self.epsilon)
        if not 0 < self.end < self.start < np.inf:
            raise ValueError(
                f"start={self.start}, end={self.end}: an adaptive schedule needs 0 < end < start, both finite"
            )
        if self.kept is not None:
            asked = {"epsilon": self.epsilon, "delta": self.claim.delta, "adjacency": self.claim.adjacency}
            for name, value in asked.items():
                if getattr(self.kept, name) != value:
                    fixed = getattr(self.kept, name)
                    raise ValueError(f"{name}={value}: the run's filter was fixed at {name}={fixed}")

    def following(self, sampling_rate: float, steps: int) -> Following:
        """The policy for batches of this rate over at most so many steps."""
        filter = self.kept
        if filter is None:
            middle = (self.start * self.end) ** 0.5
            filter = filters.create(
                self.epsilon, self.claim, sampling_rate=sampling_rate, noise_multiplier=middle
            )
        values = np.geomspace(self.end, self.start, LEVELS).astype(np.float32).astype(float)
        return Following(
            filter=filter,
            noise_multipliers=values,
            units=filters.units(filter, sampling_rate, values),
            steps=steps,
        )
