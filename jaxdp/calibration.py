"""What makes a plan spend a given epsilon.

`calibrate` changes one thing about a `Plan` (the scale of its noise, its length, its sampling rate, the end
point of its schedule) until epsilon, mu or a reconstruction bound is met, from below: the calibrated plan never
spends more than was asked.
The search may approximate; what it finds is accepted only by the exact accountant.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp import _validate, accounting, sampling, schedules
from jaxdp.accounting import Claim, gdp, pld, reconstruction
from jaxdp.accounting.compressed import Compressed
from jaxdp.accounting.ledger import Ledger
from jaxdp.accounting.pld import Steps
from jaxdp.plan import MOST_STEPS, Plan
from jaxdp.sampling import Sampler

WHAT = ("scale", "steps", "sampling_rate", "end")
_SAMPLES = 512  # steps that stand for a schedule in the first, rough search
_MARGIN = 3e-7  # the search stays this far below the target: noise multipliers are float32
_PAD = 4096  # schedules are evaluated at multiples of this many steps, so that few shapes are compiled


def calibrate(
    plan: Plan,
    epsilon: float | None = None,
    claim: Claim | None = None,
    what: str = "scale",
    *,
    mu: float | None = None,
    reconstruction_bound: float | None = None,
    prior: float = 0.1,
    tolerance: float = pld.TOLERANCE,
) -> Plan:
    """The plan with one thing changed so that it spends this much, and no more.

    Args:
      plan: where to start.
      epsilon: the target, > 0; or instead of it one of the next two, which hang on no single point of the curve
        delta(epsilon): plans of equal epsilon may give away unequally much.
      claim: at which delta, adjacency and by which accountant; `pld` meets the target with its upper bound,
        within `tolerance`.
      what: `scale` (smallest factor on the noise multiplier), `steps` (largest number; a schedule of
        `jaxdp.schedules` is stretched to it), `sampling_rate` (largest; Poisson, truncated or not, and without
        replacement) or `end` (smallest end point of the schedule).
      mu: of Gaussian differential privacy, see `accounting.gdp`; by privacy loss distributions.
      reconstruction_bound: the largest success of any reconstruction from the whole run, see
        `accounting.reconstruction`; by privacy loss distributions.
      prior: for `reconstruction_bound`, the success without the run.
      tolerance: as `accounting.epsilon`.

    Raises:
      ValueError: not one target, one that nothing reaches, a plan that is not private, noise that its clipper
        refuses.

    Warns:
      UserWarning: the most steps that are looked for spend less than the target.
    """
    targets = dict(epsilon=epsilon, mu=mu, reconstruction_bound=reconstruction_bound)
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1 or claim is None:
        raise ValueError(
            f"{', '.join(f'{k}={v}' for k, v in targets.items())}, claim={claim}: need one, and a claim"
        )
    ((name, target),) = given.items()
    _validate.positive(**given)
    _validate.one_of(WHAT, what=what)
    if what == "sampling_rate" and plan.sampling.kind not in (
        "poisson",
        "truncated_poisson",
        "without_replacement",
    ):
        raise ValueError(f"what={what!r}: {plan.sampling.kind} batches have no sampling rate to choose")
    if not plan.private:
        accounting.epsilon(plan.ledger(), claim)  # raises, saying why
    # The search may try noise that the clipper would refuse; what it finds is looked at by the clipper itself.
    assert plan.clipper is not None
    free = dataclasses.replace(
        plan, clipper=dataclasses.replace(plan.clipper, noise_multiplier_limit=math.inf)
    )
    if name == "epsilon":
        value = _searched(free, what, target, claim, tolerance)
    else:
        value = _searched_by_curve(free, what, name, target, claim, prior, tolerance)
    found = _with_sampler(_set(plan, what, value), plan)
    found.noise_multipliers(0, min(found.steps, MOST_STEPS))
    if what == "steps" and value == MOST_STEPS:
        warnings.warn(
            f"steps={MOST_STEPS}: the most that are looked for; they spend less than {name}={target:g}",
            stacklevel=2,
        )
    return found


def _searched_by_curve(
    plan: Plan, what: str, name: str, target: float, claim: Claim, prior: float, tolerance: float
) -> float:
    """The value at which the curve delta(epsilon) meets a target other than epsilon: roughly, then closely."""
    if name == "reconstruction_bound":
        _validate.between(prior, 1, reconstruction_bound=target)

    def measured(value: float, fineness: float) -> float:
        ledger = _set(plan, what, value).ledger()
        curve = reconstruction.curve(ledger, claim.adjacency, tolerance=fineness)
        if name == "mu":
            return gdp.mu_of(curve, claim.delta)
        return reconstruction.of_curve(curve, prior) - prior

    aim = target if name == "mu" else target - prior
    start = _solve(lambda value: measured(value, 0.05), what, aim, _value(plan, what), 0.02, 0.3)
    found = _solve(lambda value: measured(value, tolerance), what, aim, start, tolerance / 5, 0.02)
    if name == "mu" and gdp.gdp(_set(plan, what, found).ledger(), claim, tolerance=tolerance).mu is None:
        raise ValueError(f"mu={target:g}: the curve of the plan that reaches it is no Gaussian's")
    return found


def _searched(plan: Plan, what: str, epsilon: float, claim: Claim, tolerance: float) -> float:
    aim = epsilon * (1 - (0 if what == "steps" else _MARGIN))
    start, near = _value(plan, what), 0.05
    for spent in _approximations(plan, what, claim):
        start = _solve(spent, what, aim, start, 1e-7, near)
        near = 1e-4
    exact = _exact(plan, what, claim, tolerance)
    if claim.accountant == "rdp":
        return _settle(exact, what, epsilon, start)
    return _solve(exact, what, epsilon, start, tolerance / 50)


def _set(plan: Plan, what: str, value: float) -> Plan:
    if what == "scale":
        return plan.scaled(value)
    if what == "steps":
        return dataclasses.replace(plan, sampler=plan.sampling).stretched(round(value))  # of any number
    return plan.sampled_at(value) if what == "sampling_rate" else plan.ending_at(value)


def _with_sampler(found: Plan, plan: Plan) -> Plan:
    """The plan with a sampler that draws as it is charged, where the one it came from drew batches."""
    if not isinstance(plan.sampler, Sampler):
        return found
    if (found.steps, found.sampling) == (plan.steps, plan.sampling):
        return dataclasses.replace(found, sampler=plan.sampler)
    limit = found.sampling.batch_size_limit
    made = sampling.create(plan.sampler.kind, plan.sampler.examples, found.sampling.rate, found.steps, limit)
    return dataclasses.replace(found, sampler=made)


def _value(plan: Plan, what: str) -> float:
    if what == "end":
        plan.ending_at(1e-3)
        assert isinstance(plan.noise_multiplier, schedules.Parametric)
        base = dataclasses.replace(plan.noise_multiplier, factor=1.0)
        return float(schedules.values(base, 1, plan.steps)[0])
    return {"scale": 1.0, "steps": plan.steps, "sampling_rate": max(plan.sampling.rate, 1e-9)}[what]


def _exact(plan: Plan, what: str, claim: Claim, tolerance: float) -> Callable[[float], float]:
    return lambda value: (
        accounting.epsilon(_set(plan, what, value).ledger(), claim, tolerance=tolerance).value
    )


def _approximations(plan: Plan, what: str, claim: Claim) -> list[Callable[[float], float]]:
    """Epsilon by RDP as a function of the value, as fast as it can be had: a rough one, if that helps, and a
    close one.
    """
    limited = plan.sampling.kind == "truncated_poisson"  # whose parts follow the rate
    if what == "scale" or (what == "sampling_rate" and not limited):
        compressed = Compressed(accounting.runs(plan.ledger(), claim.adjacency), claim.adjacency)
        if what == "scale":
            return [lambda value: compressed.epsilon(claim.delta, scale=value)]
        return [lambda value: compressed.epsilon(claim.delta, rate=value)]

    def spent(value: float, samples: int) -> float:
        changed = _set(plan, what, value)
        if limited or changed.sampling.kind == "shuffled":  # whose epochs cannot be sampled
            runs = accounting.runs(changed.ledger(), claim.adjacency)
        else:
            runs = [_sampled(changed, samples)]
        return Compressed(runs, claim.adjacency).epsilon(claim.delta)

    return [lambda value: spent(value, _SAMPLES), lambda value: spent(value, MOST_STEPS)]


def _sampled(plan: Plan, samples: int) -> Steps:
    """At most so many steps, evenly spread, each for its share of all."""
    assert plan.schedule is not None and plan.clipper is not None
    samples = min(samples, plan.steps)
    padded = -(-samples // _PAD) * _PAD if samples > _SAMPLES else samples
    steps = np.minimum((np.arange(padded) + 0.5) * (plan.steps / samples), plan.steps - 1)
    sigmas = np.asarray(jax.vmap(plan.schedule)(jnp.asarray(steps.astype(np.int32))), float)[:samples]
    distinct, counts = np.unique(plan.clipper.noise_to_sensitivity * sigmas, return_counts=True)
    return Steps(plan.sampling.rate, distinct, counts * (plan.steps / samples))


def _limits(what: str) -> tuple[float, float, int]:
    """Smallest and largest value, and whether epsilon rises (+1) or falls (-1) with it."""
    return {
        "scale": (1e-6, 1e9, -1),
        "steps": (1, MOST_STEPS, 1),
        "sampling_rate": (1e-12, 1.0, 1),
        "end": (1e-3, 1e9, -1),
    }[what]


def _solve(
    spent: Callable[[float], float], what: str, target: float, guess: float, precision: float, near=0.05
) -> float:
    """A value that spends at most the target, within a relative precision of spending it exactly; the guess
    is about as close as `near`.
    """
    smallest, largest, sign = _limits(what)
    whole = what == "steps"

    def error(value):  # > 0: too much is spent
        return math.log(min(max(spent(value), 1e-15), 1e15) / target)

    good = bad = None
    good_error = bad_error = 0.0
    value, factor = min(max(guess, smallest), largest), 1 + near
    while good is None or bad is None:
        e = error(value)
        if e > 0:
            bad, bad_error = value, e
        else:
            good, good_error = value, e
        if good is not None and bad is not None:
            break
        towards = 1 if (e > 0) == (sign < 0) else -1
        if value == (largest if towards > 0 else smallest):
            if good is not None:
                return good
            raise ValueError(f"epsilon={target:g}: not reached by any {what} in [{smallest:g}, {largest:g}]")
        step = max(abs(e) * 1.3, math.log(factor)) * towards
        factor = factor**2
        value = min(max(value * math.exp(min(max(step, -6), 6)), smallest), largest)
        if whole:
            value = (
                round(value) if round(value) != (bad if good is None else good) else round(value) + towards
            )
    side = 0
    for _ in range(60):
        if abs(math.log(good / bad)) <= precision or (whole and abs(good - bad) <= 1):
            break
        share = bad_error / (bad_error - good_error)
        value = bad * (good / bad) ** min(max(share, 0.01), 0.99)
        if whole:
            low, high = sorted((good, bad))
            value = min(max(round(value), low + 1), high - 1)
        e = error(value)
        if e > 0:
            bad, bad_error = value, e
            good_error = good_error / 2 if side == 1 else good_error
            side = 1
        else:
            good, good_error = value, e
            bad_error = bad_error / 2 if side == -1 else bad_error
            side = -1
        if not whole and 0 <= -e < precision:
            break
    return good


def _settle(exact: Callable[[float], float], what: str, target: float, value: float) -> float:
    """The value moved to the safe side until the exact accountant agrees."""
    sign = _limits(what)[2]
    step = 1e-9
    while exact(value) > target:
        value = value - 1 if what == "steps" else value * (1 - sign * step)
        step *= 8
    return value


def matched_constant(
    ledger: Ledger,
    claim: Claim,
    *,
    tolerance: float = pld.TOLERANCE,
    nominal: bool = False,
    target: float | None = None,
) -> float:
    """The constant noise multiplier that, over the same steps and sampling, spends the same epsilon.

    Args and errors as `accounting.epsilon`; `target` is the ledger's epsilon, where it is known already.
    """

    def spent(steps: Ledger) -> float:
        return accounting.epsilon(steps, claim, tolerance=tolerance, nominal=nominal).value

    def constant(value: float) -> Ledger:
        return Ledger(
            tuple(
                dataclasses.replace(e, noise_multipliers=((value, e.stop - e.start),)) for e in ledger.entries
            )
        )

    target = spent(ledger) if target is None else target
    if not 0 < target < math.inf:
        raise ValueError(f"epsilon={target}: no constant noise multiplier is singled out by it")
    guess = accounting.equivalent_noise_multiplier(ledger)
    precision = 1e-7 if claim.accountant == "rdp" else tolerance / 50
    return _solve(lambda value: spent(constant(value)), "scale", target, guess, precision)
