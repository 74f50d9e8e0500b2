"""Auditing the training step from the outside: what its output reveals, held against the epsilon claimed.

The auditor runs the very step that `jaxdp train` compiles (sampler, per-example gradients, clipping, noise,
division, optimizer) on data with canaries (`canaries`), sees the parameters after every step, and says
which canaries were there.  What it proves (`jaxdp.auditing`) is a lower bound on epsilon that assumes nothing
about the mechanism; the claim is the project's own accounting of the same steps, sampling and adjacency.

| method    | runs              | canaries | finds                                                        |
|-----------|-------------------|----------|--------------------------------------------------------------|
| `direct`  | many, short       | one      | the sharper bound; a hit rate above the privacy profile; and |
|           |                   |          | noise of another law (`law`)                                 |
| `one_run` | one, of any       | hundreds | what goes wrong over many steps of sampling and noise        |
|           | length            |          |                                                              |

A claim is violated if the bound at the claim's delta exceeds it, or (direct) if a rule has a higher hit rate
than the claimed steps allow at its false alarm rate: the trade-off that the whole curve delta(epsilon) sets
(`jaxdp.accounting.reconstruction`), which shows a lack of noise far too small for the bound at one delta; or
(direct) if the noise, where there is nothing else, is not the one that the claim is computed for.

An audit can refute a claim.  It cannot prove one: it tries these canaries, these few statistics, this
model and this machine, and another attacker may do better.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxdp import _validate, accounting, auditing, schedules
from jaxdp.accounting import Epsilon, gaussian, reconstruction
from jaxdp.accounting.ledger import Ledger
from jaxdp.auditing import Rates
from jaxdp.laboratory.audit import canaries, law
from jaxdp.laboratory.audit.canaries import Observation, Subject
from jaxdp.laboratory.audit.law import Law

Method = Literal["direct", "one_run"]
METHODS: tuple[Method, ...] = ("direct", "one_run")
_LAW_SHARE = 0.1  # of the probability of error of the direct test


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What an audit of one run found.

    Attributes:
      method: one of `METHODS`.
      claim: the epsilon claimed for the audited steps; nominal where nothing is.
      epsilon: the lower bound at the claim's delta, distribution-free.
      confidence: probability that the finding (bound, profile and law together) is not wrong.
      gaussian: a sharper lower bound that holds only if the outputs are Gaussian, as they are meant to be;
        None where they are not (sampling), or with one run.
      profile: `(hit rate at least, allowed at most)` at the rule's false alarm rate; None with one run.
      law: how the noise compares with the one that the claim is computed for; None with one run, or where
        nothing is claimed.
      violated: whether the claim is refuted, by a bound, by its profile or by the law of its noise.
      detail: counts behind it.
      seconds: wall time.
    """

    method: str
    claim: Epsilon
    epsilon: float
    confidence: float
    gaussian: float | None = None
    profile: tuple[float, float] | None = None
    law: Law | None = None
    violated: bool
    detail: dict[str, Any]
    seconds: float

    @property
    def verdict(self) -> str:
        """In a word: `stands` says no more than that this audit did not refute the claim."""
        if not self.violated:
            return "stands"
        exceeded = self.profile is not None and self.profile[0] > self.profile[1]
        return "VIOLATED" if self.epsilon > self.claim.value or exceeded else "OTHER NOISE"

    @property
    def ratio(self) -> float:
        """The bound over the claim."""
        return self.epsilon / self.claim.value if self.claim.value > 0 else math.inf


def claimed(subject: Subject) -> tuple[Ledger, Epsilon]:
    """The ledger and the epsilon of the audited steps, as a run of this configuration states them."""
    config, ledger = subject.config, subject.run.plan.ledger()
    claim = accounting.Claim(delta=config.delta, adjacency=config.adjacency)
    return ledger, accounting.epsilon(ledger, claim, nominal=not ledger.private)


def statistics(
    observed: Observation, ledger: Ledger, adjacency: str
) -> dict[str, Float[np.ndarray, "runs canaries"]]:
    """Scores from the outputs of runs: what each would see of another failure.

    * `matched`: the log-likelihood ratio of the claimed mechanism, summed over steps: the best there is if
      the mechanism is what it claims to be, and close to it where only the noise is too small.
    * `contrast`: how much the outputs of one run differ between steps, in units of their noise: noise that
      is used again cancels in it.
    * `energy`: the size of the whole output: noise whose scale depends on the data.
    * `tensor 0`, ...: as `matched`, in one tensor of the parameters: one that the noise forgot.

    The last two are of one canary only, as is what `direct` adds to them: `fitted`, the linear discriminant
    of the matched direction, of the coordinates of the canary's slot in every tensor, and
    of whatever the clipper releases: sums and differences in which noise cancels that tensors share.

    Args:
      observed: arrays [runs, steps, ...].
      ledger: of the run.
      adjacency: of the claim.
    """
    sigmas = ledger.sigmas()[None, :, None]
    rate = ledger.entries[0].sampling.rate
    along = np.asarray(observed.along, np.float64)
    by_tensor = np.asarray(observed.by_tensor, np.float64)

    def matched(along, sigmas):
        def log_mixture(mean):
            return np.logaddexp(
                np.log(rate) + mean * (along - mean / 2) / sigmas**2,
                math.log1p(-rate) if rate < 1 else -math.inf,
            )

        return (log_mixture(1.0) - (log_mixture(-1.0) if adjacency == "replace_one" else 0.0)).sum(axis=1)

    with np.errstate(invalid="ignore", over="ignore"):  # outputs that are not finite are findings themselves
        scores = {"matched": matched(along, sigmas)}
        if along.shape[1] > 1:
            scaled = along / sigmas
            scores["contrast"] = ((scaled - scaled.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        if along.shape[2] == 1:
            scores["energy"] = np.asarray(observed.energy, np.float64).sum(axis=1)[:, None]
            for tensor in range(by_tensor.shape[3]):
                wider = sigmas * math.sqrt(by_tensor.shape[3])
                scores[f"tensor {tensor}"] = matched(by_tensor[..., tensor], wider)
    return scores


def direct(subject: Subject, key: Array, *, draws: int = 100_000, alpha: float = 0.05) -> Finding:
    """Tells runs with the canary from runs without it.

    Args:
      subject: with one canary.
      key: of the audited runs' batches and noise.
      draws: runs of each kind; half of them choose the rule, half judge it.
      alpha: probability that the finding is wrong.

    Formal guarantee: with probability at least 1 - alpha over the draws, the mechanism is not
    (e, claim.delta) private for this pair of data sets and any e < epsilon, and its hit rate is at least the
    first part of `profile`; up to the generator's draws being what they should be.
    """
    if subject.canaries != 1:
        raise ValueError(f"canaries={subject.canaries}: the direct test is of one example")
    _validate.whole(2, draws=draws)  # one to choose the rule and one to judge it
    began = time.perf_counter()
    ledger, claim = claimed(subject)
    adjacency = subject.config.adjacency
    seen = [
        canaries.draws(subject, jax.random.fold_in(key, there), np.full(1, there), draws)
        for there in (True, False)
    ]
    present, absent = (
        {name: values[:, 0] for name, values in statistics(observed, ledger, adjacency).items()}
        for observed in seen
    )
    present["fitted"], absent["fitted"] = auditing.discriminant(*map(_features, seen))
    epsilon_of = functools.partial(auditing.epsilon_of_rates, delta=claim.delta)
    each = (1 - _LAW_SHARE) * alpha / 2
    bound = auditing.distinguished(present, absent, epsilon_of, each)
    epsilon = float(epsilon_of(bound.least_hit_rate, bound.most_false_alarm_rate))
    curve = auditing.distinguished(present, absent, auditing.distance_of_rates, each)
    profile = None if claim.nominal else _profile(curve, ledger, adjacency)
    found = None if claim.nominal else _law(subject, seen, _LAW_SHARE * alpha)
    return Finding(
        method="direct",
        claim=claim,
        epsilon=epsilon,
        confidence=1 - alpha,
        gaussian=_if_gaussian(curve, ledger, claim.delta),
        profile=profile,
        law=found,
        violated=epsilon > claim.value
        or (profile is not None and profile[0] > profile[1])
        or (found is not None and found.departs),
        detail={
            "draws": draws,
            "bound": bound._asdict() | {"rule": bound.rule._asdict()},
            "curve": curve._asdict() | {"rule": curve.rule._asdict()},
        },
        seconds=time.perf_counter() - began,
    )


def _features(observed: Observation) -> Float[np.ndarray, "runs features"]:
    parts = (observed.along[:, :, 0], observed.released, observed.slot)
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _law(subject: Subject, seen: Sequence[Observation], alpha: float) -> Law:
    """The noise of all runs, in the slot that no example touches, against the noise that is claimed."""
    plan = subject.run.plan
    assert plan.schedule is not None and plan.clipper is not None
    sigmas = schedules.values(plan.schedule, subject.config.steps)
    drawn = np.asarray(plan.clipper.gradient_noise(jax.numpy.asarray(sigmas)))
    values = np.concatenate([observed.noise for observed in seen]) / drawn[None, :, None]
    return law.examine(values, alpha, np.concatenate([observed.grid for observed in seen]))


def _profile(rates: Rates, ledger: Ledger, adjacency: str) -> tuple[float, float]:
    """The hit rate that was reached, and the one that the claimed steps allow."""
    alarms = rates.most_false_alarm_rate
    allowed = reconstruction.bound(ledger, alarms, adjacency=adjacency) if 0 < alarms < 1 else 1.0
    return rates.least_hit_rate, allowed


def _if_gaussian(rates: Rates, ledger: Ledger, delta: float) -> float | None:
    """Epsilon of the Gaussian mechanism that the rates amount to, for steps without sampling."""
    if not ledger.private or any(entry.sampling.rate < 1 for entry in ledger.entries):
        return None
    distance = float(auditing.distance_of_rates(rates.least_hit_rate, rates.most_false_alarm_rate))
    return gaussian.gaussian_epsilon(distance, delta) if distance > 0 else 0.0


def one_run(subject: Subject, key: Array, *, alpha: float = 0.05) -> Finding:
    """Guesses which canaries were in one run.

    Args:
      subject: with any number of canaries, each of which is included by the toss of a coin.
      key: of the coins, batches and noise.
      alpha: probability that the finding is wrong.

    Formal guarantee: with probability at least 1 - alpha the mechanism is not (e, claim.delta) private for
    any e < epsilon (Steinke, Nasr & Jagielski 2023, theorem 5.2).
    """
    began = time.perf_counter()
    ledger, claim = claimed(subject)
    coins, run_key = jax.random.split(key)
    included = np.asarray(jax.random.bernoulli(coins, 0.5, (subject.canaries,)))
    seen = statistics(canaries.draws(subject, run_key, included, 1), ledger, subject.config.adjacency)
    scores = {name: values[0] for name, values in seen.items()}
    found = auditing.guessed(scores, included, claim.delta, alpha)
    return Finding(
        method="one_run",
        claim=claim,
        epsilon=found.epsilon,
        confidence=1 - alpha,
        violated=found.epsilon > claim.value,
        detail={"canaries": subject.canaries, "included": int(included.sum()), **found._asdict()},
        seconds=time.perf_counter() - began,
    )
