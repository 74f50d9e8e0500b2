"""Writes `benchmarks/README.md` from the records: `python -m benchmarks table`.

One function a family of records, each from its documents to Markdown; a family without records is skipped.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks import device, streaming
from benchmarks.timing import RECORDS
from jaxdp import atomic
from jaxdp.laboratory.report.tables import markdown as _table

README = pathlib.Path(__file__).parent / "README.md"
HEAD = """# Benchmarks

Generated from `records/` by `python -m benchmarks table`; `python -m benchmarks` measures everything again.
Steps are timed in turns: every round runs each variant, in random order, once untimed and then timed (over
20 ms or 20 runs), as in training a step follows its like; ratios are medians of the ratios within a round.
Malloc is told to keep what it gets (`malloc.py`): as it comes, a step may take twice as long in one process as
in another.
"""
Document = dict[str, Any]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _where(document: Document) -> str:
    e = document["environment"]
    name = e["device"] if e["device"] != "cpu" else e["processor"]
    flags = f", XLA_FLAGS={e['xla_flags']}" if e["xla_flags"] else ""
    return f"{name}, {e['cores']} cores, jax {e['jax']}, flax {e['flax']}, float32{flags}."


def steps(documents: list[Document]) -> str:
    """What a step costs."""
    parts = [
        "## A training step\n",
        "`nonprivate` is the usual formulation of the unmodified network: `nnx.Conv`, Flax's pooling, mean "
        "loss, SGD. `nonprivate_patches` and `nonprivate_pieces` have the library's "
        "convolutions and no privacy, on the whole batch or in pieces. `floor` is `nonprivate` plus "
        "drawing the noise. `factored` takes the batch as a whole, `private` is the default, in microbatches; "
        "all private steps clip to 4, add noise and divide.\n",
    ]
    for document in documents:
        rows = document["records"]
        by_name = {row["variant"]: row for row in rows}
        share = by_name["noise"]["median_ms"] / by_name["private"]["median_ms"]
        parts.append(f"### {rows[0]['model']}, B = {rows[0]['batch']}\n")
        parts.append(f"{_where(document)} Drawing the noise is {share:.1%} of the private step.\n")
        header = (
            "variant", "ms", "of nonprivate", "quartiles", "of floor", "of best nonprivate", "examples/s",
            "first call s", "compilations", "rounds",
        )  # fmt: skip
        parts.append(
            _table(
                header,
                (
                    (
                        row["variant"],
                        _number(row["median_ms"]),
                        _number(row["ratio_to_nonprivate"], 3),
                        " - ".join(_number(q, 3) for q in row["ratio_quartiles"]),
                        _number(row["ratio_to_floor"], 3),
                        _number(row["ratio_to_best_nonprivate"], 3),
                        _number(row["examples_per_second"], 0) if row["variant"] != "noise" else "",
                        _number(row["compile_seconds"], 1),
                        row["compilations"] or "",
                        row["rounds"],
                    )
                    for row in rows
                ),
            )
        )
    return "\n".join(parts)


def dynamic(documents: list[Document]) -> str:
    """Dynamic against fixed sigma."""
    header = ("model", "batch", "schedule", "of fixed", "quartiles", "compilations", "rounds")
    parts = ["## Dynamic sigma against fixed\n", "Single steps, and whole runs of the compiled loop.\n"]
    for document in documents:
        parts.append(_where(document) + "\n")
        rows = (
            (
                f"{row['model']} ({row['kind']})",
                _number(row["batch"], 0),
                row["schedule"],
                _number(row["ratio_to_fixed"]["median"], 4),
                " - ".join(_number(q, 3) for q in row["ratio_to_fixed"]["quartiles"]),
                row["compilations"],
                row["rounds"],
            )
            for row in document["records"]
        )
        parts.append(_table(header, rows))
    return "\n".join(parts)


def scaling(documents: list[Document]) -> str:
    """Cost against the batch size."""
    header = ("model", "batch", "nonprivate ms", "private ms", "ratio", "private microseconds an example")
    rows = []
    for document in documents:
        records = document["records"]
        for ordinary, private in zip(records[::2], records[1::2], strict=True):
            rows.append(
                (
                    private["model"], private["batch"], _number(ordinary["median_ms"], 1),
                    _number(private["median_ms"], 1), _number(private["ratio_to_nonprivate"], 3),
                    _number(private["microseconds_per_example"], 0),
                )
            )  # fmt: skip
    where = _where(documents[0])
    if "timed" not in documents[0]["environment"]:
        where += " By an earlier version; each step ran once a round, with malloc as it comes."
    return "\n".join(["## Against the batch size\n", where + "\n", _table(header, rows)])


def memory(documents: list[Document]) -> str:
    """Peak memory."""
    parts = [
        "## Peak memory\n",
        "Each configuration in a process of its own. `peak` is the whole process, compiler included; `before` "
        "what it was before compiling; `temporary` what the compiled step needs for intermediate values.\n",
    ]
    for document in documents:
        rows = (
            (
                row["model"], row["batch"], row["variant"], _number(row["peak_mb"], 0),
                _number(row["before_mb"], 0), _number(row["temporary_mb"], 0),
            )
            for row in document["records"]
        )  # fmt: skip
        parts.append(_where(document) + "\n")
        parts.append(_table(("model", "batch", "variant", "peak MB", "before MB", "temporary MB"), rows))
    return "\n".join(parts)


def peers(documents: list[Document]) -> str:
    """The same step by other libraries."""
    parts = [
        "## Peers\n",
        "`of private` is how many times this library's step it takes. `nonprivate` is the JAX network, "
        "`torch nonprivate` PyTorch's. Opacus runs in processes of its own on the same cores, in turns with "
        "the rest, once with the system's malloc as it comes and once with its thresholds raised, as they are "
        "for the JAX steps.\n",
    ]
    for document in documents:
        rows = document["records"]
        versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
        parts.append(f"### {rows[0]['model']}, B = {rows[0]['batch']}\n")
        parts.append(f"{_where(document)} {versions}.\n")
        header = ("peer", "ms", "of private", "quartiles", "of nonprivate", "examples/s", "rounds")
        parts.append(
            _table(
                header,
                (
                    (
                        row["peer"],
                        _number(row["median_ms"]),
                        _number(row["ratio_to_private"]["median"]),
                        " - ".join(_number(q) for q in row["ratio_to_private"]["quartiles"]),
                        _number(row["ratio_to_nonprivate"], 3),
                        _number(row["examples_per_second"], 0),
                        row["rounds"],
                    )
                    for row in rows
                ),
            )
        )
    return "\n".join(parts)


def accounting(documents: list[Document]) -> str:
    """Times of the accountants and their agreement with dp_accounting."""
    (document,) = documents
    agreement = document["agreement_with_dp_accounting"]
    rows = [
        (name.replace("_", " "), _number(times["median_s"], 3), _number(times["least_s"], 3))
        for name, times in document["seconds_for_10000_distinct"].items()
    ]
    return "\n".join(
        [
            "## Accounting\n",
            f"RDP differs from `dp_accounting` by at most {agreement['worst']['relative']:.1e} (relative) over "
            f"{agreement['points']} pairs of q and sigma. Seconds for 10,000 distinct noise multipliers:\n",
            _table(("what", "median s", "least s"), rows),
        ]
    )


def audit(documents: list[Document]) -> str:
    """Lower bounds on epsilon, measured from the outside."""
    (document,) = documents
    header = ("clipping", "sigma", "method", "claimed", "proved", "share", "claim")
    rows = (
        (
            finding["mechanism"], finding["sigma"], finding["method"], _number(finding["claim"]["value"], 3),
            _number(finding["epsilon"], 3), _number(finding["ratio"]),
            finding.get("verdict", "violated" if finding["violated"] else "stands").lower(),
        )
        for finding in document["findings"]
    )  # fmt: skip
    note = (
        f"Lower bounds on epsilon, all at once with {document['confidence']:.0%} confidence, from runs of the "
        f"real training step with planted canaries; {document['seconds']:.0f} s.\n"
    )
    return "\n".join(["## Audit\n", note, _table(header, rows)])


def _cell(value: Any) -> str:
    """A share with its interval, a number, or text."""
    if isinstance(value, dict):
        return f"{value['estimate']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_RECONSTRUCTIONS = ("name", "victims", "exact", "recognisable", "rmse", "attacks_per_minute")


def attacks(documents: list[Document]) -> str:
    """How strong the attacks are."""
    parts = ["## Attacks\n"]
    for document in documents:
        rows = document["rows"]
        columns = _RECONSTRUCTIONS if "recognisable" in rows[0] else tuple(rows[0])
        header = [column.replace("_", " ") for column in columns]
        parts.append(f"### {document['table']}\n")
        parts.append(_table(header, ([_cell(row.get(column, "")) for column in columns] for row in rows)))
    return "\n".join(parts)


def accuracy(documents: list[Document]) -> str:
    """Test accuracy of private training."""
    header = (
        "data", "recipe", "network", "batch", "epochs", "optimizer", "clip", "sigma", "epsilon (RDP)",
        "epsilon (PLD)", "test accuracy of each seed", "without the average", "s a run",
    )  # fmt: skip
    rows = []
    for document in documents:
        config, records = document["config"], document["records"]
        averaged = config["ema_decay"] is not None
        seconds = sum(row["seconds"] for row in records) / len(records)
        rows.append(
            (
                document["data"], document["recipe"], config["model"], document["batch_size"],
                document["epochs"], f"{config['optimizer']} {config['learning_rate']:g}",
                f"{config['l2_norm_clip']:g}", _number(config["scale"] * config["noise_multiplier"], 3),
                _number(document["epsilon"]["rdp"], 3), _number(document["epsilon"]["pld"], 3),
                ", ".join(_number(row["test_accuracy"], 4) for row in records),
                ", ".join(_number(row["test_accuracy_of_last_step"], 4) for row in records if averaged),
                _number(seconds, 0),
            )
        )  # fmt: skip
    note = (
        "Poisson sampling, add or remove one, delta = 1e-5; how the hyperparameters were chosen, which no "
        "epsilon covers, `accuracy.py` tells. Seconds beside whatever else the cores had to do "
        "(`load` in the records).\n"
    )
    return "\n".join(
        ["## Accuracy of private training\n", note, _where(documents[0]) + "\n", _table(header, rows)]
    )


# pattern of the records -> what makes a section of them
FAMILIES: dict[str, Callable[[list[Document]], str]] = {
    "step_*.json": steps,
    "dynamic_*.json": dynamic,
    "scaling_*.json": scaling,
    "memory_*.json": memory,
    "streaming_*.json": streaming.section,
    "peers_*.json": peers,
    "accounting.json": accounting,
    "audit.json": audit,
    "attacks_*.json": attacks,
    "accuracy_*.json": accuracy,
    "device_*.json": device.section,
}


def render(records: pathlib.Path = RECORDS) -> str:
    """The whole page."""
    sections, known = [HEAD], set()
    for pattern, section in FAMILIES.items():
        paths = sorted(records.glob(pattern))
        known.update(paths)
        if paths:
            sections.append(section([json.loads(path.read_text()) for path in paths]))
    others = sorted(set(records.glob("*.json")) - known)
    if others:
        links = "\n".join(f"- [{path.stem}](records/{path.name})" for path in others)
        sections.append(f"## Other records\n\n{links}\n")
    return "\n".join(sections)


def main() -> None:
    """Writes the page."""
    atomic.write_text(README, render())
    print(README)


if __name__ == "__main__":
    main()
