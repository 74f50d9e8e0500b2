"""How batches are drawn, and how each way is accounted for.

A `Sampler` draws on the device, in a static shape: `physical_batch_size` indices and a mask.

| kind       | a step's batch                             | amplification by sampling                  |
|------------|--------------------------------------------|--------------------------------------------|
| `poisson`  | each example with probability q, by itself | yes: the Poisson-sampled Gaussian          |
| `truncated_poisson` | the same, of too many a random part | yes, and who displaces others is paid    |
| `shuffled` | the next part of a fresh permutation       | none: each example takes part every epoch  |
| `full`     | all examples                               | none: q = 1                                |
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdp import _validate, noise
from jaxdp.accounting.ledger import Sampling

OVERFLOW_PROBABILITY = 1e-9  # of a run
TRUNCATION_PROBABILITY = (
    1e-6  # of a step: costs less than half a percent of sigma at noise multipliers >= 0.8
)


class Batch(NamedTuple):
    """One step's batch.

    Attributes:
      indices: [physical_batch_size] rows of the data set; where masked, row 0.
      mask: True where the row counts.
      overflow: whether more examples were drawn than fit.  The batch is then not what the accountant
        charges for, and the run must stop.
    """

    indices: Int[Array, " b"]
    mask: Bool[Array, " b"]
    overflow: Bool[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A way to draw batches.

    Attributes:
      kind: `poisson`, `truncated_poisson`, `shuffled` or `full`.
      examples: number n of examples in the data set.
      sampling_rate: q, the probability that an example takes part in a step: what the accountant is told.
      expected_batch_size: what the noised sum is divided by: q n, or the fixed size.
      physical_batch_size: number of places in a batch.
      steps_per_epoch: for `shuffled`, steps in which every example takes part once; 1 for `full`, None for
        `poisson`, which has no epochs.
      draw: `(key, step) -> Batch`; the same key (see `jaxdp.noise.secret`) and step give the same batch, by
        ChaCha, from a stream that no noise is drawn from: both may have the same key.
      steps: of Poisson batches, the length of run for which its places suffice; None for any.
      draw_rows: `(key, step, first, rows, places) -> Batch`, the batch's members among `rows` rows from the
        traced `first` on, without looking at others; see `on_shards`.
    """

    kind: str
    examples: int
    sampling_rate: float
    expected_batch_size: float
    physical_batch_size: int
    steps_per_epoch: int | None
    draw: Callable[[Array, Int[Array, ""] | int], Batch]
    steps: int | None = None
    draw_rows: Callable[..., Batch] | None = None

    def __post_init__(self):
        _validate.whole(examples=self.examples, physical_batch_size=self.physical_batch_size)
        _validate.positive(expected_batch_size=self.expected_batch_size)
        _validate.share(sampling_rate=self.sampling_rate)

    @property
    def accounted(self) -> Sampling:
        """What the accountant is told of these batches."""
        if self.kind == "truncated_poisson":
            limited = dict(examples=self.examples, batch_size_limit=self.physical_batch_size)
            return Sampling(kind=self.kind, rate=self.sampling_rate, **limited)
        return Sampling(
            kind=self.kind,
            rate=self.sampling_rate,
            steps_per_epoch=self.steps_per_epoch if self.kind == "shuffled" else None,
        )

    def on_shards(self, shards: int) -> tuple[int, Callable[[Array, Array, Array], Batch]]:
        """How the same batches are drawn where the data lie in shards, each from the rows that it holds.

        Args:
          shards: how many; the i-th holds the rows from `i * rows` on.

        Returns:
          Rows of a shard, and `(key, step, shard) -> Batch` with indices into these.  Rows at and beyond
          `examples` fill the last shards up and are never drawn.

        Formal guarantee: the union over the shards is the batch of `draw`, whatever their number, and no row is
        in two; so the accountant is told the same.  The places suffice with the probability of `physical_size`
        for all shards together.
        """
        rows = -(-self.examples // (shards * noise.IN_BLOCK)) * noise.IN_BLOCK
        if self.kind == "poisson" and self.steps is not None:
            places = physical_size(rows, self.sampling_rate, self.steps * shards)
        else:
            places = min(rows, self.physical_batch_size)
        draw_rows = self._of_whole if self.draw_rows is None else self.draw_rows
        return rows, lambda key, step, shard: draw_rows(key, step, shard * rows, rows, places)

    def _of_whole(self, key, step, first, rows: int, places: int) -> Batch:
        """Of a batch that every shard draws, the members in its own rows."""
        whole = self.draw(key, step)
        mine = whole.mask & (whole.indices >= first) & (whole.indices < first + rows)
        part = _members(mine, places)
        indices = jnp.where(part.mask, whole.indices[part.indices] - first, 0)
        return part._replace(indices=indices, overflow=part.overflow | whole.overflow)


def _members(chosen: Bool[Array, " n"], places: int) -> Batch:
    """Where `chosen` is true, in so many places."""
    count = chosen.sum()
    (indices,) = jnp.nonzero(chosen, size=places, fill_value=0)
    return Batch(indices, jnp.arange(places) < count, count > places)


def physical_size(examples: int, sampling_rate: float, steps: int) -> int:
    """The smallest batch that overflows with probability at most 1e-9 in a run of `steps` Poisson draws.

    By the union bound over steps and the exact binomial tail, to a multiple of 8.
    """
    from scipy import stats

    size = int(stats.binom.isf(OVERFLOW_PROBABILITY / steps, examples, sampling_rate))
    return min(examples, -(-max(size, 1) // 8) * 8)


def poisson(examples: int, sampling_rate: float, steps: int) -> Sampler:
    """Each example is in each batch with probability `sampling_rate`, independently of all else.

    Args:
      examples: number of examples.
      sampling_rate: q in (0, 1].
      steps: length of the run, for the overflow bound.

    Formal guarantee: the draws are independent over examples and steps (given ideal random bits), as the
    analysis of the Poisson-sampled Gaussian mechanism asks, as long as the key stays secret.
    """
    _validate.whole(examples=examples, steps=steps)
    _validate.share(sampling_rate=sampling_rate)
    size = physical_size(examples, sampling_rate, steps)
    # In whole numbers and rounded down: the rate drawn with is never above the rate accounted for, as it can
    # be when a float32 uniform with 23 bits is compared with q.
    threshold = jnp.uint32(math.floor(sampling_rate * 2**32) if sampling_rate < 1 else 0)

    def draw(key, step):
        everyone = jnp.ones(examples, bool)
        return _members(noise.below(key, step, examples, threshold) if sampling_rate < 1 else everyone, size)

    def draw_rows(key, step, first, rows, places):
        there = first + jnp.arange(rows) < examples
        chosen = noise.below(key, step, rows, threshold, first) if sampling_rate < 1 else there
        return _members(chosen & there, places)

    return Sampler(
        kind="poisson",
        examples=examples,
        sampling_rate=float(sampling_rate),
        expected_batch_size=sampling_rate * examples,
        physical_batch_size=size,
        steps_per_epoch=None,
        draw=draw,
        steps=steps,
        draw_rows=draw_rows,
    )


def truncated_poisson(
    examples: int, sampling_rate: float, steps: int, batch_size_limit: int | None = None
) -> Sampler:
    """Poisson batches, and of more than `batch_size_limit` examples a uniformly random part of that size.

    A batch has so many places and no more: fewer that stand empty than those of `poisson`, which has to have
    places for what hardly ever comes.  Where the limit binds an example displaces others, for which the
    accountant charges: see `jaxdp.accounting.sampling.parts`.  The noised sum is divided by q n all the same.

    Args:
      examples, sampling_rate, steps: see `poisson`.
      batch_size_limit: None for `default_limit`.

    Formal guarantee: as of `poisson`; and given that more were drawn, each part of `batch_size_limit` of them
    is kept with the same probability, but for ties of 64 random bits.
    """
    candidates = poisson(examples, sampling_rate, steps)
    limit = default_limit(examples, sampling_rate) if batch_size_limit is None else batch_size_limit
    _validate.whole(batch_size_limit=limit)
    if limit > examples:
        raise ValueError(f"batch_size_limit={limit}: must lie in 1 .. examples={examples}")
    size = candidates.physical_batch_size

    def draw(key, step):
        drawn = candidates.draw(key, step)
        first, second = noise.words(key, step, 2 * size).reshape(2, size)
        *_, order = jax.lax.sort((~drawn.mask, first, second, drawn.indices), num_keys=3)
        order = jnp.concatenate([order, jnp.zeros(max(limit - size, 0), order.dtype)])[:limit]
        mask = jnp.arange(limit) < jnp.minimum(drawn.mask.sum(), limit)
        ascending = jnp.sort(jnp.where(mask, order, examples))
        return Batch(jnp.where(mask, ascending, 0), mask, drawn.overflow)

    # Which of too many are kept hangs on all of them: no shard can tell from its own rows.
    return dataclasses.replace(
        candidates, kind="truncated_poisson", physical_batch_size=int(limit), draw=draw, draw_rows=None
    )


def default_limit(examples: int, sampling_rate: float) -> int:
    """The smallest multiple of 8 that a Poisson batch passes with probability at most 1e-6."""
    from scipy import stats

    size = int(stats.binom.isf(TRUNCATION_PROBABILITY, examples, sampling_rate))
    return min(examples, -(-max(size, 1) // 8) * 8)


def shuffled(examples: int, batch_size: int) -> Sampler:
    """A fresh permutation each epoch, cut into batches; the last one of an epoch may be smaller.

    The noised sum of the smaller batch is divided by `batch_size` all the same.
    """
    _validate.whole(examples=examples, batch_size=batch_size)
    if batch_size > examples:
        raise ValueError(f"batch_size={batch_size}: must lie in 1 .. examples={examples}")
    steps_per_epoch = -(-examples // batch_size)

    def draw(key, step):
        epoch, place = jnp.divmod(jnp.asarray(step), steps_per_epoch)
        # Sorted by 64 random bits each: a uniform permutation, but for ties.
        first, second = noise.words(key, epoch, 2 * examples).reshape(2, examples)
        _, _, order = jax.lax.sort((first, second, jnp.arange(examples)), num_keys=2)
        positions = place * batch_size + jnp.arange(batch_size)
        mask = positions < examples
        return Batch(jnp.where(mask, order[positions % examples], 0), mask, jnp.zeros((), bool))

    return Sampler(
        kind="shuffled",
        examples=examples,
        sampling_rate=batch_size / examples,
        expected_batch_size=float(batch_size),
        physical_batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        draw=draw,
    )


def full(examples: int) -> Sampler:
    """All examples at every step."""
    _validate.whole(examples=examples)

    def draw(key, step):
        return Batch(jnp.arange(examples), jnp.ones(examples, bool), jnp.zeros((), bool))

    return Sampler(
        kind="full",
        examples=examples,
        sampling_rate=1.0,
        expected_batch_size=float(examples),
        physical_batch_size=examples,
        steps_per_epoch=1,
        draw=draw,
    )


def create(
    kind: str, examples: int, sampling_rate: float, steps: int, batch_size_limit: int | None = None
) -> Sampler:
    """The sampler of the given kind with batches of about `sampling_rate * examples`.

    Raises:
      ValueError: an unknown kind, or a rate or limit that is refused.
    """
    _validate.one_of(("poisson", "truncated_poisson", "shuffled", "full"), sampling=kind)
    if kind == "truncated_poisson":
        return truncated_poisson(examples, sampling_rate, steps, batch_size_limit)
    if batch_size_limit is not None:
        raise ValueError(f"batch_size_limit={batch_size_limit}: only truncated_poisson batches have a limit")
    if kind == "full":
        return full(examples)
    _validate.share(sampling_rate=sampling_rate)
    if kind == "poisson":
        return poisson(examples, sampling_rate, steps)
    return shuffled(examples, max(1, round(sampling_rate * examples)))
