"""One JSON record a run: what was done, with what, how private it is, and what came out.

A record is a document, what JSON holds.  Each kind has a form, a frozen dataclass whose types are those of the
document's fields; from it follows what is refused: a field that is missing, of another type, or contradicted
by another.  Fields beyond the form are kept as they are.

The library knows one kind, `train`; the laboratory adds its own (`jaxdp.laboratory.records`).  Pages and tables
are made from records and from nothing else.
"""

import dataclasses
import datetime
import functools
import hashlib
import json
import math
import pathlib
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdp import _forms, _validate, accounting, atomic
from jaxdp.accounting import Claim, filters, ledger
from jaxdp.accounting.ledger import Ledger
from jaxdp.environment import environment

SCHEMA = 1
_CLAIMS_AGREE = 1e-4  # relative: an accountant rounds otherwise on another machine
_FORMS: dict[str, type] = {}


def form(kind: str):
    """Makes a frozen dataclass the form of a kind of record."""

    def add(declared: type) -> type:
        _FORMS[kind] = declared
        return declared

    return add


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a record was made: versions, device and revision."""

    python: str | None = None
    versions: dict[str, str | None] = dataclasses.field(default_factory=dict)
    device: str | None = None
    cores: int | None = None
    git: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What every record has.

    Attributes:
      schema: of the document.
      kind: which form it has.
      variant: `non_private`, `fixed`, a schedule's name, `l2_max`, ...
      seed: of what is random but for noise and batches; None if from system entropy.
      created: when, ISO 8601.
      config: what it takes to do it again.
      environment: versions, device and revision.
    """

    schema: int
    kind: str
    variant: str
    seed: int | None
    created: str
    config: dict[str, Any]
    environment: Environment

    def __post_init__(self):
        try:
            datetime.datetime.fromisoformat(self.created)
        except ValueError:
            raise ValueError(f"created={self.created!r}: must be a time in ISO 8601") from None
        for name in ("data", "model"):  # what records are grouped by
            if not isinstance(self.config.get(name), (str, types.NoneType)):
                raise ValueError(f"config.{name}={self.config[name]!r}: must be text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Privacy:
    """What may be said of a run's privacy.

    Attributes:
      private: whether `epsilon` is a guarantee.
      nominal: whether it bounds nothing, and reproduces a published number.
      epsilon, delta, accountant, adjacency, sampling: the claim; None where there is none.
      statement: the privacy statement as text.
      unit: what is protected: one example, user or the like.
    """

    private: bool
    nominal: bool
    epsilon: float | None
    delta: float | None
    accountant: str | None
    adjacency: str | None
    sampling: str | None
    statement: str
    unit: str = "example"

    def __post_init__(self):
        flags = f"private={self.private}, nominal={self.nominal}"
        if self.epsilon is None:
            if self.private or self.nominal:
                raise ValueError(f"epsilon=None: {flags} needs a number")
            return
        if self.epsilon < 0:
            raise ValueError(f"epsilon={self.epsilon}: must be >= 0")
        if self.private == self.nominal:
            word = "private and cannot be nominal" if self.private else "not private; only a nominal one"
            raise ValueError(f"epsilon={self.epsilon}: the run is {word}")
        _validate.between(0, 1, delta=self.delta)
        _validate.one_of(accounting.ADJACENCIES, adjacency=self.adjacency)
        for name in ("accountant", "sampling"):
            if not getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)}: epsilon needs one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a training run achieved, and what a step cost.

    Attributes:
      test_accuracy: at the end.
      steps: how many were taken.
      ms_per_step, examples_per_second: of the steps that were timed; None where none was.
      ms_per_step_spread: over repeated timings.
    """

    test_accuracy: float | None
    steps: int
    ms_per_step: float | None
    examples_per_second: float | None
    ms_per_step_spread: float | None = None


@form("train")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Record):
    """One training run of one variant with one seed.

    Attributes:
      seed_policy: where the noise key came from, in words.
      privacy: the claim, or that there is none.
      metrics: what came out; more are kept, such as peak memory in bytes (`peak_memory`).
      curves: lists of equal length (None where there is none): step, epsilon, noise_multiplier, test_accuracy.
      run: the run's own name, the same in the record of every stretch of it.
      ledger: the privacy spent, as `Ledger.to_json` writes it; epsilon is checked against it on reading.
    """

    seed_policy: str
    privacy: Privacy
    metrics: Metrics
    curves: dict[str, list[float | None] | None]
    run: str | None = None
    ledger: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("step", "epsilon", "noise_multiplier", "test_accuracy"):
            if name not in self.curves:
                raise ValueError(f"field curves.{name} is missing")
        lengths = {name: len(curve) for name, curve in self.curves.items() if curve is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"curves of different lengths: {lengths}")
        _validate.whole(0, **{f"curves.step[{i}]": step for i, step in enumerate(self.curves["step"] or ())})
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        """Refuses a guarantee for what the configuration says is none."""
        reasons = {"schedule": "none", "clipping": "l2_max", "diagnostics": True}
        for name, value in reasons.items():
            if self.privacy.private and self.config.get(name) == value:
                raise ValueError(f"privacy.private=True: with config.{name}={value!r} no epsilon holds")


def made(kind: str, **fields: Any) -> dict[str, Any]:
    """A record of a kind, made now and here.

    Args:
      kind: `train`, or a kind of the laboratory's.
      **fields: of its form, but for schema, kind, created and environment.

    Raises:
      ValueError: a field that is missing or has no sense.
    """
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = {"schema": SCHEMA, "kind": kind, "created": created, "environment": environment()}
    record = plain(head | fields)
    validate(record)
    return record


def plain(value: Any) -> Any:
    """What JSON holds: NumPy scalars and arrays as Python's, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def validate(record: Any) -> Record:
    """Refuses what is not a record of this schema; returns it in its form.

    Raises:
      ValueError: naming the first field that is wrong.
    """
    if not isinstance(record, dict) or "schema" not in record:
        raise ValueError("not a record: it has no field schema")
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema={record['schema']!r}: this version reads schema {SCHEMA}")
    _validate.one_of(_FORMS, kind=record.get("kind"))
    return _forms.parsed(_FORMS[record["kind"]], record)


def check_claim(record: Train) -> None:
    """Refuses a claim that is not the one of the record's ledger; without a ledger there is nothing to check.

    Raises:
      ValueError: a damaged ledger, one of another number of steps, or another epsilon.
    """
    if record.ledger is None:
        return
    privacy, spent = record.privacy, ledger.from_json(record.ledger)
    if spent.private != privacy.private:
        why = " ".join(spent.reasons) or "every step is private"
        raise ValueError(f"privacy.private={privacy.private}: the ledger says {spent.private} ({why})")
    if spent.steps != record.metrics.steps:
        raise ValueError(f"metrics.steps={record.metrics.steps}: the ledger has {spent.steps}")
    if spent.unit != privacy.unit:
        raise ValueError(f"privacy.unit={privacy.unit!r}: the ledger protects one {spent.unit}")
    if privacy.epsilon is None:
        return
    assert privacy.delta is not None and privacy.adjacency is not None and privacy.accountant is not None
    value = _epsilon(spent, privacy.delta, privacy.adjacency, privacy.accountant)
    if abs(value - privacy.epsilon) > _CLAIMS_AGREE * value:
        raise ValueError(f"privacy.epsilon={privacy.epsilon}: the record's ledger spends {value:.6g}")


@functools.lru_cache(maxsize=1024)  # runs that differ in their seeds alone spend the same
def _epsilon(spent: Ledger, delta: float, adjacency: str, accountant: str) -> float:
    if spent.filter is None:
        claim = Claim(delta=delta, adjacency=adjacency, accountant=accountant)
        return accounting.epsilon(spent, claim, nominal=not spent.private).value
    claim = filters.epsilon(spent)
    for name, stated in (("delta", delta), ("adjacency", adjacency)):
        if stated != getattr(claim, name):
            raise ValueError(f"privacy.{name}={stated!r}: the ledger's filter has {getattr(claim, name)!r}")
    return claim.value


def write(record: Mapping, folder: pathlib.Path) -> pathlib.Path:
    """Writes a record into a folder, whole or not at all; the same record gives the same file name.

    Raises:
      ValueError: not a record.
      OSError: a folder that cannot be written.
    """
    validate(record)
    content = json.dumps(record, indent=1, allow_nan=False)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]", "_", f"{record['kind']}-{record['variant']}")
    path = pathlib.Path(folder) / f"{name}-{digest}.json"
    atomic.write_text(path, content + "\n")
    return path


def read(path: pathlib.Path) -> dict[str, Any]:
    """A record from its file, its claim checked against its ledger.

    Raises:
      ValueError: a file that is no record, corrupt, of another schema, or that claims another epsilon than its
        ledger gives; it is named.
    """
    try:
        record = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        found = validate(record)
        if isinstance(found, Train):
            check_claim(found)
    except (ValueError, RecursionError) as error:  # what json and Unicode raise, too
        raise ValueError(f"record {path}: {error}") from None
    return record
