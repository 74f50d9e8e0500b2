"""Plans of runs: what a run is going to do, and so what it will have spent, before it starts."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from jaxdp import schedules
from jaxdp.accounting.ledger import Entry, Ledger, Sampling, run_lengths
from jaxdp.clipping import Clipper
from jaxdp.sampling import Sampler


def _any_noise(noise_multipliers: np.ndarray) -> None:
    """Refuses nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that is going to be done.

    Attributes:
      schedule: a name of `schedules.NAMES` or a schedule.
      parameters: of a schedule given by name.
      steps: length of the run.
      sampling: how batches will be drawn.
      scale: factor on the schedule.
      noise_ratio: effective over nominal noise multiplier: noise scale over L2 sensitivity, 1 for flat
        clipping, 1/sqrt(L) for per-layer clipping as published.
      mechanism, charged, private, reasons, seed: as in `jaxdp.ledger.Entry`.
      check: refuses nominal noise multipliers that the clipping cannot work with.
    """

    schedule: str | Callable = "fixed"
    parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    steps: int
    sampling: Sampling
    scale: float = 1.0
    noise_ratio: float = 1.0
    mechanism: str = "flat"
    charged: str = ""
    private: bool = True
    reasons: tuple[str, ...] = ()
    seed: str = "entropy"
    check: Callable[[np.ndarray], None] = _any_noise

    @classmethod
    def of(
        cls,
        clipper: Clipper,
        noise_multiplier: float | schedules.Schedule | None,
        sampler: Sampler,
        *,
        steps: int,
        seed: str = "entropy",
    ) -> "Plan":
        """The plan of a run of `privatize(clipper, noise_multiplier, ...)` on batches of `sampler`.

        Made of the objects that clip, draw noise and draw batches, so that what is accounted for is what is
        done.

        Args:
          clipper: from `jaxdp.clipping`; the plan of one that is not private has no epsilon.
          noise_multiplier: sigma or its schedule; None, which `privatize` takes too, has no plan.
          sampler: from `jaxdp.sampling`.
          steps: length of the run.
          seed: `entropy`, or `given` where `privatize` is given a key.

        Raises:
          ValueError: no noise, noise that is chosen during the run, or steps that are refused.

        >>> import jaxdp
        >>> from jaxdp import accounting
        >>> sampler = jaxdp.sampling.poisson(60_000, 0.01, steps=10_000)
        >>> plan = Plan.of(jaxdp.clipping.flat(4.0), 6.0, sampler, steps=10_000)
        >>> claim = accounting.Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="rdp")
        >>> round(accounting.epsilon(plan.ledger(), claim).value, 4)
        0.6592
        """
        if noise_multiplier is None:
            raise ValueError(
                "noise_multiplier=None: is chosen during the run, which no plan foresees; see jaxdp.filters"
            )
        if not callable(noise_multiplier):
            if not noise_multiplier > 0:
                raise ValueError(f"noise_multiplier={noise_multiplier}: no epsilon to plan without noise")
            noise_multiplier = schedules.constant(noise_multiplier)
        return cls(
            schedule=noise_multiplier,
            steps=steps,
            sampling=sampler.accounted,
            noise_ratio=clipper.noise_to_sensitivity,
            mechanism=clipper.name,
            charged=clipper.charged,
            private=clipper.private,
            reasons=() if clipper.private else (clipper.reason,),
            seed=seed,
            check=clipper.check,
        )

    def __post_init__(self):
        if isinstance(self.steps, bool) or self.steps != int(self.steps) or self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be a whole number >= 1")
        for name in ("scale", "noise_ratio"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: must be finite and > 0")
        if isinstance(self.schedule, str):
            schedules.create(self.schedule, self.steps, **self.parameters)
        elif self.parameters:
            raise ValueError(f"parameters={dict(self.parameters)}: only a schedule given by name takes them")

    def function(self):
        """The schedule of the nominal noise multiplier, scaled: what `privatize` is given."""
        schedule = self.schedule
        if isinstance(schedule, str):
            schedule = schedules.create(schedule, self.steps, **self.parameters)
        return schedule if self.scale == 1 else schedules.scaled(schedule, self.scale)

    def ledger(self) -> Ledger:
        """What the run will have spent, from the function that scales the noise.

        Raises:
          ValueError: noise multipliers that `check` refuses.
        """
        nominal = schedules.values(self.function(), self.steps)
        self.check(nominal)
        sigmas = self.noise_ratio * nominal
        entry = Entry(
            start=0,
            stop=self.steps,
            noise_multipliers=run_lengths(sigmas),
            sampling=self.sampling,
            mechanism=self.mechanism,
            charged=self.charged,
            private=self.private,
            reasons=self.reasons,
            seed=self.seed,
        )
        return Ledger((entry,))


def with_end(plan: Plan, end: float) -> dict[str, float]:
    """The schedule's parameters with another end point.

    Raises:
      ValueError: a schedule without one, or an end that it cannot reach.
    """
    if plan.schedule not in (
        "linear",
        "staircase",
        "exponential",
        "quarter_cosine",
        "inverse_time",
        "polynomial",
    ):
        raise ValueError(f"end={end}: schedule {plan.schedule!r} has no end point")
    if plan.schedule != "quarter_cosine":
        return {**plan.parameters, "end": end}
    start = plan.parameters.get("start", schedules.PUBLISHED_START)
    if not 0 < end < start:
        raise ValueError(f"end={end}: quarter_cosine falls from start={start} to an end in (0, start)")
    return {**plan.parameters, "angle": math.acos(end / start)}


def accounted_noise_multipliers(
    clipper: Clipper, noise_multiplier: schedules.Schedule, steps: int, start: int = 0
) -> np.ndarray:
    """What the accountant charges for: sigma(t) relative to the true sensitivity, float64 [steps].

    For a clipper that is not private these are the published, nominal values.

    Raises:
      ValueError: at some step the clipper itself would spend more than the whole step may.
    """
    values = schedules.values(noise_multiplier, steps, start)
    clipper.check(values, start)
    return values * clipper.noise_to_sensitivity
