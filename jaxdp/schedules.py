"""Privacy parameters as functions of the step.

A schedule maps a step `t` (an integer, possibly traced) to a float32 scalar.  The same family gives the
noise multiplier sigma(t) and the clip bound C(t).  A schedule depends on nothing but the step: this is
what makes summing the privacy loss over steps valid, and what lets one function drive the noise
(`jaxdp.privatize`) and the accountant (`jaxdp.accounting`).

The defaults are the published dynamic noise scales of Wei & Liu, "Gradient Leakage Attack Resilient Deep
Learning" (arXiv 2112.13178): from sigma = 15 down to about 4.85 over the run.  With s = t / steps:

| name             | sigma(s)                                        |
|------------------|-------------------------------------------------|
| `constant`       | `value`                                         |
| `linear`         | `start + (end - start) s`                       |
| `staircase`      | `start + (end - start) floor(stairs s) / stairs`|
| `exponential`    | `start (end / start)^s`                         |
| `quarter_cosine` | `start cos(angle s)`                            |
| `inverse_time`   | `start / (1 + (start / end - 1) s)`             |
| `polynomial`     | `(start - end) (1 - s)^power + end`             |

`piecewise` takes its plateaus one by one.  All of these are `Parametric`: values, equal where their numbers
are. Any other function of the step is a schedule as well.

The last two are the families of Yu et al., "Differentially Private Model Publishing for Deep Learning"
(IEEE S&P 2019), here with the same end points as the others.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdp import _validate

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]

PUBLISHED_FIXED = 6.0  # the fixed noise multiplier the paper compares with
PUBLISHED_START = 15.0
PUBLISHED_END = 4.85  # sqrt(2 ln(1.25 / 1e-5)): epsilon = 1 for one unamplified Gaussian step


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["factor"], meta_fields=["name", "steps", "parameters"]
)
@dataclasses.dataclass(frozen=True)
class Parametric:
    """A schedule that is known by its name and its numbers, so that it can be compared, stretched and scaled.

    As an argument of a compiled function its factor is traced, so that schedules which differ in scale share
    it.

    Attributes:
      name: of the formula, one of `NAMES` or `piecewise`.
      steps: length of the run; 1 where the formula does not depend on it.
      parameters: the formula's numbers by their names.
      factor: what the formula is multiplied by.
    """

    name: str
    steps: int
    parameters: tuple[tuple[str, Any], ...]
    factor: Any = 1.0  # a number, traced inside of a compiled function

    def __call__(self, step):
        value = _FORMULAS[self.name](step, self.steps, **dict(self.parameters))
        return jnp.asarray(self.factor, jnp.float32) * value

    def stretched(self, steps: int) -> "Parametric":
        """The same curve over another number of steps."""
        return self if self.name in ("fixed", "piecewise") else dataclasses.replace(self, steps=steps)

    def ending_at(self, end: float) -> "Parametric":
        """The same curve to another end point (before the factor).

        Raises:
          ValueError: a schedule without one, or an end that it cannot reach.
        """
        parameters = dict(self.parameters)
        if "end" in parameters:
            _validate.positive(end=end)
            changed = {"end": end}
        elif self.name == "quarter_cosine":
            if not 0 < end < parameters["start"]:
                raise ValueError(
                    f"end={end}: quarter_cosine falls from start={parameters['start']} to an end in (0, start)"
                )
            changed = {"angle": math.acos(end / parameters["start"])}
        else:
            raise ValueError(f"end={end}: schedule {self.name!r} has no end point")
        return dataclasses.replace(self, parameters=tuple((parameters | changed).items()))


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """Any schedule times a constant."""

    schedule: Schedule
    factor: float

    def __call__(self, step):
        return jnp.float32(self.factor) * self.schedule(step)


def _fraction(step, steps: int) -> Float[Array, ""]:
    """The elapsed share of the run, held at its end: s = min(t, steps) / steps."""
    return jnp.clip(jnp.asarray(step, jnp.float32), 0, steps) / jnp.float32(steps)


def _constant(step, steps, value):
    return jnp.full(jnp.shape(step), value, jnp.float32)


def _linear(step, steps, start, end):
    return jnp.float32(start) + jnp.float32(end - start) * _fraction(step, steps)


def _staircase(step, steps, start, end, stairs):
    # In whole numbers where they fit, so that no plateau starts a step late by rounding.
    step = jnp.clip(jnp.asarray(step), 0, steps - 1)
    if steps * stairs < 2**31:
        plateau = step.astype(jnp.int32) * stairs // steps
    else:
        plateau = jnp.floor(stairs * _fraction(step, steps))
    return jnp.float32(start) + jnp.float32((end - start) / stairs) * plateau


def _exponential(step, steps, start, end):
    return jnp.float32(start) * jnp.exp(jnp.float32(math.log(end / start)) * _fraction(step, steps))


def _quarter_cosine(step, steps, start, angle):
    return jnp.float32(start) * jnp.cos(jnp.float32(angle) * _fraction(step, steps))


def _inverse_time(step, steps, start, end):
    return jnp.float32(start) / (1 + jnp.float32(start / end - 1) * _fraction(step, steps))


def _polynomial(step, steps, start, end, power):
    remaining = 1 - _fraction(step, steps)
    return jnp.float32(start - end) * remaining ** jnp.float32(power) + jnp.float32(end)


def _piecewise(step, steps, boundaries, values):
    place = jnp.searchsorted(jnp.asarray(boundaries, jnp.int32), jnp.asarray(step), side="right")
    return jnp.asarray(values, jnp.float32)[place]


_FORMULAS: dict[str, Callable[..., Float[Array, ""]]] = {
    "fixed": _constant,
    "linear": _linear,
    "staircase": _staircase,
    "exponential": _exponential,
    "quarter_cosine": _quarter_cosine,
    "inverse_time": _inverse_time,
    "polynomial": _polynomial,
    "piecewise": _piecewise,
}


def _parametric(name: str, steps: int, **parameters: Any) -> Parametric:
    _validate.whole(steps=steps)
    _validate.positive(**parameters)
    return Parametric(name, int(steps), tuple(parameters.items()))


def constant(value: float = PUBLISHED_FIXED) -> Parametric:
    """The same value at every step: the fixed baseline (sigma = 6 in the paper)."""
    return _parametric("fixed", 1, value=value)


def linear(steps: int, start: float = PUBLISHED_START, end: float = PUBLISHED_END) -> Parametric:
    """A straight line from `start` at step 0 towards `end` at step `steps`.

    >>> schedule = linear(steps=10_000)
    >>> print(schedule(0), schedule(5_000))
    15.0 9.925
    """
    return _parametric("linear", steps, start=start, end=end)


def staircase(
    steps: int, start: float = PUBLISHED_START, end: float = PUBLISHED_END, stairs: int = 10
) -> Parametric:
    """`stairs` equal plateaus, each `(start - end) / stairs` below the one before.

    The last plateau is one drop above `end` (5.865 for the published constants).  The authors' code has a
    precedence slip that yields the integers 15, 14, .., 4 instead; this is the schedule that was meant.
    """
    _validate.whole(stairs=stairs)
    return _parametric("staircase", steps, start=start, end=end, stairs=stairs)


def exponential(steps: int, start: float = math.exp(2.71), end: float = math.exp(1.58)) -> Parametric:
    """Geometric decay from `start` to `end`; published as exp(1.13 (1 - s) + 1.58)."""
    return _parametric("exponential", steps, start=start, end=end)


def quarter_cosine(steps: int, start: float = PUBLISHED_START, angle: float = 1.24) -> Parametric:
    """`start cos(angle s)`: slow first, fast later.  The authors call it cyclic; it is monotone.

    Args:
      steps: length of the run.
      start: value at step 0.
      angle: the angle reached at the end, in radians, in (0, pi/2) so that the value stays positive.
    """
    if not 0 < angle < math.pi / 2:
        raise ValueError(f"angle={angle}: must lie in (0, pi/2), where the cosine is positive")
    return _parametric("quarter_cosine", steps, start=start, angle=angle)


def inverse_time(steps: int, start: float = PUBLISHED_START, end: float = PUBLISHED_END) -> Parametric:
    """`start / (1 + k s)` with k chosen so that `end` is reached: fast first, slow later."""
    return _parametric("inverse_time", steps, start=start, end=end)


def polynomial(
    steps: int, start: float = PUBLISHED_START, end: float = PUBLISHED_END, power: float = 2.0
) -> Parametric:
    """`(start - end) (1 - s)^power + end`."""
    return _parametric("polynomial", steps, start=start, end=end, power=power)


def piecewise(boundaries: Sequence[int], values: Sequence[float]) -> Parametric:
    """`values[i]` until step `boundaries[i]` (exclusive); `values[-1]` from the last boundary on.

    Args:
      boundaries: increasing steps, one fewer than `values`.
      values: the plateaus, each finite and positive.

    >>> schedule = piecewise([100, 200], [8.0, 6.0, 5.0])
    >>> [float(schedule(t)) for t in (0, 99, 100, 200, 10_000)]
    [8.0, 8.0, 6.0, 5.0, 5.0]
    """
    if len(values) != len(boundaries) + 1:
        raise ValueError(f"values={list(values)}: needs one more entry than boundaries={list(boundaries)}")
    if any(b <= a for a, b in zip([0, *boundaries], boundaries, strict=False)):
        raise ValueError(f"boundaries={list(boundaries)}: must be increasing steps >= 1")
    for value in values:
        _validate.positive(value=value)
    given = (("boundaries", tuple(map(int, boundaries))), ("values", tuple(map(float, values))))
    return Parametric("piecewise", 1, given)


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """The schedule times a constant: the same shape at another privacy budget."""
    _validate.positive(factor=factor)
    if isinstance(schedule, Parametric):
        return dataclasses.replace(schedule, factor=schedule.factor * factor)
    return _Scaled(schedule, factor)


_BY_NAME: dict[str, Callable[..., Parametric]] = {
    "fixed": lambda steps, value=PUBLISHED_FIXED: constant(value),
    "linear": linear,
    "staircase": staircase,
    "exponential": exponential,
    "quarter_cosine": quarter_cosine,
    "inverse_time": inverse_time,
    "polynomial": polynomial,
}
NAMES = tuple(_BY_NAME)
DYNAMIC = ("linear", "staircase", "exponential", "quarter_cosine")  # the paper's four


def create(name: str, steps: int, **parameters: float) -> Parametric:
    """The schedule called `name` over `steps` steps, with the published constants as defaults.

    Args:
      name: one of `NAMES`.
      steps: length of the run.
      **parameters: what the schedule takes beside `steps`, e.g. `start`, `end`, `value` (of `fixed`).

    Raises:
      ValueError: an unknown name or parameter, or a value that the schedule refuses.
    """
    if name not in _BY_NAME:
        raise ValueError(f"schedule={name!r}: unknown; choose from {', '.join(NAMES)}")
    accepted = [p for p in inspect.signature(_BY_NAME[name]).parameters if p != "steps"]
    for parameter in parameters:
        if parameter not in accepted:
            raise ValueError(
                f"{parameter}={parameters[parameter]}: schedule {name!r} takes {', '.join(accepted)}"
            )
    return _BY_NAME[name](steps=steps, **parameters)


def values(schedule: Schedule, steps: int, start: int = 0) -> np.ndarray:
    """The schedule at steps `start .. start + steps - 1`, as float64 for the accountant, shape [steps].

    Evaluated in float32 by the very function that scales the noise, then widened.  A `Parametric` schedule is
    remembered, being a value; a function may give other numbers tomorrow, and is asked each time.
    """
    if isinstance(schedule, Parametric):
        return _remembered(schedule, steps, start).copy()
    return _evaluated(schedule, steps, start)


def _evaluated(schedule: Schedule, steps: int, start: int) -> np.ndarray:
    with jax.ensure_compile_time_eval():  # a schedule is known, also where a run is built inside a trace
        return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(start, start + steps)), np.float64)


_remembered = functools.lru_cache(maxsize=128)(_evaluated)
