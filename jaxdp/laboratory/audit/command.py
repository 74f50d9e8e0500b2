"""Audit the training step: measure from the outside what it reveals, and hold it against the epsilon claimed.

Exit code 0 where every claim stands, 1 where one is refuted.  An audit refutes claims; it proves none.
"""

import dataclasses
import itertools
import json
import pathlib
import time
from collections import Counter
from typing import Any, Literal, NamedTuple

import jax

from jaxdp import _validate, noise, records
from jaxdp.laboratory.audit import audit, canaries
from jaxdp.laboratory.audit.audit import Finding
from jaxdp.laboratory.console import line
from jaxdp.laboratory.records import audit_record
from jaxdp.training.config import TrainConfig

Mechanism = Literal[
    "flat", "per_layer", "per_layer_published", "automatic", "scheduled", "quantile", "l2_max"
]
Sigma = Literal["fixed", "dynamic"]
# How each example is bounded: what the configuration of a training run says of it.
MECHANISMS: dict[Mechanism, dict[str, Any]] = {
    "flat": dict(clipping="flat"),
    "per_layer": dict(clipping="per_layer"),
    "per_layer_published": dict(clipping="per_layer_published"),
    "automatic": dict(clipping="automatic"),
    "scheduled": dict(clipping="flat", l2_norm_clip=2.0, l2_norm_clip_end=0.5),
    "quantile": dict(clipping="quantile", count_noise=2.0),
    "l2_max": dict(clipping="l2_max"),
}
CLAIMED: tuple[Mechanism, ...] = tuple(name for name in MECHANISMS if name != "l2_max")
SIGMAS: tuple[Sigma, ...] = ("fixed", "dynamic")
# One step on the full batch, or a few on Poisson batches: what is left of the noise then is Gaussian, or mixed.
_DIRECT: dict[Sigma, dict[str, Any]] = {
    "fixed": dict(steps=1, sampling="full", sampling_rate=1.0),
    "dynamic": dict(steps=4, sampling="poisson", sampling_rate=0.5),
}
_ONE_RUN: dict[str, Any] = dict(steps=20, sampling="poisson", sampling_rate=0.1)
_DIRECT_SHARE = 0.1  # of the probability of error: the direct test hardly needs it, the other does
NOT_PROVED = (
    "'stands' says: not refuted by these canaries, statistics and sizes, on this machine. It is no proof.",
    "Noise is examined by the direct test alone, in 13 coordinates that no example touches: its deviation, "
    "distribution, rounding, and dependence of two coordinates. Other faults of it pass.",
    "It audits the step of jaxdp on a small model, not your data, your loss or what else you publish.",
    "It takes the random numbers as ideal, and cannot see who knows the seed.",
    "One run with a few thousand canaries cannot show more than a few nats, whatever the mechanism leaks.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to audit, and how closely."""

    mechanisms: tuple[Mechanism, ...] = CLAIMED
    """Clipping; l2_max, for which nothing is claimed, is held against the nominal epsilon of its authors."""
    sigmas: tuple[Sigma, ...] = SIGMAS
    """Noise multipliers: fixed, or falling linearly from 1.5 to 0.75 times --noise-multiplier."""
    methods: tuple[audit.Method, ...] = audit.METHODS
    """Many short runs with and without one canary; one longer run with many."""
    noise_multiplier: float = 1.0
    """sigma: the smaller, the more an audit can see."""
    adjacency: Literal["add_or_remove_one", "replace_one", "zero_out"] = "add_or_remove_one"
    """What neighbouring data sets are."""
    delta: float = 1e-5
    """delta of the claims and of the bounds."""
    draws: int = 300_000
    """Steps with, and as many without, the canary of the direct test: shared by the runs that they make up."""
    canaries: int = 2000
    """Canaries of the one run."""
    confidence: float = 0.95
    """Probability that all lower bounds hold at once."""
    seed: int | None = None
    """Seed of the audited runs; None takes the system's entropy."""
    output: pathlib.Path = pathlib.Path("runs/audit")
    """Folder of the record."""
    json: bool = False
    """Print the record instead of the table."""

    def __post_init__(self):
        _validate.between(0, 1, confidence=self.confidence)
        _validate.whole(2, draws=self.draws)
        _validate.whole(canaries=self.canaries)
        _validate.positive(noise_multiplier=self.noise_multiplier)
        for name in ("mechanisms", "sigmas", "methods"):
            if not getattr(self, name):
                raise ValueError(f"{name}=(): nothing to audit")


class Row(NamedTuple):
    """One audit of the table."""

    mechanism: Mechanism
    sigma: Sigma
    method: audit.Method
    config: TrainConfig


def rows(config: Config) -> list[Row]:
    """All combinations, as the training runs that are audited."""
    sigma = config.noise_multiplier
    schedules: dict[Sigma, dict[str, Any]] = {
        "fixed": dict(schedule="fixed", noise_multiplier=sigma),
        "dynamic": dict(schedule="linear", start=1.5 * sigma, end=0.75 * sigma),
    }
    common: dict[str, Any] = dict(
        delta=config.delta, adjacency=config.adjacency, accountant="pld", learning_rate=1.0,
        noise_seed=0,  # replaced by the audit's own keys
    )  # fmt: skip
    found = []
    for mechanism, name, method in itertools.product(config.mechanisms, config.sigmas, config.methods):
        lengths = _DIRECT[name] | {"microbatch_size": 3} if method == "direct" else _ONE_RUN
        run = TrainConfig.of(**common, **schedules[name], **MECHANISMS[mechanism], **lengths)
        found.append(Row(mechanism=mechanism, sigma=name, method=method, config=run))
    return found


def alphas(table: list[Row], confidence: float) -> dict[str, float]:
    """The probability of error of a row, by method: together they make up 1 - confidence."""
    shares = {"direct": _DIRECT_SHARE, "one_run": 1 - _DIRECT_SHARE}
    counts = Counter(row.method for row in table)
    whole = sum(shares[method] for method in counts)
    return {method: (1 - confidence) * shares[method] / whole / count for method, count in counts.items()}


def audited(row: Row, config: Config, key: jax.Array, alpha: float) -> Finding:
    """The finding for one row."""
    if row.method == "one_run":
        subject = canaries.subject(row.config, canaries=config.canaries, background=20)
        return audit.one_run(subject, key, alpha=alpha)
    opposed = 1 if row.config.sampling == "full" else 0
    subject = canaries.subject(row.config, background=4, opposed=opposed)
    runs = max(2, config.draws // row.config.steps)
    return audit.direct(subject, key, draws=runs, alpha=alpha)


_WIDTHS = {
    "mechanism": -20, "sigma": -9, "method": -9, "claimed": 9, "bound": 8, "share": 7, "if Gaussian": 13,
    "confidence": 12, "s": 7, "  verdict": -9,
}  # fmt: skip


def _line(row: Row, found: Finding) -> str:
    cells = [row.mechanism, row.sigma, row.method, f"{found.claim.value:.3f}{'*' * found.claim.nominal}"]
    cells += [f"{found.epsilon:.3f}", f"{found.ratio:.2f}"]
    cells.append("" if found.gaussian is None else f"{found.gaussian:.3f}")
    cells += [f"{100 * found.confidence:.2f}%", f"{found.seconds:.1f}", f"  {found.verdict}"]
    return line(_WIDTHS, cells).rstrip()


def _entry(row: Row, found: Finding) -> dict:
    lengths = {name: getattr(row.config, name) for name in ("steps", "sampling", "sampling_rate")}
    law = None if found.law is None else found.law._asdict()
    said = {"law": law, "ratio": found.ratio, "verdict": found.verdict}
    return {"mechanism": row.mechanism, "sigma": row.sigma} | lengths | dataclasses.asdict(found) | said


def run(config: Config) -> int:
    """Audits, prints the table, writes the record; returns 1 where a claim is refuted."""
    began = time.perf_counter()
    table = rows(config)
    alpha = alphas(table, config.confidence)
    entropy = jax.random.wrap_key_data(noise.entropy_key()[:2], impl="threefry2x32")
    key = entropy if config.seed is None else jax.random.key(config.seed)
    if not config.json:
        print(line(_WIDTHS, list(_WIDTHS)))
    entries = []
    for number, row in enumerate(table):
        found = audited(row, config, jax.random.fold_in(key, number), alpha[row.method])
        entries.append(_entry(row, found))
        if not config.json:
            print(_line(row, found), flush=True)
    record = audit_record(
        seed=config.seed, config=dataclasses.asdict(config), confidence=config.confidence,
        findings=entries, seconds=time.perf_counter() - began,
    )  # fmt: skip
    path = records.write(record, config.output)
    if config.json:
        print(json.dumps(record, allow_nan=False))
    else:
        _explain(config, record, path)
    return 1 if record["violated"] else 0


def _explain(config: Config, record: dict, path: pathlib.Path) -> None:
    """What the numbers mean, and what they do not."""
    print(
        f"\nEpsilon at delta = {config.delta:g}, {config.adjacency}, PLD. All bounds hold at once with "
        f"{100 * config.confidence:g} % confidence; they assume nothing of the mechanism.\n"
        "'if Gaussian' is sharper, and a bound only if the outputs are Gaussian. The direct test also holds\n"
        "its hit rate against the privacy profile of the claim, and may say VIOLATED for that alone; and it\n"
        "says OTHER NOISE where the noise is not the independent Gaussian that the claim is computed for."
    )
    if any(finding["claim"]["nominal"] for finding in record["findings"]):
        print("* nominal: jaxdp claims no epsilon for it; this is the published number.")
    print("What this does not prove:", *(f"  - {sentence}" for sentence in NOT_PROVED), sep="\n")
    print(f"{record['seconds']:.0f} s; record: {path}")
