"""How the examples of a step were chosen, as the accountant is told, and what a limit on a batch costs."""

import dataclasses
import functools
from typing import Any, NamedTuple

from jaxdp import _validate

SAMPLING_KINDS = ("poisson", "truncated_poisson", "shuffled", "full", "without_replacement")


def check_whole(minimum: int, **values) -> None:
    """Refuses what is no whole number, as JSON has them."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"{name}={value!r}: must be a whole number >= {minimum}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the examples of a step are chosen.

    Attributes:
      kind: `poisson` (each example on its own with probability `rate`), `truncated_poisson` (the same, and of
        more than `batch_size_limit` a uniformly random part of that size is kept), `full` (all of them),
        `without_replacement` (a fresh uniform batch of fixed size each step), or `shuffled` (a permutation
        each epoch, cut into batches: no amplification is claimed).
      rate: the probability that an example takes part in a step.
      steps_per_epoch: of `shuffled` only: epoch e is the steps e k .. (e + 1) k - 1, and an example takes
        part in at most one of them.
      examples, batch_size_limit: of `truncated_poisson` only: how many there are, and the most a step keeps.
    """

    kind: str = "poisson"
    rate: float = 1.0
    steps_per_epoch: int | None = None
    examples: int | None = None
    batch_size_limit: int | None = None

    def __post_init__(self):
        _validate.one_of(SAMPLING_KINDS, sampling=self.kind)
        if isinstance(self.rate, bool) or not isinstance(self.rate, (int, float)) or not 0 <= self.rate <= 1:
            raise ValueError(f"sampling_rate={self.rate!r}: must lie in [0, 1]")
        if self.kind == "full" and self.rate != 1:
            raise ValueError(f"sampling_rate={self.rate}: full batches take every example, rate 1")
        if self.kind == "shuffled":
            check_whole(1, steps_per_epoch=self.steps_per_epoch)
        elif self.steps_per_epoch is not None:
            raise ValueError(f"steps_per_epoch={self.steps_per_epoch}: only shuffled batches have epochs")
        if self.kind == "truncated_poisson":
            check_whole(1, examples=self.examples, batch_size_limit=self.batch_size_limit)
        elif self.batch_size_limit is not None or self.examples is not None:
            raise ValueError(
                f"batch_size_limit={self.batch_size_limit}, examples={self.examples}: only truncated_poisson "
                "batches have a limit"
            )

    def __str__(self):
        if self.kind == "shuffled":
            return f"shuffled, {self.steps_per_epoch} steps an epoch (no amplification)"
        return {
            "poisson": f"Poisson, rate {self.rate:g}",
            "full": "full batch",
            "truncated_poisson": f"Poisson, rate {self.rate:g}, of {self.examples}, at most "
            f"{self.batch_size_limit} kept",
            "without_replacement": f"without replacement, rate {self.rate:g}",
        }[self.kind]

    def plain(self) -> dict[str, Any]:
        """The sampling as what JSON can hold; without what only truncated batches have, where there is none."""
        record = dataclasses.asdict(self)
        truncated = ("examples", "batch_size_limit")
        return {k: v for k, v in record.items() if v is not None or k not in truncated}


class Part(NamedTuple):
    """What a truncated step is with some probability: a subsampled Gaussian step.

    Attributes:
      weight: that probability.
      rate: with which an example takes part then.
      shift: by how many clip bounds it moves the sum: 1, or 2 where it takes the place of another.
    """

    weight: float
    rate: float
    shift: float


@functools.lru_cache(maxsize=1024)
def parts(sampling: Sampling, adjacency: str) -> tuple[Part, ...]:
    """The parts of a step with truncated Poisson batches; () for every other kind.

    Let M be how many of the other n - 1 examples were drawn, the same with and without the example in question.
    Where M < limit nothing is dropped for it, and the step is an ordinary Poisson-sampled one.  Where M >=
    limit, which has the probability t, it is in the batch with probability q limit / (M + 1), and then in the
    place of another one, uniformly chosen: the sum moves by up to 2 C.  Who is displaced, and by whom it is
    surrounded, does not depend on M then, so that the mean of those probabilities counts: p = limit P(Bin(n, q)
    > limit) / (n t).  By joint convexity a divergence is at most the mean of those of the two cases, under
    every adjacency: for an example that is exchanged or zeroed the same one is displaced, and the bound for
    replace-one (see `rdp.replace_one`) holds with 2 C.

    Under add/remove-one the larger of two neighbours has n or n + 1 examples; t grows with n and p falls, so
    the parts are those of n, and what t grows by counts at the rate q with 2 C.

    Source: arXiv 2508.15089, as in `dp_accounting`'s `TruncatedSubsampledGaussianDpEvent`, whose data set is
    the larger one.
    """
    if sampling.kind != "truncated_poisson":
        return ()
    n, limit, q = sampling.examples or 0, sampling.batch_size_limit or 0, sampling.rate
    truncated, kept = _truncation(n, limit, q)
    if adjacency == "replace_one":
        return (Part(1 - truncated, q, 2.0), Part(truncated, kept, 2.0))
    if adjacency == "zero_out":
        return (Part(1 - truncated, q, 1.0), Part(truncated, kept, 2.0))
    grown = max(_truncation(n + 1, limit, q)[0], truncated)
    return (Part(1 - grown, q, 1.0), Part(truncated, kept, 2.0), Part(grown - truncated, q, 2.0))


def _truncation(n: int, limit: int, q: float) -> tuple[float, float]:
    """The probability that the limit binds for an example of n, and its rate of taking part then."""
    from scipy import stats

    truncated = float(stats.binom.sf(limit - 1, n - 1, q))
    if truncated == 0:
        return 0.0, 0.0
    return truncated, min(q, float(stats.binom.sf(limit, n, q)) * limit / (n * truncated))


def check_unit(unit: str) -> None:
    """Refuses what is no single word."""
    if not (isinstance(unit, str) and unit.isidentifier() and unit == unit.lower()):
        raise ValueError(f"unit={unit!r}: one word for what is protected, as example or user")
