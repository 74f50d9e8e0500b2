"""Reconstruct training examples from leaked gradients, at every leak point and noise level."""

import json
import pathlib
from dataclasses import asdict, dataclass

import jax
import numpy as np

from jaxdp import atomic, data, models
from jaxdp.attacks import metrics, public_knowledge
from jaxdp.laboratory import records as results
from jaxdp.laboratory.leakage import forecast, origin, picture, sweep
from jaxdp.laboratory.leakage.sweep import Model, Settings, break_down
from jaxdp.training import configured

_SHOWN = 5  # images kept in a record


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is attacked, and how."""

    checkpoint: pathlib.Path | None = None
    """Folder of `jaxdp train --output`: its model and data are attacked; None for a fresh model."""
    data: str = "digits"
    """Data set; victims are test examples, what the attacker knows comes from the training split."""
    image_size: int = 28
    """Side of the images."""
    model: str | None = None
    """Network of a fresh model; None for lenet on images, mlp on tabular rows."""
    activation: str | None = None
    """Activation; None for the network's own."""
    initialization: str | None = None
    """fan_in, or uniform as in the published attacks; None for uniform with lenet, else fan_in."""
    victims: int = 16
    """Examples to reconstruct at each leak point and noise level."""
    batch_size: int = 4
    """B of the leak point `batch`; 1 leaves it out."""
    window: int = 4
    """Steps of the leak point `window`, which sees the same example at each; 1 leaves it out."""
    local_steps: int = 4
    """Local steps behind the leak point `update`; 1 leaves it out."""
    learning_rate: float = 0.1
    """Learning rate of the local steps."""
    l2_norm_clip: float = 1.0
    """Clip bound C."""
    sigmas: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
    """Noise multipliers for inputs: noise of deviation sigma C is added to the sum of clipped gradients."""
    label_sigmas: tuple[float, ...] = (1.0, 4.85, 6.0, 15.0)
    """Noise multipliers for labels and candidates, which leak at far more noise; none leaves them out."""
    iterations: int = 400
    """Ticks of the solver; Adam takes at least 1000."""
    restarts: int = 1
    """Starts a victim; the attack's own objective chooses."""
    public: int = 512
    """Training examples from which the attacker learns its prior."""
    seed: int = 0
    """Seed of weights, noise and starts: the leaks are synthetic, nobody is protected by it."""
    output: pathlib.Path = pathlib.Path("runs/attack")
    """Folder of attack.json, attack.png and records/, one record a row."""
    progress: bool = True
    """Show progress bars."""


def _check(config: Config) -> None:
    """Refuses settings that make no sense."""
    for name in ("image_size", "victims", "batch_size", "window", "local_steps", "iterations", "restarts"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: must be >= 1")
    if config.public < 2:
        raise ValueError(f"public={config.public}: must be >= 2")
    for name in ("l2_norm_clip", "learning_rate"):
        if not (np.isfinite(getattr(config, name)) and getattr(config, name) > 0):
            raise ValueError(f"{name}={getattr(config, name)}: must be finite and > 0")
    if not config.sigmas or not all(np.isfinite(s) and s > 0 for s in config.sigmas):
        raise ValueError(f"sigmas={config.sigmas}: needs at least one finite value > 0")
    if not all(np.isfinite(s) and s > 0 for s in config.label_sigmas):
        raise ValueError(f"label_sigmas={config.label_sigmas}: must be finite and > 0")


def _fresh(config: Config):
    """Data, network, parameters, description and step of a fresh model."""
    dataset = data.load(config.data)
    if len(dataset.input_shape) == 3:
        dataset = data.resized(dataset, config.image_size)
    elif dataset.public_preprocessing:
        dataset = data.standardized(dataset)
    name = config.model or ("lenet" if len(dataset.input_shape) == 3 else "mlp")
    made = models.create(
        name, jax.random.key(config.seed), input_shape=dataset.input_shape, classes=len(dataset.classes),
        activation=config.activation,
        initialization=config.initialization or ("uniform" if name == "lenet" else "fan_in"),
    )  # fmt: skip
    return dataset, made, made.params, f"fresh {name}", 0


def _trained(folder: pathlib.Path):
    """The same of the newest checkpoint."""
    if not folder.is_dir():
        raise ValueError(f"checkpoint={str(folder)!r}: no such folder")
    inside = folder / "checkpoints"
    run, state, _ = configured.from_checkpoint(inside if inside.is_dir() else folder)
    step = int(state.step)
    return run.dataset, run.model, state.params, f"{run.config.model} after {step} steps", step


def load(config: Config) -> tuple[Model, str, int]:
    """What is attacked, its description, and the steps it was trained for."""
    given = _fresh(config) if config.checkpoint is None else _trained(config.checkpoint)
    dataset, network, params, described, step = given
    known = slice(0, config.public)
    floats = lambda x: np.asarray(dataset.to_float(x))  # noqa: E731
    train_x = floats(dataset.train_x[: max(2048, config.public)])
    model = Model(
        loss_fn=models.cross_entropy(network),
        params=params,
        x=floats(dataset.test_x[: max(1024, config.victims)]),
        y=np.asarray(dataset.test_y[: max(1024, config.victims)]),
        train_x=train_x,
        train_y=np.asarray(dataset.train_y[: len(train_x)]),
        public=public_knowledge(train_x[known], dataset.train_y[known], classes=len(dataset.classes)),
        classes=len(dataset.classes),
    )
    return model, f"{described}, {dataset.name} {list(dataset.input_shape)}", step


def settings(config: Config, step: int = 0) -> Settings:
    """The part of the configuration that the sweep takes."""
    made = {name: getattr(config, name) for name in Settings.__dataclass_fields__}
    own = None if config.checkpoint is None else origin.own_noise(origin.run_config(config.checkpoint), step)
    return Settings(**made | {"sigmas": (*config.sigmas, own) if own else config.sigmas})


def table(rows: list[dict], criterion: metrics.Criterion = metrics.IMAGES) -> str:
    """The rows as text."""
    exact, seen = f"exact (<{criterion.exact:g})", f"recognisable (<{criterion.recognisable:g})"
    head = (
        f"{'leak':<14}{'attack':<11}{'sigma':>8}{exact:>19}{seen:>22}"
        f"{'RMSE':>8}{'SSIM':>7}{'gain':>7}{'labels':>8}{'ticks':>7}{'s':>7}"
    )
    lines = [head]
    for row in rows:
        ssim, labels = (_number(row.get(name)) for name in ("ssim", "labels"))
        lines.append(
            f"{row['leak']:<14}{row['attack']:<11}{row['sigma']:>8g}{row['exact']!s:>19}"
            f"{row['recognisable']!s:>22}{row['rmse']:>8.3f}{ssim:>7}"
            f"{row['gain']:>7.2f}{labels:>8}{row['iterations']:>7.0f}{row['seconds']:>7.1f}"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Two digits, or a dash where there is none."""
    return "-" if value is None or np.isnan(value) else f"{value:.2f}"


def looks_table(labels: list[dict], candidates: list[dict]) -> str:
    """Labels and candidates after several looks as text."""
    head = f"{'sigma':>6}{'looks':>7}{'label':>19}{'candidate (worst)':>21}{'(real)':>19}{'bound':>8}"
    lines = [head]
    for label, candidate in zip(labels, candidates, strict=True):
        lines.append(
            f"{label['sigma']:>6g}{label['looks']:>7}{label['right']!s:>19}{candidate['worst case']!s:>21}"
            f"{candidate['real']!s:>19}{candidate['bound']:>8.2f}"
        )
    return "\n".join(lines)


def record(config: Config, row: dict, originals: np.ndarray, found: np.ndarray, step: int = 0) -> dict:
    """One row, of a model after `step` steps, as a record."""
    images, threshold = {}, metrics.TABULAR.recognisable
    if originals.ndim == 4:
        threshold = metrics.IMAGES.recognisable
        shown = min(_SHOWN, len(found))
        images = {"originals": originals[:shown], "reconstructions": found[:shown]}
    tied: dict = {"variant": "attack", "stage": None}
    subject: dict = {}
    if config.checkpoint is not None:
        tied = origin.fields(origin.run_config(config.checkpoint), step, row["sigma"])
        subject = tied.pop("config")
    return results.attack_record(
        **tied, seed=config.seed, config=asdict(config) | subject, step=step,
        leak_point=row["leak"], attack=row["attack"], noise_std=row["noise_std"], knowledge=row["knowledge"],
        metrics=row | {"success": row["recognisable"], "threshold": threshold},
        **images,
    )  # fmt: skip


def run(config: Config) -> None:
    """Attacks, prints the tables, writes attack.json, attack.png and the records."""
    _check(config)
    model, described, step = load(config)
    print(f"{described}; clip C = {config.l2_norm_clip:g}", flush=True)
    rows, images = [], []
    for row, found in sweep.sweep(model, settings(config, step), config.progress):
        rows.append(row)
        images.append(found)
    criterion = metrics.IMAGES if model.x.ndim == 4 else metrics.TABULAR
    print(table(rows, criterion))
    limits = {attack: break_down(rows, attack) for attack in ("published", "posterior")}
    for name, limit in limits.items():
        print(f"{name}: " + ("no break-down" if limit is None else f"breaks down at sigma = {limit:g}"))
    shared = dict(bound=config.l2_norm_clip, seed=config.seed)
    labels = forecast.labels(model, config.label_sigmas, victims=min(200, len(model.x)), **shared)
    candidates = forecast.candidates(model, config.label_sigmas, **shared)
    errors = forecast.errors(model, config.sigmas, bound=config.l2_norm_clip)
    if labels:
        print("\nlabels (chance 1/classes) and one of 10 candidates, after several looks at the same example")
        print(looks_table(labels, candidates))
    for row, found in zip(rows, images, strict=True):
        results.write(record(config, row, model.x[: len(found)], found, step), config.output / "records")
    document = {
        "attacked": described,
        "config": asdict(config),
        "environment": results.environment(),
        "selection": "restarts and iterations are chosen by the attack's own objective",
        "break_down": limits,
        "rows": rows,
        "labels": labels,
        "candidates": candidates,
        "expected_errors": errors,
    }
    content = json.dumps(results.plain(document), indent=1, allow_nan=False)
    atomic.write_text(config.output / "attack.json", content + "\n")
    drawn = picture.figure(rows, images, model.x[: config.victims], labels, candidates, errors)
    atomic.write_bytes(config.output / "attack.png", drawn)
    print(f"\nwritten: {config.output}/attack.json, attack.png, records/")
