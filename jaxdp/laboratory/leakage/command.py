"""Reconstruct training examples from leaked gradients, at every leak point and noise level."""

import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import jax
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxdp import _validate, atomic, data, models, records
from jaxdp.attacks import metrics, public_knowledge
from jaxdp.laboratory.console import line
from jaxdp.laboratory.leakage import forecast, origin, picture, sweep, text
from jaxdp.laboratory.leakage.sweep import MEANING, Model, Settings, break_down
from jaxdp.laboratory.records import attack_record
from jaxdp.training import configured

_SHOWN = 5  # images kept in a record


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is attacked, and what is known of it."""

    checkpoint: pathlib.Path | None = None
    """Folder of `jaxdp train --output`: its model and data are attacked; None for a fresh model."""
    data: str = "digits"
    """Data set; victims are test examples, what the attacker knows comes from the training split.  `text` for
    passages of what `help()` shows, and a fresh decoder."""
    image_size: int = 28
    """Side of the images."""
    model: str | None = None
    """Network of a fresh model; None for lenet on images, mlp on tabular rows."""
    activation: str | None = None
    """Activation; None for the network's own."""
    initialization: str | None = None
    """fan_in, or uniform as in the published attacks; None for uniform with lenet, else fan_in."""
    public: int = 512
    """Training examples from which the attacker learns its prior."""

    def __post_init__(self):
        _validate.whole(image_size=self.image_size)
        _validate.whole(public=self.public, minimum=2)
        if self.data == text.NAME and self.checkpoint is not None:
            raise ValueError(
                f"checkpoint={str(self.checkpoint)!r}: with data='text' a fresh decoder is attacked"
            )
        if self.model not in (None, "decoder") if self.data == text.NAME else self.model == "decoder":
            raise ValueError(f"model={self.model!r}, data={self.data!r}: a decoder and text need each other")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is attacked, and how."""

    target: OmitArgPrefixes[Target] = field(default_factory=Target)
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)
    label_sigmas: tuple[float, ...] = (1.0, 4.85, 6.0, 15.0)
    """Noise multipliers for labels and candidates, which leak at far more noise; none leaves them out."""
    output: pathlib.Path = pathlib.Path("runs/attack")
    """Folder of attack.json, attack.png and records/, one record a row."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self):
        if not all(np.isfinite(s) and s > 0 for s in self.label_sigmas):
            raise ValueError(f"label_sigmas={self.label_sigmas}: must be finite and > 0")

    def flat(self) -> dict:
        """Every option by its name."""
        options = asdict(self)
        return options.pop("target") | options.pop("settings") | options


def _fresh(target: Target, seed: int):
    """Data, network, parameters and step of a fresh model."""
    dataset = data.load(target.data)
    images = len(dataset.input_shape) == 3
    if images:
        dataset = data.resized(dataset, target.image_size)
    elif dataset.public_preprocessing:
        dataset = data.standardized(dataset)
    name = target.model or ("lenet" if images else "mlp")
    made = models.create(
        name, jax.random.key(seed), input_shape=dataset.input_shape, classes=len(dataset.classes),
        activation=target.activation,
        initialization=target.initialization or ("uniform" if name == "lenet" else "fan_in"),
    )  # fmt: skip
    return dataset, made, made.params, f"fresh {name}", 0


def _trained(folder: pathlib.Path):
    """The same of the newest checkpoint."""
    if not folder.is_dir():
        raise ValueError(f"checkpoint={str(folder)!r}: no such folder")
    run, state, _ = configured.from_checkpoint(origin.checkpoints(folder))
    step = int(state.step)
    return run.dataset, run.model, state.params, f"{run.config.model} after {step} steps", step


def load(target: Target, settings: Settings) -> tuple[Model, str, int]:
    """What is attacked, its description, and the steps it was trained for."""
    given = _fresh(target, settings.seed) if target.checkpoint is None else _trained(target.checkpoint)
    dataset, network, params, described, step = given
    held, seen, known = max(1024, settings.victims), max(2048, target.public), slice(0, target.public)
    train_x = np.asarray(dataset.to_float(dataset.train_x[:seen]))
    classes = len(dataset.classes)
    model = Model(
        loss_fn=models.cross_entropy(network),
        params=params,
        x=np.asarray(dataset.to_float(dataset.test_x[:held])),
        y=np.asarray(dataset.test_y[:held]),
        train_x=train_x,
        train_y=np.asarray(dataset.train_y[:seen]),
        public=public_knowledge(train_x[known], dataset.train_y[known], classes=classes),
        classes=classes,
    )
    return model, f"{described}, {dataset.name} {list(dataset.input_shape)}", step


def table(rows: Sequence[dict], criterion: metrics.Criterion = metrics.IMAGES) -> str:
    """The rows as text."""
    exact, seen = f"exact (<{criterion.exact:g})", f"recognisable (<{criterion.recognisable:g})"
    widths = {"leak": -14, "attack": -11, "sigma": 8, exact: 19, seen: 22, "RMSE": 8}
    widths |= {"SSIM": 7, "gain": 7, "labels": 8, "ticks": 7, "s": 7}
    lines = [line(widths, list(widths))]
    for row in rows:
        cells = [row["leak"], row["attack"], f"{row['sigma']:g}", row["exact"], row["recognisable"]]
        cells += [f"{row['rmse']:.3f}", *(_number(row.get(name)) for name in ("ssim", "gain", "labels"))]
        lines.append(line(widths, [*cells, f"{row['iterations']:.0f}", f"{row['seconds']:.1f}"]))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Two digits, or a dash where there is none."""
    return "-" if value is None or np.isnan(value) else f"{value:.2f}"


def looks_table(labels: list[dict], candidates: list[dict]) -> str:
    """Labels and candidates after several looks as text."""
    widths = {"sigma": 6, "looks": 7, "label": 19, "candidate (worst)": 21, "(real)": 19, "bound": 8}
    lines = [line(widths, list(widths))]
    for label, found in zip(labels, candidates, strict=True):
        cells = [f"{label['sigma']:g}", label["looks"], label["right"], found["worst case"], found["real"]]
        lines.append(line(widths, [*cells, f"{found['bound']:.2f}"]))
    return "\n".join(lines)


def record(config: Config, row: dict, originals: np.ndarray, found: np.ndarray, step: int = 0) -> dict:
    """One row, of a model after `step` steps, as a record."""
    images, criterion = {}, metrics.TABULAR
    if originals.ndim == 4:
        criterion, shown = metrics.IMAGES, slice(0, min(_SHOWN, len(found)))
        images = {"originals": originals[shown], "reconstructions": found[shown]}
    tied: dict = {"variant": "attack", "stage": None, "config": {}}
    if config.target.checkpoint is not None:
        tied = origin.fields(origin.run_config(config.target.checkpoint), step, row["sigma"])
    own = {name: row[name] for name in ("attack", "noise_std", "knowledge")}
    return attack_record(
        **tied | own | images | {"config": config.flat() | tied["config"]},
        seed=config.settings.seed, step=step, leak_point=row["leak"],
        metrics=row | {"success": row["recognisable"], "threshold": criterion.recognisable},
    )  # fmt: skip


def run(config: Config) -> None:
    """Attacks, prints the tables, writes attack.json, attack.png and the records."""
    if config.target.data == text.NAME:
        return text.run(config.settings, config.flat(), config.output)
    model, described, step = load(config.target, config.settings)
    settings = _with_own_noise(config, step)
    print(f"{described}; clip C = {settings.l2_norm_clip:g}", flush=True)
    rows, images = zip(*sweep.sweep(model, settings, config.progress), strict=True)
    limits = {attack: break_down(rows, attack) for attack in ("published", "posterior")}
    forecasts = _forecasts(model, config)
    print(_report(rows, limits, forecasts, metrics.IMAGES if model.x.ndim == 4 else metrics.TABULAR))
    for row, found in zip(rows, images, strict=True):
        records.write(record(config, row, model.x[: len(found)], found, step), config.output / "records")
    document = {
        "attacked": described,
        "config": config.flat(),
        "environment": records.environment(),
        "selection": "restarts and iterations are chosen by the attack's own objective",
        "break_down": limits,
        "rows": rows,
        **forecasts,
    }
    content = json.dumps(records.plain(document), indent=1, allow_nan=False)
    atomic.write_text(config.output / "attack.json", content + "\n")
    drawn = picture.figure(rows, images, model.x[: settings.victims], *forecasts.values())
    atomic.write_bytes(config.output / "attack.png", drawn)
    print(f"\nwritten: {config.output}/attack.json, attack.png, records/")


def _with_own_noise(config: Config, step: int) -> Settings:
    """The settings, at the noise of the run's own next step as well."""
    if config.target.checkpoint is None:
        return config.settings
    own = origin.own_noise(origin.run_config(config.target.checkpoint), step)
    sigmas = config.settings.sigmas
    return replace(config.settings, sigmas=(*sigmas, own)) if own else config.settings


def _forecasts(model: Model, config: Config) -> dict:
    """What leaks without a search: labels, candidates, and the error to expect."""
    bound, seed = config.settings.l2_norm_clip, config.settings.seed
    few = min(200, len(model.x))
    return {
        "labels": forecast.labels(model, config.label_sigmas, victims=few, bound=bound, seed=seed),
        "candidates": forecast.candidates(model, config.label_sigmas, bound=bound, seed=seed),
        "expected_errors": forecast.errors(model, config.settings.sigmas, bound=bound),
    }


def _report(rows: Sequence[dict], limits: dict, forecasts: dict, criterion: metrics.Criterion) -> str:
    """What is printed."""
    used = dict.fromkeys(row["attack"] for row in rows)
    lines = [table(rows, criterion), *(f"{name}: {MEANING[name]}" for name in used)]
    for name, limit in limits.items():
        lines.append(f"{name}: {'no break-down' if limit is None else f'breaks down at sigma = {limit:g}'}")
    if forecasts["labels"]:
        lines += [
            "",
            "labels (chance 1/classes) and one of 10 candidates, after several looks at the same example",
            looks_table(forecasts["labels"], forecasts["candidates"]),
        ]
    return "\n".join(lines)
