"""The privacy that a schedule spends, before any training.

Epsilon by both accountants, the constant noise multiplier that spends the same, and the privacy statement.
"""

import dataclasses
import json
import math
from typing import Literal

from jaxdp import accounting, calibration, clipping
from jaxdp.accounting.ledger import Sampling
from jaxdp.accounting.statement import privacy_statement
from jaxdp.clipping import adaptive as adaptive_clipping

_PER_LAYER_NOMINAL = (
    "The noise multiplier counts one tensor's clip bound C, but every tensor is clipped to the full C: the"
    " sensitivity of the whole gradient is C sqrt(layers)."
)
_L2_MAX = (
    "l2-max scales the noise by the norms of the private gradients, so the size of the noise itself"
    " reveals them."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to account for."""

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
    sampling: Literal["poisson", "shuffled", "full", "without_replacement"] = "poisson"
    """How batches are drawn. Shuffled batches take one epoch for each 1 / sampling rate steps."""
    delta: float = 1e-5
    """Failure probability."""
    adjacency: Literal["add_or_remove_one", "replace_one", "zero_out"] = "add_or_remove_one"
    """In what neighbouring data sets differ."""
    accountant: Literal["both", "rdp", "pld"] = "both"
    """Which bound."""
    tolerance: float = 0.01
    """Relative width of the bracket by privacy loss distributions."""
    clipping: Literal[
        "flat", "per_layer", "per_layer_published", "automatic", "l2_max", "quantile", "quantile_per_layer"
    ] = "flat"
    """How per-example gradients are bounded."""
    count_noise: float | None = None
    """Of quantile clipping: noise on the count; None for the largest noise multiplier."""
    layers: int | None = None
    """Number of tensors, for per_layer_published."""
    nominal: bool = False
    """For l2_max: print the published number, which is no guarantee."""
    seed_given: bool = False
    """The noise will come from a given seed instead of the system's entropy."""
    target_epsilon: float | None = None
    """Calibrate `--calibrate` to spend this."""
    calibrate: Literal["scale", "steps", "sampling_rate", "end"] = "scale"
    """What to change for `--target-epsilon`."""
    reconstruction: bool = False
    """Add the largest success of any reconstruction attack, early, late and over the whole run."""
    prior: float = 0.1
    """For --reconstruction: the attacker's probability of success before seeing the run."""
    window: int | None = None
    """For --reconstruction: steps of the first and last window; a tenth of the run by default."""
    json: bool = False
    """Print one JSON object."""


def plan_of(config: Config) -> calibration.Plan:
    """The run that the options describe."""
    given = {"value": config.noise_multiplier, "start": config.start}
    if config.schedule != "fixed" and config.noise_multiplier is not None:
        raise ValueError(
            f"noise_multiplier={config.noise_multiplier}: schedule {config.schedule!r} takes start, end "
            f"and scale"
        )
    ratio = 1.0
    if config.clipping == "per_layer_published":
        if config.layers is None or config.layers < 1:
            raise ValueError(f"layers={config.layers}: per_layer_published needs the number of tensors, >= 1")
        ratio = 1 / math.sqrt(config.layers)
    elif config.layers is not None:
        raise ValueError(f"layers={config.layers}: only per_layer_published depends on it")
    parameters = {name: value for name, value in given.items() if value is not None}
    plan = calibration.Plan(
        schedule=config.schedule,
        parameters=parameters,
        steps=config.steps,
        sampling=_sampling(config),
        scale=config.scale,
        noise_ratio=ratio,
        mechanism=config.clipping,
        private=config.clipping != "l2_max",
        reasons=(_L2_MAX,) if config.clipping == "l2_max" else (),
        seed="given" if config.seed_given else "entropy",
    )
    if config.end is None:
        return plan
    return dataclasses.replace(plan, parameters=calibration.with_end(plan, config.end))


def _sampling(config: Config) -> Sampling:
    if config.sampling == "full":
        rate = 1.0 if config.sampling_rate is None else config.sampling_rate
        return Sampling(kind="full", rate=rate)
    rate = 0.01 if config.sampling_rate is None else config.sampling_rate
    if config.sampling == "shuffled":
        if not 0 < rate <= 1:
            raise ValueError(f"sampling_rate={rate}: must lie in (0, 1]")
        return Sampling(kind="shuffled", rate=rate, steps_per_epoch=math.floor(1 / rate + 1e-9))
    return Sampling(kind=config.sampling, rate=rate)


def _with_counts(plan: calibration.Plan, config: Config) -> tuple[calibration.Plan, str | None]:
    """The plan with what quantile clipping charges for its counts, and a line that says how noise is shared."""
    if not config.clipping.startswith("quantile"):
        if config.count_noise is not None:
            raise ValueError(f"count_noise={config.count_noise}: only quantile clipping counts")
        return plan, None
    sigmas = plan.ledger().sigmas()
    count_noise = float(sigmas.max()) if config.count_noise is None else config.count_noise
    # The expected batch size and the first bound move the bound, not the charge.
    clipper = clipping.create(config.clipping, 1.0, expected_batch_size=1.0, count_noise=count_noise)
    clipper.check(sigmas)
    ends = [adaptive_clipping.gradient_noise_multiplier(s, count_noise) for s in (sigmas.min(), sigmas.max())]
    span = f"{ends[0]:.4g}" if ends[0] == ends[1] else f"{ends[0]:.4g} to {ends[1]:.4g}"
    note = (
        f"count noise {count_noise:.4g}: the gradient's own noise multiplier is {span}; the pair is charged"
    )
    return dataclasses.replace(plan, charged=clipper.charged), note


def answer(config: Config) -> dict:
    """All that is printed, as data: `epsilons`, `matched_constant`, `statement` and the calibrated plan."""
    if config.nominal and config.clipping != "l2_max":
        raise ValueError(f"nominal=True: {config.clipping!r} is private, its epsilon is a guarantee")
    plan = plan_of(config)
    settings = dict(delta=config.delta, adjacency=config.adjacency)
    accountants = ("rdp", "pld") if config.accountant == "both" else (config.accountant,)
    claims = [accounting.Claim(**settings, accountant=name) for name in accountants]
    if config.target_epsilon is not None:
        plan = calibration.calibrate(
            plan,
            config.target_epsilon,
            config.calibrate,
            accountant=accountants[0],
            tolerance=config.tolerance,
            **settings,
        )
    plan, note = _with_counts(plan, config)
    ledger = plan.ledger()
    found = [
        accounting.epsilon(ledger, claim, nominal=config.nominal, tolerance=config.tolerance)
        for claim in claims
    ]
    result: dict = {
        "schedule": config.schedule,
        "steps": plan.steps,
        "sampling_rate": plan.sampling.rate,
        "scale": plan.scale,
        "parameters": dict(plan.parameters),
        "epsilons": found,
        "matched_constant": _matched(ledger, found[0], config),
        "statement": privacy_statement(ledger, min(found, key=lambda e: e.value)),
    }
    note = _PER_LAYER_NOMINAL if config.clipping == "per_layer_published" else note
    if note is not None:
        result["note"] = note
    if config.reconstruction:
        from jaxdp.accounting import reconstruction

        result["reconstruction"] = reconstruction.windows(
            ledger, config.prior, adjacency=config.adjacency, length=config.window, tolerance=config.tolerance
        )
    elif config.window is not None:
        raise ValueError(f"window={config.window}: only --reconstruction looks at windows")
    return result


def _matched(ledger, epsilon, config) -> float | None:
    if not 0 < epsilon.value < math.inf:
        return None
    return calibration.matched_constant(
        ledger,
        delta=config.delta,
        adjacency=config.adjacency,
        accountant=epsilon.accountant,
        tolerance=config.tolerance,
        nominal=config.nominal,
        target=epsilon.value,
    )


def run(config: Config) -> None:
    """Prints the answer, as text or JSON."""
    result = answer(config)
    if config.json:
        print(json.dumps(_plain(result)))
        return
    for epsilon in result["epsilons"]:
        print(epsilon)
    if config.target_epsilon is not None:
        changed = {
            "scale": result["scale"],
            "steps": result["steps"],
            "sampling_rate": result["sampling_rate"],
        }
        value = changed.get(
            config.calibrate, result["parameters"].get("end", result["parameters"].get("angle"))
        )
        print(f"calibrated {config.calibrate} = {value:.6g} for epsilon = {config.target_epsilon:g}")
    if result["matched_constant"] is not None:
        print(f"matched constant noise multiplier (effective): {result['matched_constant']:.3f}")
    if "note" in result:
        print(result["note"])
    if "reconstruction" in result:
        _print_windows(result["reconstruction"], config.prior)
    print(f"\n{result['statement']}")


def _print_windows(windows, prior: float) -> None:
    print(f"no reconstruction attack that succeeds with probability {prior:g} beforehand does better than")
    print(f"  {'after seeing':<24} {'sums released':>14} {'example known in every step':>28}")
    for row in windows:
        print(f"  {row.name:<24} {row.released:>14.4f} {row.seen:>28.4f}")


def _plain(result: dict) -> dict:
    """Without dataclasses and without infinities, which JSON does not have."""
    plain = {**result, "statement": result["statement"].to_dict()}
    plain["epsilons"] = [dataclasses.asdict(e) for e in result["epsilons"]]
    if "reconstruction" in plain:
        plain["reconstruction"] = [dataclasses.asdict(row) for row in result["reconstruction"]]
    return json.loads(json.dumps(plain), parse_constant=lambda _: None)
