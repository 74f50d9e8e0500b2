"""The records of the laboratory: attacks and audits beside training runs, and folders of records.

| kind     | a record is                                           | its form |
|----------|-------------------------------------------------------|----------|
| `train`  | one training run of one variant with one seed         | `Train`  |
| `attack` | one attack on one variant at one step and leak point  | `Attack` |
| `audit`  | lower bounds on epsilon held against the claims       | `Audit`  |
"""

import base64
import dataclasses
import math
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from jaxdp import _validate
from jaxdp.records import Record, form, made, read

STAGES = ("early", "middle", "late")
SUMMARY = "attack.json"  # of all attacks of a command, beside their records: no record itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """Images as compressed bytes that JSON can hold."""

    shape: list[int]
    zlib: str

    def __post_init__(self):
        unpack_images(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """A few victims and what came back of them."""

    originals: Packed
    reconstructions: Packed


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackMetrics:
    """What an attack achieved.

    Attributes:
      victims: how many were attacked.
      success: share of them, low, high (95 % Wilson).
      rmse, rmse_mean_image: medians, of the attack and of guessing the mean image.
      iterations: of the solver, median.
      psnr, ssim: medians.
      threshold: the RMSE that counts as success.
    """

    victims: int
    success: list[float]
    rmse: float | None
    rmse_mean_image: float | None
    iterations: float | None
    psnr: float | None = None
    ssim: float | None = None
    threshold: float | None = None

    def __post_init__(self):
        _validate.whole(1, victims=self.victims)
        if len(self.success) != 3 or not all(0 <= share <= 1 for share in self.success):
            raise ValueError(f"success={self.success}: needs the share and its interval, [share, low, high]")


@form("attack")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(Record):
    """One attack on one variant at one step and leak point.

    Attributes:
      variant: the name that the training record bears; `undefended` for a curve over noise levels.
      seed: of starts and of the leak's noise.
      stage: `early`, `middle` or `late` in training; None for an attack outside of a run.
      step: the step of the attacked parameters.
      leak_point: what leaked, e.g. `raw`, `clipped`, `noised`, `noised batch`.
      attack: its name.
      noise_std: standard deviation of the noise on the leaked gradient, per coordinate.
      knowledge: what the attacker was granted.
      metrics: what came of it; more are kept.
      images: a few victims and their reconstructions.
    """

    stage: Literal["early", "middle", "late"] | None
    step: int
    leak_point: str
    attack: str
    noise_std: float
    knowledge: dict[str, Any] | str
    metrics: AttackMetrics
    images: Images | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """One row of an audit, of which more is kept."""

    mechanism: str
    method: str
    claim: dict[str, Any]
    epsilon: float
    violated: bool


@form("audit")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(Record):
    """Lower bounds on epsilon, held against the claims.

    Attributes:
      confidence: probability that all findings hold at once.
      findings: one a row.
      seconds: wall time of the whole audit.
      violated: whether any claim is refuted.
    """

    confidence: float
    findings: list[AuditFinding]
    seconds: float
    violated: bool

    def __post_init__(self):
        super().__post_init__()
        if not self.findings:
            raise ValueError("findings=[]: an audit without any says nothing")
        if self.violated != any(finding.violated for finding in self.findings):
            raise ValueError(f"violated={self.violated}: contradicts the findings")


def attack_record(
    *, originals: np.ndarray | None = None, reconstructions: np.ndarray | None = None, **fields: Any
) -> dict[str, Any]:
    """Makes the record of an attack.

    Args:
      originals: a few victims [n, height, width, channels] in [0, 1].
      reconstructions: of those, of the same shape.
      **fields: of `Attack`, but for schema, kind, created, environment and images.

    Raises:
      ValueError: a field that is missing or has no sense.
    """
    if (originals is None) != (reconstructions is None):
        raise ValueError("originals and reconstructions: give both or neither")
    images = None
    if originals is not None and reconstructions is not None:
        images = {"originals": pack_images(originals), "reconstructions": pack_images(reconstructions)}
        if np.shape(originals) != np.shape(reconstructions):
            raise ValueError(f"originals {np.shape(originals)}, reconstructions {np.shape(reconstructions)}")
    return made("attack", images=images, **fields)


def audit_record(*, findings: Iterable[Mapping], **fields: Any) -> dict[str, Any]:
    """Makes the record of an audit.

    Args:
      findings: one mapping a row: mechanism, method, claim, epsilon, violated, ...
      **fields: of `Audit`, but for schema, kind, variant, created, environment and violated.

    Raises:
      ValueError: a field that is missing or has no sense.
    """
    findings = [dict(finding) for finding in findings]
    violated = any(finding["violated"] for finding in findings)
    return made("audit", variant="audit", findings=findings, violated=violated, **fields)


def pack_images(images: np.ndarray) -> dict[str, Any]:
    """Images in [0, 1] (clipped to it; NaN is black) as compressed bytes that JSON can hold."""
    x = np.clip(np.nan_to_num(np.asarray(images, np.float64), nan=0.0), 0, 1)
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"images of shape {list(x.shape)}: need [n, height, width, 1 or 3]")
    content = np.rint(255 * x).astype(np.uint8).tobytes()
    return {"shape": list(x.shape), "zlib": base64.b64encode(zlib.compress(content)).decode()}


def unpack_images(packed: Mapping) -> np.ndarray:
    """The images of `pack_images`, uint8 [n, height, width, channels]."""
    try:
        shape = packed["shape"]
        # No more than the shape takes: a few bytes can stand for gigabytes.
        stream = zlib.decompressobj()
        content = stream.decompress(base64.b64decode(packed["zlib"], validate=True), math.prod(shape) + 1)
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"images cannot be read ({error})") from None


def read_folder(*folders: pathlib.Path) -> list[dict[str, Any]]:
    """All records in some folders and their `records` folders, oldest first; of a run the newest record alone.

    Raises:
      FileNotFoundError: no such folder, or no record in any.
      ValueError: a file that is no record.
    """
    found = []
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"records={folder}: no such folder")
        paths = [*folder.glob("*.json"), *folder.glob("records/*.json")]
        found += [read(path) for path in sorted(paths) if path.name != SUMMARY]
    if not found:
        raise FileNotFoundError(f"records={', '.join(map(str, folders))}: no record (*.json) in it")
    return newest(sorted(found, key=lambda record: record["created"]))


def newest(records: Iterable[Mapping]) -> list[Any]:
    """Of a run that was resumed, and so left several records, the last: the others are parts of it."""
    records = list(records)
    runs = [record for record in of_kind(records, "train") if record.get("run")]
    # Those of one second in the order of their steps.
    runs.sort(key=lambda record: (record["created"], record["metrics"]["steps"]))
    last = {record["run"]: record for record in runs}
    return [r for r in records if r["kind"] != "train" or not r.get("run") or last[r["run"]] is r]


def of_kind(records: Iterable[Mapping], kind: str) -> list[Any]:
    """The records of one kind."""
    return [record for record in records if record["kind"] == kind]
