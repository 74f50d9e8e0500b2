"""One JSON record a run: what was done, with what, how private it is, and what came out.

| kind     | a record is                                          | beside the fields of every record        |
|----------|------------------------------------------------------|------------------------------------------|
| `train`  | one training run of one variant with one seed        | seed_policy, privacy, metrics, curves    |
| `attack` | one attack on one variant at one step and leak point | stage, step, leak_point, metrics, images |
| `audit`  | lower bounds on epsilon held against the claims      | confidence, violated, findings           |

Every record has schema, kind, variant, seed, created, config and environment.  Pages and tables are made from
records and from nothing else.
"""

import base64
import datetime
import functools
import hashlib
import json
import math
import os
import pathlib
import platform
import subprocess
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, SupportsInt

import numpy as np

from jaxdp import atomic

SCHEMA = 1
STAGES = ("early", "middle", "late")
_EVERY = ("schema", "kind", "variant", "seed", "created", "config", "environment")
_FIELDS = {
    "train": {
        "seed_policy": (),
        "privacy": (
            "private",
            "nominal",
            "epsilon",
            "delta",
            "accountant",
            "adjacency",
            "sampling",
            "statement",
        ),
        "metrics": ("test_accuracy", "steps", "ms_per_step", "examples_per_second"),
        "curves": ("step", "epsilon", "noise_multiplier", "test_accuracy"),
    },
    "attack": {
        "stage": (),
        "step": (),
        "leak_point": (),
        "attack": (),
        "noise_std": (),
        "knowledge": (),
        "metrics": ("victims", "success", "rmse", "rmse_mean_image", "iterations"),
    },
    "audit": {"confidence": (), "violated": (), "findings": (), "seconds": ()},
}
KINDS = tuple(_FIELDS)


def _record(kind: str, variant: str, seed: int | None, config: Mapping, **fields: Any) -> dict[str, Any]:
    record = {
        "schema": SCHEMA,
        "kind": kind,
        "variant": variant,
        "seed": seed,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": dict(config),
        "environment": environment(),
        **fields,
    }
    record = plain(record)
    validate(record)
    return record


def train_record(
    *, variant: str, seed: int | None, config: Mapping, seed_policy: str, privacy: Mapping, metrics: Mapping,
    curves: Mapping,
) -> dict[str, Any]:  # fmt: skip
    """The record of a training run.

    Args:
      variant: `non_private`, `fixed`, a schedule's name, `l2_max`, ...
      seed: of initialisation and batches; None if from system entropy.
      config: the run's configuration.
      seed_policy: where the noise key came from, in words.
      privacy: private, nominal (whether `epsilon` bounds nothing), epsilon, delta, accountant, adjacency,
        sampling (None where none applies) and `statement`, the privacy statement as text.
      metrics: test_accuracy, steps, ms_per_step, examples_per_second; more are kept, such as peak memory in
        bytes (`peak_memory`).
      curves: lists of equal length (None where there is none): step, epsilon, noise_multiplier,
        test_accuracy.

    Raises:
      ValueError: a field that is missing or has no sense.
    """
    return _record(
        "train", variant, seed, config,
        seed_policy=seed_policy, privacy=privacy, metrics=metrics, curves=curves,
    )  # fmt: skip


def attack_record(
    *, variant: str, seed: int | None, config: Mapping, stage: str | None, step: SupportsInt,
    leak_point: str, attack: str, noise_std: SupportsFloat, knowledge: Mapping | str, metrics: Mapping,
    originals: np.ndarray | None = None, reconstructions: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The record of an attack on one variant at one step and leak point.

    Args:
      variant: the name that the training record bears; `undefended` for a curve over noise levels.
      seed: of starts and of the leak's noise.
      config: the attack's configuration.
      stage: `early`, `middle` or `late` in training; None for an attack outside of a run.
      step: the step of the attacked parameters.
      leak_point: what leaked, e.g. `raw`, `clipped`, `noised`, `noised batch`.
      attack: its name.
      noise_std: standard deviation of the noise on the leaked gradient, per coordinate.
      knowledge: what the attacker was granted.
      metrics: victims, success (share, low, high: 95 % Wilson), rmse and rmse_mean_image (medians),
        iterations; optionally psnr, ssim, labels, gain, threshold (the RMSE that counts as success).
      originals: a few victims [n, height, width, channels] in [0, 1].
      reconstructions: of those, of the same shape.

    Raises:
      ValueError: a field that is missing or has no sense.
    """
    if (originals is None) != (reconstructions is None):
        raise ValueError("originals and reconstructions: give both or neither")
    images = None
    if originals is not None and reconstructions is not None:
        if np.shape(originals) != np.shape(reconstructions):
            raise ValueError(f"originals {np.shape(originals)}, reconstructions {np.shape(reconstructions)}")
        images = {"originals": pack_images(originals), "reconstructions": pack_images(reconstructions)}
    return _record(
        "attack", variant, seed, config,
        stage=stage, step=step, leak_point=leak_point, attack=attack, noise_std=noise_std,
        knowledge=knowledge, metrics=metrics, images=images,
    )  # fmt: skip


def audit_record(
    *, seed: int | None, config: Mapping, confidence: float, findings: Iterable[Mapping], seconds: float
) -> dict[str, Any]:
    """The record of an audit.

    Args:
      seed: of the audited runs; None if from system entropy.
      config: the audit's configuration.
      confidence: probability that all findings hold at once.
      findings: one mapping a row: mechanism, method, claim, epsilon, violated, ...
      seconds: wall time of the whole audit.

    Raises:
      ValueError: a field that is missing or has no sense.
    """
    findings = [dict(finding) for finding in findings]
    return _record(
        "audit", "audit", seed, config,
        confidence=confidence, findings=findings, seconds=seconds,
        violated=any(finding["violated"] for finding in findings),
    )  # fmt: skip


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
        content = zlib.decompress(base64.b64decode(packed["zlib"], validate=True))
        return np.frombuffer(content, np.uint8).reshape(packed["shape"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"images cannot be read ({error})") from None


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


def validate(record: Any) -> None:
    """Refuses what is not a record of this schema.

    Raises:
      ValueError: naming the first field that is wrong.
    """
    if not isinstance(record, dict) or "schema" not in record:
        raise ValueError("not a record: it has no field schema")
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema={record['schema']!r}: this version reads schema {SCHEMA}")
    if record.get("kind") not in KINDS:
        raise ValueError(f"kind={record.get('kind')!r}: choose from {', '.join(KINDS)}")
    fields = _FIELDS[record["kind"]]
    for field in (*_EVERY, *fields):
        if field not in record:
            raise ValueError(f"field {field} is missing")
        for part in fields.get(field, ()):
            if not isinstance(record[field], dict) or part not in record[field]:
                raise ValueError(f"field {field}.{part} is missing")
    _VALIDATE[record["kind"]](record)


def _validate_train(record: dict) -> None:
    lengths = {name: len(curve) for name, curve in record["curves"].items() if curve is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"curves of different lengths: {lengths}")
    privacy = record["privacy"]
    if not privacy["private"] and privacy["epsilon"] is not None and not privacy["nominal"]:
        raise ValueError(f"privacy.epsilon={privacy['epsilon']}: the run is not private; only a nominal one")


def _validate_attack(record: dict) -> None:
    if record["stage"] is not None and record["stage"] not in STAGES:
        raise ValueError(f"stage={record['stage']!r}: choose from {', '.join(STAGES)}, or None")
    success = record["metrics"]["success"]
    if not (isinstance(success, list) and len(success) == 3):
        raise ValueError(f"metrics.success={success!r}: needs the share and its interval, [share, low, high]")


def _validate_audit(record: dict) -> None:
    findings = record["findings"]
    if not (isinstance(findings, list) and findings):
        raise ValueError("findings: an audit without any says nothing")
    for finding in findings:
        for part in ("mechanism", "method", "claim", "epsilon", "violated"):
            if part not in finding:
                raise ValueError(f"field findings.{part} is missing")
    if record["violated"] != any(finding["violated"] for finding in findings):
        raise ValueError(f"violated={record['violated']}: contradicts the findings")


_VALIDATE = {"train": _validate_train, "attack": _validate_attack, "audit": _validate_audit}


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, device and revision of this process."""
    import importlib.metadata as metadata

    import jax

    packages = ("jaxdp", "jax", "jaxlib", "flax", "optax", "dp-accounting", "numpy", "scipy")
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": versions,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "git": git_revision(),
    }


def git_revision() -> str | None:
    """The revision of the source this package runs from, `-dirty` if it was changed; None outside of git."""
    package = pathlib.Path(__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def write(record: Mapping, folder: pathlib.Path) -> pathlib.Path:
    """Writes a record into a folder, whole or not at all; the same record gives the same file name.

    Raises:
      ValueError: not a record.
      OSError: a folder that cannot be written.
    """
    validate(record)
    content = json.dumps(record, indent=1, allow_nan=False)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{record['kind']}-{record['variant']}")
    path = pathlib.Path(folder) / f"{name}-{digest}.json"
    atomic.write_text(path, content + "\n")
    return path


def read(path: pathlib.Path) -> dict[str, Any]:
    """A record from its file.

    Raises:
      ValueError: a file that is no record, corrupt, or of another schema; it is named.
    """
    try:
        record = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        validate(record)
    except ValueError as error:  # what json and Unicode raise, too
        raise ValueError(f"record {path}: {error}") from None
    return record


def read_folder(folder: pathlib.Path) -> list[dict[str, Any]]:
    """All records in a folder, oldest first.

    Raises:
      FileNotFoundError: no such folder, or no record in it.
      ValueError: a file in it that is no record.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"records={folder}: no such folder")
    records = [read(path) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise FileNotFoundError(f"records={folder}: no record (*.json) in it")
    return sorted(records, key=lambda record: record["created"])


def of_kind(records: Iterable[Mapping], kind: str) -> list[Mapping]:
    """The records of one kind."""
    return [record for record in records if record["kind"] == kind]
