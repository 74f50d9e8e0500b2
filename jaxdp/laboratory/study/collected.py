"""The records of a study, gathered in one small file a data set, and read back.

A record file of a run holds its whole privacy statement and environment; thousands of them repeat the same.
The collected file has these once, in its first line, and one line a run or attack with what differs.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from jaxdp import atomic
from jaxdp.laboratory.study.setups import SELECTION_SEED
from jaxdp.records import plain
from jaxdp.records import read as read_record

RUNS, ATTACKS = "runs.jsonl", "attacks.jsonl"
PUBLISHED_FILE, ACCOUNTANTS = "published.jsonl", "accountants.jsonl"
SELECTION = "The learning rate was chosen on held-out private examples: epsilon does not cover that choice."
_OF_ATTACK = (
    *("victims", "success", "success_of_each_set", "rmse", "rmse_of_each", "batch_size", "rmse_mean_image"),
    *("labels", "bound", "bound_of_one_step", "level"),
)
_DIFFERS = {
    *("schedule", "noise_multiplier", "scale", "target_epsilon", "clipping", "l2_norm_clip"),
    *("l2_norm_clip_end", "learning_rate", "seed", "noise_seed"),
}


def run_row(record: Mapping) -> dict[str, Any]:
    """What differs between runs."""
    metrics, privacy, asked = record["metrics"], record["privacy"], record["settings"]
    return {
        "variant": record["variant"],
        "target": asked["target_epsilon"],
        "learning_rate": asked["learning_rate"],
        "seed": record["seed"],
        **{name: metrics[name] for name in ("validation_accuracy", "test_accuracy")},
        **{name: privacy[name] for name in ("private", "nominal", "epsilon")},
        **{name: record["config"][name] for name in ("schedule", "noise_multiplier", "scale")},
    }


def attack_row(record: Mapping) -> dict[str, Any]:
    """What differs between attacks."""
    row = {name: record[name] for name in ("variant", "stage", "step", "leak_point", "attack", "noise_std")}
    found = {name: record["metrics"][name] for name in _OF_ATTACK if name in record["metrics"]}
    return {**row, "target": record["config"]["epsilon"], **found}


def collect(folder: pathlib.Path, output: pathlib.Path) -> list[pathlib.Path]:
    """Gathers the records of a study, from a folder a data set into another; returns the files written.

    Raises:
      FileNotFoundError: no record in the folder.
      ValueError: a file that is no record.
    """
    written = []
    for path in sorted(path for path in folder.glob("*") if path.is_dir()):
        found = [read_record(file) for file in sorted(path.glob("train-*.json"))]
        if found:
            _check_grids(path.name, found)
            written.append(_write(output / path.name / RUNS, _head(found), map(run_row, found)))
        files = [*sorted(path.glob("informed-*.json")), *path.glob("images.json")]
        attacks = {file.stem: json.loads(file.read_text()) for file in files}
        rows = [attack_row(row) for document in attacks.values() for row in document["rows"]]
        if rows:
            first, *_, last = [*files, files[-1]]
            head = {"settings": {file.stem: attacks[file.stem]["settings"] for file in (first, last)}}
            written.append(_write(output / path.name / ATTACKS, head, rows))
    for name in (PUBLISHED_FILE, ACCOUNTANTS):
        accounted = folder / name.replace(".jsonl", ".json")
        if accounted.exists():
            written.append(_write(output / name, {}, json.loads(accounted.read_text())["rows"]))
    if not written:
        raise FileNotFoundError(f"records={folder}: no record of a study in it")
    return written


def _check_grids(data: str, records: list[dict]) -> None:
    """Refuses cells that were judged by other learning rates or seeds than the rest; fewer are under way."""
    rows = [run_row(record) for record in records if record["seed"] >= SELECTION_SEED]
    for name in ("learning_rate", "seed"):
        judges: dict[tuple, set] = {}
        for row in rows:
            judges.setdefault((row["variant"], row["target"]), set()).add(row[name])
        most = max(judges.values(), key=len, default=set())
        for (variant, epsilon), own in judges.items():
            if not own <= most:
                judged = f"{variant} at epsilon={epsilon} was judged by other learning rates or seeds"
                raise ValueError(f"records of {data}: {judged} than the rest; collect runs of one grid")


def _head(records: list[dict]) -> dict[str, Any]:
    """What all runs share."""
    shared = [{k: v for k, v in record["settings"].items() if k not in _DIFFERS} for record in records]
    for name in shared[0]:
        values = {str(one.get(name)) for one in shared}
        if len(values) > 1:
            stated = f"{name}={', '.join(sorted(values))}"
            raise ValueError(f"records of {shared[0]['data']}: {stated}: must be the same in all")
    private = next((record for record in records if record["privacy"]["private"]), records[0])
    return {
        "settings": shared[0],
        "environment": private["environment"],
        **{name: private["privacy"][name] for name in ("delta", "accountant", "adjacency", "sampling")},
        "statement_of_one": private["privacy"]["statement"],
        "not_covered": SELECTION,
    }


def _write(path: pathlib.Path, head: Mapping, rows: Iterable[Mapping]) -> pathlib.Path:
    lines = [head]
    for row in rows:
        lines.append({key: round(v, 9) if isinstance(v, float) else v for key, v in row.items()})
    atomic.write_text(path, "".join(json.dumps(plain(line), allow_nan=False) + "\n" for line in lines))
    return path


def read(path: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line and the rows of a collected file; nothing of a file that is not there.

    Raises:
      ValueError: a file that is none.
    """
    if not path.exists():
        return {}, []
    try:
        head, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    except ValueError as error:
        raise ValueError(f"records {path}: {error}") from None
    return head, rows
