"""The privacy spent, as data: what was done at every step, from which any accountant computes epsilon.

A `Ledger` is an append-only sequence of stretches of steps.  It goes into every checkpoint and record, and a
run that resumes with another sampling rate, clip bound or noise appends to it.  Text that is damaged in any
way is refused: from a ledger that cannot be trusted no epsilon is computed.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxdp import _validate
from jaxdp.accounting.sampling import Sampling as Sampling
from jaxdp.accounting.sampling import check_unit, check_whole

SCHEMA = 1
SEEDS = ("entropy", "given")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
    """A budget of Renyi differential privacy at one order, fixed before the first step: see `filters`.

    Attributes:
      order: the Renyi order.
      budget: how much RDP at that order the whole run may spend.
      epsilon, delta: what the budget means, and what is claimed.
      adjacency: of `accounting.ADJACENCIES`.
    """

    order: float
    budget: float
    epsilon: float
    delta: float
    adjacency: str

    def __post_init__(self):
        for name, low in (("order", 1.0), ("budget", 0.0), ("epsilon", 0.0), ("delta", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not (isinstance(value, (int, float)) and low < value < math.inf):
                raise ValueError(f"{name}={value!r}: a filter needs a finite number > {low:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What was done in the steps `start .. stop - 1`.

    Attributes:
      start: first step.
      stop: one past the last step.
      noise_multipliers: run-length coded, `((sigma, steps), ...)` in the order of the steps.  Effective: the
        standard deviation of the noise over the L2 sensitivity of the sum to one added or removed example,
        whatever the clipping calls them.
      sampling: how batches were drawn.
      mechanism: name of the clipping, for the statement.
      charged: what is released beside the gradient and paid by the same noise multiplier: a clause for the
        statement; empty where there is nothing.
      private: whether the effective multipliers hold at all.
      reasons: why not, one sentence each; not empty exactly where `private` is False.
      seed: `entropy` (of the operating system) or `given`: noise that someone can predict.
      filter: where the noise multipliers were chosen during the run from noised outputs, the filter that
        admitted them; None where they were fixed before it.
      generator: what noise was drawn with; None where it is not said.
      coordinates: how many numbers each step noised; None where it is not said.
      unit: what one row of the sums is, and what is protected: `example`, or `user` and the like, whose
        examples were put together before the clip.
    """

    start: int
    stop: int
    noise_multipliers: tuple[tuple[float, int], ...]
    sampling: Sampling
    mechanism: str = "flat"
    charged: str = ""
    private: bool = True
    reasons: tuple[str, ...] = ()
    seed: str = "entropy"
    filter: Filter | None = None
    generator: str | None = None
    coordinates: int | None = None
    unit: str = "example"

    def __post_init__(self):
        check_whole(0, start=self.start)
        check_whole(self.start + 1, stop=self.stop)
        for sigma, steps in self.noise_multipliers:
            if isinstance(sigma, bool) or not (
                isinstance(sigma, (int, float)) and math.isfinite(sigma) and sigma >= 0
            ):
                raise ValueError(f"noise_multiplier={sigma!r}: must be finite and >= 0")
            check_whole(1, steps=steps)
        counted = sum(steps for _, steps in self.noise_multipliers)
        if counted != self.stop - self.start:
            raise ValueError(f"noise_multipliers={counted} steps: entry has {self.stop - self.start} steps")
        _validate.one_of(SEEDS, seed=self.seed)
        if not isinstance(self.private, bool) or self.private == bool(self.reasons):
            raise ValueError(
                f"private={self.private!r}: with reasons={list(self.reasons)}; say why exactly if not private"
            )
        texts = (self.mechanism, self.charged, *self.reasons)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"mechanism={self.mechanism!r}: mechanism, charged and reasons must be text")
        check_unit(self.unit)
        if self.coordinates is not None:
            check_whole(0, coordinates=self.coordinates)

    def sigmas(self) -> Float[np.ndarray, " steps"]:
        """The effective noise multiplier of each of its steps."""
        values, counts = zip(*self.noise_multipliers, strict=True)
        return np.repeat(np.array(values, float), counts)

    def counted(self, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The noise multipliers of its steps within `start .. stop - 1`, and how many have each."""
        values, lengths = (np.array(part) for part in zip(*self.noise_multipliers, strict=True))
        ends = self.start + np.cumsum(lengths)
        until = self.stop if stop is None else stop
        counts = np.maximum(np.minimum(ends, until) - np.maximum(ends - lengths, start), 0)
        return values[counts > 0].astype(float), counts[counts > 0]

    def until(self, step: int) -> "Entry":
        """The part of the entry before `step`."""
        return dataclasses.replace(
            self, stop=step, noise_multipliers=run_lengths(self.sigmas()[: step - self.start])
        )


@dataclasses.dataclass(frozen=True)
class Ledger:
    """All entries, from step 0 without gap or overlap."""

    entries: tuple[Entry, ...] = ()

    def __post_init__(self):
        expected = 0
        for entry in self.entries:
            if entry.start != expected:
                kind = "gap" if entry.start > expected else "overlap"
                raise ValueError(f"start={entry.start}: {kind} in the ledger, step {expected} comes next")
            expected = entry.stop
        if len({entry.unit for entry in self.entries}) > 1:
            units = " and ".join(sorted({entry.unit for entry in self.entries}))
            raise ValueError(f"unit={units}: a run protects one kind of unit, its entries differ in it")
        if len({entry.filter for entry in self.entries}) > 1:
            raise ValueError(
                "filter: is fixed before the first step and holds for the whole run; entries differ in it"
            )

    @property
    def steps(self) -> int:
        """How many steps were done."""
        return self.entries[-1].stop if self.entries else 0

    @property
    def unit(self) -> str:
        """What is protected: one example, user or the like."""
        return self.entries[0].unit if self.entries else "example"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the run is not private; empty if it is."""
        return tuple(dict.fromkeys(r for entry in self.entries for r in entry.reasons))

    @property
    def filter(self) -> Filter | None:
        """The filter of the run; None where the noise multipliers were fixed before it."""
        return self.entries[0].filter if self.entries else None

    @property
    def private(self) -> bool:
        """Whether every entry is private."""
        return not self.reasons

    def sigmas(self) -> Float[np.ndarray, " steps"]:
        """The effective noise multiplier of every step."""
        return np.concatenate([np.empty(0), *(entry.sigmas() for entry in self.entries)])

    def append(self, entry: Entry) -> "Ledger":
        """The ledger with one more entry, which must start where this one ends.

        An entry that differs from the last in nothing but its steps is joined to it.
        """
        if self.entries and _same_kind(self.entries[-1], entry) and entry.start == self.steps:
            last = self.entries[-1]
            sigmas = np.concatenate([last.sigmas(), entry.sigmas()])
            joined = dataclasses.replace(last, stop=entry.stop, noise_multipliers=run_lengths(sigmas))
            return Ledger((*self.entries[:-1], joined))
        return Ledger((*self.entries, entry))

    def until(self, step: int) -> "Ledger":
        """What was spent before `step`.

        Raises:
          ValueError: the ledger does not reach that far.
        """
        if not 0 <= step <= self.steps:
            raise ValueError(f"step={step}: the ledger covers 0 .. {self.steps}")
        whole = tuple(entry for entry in self.entries if entry.stop <= step)
        cut = tuple(entry.until(step) for entry in self.entries if entry.start < step < entry.stop)
        return Ledger(whole + cut)

    def _content(self) -> dict:
        return {"schema": SCHEMA, "entries": [_plain(entry) for entry in self.entries]}

    @functools.cached_property
    def sha256(self) -> str:
        """The checksum of its canonical content."""
        return _checksum(self._content())

    def to_json(self) -> str:
        """The ledger as text, with its SHA-256."""
        return json.dumps({**self._content(), "sha256": self.sha256}, allow_nan=False)


def _same_kind(a: Entry, b: Entry) -> bool:
    return all(
        getattr(a, field) == getattr(b, field)
        for field in (field.name for field in dataclasses.fields(Entry))
        if field not in ("start", "stop", "noise_multipliers")
    )


def _plain(entry: Entry) -> dict:
    """The entry as what JSON can hold, its noise multipliers not copied."""
    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    # What older ledgers do not say is not said by default either: their checksum stays what it was.
    unsaid = {"generator": None, "coordinates": None, "unit": "example"}
    fields = {k: v for k, v in fields.items() if k not in unsaid or v != unsaid[k]}
    filter = None if entry.filter is None else dataclasses.asdict(entry.filter)
    return {**fields, "sampling": entry.sampling.plain(), "filter": filter}


def _checksum(content: dict) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def run_lengths(sigmas: Sequence[float] | Float[np.ndarray, " steps"]) -> tuple[tuple[float, int], ...]:
    """Equal neighbours as one pair `(sigma, steps)`."""
    return tuple(
        (float(sigma), len(list(run))) for sigma, run in itertools.groupby(np.asarray(sigmas).tolist())
    )


def from_json(text: str | None) -> Ledger:
    """The ledger that `Ledger.to_json` wrote.

    Raises:
      ValueError: missing, cut, altered, of another schema, or with steps missing or counted twice.
    """
    if not text:
        raise ValueError(
            "ledger=None: missing, so the privacy already spent is unknown; no epsilon without it"
        )
    try:
        content = json.loads(text)
        checksum = content.pop("sha256")
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema={content['schema']!r}: this version reads {SCHEMA}")
        if _checksum(content) != checksum:
            raise ValueError(f"sha256={checksum!r}: does not match the content")
        return Ledger(tuple(_entry(record) for record in content["entries"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"ledger: corrupt, so no epsilon can be computed from it ({error})") from error


def _entry(record: dict) -> Entry:
    changed: dict = {
        "noise_multipliers": tuple((sigma, steps) for sigma, steps in record["noise_multipliers"]),
        "sampling": Sampling(**record["sampling"]),
        "reasons": tuple(record["reasons"]),
        "filter": Filter(**record["filter"]) if record.get("filter") else None,
    }
    return Entry(**(record | changed))


def epoch_minima(entry: Entry, window: slice = slice(None)) -> Float[np.ndarray, " epochs"]:
    """The smallest noise multiplier in each epoch that (a part of) a shuffled entry touches."""
    epoch = np.arange(entry.start, entry.stop)[window] // (entry.sampling.steps_per_epoch or 1)
    _, first = np.unique(epoch, return_index=True)
    return np.minimum.reduceat(entry.sigmas()[window], first)
