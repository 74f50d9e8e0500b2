"""The privacy that a schedule spends, before any training.

Epsilon by both accountants, the constant noise multiplier that spends the same, and the privacy statement.
"""

import dataclasses
import json
import math
from typing import Any, Literal

import tyro

from jaxdp import _validate, accounting, calibration, clipping, sampling, schedules
from jaxdp.accounting import Claim
from jaxdp.accounting.ledger import Sampling
from jaxdp.accounting.statement import privacy_statement
from jaxdp.clipping import Clipper
from jaxdp.plan import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """The run."""

    schedule: Literal[
        "fixed", "linear", "staircase", "exponential", "quarter_cosine", "inverse_time", "polynomial"
    ] = "fixed"
    """Noise multiplier over the run."""
    noise_multiplier: float | None = None
    """Of the fixed schedule (published: 6)."""
    start: float | None = None
    """Noise multiplier at the first step of a dynamic schedule (published: 15)."""
    end: float | None = None
    """Noise multiplier at the last step of a dynamic schedule (published: 4.85)."""
    scale: float = 1.0
    """Factor on the whole schedule."""
    steps: int = 10_000
    """Length of the run."""
    sampling_rate: float | None = None
    """Probability that an example takes part in a step (published: 0.01)."""
    sampling: Literal["poisson", "truncated_poisson", "shuffled", "full", "without_replacement"] = "poisson"
    """How batches are drawn. Shuffled batches take one epoch for each 1 / sampling rate steps."""
    batch_size_limit: int | None = None
    """Of truncated_poisson: the most examples of a step; None for what one step in a million passes."""
    unit: str = "example"
    """What is protected: example, or user and the like where all examples of one are put together."""
    clipping: Literal[
        "flat", "automatic", "per_layer", "per_layer_published", "l2_max", "preconditioned", "quantile",
        "quantile_per_layer",
    ] = "flat"  # fmt: skip
    """How per-example gradients are bounded."""
    count_noise: float | None = None
    """Of quantile clipping: noise on the count; None for the largest noise multiplier."""
    layers: int | None = None
    """Number of tensors, for per_layer_published."""
    seed_given: bool = False
    """The noise will come from a given seed instead of the system's entropy."""
    examples: int | None = None
    """Number of examples, for truncated_poisson, and for a warning where delta is not below one over it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claimed:
    """The claim."""

    delta: float = 1e-5
    """Failure probability."""
    adjacency: Literal["add_or_remove_one", "replace_one", "zero_out"] = "add_or_remove_one"
    """In what neighbouring data sets differ."""
    accountant: Literal["both", "rdp", "pld"] = "both"
    """Which bound; what is calibrated meets its target by pld unless rdp is asked for, and is shown by both."""
    tolerance: float = 0.01
    """Relative width of the bracket by privacy loss distributions."""
    nominal: bool = False
    """For l2_max: print the published number, which is no guarantee."""
    target_epsilon: float | None = None
    """Calibrate `--calibrate` to spend this."""
    calibrate: Literal["scale", "steps", "sampling_rate", "end"] = "scale"
    """What to change for `--target-epsilon`."""
    parameters: int | None = None
    """Number of parameters, all noised by each step: shows what the error of the noise's generator adds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What is shown beside it."""

    reconstruction: bool = False
    """Add the largest success of any reconstruction attack, early, late and over the whole run."""
    prior: float = 0.1
    """For --reconstruction: the attacker's probability of success before seeing the run."""
    window: int | None = None
    """For --reconstruction: steps of the first and last window; a tenth of the run by default."""
    json: bool = False
    """Print one JSON object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to account for."""

    plan: tyro.conf.OmitArgPrefixes[Planned] = dataclasses.field(default_factory=Planned)
    claim: tyro.conf.OmitArgPrefixes[Claimed] = dataclasses.field(default_factory=Claimed)
    show: tyro.conf.OmitArgPrefixes[Shown] = dataclasses.field(default_factory=Shown)


def plan_of(planned: Planned) -> Plan:
    """The run that the options describe."""
    if planned.schedule != "fixed" and planned.noise_multiplier is not None:
        raise ValueError(
            f"noise_multiplier={planned.noise_multiplier}: schedule {planned.schedule!r} takes start, end "
            "and scale"
        )
    if (planned.clipping == "per_layer_published") != (planned.layers is not None):
        raise ValueError(
            f"layers={planned.layers}: the number of tensors, exactly for per_layer_published clipping"
        )
    counts = planned.clipping.startswith("quantile")
    if planned.count_noise is not None and not counts:
        raise ValueError(f"count_noise={planned.count_noise}: only quantile clipping counts")
    given = {"value": planned.noise_multiplier, "start": planned.start}
    named = {name: value for name, value in given.items() if value is not None}
    noise = schedules.scaled(schedules.create(planned.schedule, planned.steps, **named), planned.scale)
    plan = Plan(
        clipper=clipping.flat(1.0) if counts else _clipper(planned),
        noise_multiplier=noise,
        sampler=_sampling(planned),
        steps=planned.steps,
        seed=0 if planned.seed_given else None,
        unit=planned.unit,
    )
    return plan if planned.end is None else plan.ending_at(planned.end)


def _clipper(planned: Planned, count_noise: float | None = None) -> Clipper:
    """The clipper; neither its bound nor the batch size, of which counts are a share, moves what is charged."""
    counting = dict(count_noise=count_noise) if count_noise is not None else {}
    return clipping.create(
        planned.clipping, 1.0, layers=planned.layers or 1, expected_batch_size=1.0, **counting
    )


def _sampling(planned: Planned) -> Sampling:
    if planned.sampling == "full":
        return Sampling(kind="full", rate=1.0 if planned.sampling_rate is None else planned.sampling_rate)
    rate = 0.01 if planned.sampling_rate is None else planned.sampling_rate
    limit = planned.batch_size_limit
    if planned.sampling == "truncated_poisson":
        if planned.examples is None:
            raise ValueError(
                "examples=None: what truncated_poisson batches spend depends on how many there are"
            )
        limit = sampling.default_limit(planned.examples, rate) if limit is None else limit
        return Sampling(kind=planned.sampling, rate=rate, examples=planned.examples, batch_size_limit=limit)
    if limit is not None:
        raise ValueError(f"batch_size_limit={limit}: only truncated_poisson batches have a limit")
    if planned.sampling == "shuffled":
        _validate.share(sampling_rate=rate)
        return Sampling(kind="shuffled", rate=rate, steps_per_epoch=math.floor(1 / rate + 1e-9))
    return Sampling(kind=planned.sampling, rate=rate)


def _counting(plan: Plan, planned: Planned) -> tuple[Plan, str]:
    """The plan with what quantile clipping charges for its counts, and how noise is shared between both."""
    sigmas = plan.noise_multipliers()
    count_noise = float(sigmas.max()) if planned.count_noise is None else planned.count_noise
    clipper = _clipper(planned, count_noise)
    clipper.check(sigmas)
    least, most = (float(clipper.gradient_noise(s)) for s in (sigmas.min(), sigmas.max()))
    span = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
    note = f"count noise {count_noise:.4g}: the gradient's own noise multiplier is {span}"
    return dataclasses.replace(plan, clipper=clipper), f"{note}; the pair is charged"


def answer(config: Config) -> dict[str, Any]:
    """All that is printed, as data: `epsilons`, `matched_constant`, `statement` and the calibrated plan."""
    planned, claimed = config.plan, config.claim
    if claimed.nominal and planned.clipping != "l2_max":
        raise ValueError(f"nominal=True: {planned.clipping!r} is private, its epsilon is a guarantee")
    if claimed.parameters is not None:
        _validate.whole(parameters=claimed.parameters)
    plan = dataclasses.replace(plan_of(planned), coordinates=claimed.parameters)
    claims, note = _claims(claimed), ""
    if claimed.target_epsilon is not None:
        _validate.positive(target_epsilon=claimed.target_epsilon)
        plan = calibration.calibrate(
            plan, claimed.target_epsilon, claims[0], claimed.calibrate, tolerance=claimed.tolerance
        )
    if planned.clipping.startswith("quantile"):
        plan, note = _counting(plan, planned)
    ledger, options = plan.ledger(), dict(nominal=claimed.nominal, tolerance=claimed.tolerance)
    found = [accounting.epsilon(ledger, claim, **options) for claim in claims]
    noise, matched = plan.schedule, None
    assert isinstance(noise, schedules.Parametric)
    if 0 < found[0].value < math.inf:
        matched = calibration.matched_constant(ledger, claims[0], target=found[0].value, **options)
    stated = privacy_statement(ledger, min(found, key=lambda e: e.value), examples=planned.examples)
    return {
        "schedule": planned.schedule,
        "steps": plan.steps,
        "sampling_rate": plan.sampling.rate,
        "scale": float(noise.factor),
        "parameters": dict(noise.parameters),
        "epsilons": found,
        "matched_constant": matched,
        "statement": stated,
        **({"note": note} if note else {}),
        **_windows(ledger, config),
    }


def _claims(claimed: Claimed) -> list[Claim]:
    """The claims that are shown, the one that meets a target first; both where one is met."""
    first = "pld" if claimed.accountant == "both" else claimed.accountant
    both = claimed.accountant == "both" or claimed.target_epsilon is not None
    names = [first, *(name for name in accounting.ACCOUNTANTS if both and name != first)]
    return [Claim(delta=claimed.delta, adjacency=claimed.adjacency, accountant=name) for name in names]


def _windows(ledger, config: Config) -> dict[str, Any]:
    from jaxdp.accounting import reconstruction

    show, claimed = config.show, config.claim
    if not show.reconstruction:
        if show.window is not None:
            raise ValueError(f"window={show.window}: only --reconstruction looks at windows")
        return {}
    options = dict(adjacency=claimed.adjacency, length=show.window, tolerance=claimed.tolerance)
    return {"reconstruction": reconstruction.windows(ledger, show.prior, **options)}


def run(config: Config) -> None:
    """Prints the answer, as text or JSON."""
    result, claimed = answer(config), config.claim
    if config.show.json:
        print(json.dumps(_plain(result)))
        return
    for epsilon in result["epsilons"]:
        print(epsilon)
    if claimed.target_epsilon is not None:
        parameters = result["parameters"]
        end = parameters.get("end", parameters.get("angle"))
        value = {**result, "end": end}[claimed.calibrate]
        by = result["epsilons"][0].accountant.upper()
        print(
            f"calibrated {claimed.calibrate} = {value:.6g} for epsilon = {claimed.target_epsilon:g} by {by}"
        )
    if result["matched_constant"] is not None:
        print(f"matched constant noise multiplier (effective): {result['matched_constant']:.3f}")
    if "note" in result:
        print(result["note"])
    if "reconstruction" in result:
        _print_windows(result["reconstruction"], config.show.prior)
    print(f"\n{result['statement']}")


def _print_windows(windows, prior: float) -> None:
    print(f"no reconstruction attack that succeeds with probability {prior:g} beforehand does better than")
    print(f"  {'after seeing':<24} {'sums released':>14} {'example known in every step':>28}")
    for row in windows:
        print(f"  {row.name:<24} {row.released:>14.4f} {row.seen:>28.4f}")


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """Without dataclasses and without infinities, which JSON does not have."""
    plain = {**result, "statement": result["statement"].to_dict()}
    for name in {"epsilons", "reconstruction"} & set(plain):
        plain[name] = [dataclasses.asdict(row) for row in result[name]]
    return json.loads(json.dumps(plain), parse_constant=lambda _: None)
