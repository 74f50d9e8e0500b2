"""The mechanism of a run as one object: what clips, what is drawn, and so what is charged.

    plan = Plan(clipper=..., noise_multiplier=..., sampler=..., steps=...)
    plan.privatize()     the Optax link that adds the noise        plan.ledger()   what the run will have spent
    plan.gradients(loss) the clipped sums that it takes            plan.event()    the same for dp-accounting

Noise and charge come from one function of the step, `plan.schedule`: `privatize` traces it, and `ledger`
evaluates it in the same precision.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxdp import _validate, schedules
from jaxdp._privatize import privatize, privatize_state
from jaxdp.accounting.ledger import Entry, Filter, Ledger, Sampling, run_lengths
from jaxdp.accounting.sampling import check_unit
from jaxdp.adaptive_noise import Adaptive, Following
from jaxdp.clipping import Clipper, clipped_gradients
from jaxdp.clipping._clipped_gradients import mean_gradient
from jaxdp.gradients import Loss
from jaxdp.sampling import Sampler
from jaxdp.schedules import Schedule

MOST_STEPS = 10_000_000  # of a plan whose noise changes: each step is looked at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that is going to be done: DP-SGD with these parts over this many steps.

    Attributes:
      clipper: from `jaxdp.clipping`; None for ordinary training, which is not private.
      noise_multiplier: sigma relative to the clipper's noise scale: a number, a schedule sigma(t), or
        `Adaptive` for one that is chosen during the run; None exactly where `clipper` is.
      sampler: from `jaxdp.sampling`; a `Sampling` where no batch is going to be drawn.
      steps: length of the run.
      seed: of batches and noise; None takes the operating system's entropy.  Whoever knows a seed can remove
        the noise.
      generator: of the noise, see `jaxdp.privatize`.
      unit: what one row of the data is, and so what is protected: `example`; or `user` and the like, whose
        examples stand in one row, see `gradients.grouped` and `data.grouped`.
      coordinates: numbers that each step noises, see `sized`; None where the parameters are not known.
      reasons: what else is released without noise, so that no epsilon holds; one sentence each.

    Raises:
      ValueError: parts that do not fit one another.

    >>> import jaxdp
    >>> from jaxdp import accounting, clipping, sampling
    >>> sampler = sampling.poisson(60_000, 0.01, steps=10_000)
    >>> plan = Plan(clipper=clipping.flat(4.0), noise_multiplier=6.0, sampler=sampler, steps=10_000)
    >>> claim = accounting.Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="rdp")
    >>> round(accounting.epsilon(plan.ledger(), claim).value, 4)
    0.6592
    """

    clipper: Clipper | None
    noise_multiplier: float | Schedule | Adaptive | None
    sampler: Sampler | Sampling
    steps: int
    seed: int | None = None
    generator: str = "chacha12"
    unit: str = "example"
    coordinates: int | None = None
    reasons: tuple[str, ...] = ()

    def __post_init__(self):
        _validate.whole(steps=self.steps)
        check_unit(self.unit)
        if (self.clipper is None) != (self.noise_multiplier is None):
            raise ValueError(f"noise_multiplier={self.noise_multiplier}: None exactly where clipper is None")
        most = self.sampler.steps if isinstance(self.sampler, Sampler) else None
        if most is not None and self.steps > most:
            raise ValueError(
                f"steps={self.steps}: the sampler's batches have places for a run of {most} steps"
            )
        if isinstance(self.noise_multiplier, Adaptive):
            self._check_adaptive()
        elif self.noise_multiplier is not None and not callable(self.noise_multiplier):
            _validate.positive(noise_multiplier=self.noise_multiplier)

    def _check_adaptive(self) -> None:
        if self.sampling.kind not in ("poisson", "full"):
            raise ValueError(
                f"sampling={self.sampling.kind!r}: an adaptive schedule needs Poisson or full batches"
            )
        assert self.clipper is not None and isinstance(self.noise_multiplier, Adaptive)
        if not (self.clipper.private and self.clipper.name.startswith("quantile")):
            raise ValueError(
                f"clipper={self.clipper.name!r}: an adaptive schedule follows the bound of quantile clipping"
            )
        self.clipper.check([self.noise_multiplier.start])

    @property
    def sampling(self) -> Sampling:
        """How batches are drawn, as the accountant is told."""
        return self.sampler.accounted if isinstance(self.sampler, Sampler) else self.sampler

    @property
    def private(self) -> bool:
        """Whether an epsilon can hold for the run."""
        return not self.why_not_private

    @property
    def why_not_private(self) -> tuple[str, ...]:
        """Why no epsilon can hold; empty if one can."""
        if self.clipper is None:
            return ("no noise is added", *self.reasons)
        return self.reasons if self.clipper.private else (self.clipper.reason, *self.reasons)

    @functools.cached_property
    def schedule(self) -> Schedule | None:
        """sigma(t), for noise and charge alike; None without noise, and where it is chosen during the run."""
        sigma = self.noise_multiplier
        if sigma is None or isinstance(sigma, Adaptive):
            return None
        return sigma if callable(sigma) else schedules.constant(sigma)

    @functools.cached_property
    def policy(self) -> Following | None:
        """What chooses the noise multiplier during the run; None where it is fixed beforehand."""
        if not isinstance(self.noise_multiplier, Adaptive):
            return None
        return self.noise_multiplier.following(self.sampling.rate, self.steps)

    @property
    def batches(self) -> Sampler:
        """The sampler, of a plan from which batches can be drawn."""
        if not isinstance(self.sampler, Sampler):
            raise ValueError(f"sampler={self.sampler}: draws no batch; needs one of a number of examples")
        return self.sampler

    @property
    def expected_batch_size(self) -> float:
        """What the noised sum is divided by: q n, or the fixed size."""
        return self.batches.expected_batch_size

    def privatize(
        self, key: Array | int | None = None, *, platform: str = "auto"
    ) -> optax.GradientTransformationExtraArgs:
        """The first link of the optimizer's chain: sums, noise, division; see `jaxdp.privatize`.

        Args:
          key: the secret of the noise; None takes the plan's seed, or the system's entropy.
          platform: what the program will run on, see `platforms.resolved`.
        """
        if self.clipper is None:
            return optax.with_extra_args_support(optax.identity())
        noise: Any = self.policy if self.schedule is None else self.schedule
        how: Any = dict(key=self.seed if key is None else key, generator=self.generator, platform=platform)
        return privatize(self.clipper, noise, self.expected_batch_size, **how)

    def gradients(
        self, loss_fn: Loss, *, microbatch_size: int | str | None = "auto", platform: str = "auto"
    ) -> Callable[..., tuple]:
        """The gradient of a batch as `privatize` takes it.

        Args:
          loss_fn: `(params, example) -> scalar`, the loss of ONE example.
          microbatch_size: examples whose gradients exist at the same time, see `jaxdp.clipped_gradients`.
          platform: what the program will run on, see `platforms.resolved`.

        Returns:
          A function `(params, opt_state, batch, mask=None) -> (losses [B], gradient)`: a `ClippedSum` at the
          bound of the step that `opt_state` has reached.  `opt_state` is of the optimizer in which
          `privatize()` stands, or any part of it that holds its state.  For a plan without a clipper the
          mean gradient of the batch.
        """
        if self.clipper is None:
            return mean_gradient(loss_fn, platform)
        summed = clipped_gradients(
            loss_fn, self.clipper, microbatch_size=microbatch_size, platform=platform,
            poisson=self.sampling.kind == "poisson",
        )  # fmt: skip

        def gradient(params: PyTree, opt_state: PyTree, batch: PyTree, mask: Array | None = None):
            state = privatize_state(opt_state)
            return summed(params, batch, mask, state.clip, state.step)

        return gradient

    def noise_multipliers(self, start: int = 0, stop: int | None = None) -> Float[np.ndarray, " steps"]:
        """What the accountant charges for: sigma(t) relative to the true sensitivity, of steps `start ..
        stop - 1`.

        For a clipper that is not private these are the published, nominal values.

        Raises:
          ValueError: noise that is not known beforehand, is not positive, or leaves nothing for the gradient.
        """
        stop = self.steps if stop is None else stop
        if self.clipper is None:
            return np.zeros(stop - start)
        if self.schedule is None:
            raise ValueError(
                "noise_multiplier=Adaptive: is chosen during the run; its ledger needs the state"
            )
        values = schedules.values(self.schedule, stop - start, start)
        if values.size and not (np.isfinite(values).all() and values.min() > 0):
            step = start + int(np.argmax(~(np.isfinite(values) & (values > 0))))
            raise ValueError(
                f"noise_multiplier={values[step - start]}: at step {step}; must be finite and > 0"
            )
        self.clipper.check(values, start)
        return values * self.clipper.noise_to_sensitivity

    def entry(self, start: int = 0, stop: int | None = None, state: PyTree = None) -> Entry:
        """The ledger's entry for the steps `start .. stop - 1`.

        Args:
          start, stop: the steps; all of them by default.
          state: the optimizer's after them, from which noise that was chosen during the run is read back.
        """
        stop, filter = self.steps if stop is None else stop, None
        if self.policy is not None:
            if state is None:
                raise ValueError("state=None: the noise multipliers of an adaptive schedule are read from it")
            sigmas, filter = self.policy.used(privatize_state(state).noise, start, stop), self.policy.filter
            lengths = run_lengths(sigmas)
        else:
            lengths = self._run_lengths(start, stop)
        return Entry(
            start=start,
            stop=stop,
            noise_multipliers=lengths,
            sampling=self.sampling,
            mechanism="flat" if self.clipper is None else self.clipper.name,
            charged="" if self.clipper is None else self.clipper.charged,
            private=self.private,
            reasons=self.why_not_private,
            seed="entropy" if self.seed is None else "given",
            filter=filter,
            generator=None if self.clipper is None else self.generator,
            coordinates=self.coordinates,
            unit=self.unit,
        )

    def _run_lengths(self, start: int, stop: int) -> tuple[tuple[float, int], ...]:
        constant = isinstance(self.schedule, schedules.Parametric) and self.schedule.name == "fixed"
        if constant or self.clipper is None:
            return ((float(self.noise_multipliers(0, 1)[0]), stop - start),)
        if stop - start > MOST_STEPS:
            raise ValueError(
                f"steps={stop - start}: each step of a schedule is charged by itself, at most {MOST_STEPS}; a "
                "piecewise schedule in several plans, or a fixed noise multiplier, has no such limit"
            )
        return run_lengths(self.noise_multipliers(start, stop))

    def ledger(self, steps: int | None = None, state: PyTree = None) -> Ledger:
        """What the first `steps` steps (all by default) will have spent.

        Args:
          steps: how many; 0 for none.
          state: see `entry`; for an adaptive schedule alone.
        """
        steps = self.steps if steps is None else steps
        return Ledger((self.entry(0, steps, state),)) if steps else Ledger()

    def event(self) -> Any:
        """The whole run as a `dp_accounting.DpEvent`, for that library's accountants.

        Under `NeighboringRelation.ADD_OR_REMOVE_ONE` or `REPLACE_SPECIAL` (zero-out); of shuffled batches
        under `REPLACE_SPECIAL` alone.  Under `REPLACE_ONE` the sensitivity is twice what the event says, and
        not every accountant knows it: there take `jaxdp.accounting`.
        """
        from jaxdp.accounting import events  # dp_accounting takes half a second to load

        return events.to_event(self.ledger())

    @property
    def filter(self) -> Filter | None:
        """The filter that bounds an adaptive schedule."""
        return None if self.policy is None else self.policy.filter

    def scaled(self, factor: float) -> "Plan":
        """The plan with its noise multiplier times a factor."""
        noise = self.noise_multiplier
        if noise is None or isinstance(noise, Adaptive):
            raise ValueError(f"noise_multiplier={noise}: is not known beforehand, so it cannot be scaled")
        scaled = schedules.scaled(noise, factor) if callable(noise) else noise * factor
        return dataclasses.replace(self, noise_multiplier=scaled)

    def stretched(self, steps: int) -> "Plan":
        """The plan over another number of steps; a `Parametric` schedule is stretched to it."""
        noise = self.noise_multiplier
        if isinstance(noise, schedules.Parametric):
            noise = noise.stretched(steps)
        return dataclasses.replace(self, noise_multiplier=noise, steps=steps)

    def ending_at(self, end: float) -> "Plan":
        """The plan with another end point of its schedule."""
        noise = self.noise_multiplier
        if not isinstance(noise, schedules.Parametric):
            raise ValueError(f"end={end}: only a schedule of jaxdp.schedules has an end point to choose")
        return dataclasses.replace(self, noise_multiplier=noise.ending_at(end))

    def sized(self, params: PyTree) -> "Plan":
        """The plan for these parameters, with the number of values that a step noises: a gradient's, and those
        that the clipper learns from.
        """
        if self.clipper is None:
            return self
        noised = jax.tree.leaves((params, jax.eval_shape(self.clipper.init, params)))
        return dataclasses.replace(self, coordinates=sum(math.prod(jnp.shape(leaf)) for leaf in noised))

    def sampled_at(self, rate: float) -> "Plan":
        """The plan with another sampling rate, without examples to draw from."""
        return dataclasses.replace(self, sampler=dataclasses.replace(self.sampling, rate=rate))
