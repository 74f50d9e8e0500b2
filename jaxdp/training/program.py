"""The compiled part of a training run: step and epoch, for any loss.

The data stay on the device (or come in windows, see `feed`) and an epoch, any number of steps, is one compiled
loop: nothing goes back to the host inside it.  The number of the last step is an argument, so a run is compiled
once whatever the length of its epochs.  Where the device's loop would ask the host before each step whether to
go on (everywhere but on a CPU), a run of known length is calls of one program with a fixed number of steps, in
which nothing asks.
Sigma is traced, so it is compiled once whatever the schedule; and what the schedule is multiplied by is an
argument too, so that runs that differ in epsilon share their program.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, PyTree

from jaxdp import noise, platforms, schedules
from jaxdp._privatize import privatize_state
from jaxdp.gradients import Loss
from jaxdp.plan import Plan
from jaxdp.schedules import Parametric
from jaxdp.training import hosts
from jaxdp.training.placement import Placement
from jaxdp.training.state import Diagnostics, TrainState, averaged, diagnostics, nothing
from jaxdp.training.window import Window

_LEAST_CHUNK = 16  # steps: fewer are over before the next call can be sent


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A plan, a loss and an optimizer made into compiled functions.

    Attributes:
      plan: what clips, samples and adds noise.
      loss_fn: `(params, example) -> scalar`.
      optimizer: of the noised gradients.
      decode: batch as stored -> batch as the loss takes it.
      ema_decay: of the average of the parameters; None for none.
      microbatch_size: see `jaxdp.clipped_gradients`.
      platform: what it will run on, see `platforms.resolved`.
      placement: where all lies on several devices; None for one.
      traces: grows by one entry each time the step is traced.
    """

    plan: Plan
    loss_fn: Loss
    optimizer: optax.GradientTransformation
    decode: Callable[[PyTree], PyTree] = lambda batch: batch
    ema_decay: float | None = None
    microbatch_size: int | str | None = "auto"
    platform: str = "auto"
    placement: Placement | None = None
    traces: list[int] = dataclasses.field(default_factory=list)
    _asked: Any = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        _ = self.plan.batches  # or an error
        object.__setattr__(self, "_asked", _function_values(self.plan))

    def check(self, plan: Plan) -> None:
        """Refuses a plan that this program does not do.

        Raises:
          ValueError: it differs in more than its seed, its reasons and the factor on its schedule.
        """
        mine, other = (_without_arguments(p) for p in (self.plan, plan))
        for name in ("clipper", "noise_multiplier", "sampler", "steps", "generator"):
            if getattr(mine, name) != getattr(other, name):
                raise ValueError(f"program: was compiled for another {name} than the plan's")
        if not np.array_equal(self._asked, _function_values(plan)):
            raise ValueError("program: was compiled for other values of the noise_multiplier's function")

    def init(self, params: PyTree, plan: Plan | None = None) -> TrainState:
        """The first state, its secret from the seed of the plan, or of another plan that shares the program."""
        plan = self.plan if plan is None else plan
        secret = noise.entropy_key() if plan.seed is None else noise.secret(plan.seed)
        secret, params = hosts.of_first(secret), jax.tree.map(jnp.asarray, params)
        opt_state: Any = optax.chain(plan.privatize(secret), self.optimizer).init(params)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=opt_state,
            sample_key=secret,
            overflow=jnp.zeros((), bool),
            average=() if self.ema_decay is None else jax.tree.map(jnp.copy, params),
        )
        return self.placed(state)

    def placed(self, state: TrainState) -> TrainState:
        """The state where the program has it."""
        return state if self.placement is None else self.placement.placed(state, state.params)

    def rows(self, arrays: PyTree) -> PyTree:
        """The data of the host on the devices, as the program takes them."""
        place = self.placement
        return jax.tree.map(jnp.asarray, arrays) if place is None else place.rows(arrays, self.plan.batches)

    def step(self, plan: Plan, state: TrainState, arrays: PyTree) -> tuple[TrainState, Diagnostics]:
        """One step.

        Args:
          plan: the program's, or one that differs in seed and in the factor on its schedule alone.
          state: before it.
          arrays: the data on the device, or a `Window` of their batches.
        """
        return self._step(_traced(plan), state, arrays)

    def _step(self, schedule: Parametric | None, state: TrainState, arrays: PyTree):
        self.traces.append(1)
        plan = dataclasses.replace(self.plan, seed=None)  # of the first state alone, not of the program
        if schedule is not None:
            plan = dataclasses.replace(plan, noise_multiplier=schedule)
        losses, grads, mask, overflow = self._gradient(plan, state, arrays)
        chain = optax.chain(plan.privatize(platform=self.platform), self.optimizer)
        updates, opt_state = chain.update(grads, state.opt_state, state.params)
        params, average = optax.apply_updates(state.params, updates), state.average
        if self.ema_decay is not None:
            average = averaged(average, params, state.step, self.ema_decay)
        after = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            sample_key=state.sample_key,
            overflow=state.overflow | overflow,
            average=average,
        )
        after = after if self.placement is None else self.placement.constrained(after, after.params)
        return after, diagnostics(after, losses, mask)

    def _gradient(self, plan: Plan, state: TrainState, arrays: PyTree):
        """Losses, gradient, mask and overflow of a step's batch."""
        gradient = plan.gradients(self.loss_fn, microbatch_size=self.microbatch_size, platform=self.platform)

        def of_batch(state, arrays, drawn):
            batch = self.decode(jax.tree.map(lambda leaf: leaf[drawn.indices], arrays))
            return gradient(state.params, state.opt_state, batch, drawn.mask)

        if self.placement is not None:
            return self.placement.on_each(plan.batches, of_batch, arrays, state)
        if isinstance(arrays, Window):
            drawn, arrays = arrays.drawn(state.step), arrays.rows
        else:
            drawn = plan.batches.draw(state.sample_key, state.step)
        return *of_batch(state, arrays, drawn), drawn.mask, drawn.overflow

    def _until(self, schedule, state, arrays, stop):
        goes_on = lambda carry: (carry[0].step < stop) & self.admits(carry[0])  # noqa: E731
        step = lambda carry: self._step(schedule, carry[0], arrays)  # noqa: E731
        return jax.lax.while_loop(goes_on, step, (state, nothing()))

    def _times(self, schedule, state, arrays, count):
        steps = lambda _, carry: self._step(schedule, carry[0], arrays)  # noqa: E731
        return jax.lax.fori_loop(0, count, steps, (state, nothing()))

    @functools.cached_property
    def _compiled(self) -> tuple[Any, Any]:
        """The loop with and without a state of its own; traced once for both."""
        until = self._until
        return jax.jit(until), jax.jit(until, donate_argnums=1)

    @functools.cached_property
    def _counted(self) -> Any:
        return jax.jit(self._times, donate_argnums=1, static_argnums=3)

    def epoch(
        self, plan: Plan, state: TrainState, arrays: PyTree, stop: Any
    ) -> tuple[TrainState, Diagnostics]:
        """Steps until `state.step == stop`, or until the filter of an adaptive schedule admits no more;
        compiled.

        Args:
          plan: the program's, or one that differs in seed and in the factor on its schedule alone.
          state, arrays: see `step`.
          stop: number of steps.
        """
        return self._compiled[0](_traced(plan), state, arrays, jnp.int32(stop))

    def chunk(self, stops: Sequence[int]) -> int:
        """Steps that one call of `advance` may make without asking, if a run pauses at `stops`.

        Returns:
          The largest number that divides all lengths.  0, so that the device asks before each step: on a CPU,
          where that is free; where a filter may end the run; where the number would be below 16.
        """
        length = math.gcd(*(b - a for a, b in itertools.pairwise(stops)))
        asks = platforms.resolved(self.platform) == "cpu" or self.plan.policy is not None
        return 0 if asks or length < _LEAST_CHUNK else length

    def advance(
        self, plan: Plan, state: TrainState, arrays: PyTree, steps: tuple[int, int], chunk: int = 0
    ) -> tuple[TrainState, Diagnostics]:
        """`epoch`, whose result takes the place of `state` in memory: no part of it can be used again.

        Args:
          plan, state, arrays: see `epoch`.
          steps: the step that the state has reached, and that to reach.
          chunk: a divisor of their distance, or 0; see `chunk`.
        """
        schedule, (first, stop) = _traced(plan), steps
        if not chunk or first == stop:
            return self._compiled[1](schedule, state, arrays, jnp.int32(stop))
        diagnostics = nothing()
        for _ in range(first, stop, chunk):
            state, diagnostics = self._counted(schedule, state, arrays, chunk)
        return state, diagnostics

    def lowered(self, state: TrainState, arrays: PyTree) -> str:
        """The epoch's program as text (StableHLO): all that decides what is computed, but its arguments."""
        return self._compiled[0].lower(_traced(self.plan), state, arrays, jnp.int32(0)).as_text()

    def admits(self, state: TrainState) -> Bool[Array, ""] | bool:
        """Whether the filter of an adaptive schedule admits the next step; true without one."""
        if self.plan.policy is None:
            return True
        private, clipper = privatize_state(state.opt_state), self.plan.clipper
        assert clipper is not None and clipper.sensitivity is not None
        return self.plan.policy.admits(private.noise, clipper.sensitivity(private.clip, private.step))


def _without_arguments(plan: Plan) -> Plan:
    schedule = _traced(plan)
    if schedule is None:
        return plan
    return dataclasses.replace(plan, noise_multiplier=dataclasses.replace(schedule, factor=1.0))


def _traced(plan: Plan) -> Parametric | None:
    """The schedule as an argument, where it can be one."""
    return plan.schedule if isinstance(plan.schedule, Parametric) else None


def _function_values(plan: Plan) -> Any:
    """What a schedule that is a function gives now: compiled it stays, and the ledger would ask it anew."""
    if plan.schedule is None or isinstance(plan.schedule, Parametric):
        return ()
    return schedules.values(plan.schedule, plan.steps)
