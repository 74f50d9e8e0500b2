"""Reconstruct training examples from leaked gradients, at every leak point and noise level."""

import json
import os
import pathlib
import platform
import tempfile
import time
from dataclasses import asdict, dataclass, replace

import jax
import numpy as np

from jaxdp import models
from jaxdp.attacks import Leak, evaluation, public_knowledge
from jaxdp.attacks.portfolio import PLAIN, POSTERIOR

_UNBOUNDED = 1e9
ATTACKS = {"plain": PLAIN, "posterior": POSTERIOR}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is attacked, and how."""

    data: str = "digits"
    """Data set; victims are test images, what the attacker knows of images comes from the training split."""
    size: int = 28
    """Side of the images."""
    model: str = "lenet"
    """Network."""
    activation: str | None = None
    """Activation; None for the network's own."""
    initialization: str = "uniform"
    """fan_in, or uniform as in the published attacks."""
    victims: int = 16
    """Images to reconstruct at each leak point and noise level."""
    batch_size: int = 4
    """B of the leak point `batch`."""
    l2_norm_clip: float = 1.0
    """Clip bound C."""
    sigmas: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
    """Noise multipliers: noise of standard deviation sigma C is added to the sum of clipped gradients."""
    iterations: int = 300
    """Ticks of the solver."""
    restarts: int = 1
    """Starts a victim; the attack's own objective chooses."""
    public: int = 512
    """Training images from which the attacker learns its prior."""
    seed: int = 0
    """Seed of weights, noise and starts: the leaks are synthetic, nobody is protected by it."""
    output: pathlib.Path = pathlib.Path("results/attack")
    """Folder of attack.json and attack.png."""
    progress: bool = True
    """Show progress bars."""


def _check(config: Config) -> None:
    """Refuses settings that make no sense."""
    for name in ("size", "victims", "batch_size", "iterations", "restarts"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: must be >= 1")
    if config.public < 2:
        raise ValueError(f"public={config.public}: must be >= 2")
    if not (np.isfinite(config.l2_norm_clip) and config.l2_norm_clip > 0):
        raise ValueError(f"l2_norm_clip={config.l2_norm_clip}: must be finite and > 0")
    if not config.sigmas or not all(np.isfinite(s) and s >= 0 for s in config.sigmas):
        raise ValueError(f"sigmas={config.sigmas}: needs at least one finite value >= 0")


def leak_points(config: Config) -> list[tuple[str, Leak, float, str]]:
    """What is tried: (leak point, leak, sigma, attack), programs that are the same next to each other."""
    # The raw gradient is the clipped one of an enormous bound: one program less to compile.
    clipped = Leak(clip="flat")
    batch = Leak(clip="flat", batch_size=config.batch_size)
    rows = [("raw", clipped, 0.0, "plain")]
    for attack in ATTACKS:
        rows.append(("clipped", clipped, 0.0, attack))
        rows += [("noised", clipped, sigma, attack) for sigma in config.sigmas]
    rows.append(("clipped batch", batch, 0.0, "posterior"))
    rows += [("noised batch", batch, sigma, "posterior") for sigma in config.sigmas]
    return rows


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


def attack_model(config: Config, loss_fn, params, dataset) -> tuple[list[dict], list[np.ndarray], np.ndarray]:
    """Every row of the table for one model; also its reconstructions and the originals.

    The seam for checkpoints: any `(loss_fn, params)` with inputs like the data set's.
    """
    classes, shape = len(dataset.classes), dataset.test_x.shape[1:]
    public = public_knowledge(
        dataset.train_x[: config.public], dataset.train_y[: config.public], classes=classes
    )
    rows, images = [], []
    for index, (point, leak, sigma, name) in enumerate(leak_points(config)):
        batches = max(1, config.victims // leak.batch_size)
        count = batches * leak.batch_size
        available = len(dataset.test_x)
        if count > available:
            raise ValueError(f"victims={config.victims}: {config.data!r} has {available} test examples")
        x = dataset.test_x[:count].reshape(batches, leak.batch_size, *shape)
        y = dataset.test_y[:count].reshape(batches, leak.batch_size)
        attack = replace(ATTACKS[name], iterations=config.iterations, restarts=config.restarts)
        bound = _UNBOUNDED if point == "raw" else config.l2_norm_clip
        std = sigma * config.l2_norm_clip / leak.batch_size
        begin = time.perf_counter()
        row, found = evaluation.evaluate(
            loss_fn, leak, attack, params, x, y, jax.random.fold_in(jax.random.key(config.seed), index),
            noise_std=std, bound=bound, public=public, classes=classes,
            progress=config.progress,
        )  # fmt: skip
        known = evaluation.knowledge(
            Leak() if point == "raw" else leak, attack, noise_std=std, bound=config.l2_norm_clip
        )
        seconds = time.perf_counter() - begin
        rows.append(
            {"leak": point, "attack": name, "sigma": sigma, "noise_std": std, "batch_size": leak.batch_size}
            | row
            | {"seconds": seconds, "knowledge": asdict(known), "method": asdict(attack)}
        )
        images.append(np.asarray(found.x).reshape(count, *shape))
    return rows, images, np.asarray(dataset.test_x[: config.victims])


def _shares(row: dict) -> str:
    return f"{row['exact']!s:>18}  {row['recognisable']!s:>18}"


def table(rows: list[dict]) -> str:
    """The rows as text."""
    head = (
        f"{'leak':<14}{'attack':<11}{'sigma':>8}  {'exact (RMSE<.03)':>18}  {'recognisable (<.1)':>18}"
        f"{'RMSE':>8}{'SSIM':>7}{'gain':>7}{'labels':>8}{'ticks':>7}{'s':>7}"
    )
    lines = [head]
    for row in rows:
        lines.append(
            f"{row['leak']:<14}{row['attack']:<11}{row['sigma']:>8g}  {_shares(row)}"
            f"{row['rmse']:>8.3f}{row.get('ssim', float('nan')):>7.2f}{row['gain']:>7.2f}"
            f"{row['labels']:>8.2f}{row['iterations']:>7.0f}{row['seconds']:>7.1f}"
        )
    return "\n".join(lines)


def break_down(rows: list[dict], attack: str) -> float | None:
    """The smallest sigma at which fewer than half of the images are recognisable; None if there is none."""
    sigmas = [
        row["sigma"]
        for row in rows
        if row["attack"] == attack and row["leak"] == "noised" and row["recognisable"].estimate < 0.5
    ]
    return min(sigmas, default=None)


def figure(rows: list[dict], images: list[np.ndarray], originals: np.ndarray, shown: int = 6) -> bytes:
    """PNG: originals above reconstructions by leak point and sigma; success against noise."""
    import io

    from matplotlib.figure import Figure

    chosen = [i for i, row in enumerate(rows) if row["leak"] == "raw" or row["attack"] == "posterior"]
    shown = min(shown, len(originals))
    canvas = Figure(figsize=(11, 0.62 * (len(chosen) + 1) + 0.6), layout="constrained")
    left, right = np.asarray(canvas.subfigures(1, 2, width_ratios=(1.35, 1))).ravel()
    axes = left.subplots(len(chosen) + 1, shown, squeeze=False)
    strips = [("original", originals)] + [
        (f"{rows[i]['leak']}, sigma {rows[i]['sigma']:g}", images[i]) for i in chosen
    ]
    for line, (title, strip) in zip(axes, strips, strict=True):
        for axis, image in zip(line, strip[:shown], strict=False):
            axis.imshow(np.clip(image, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
        for axis in line:
            axis.set_axis_off()
        line[0].text(-0.15, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    _curve(right.subplots(), rows)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _curve(axis, rows) -> None:
    """Success against noise, each attack's break-down marked."""
    for attack in ATTACKS:
        line = [
            row for row in rows if (row["leak"], row["attack"]) == ("noised", attack) and row["sigma"] > 0
        ]
        if not line:
            continue
        sigmas = [row["sigma"] for row in line]
        shares = [row["recognisable"] for row in line]
        (drawn,) = axis.plot(sigmas, [s.estimate for s in shares], marker="o", label=attack)
        axis.fill_between(sigmas, [s.low for s in shares], [s.high for s in shares], alpha=0.15)
        limit = break_down(rows, attack)
        if limit is not None:
            axis.axvline(limit, color=drawn.get_color(), linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="noise multiplier sigma (clip C)", ylim=(-0.03, 1.03))
    axis.set(ylabel="share recognisable (RMSE < 0.1)", title="one example; dotted: break-down (below half)")
    axis.legend()


def record(config: Config, rows: list[dict]) -> dict:
    """The run as JSON holds it."""
    settings = {name: str(v) if isinstance(v, pathlib.Path) else v for name, v in asdict(config).items()}
    return {
        "kind": "attack",
        "config": settings,
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
        "selection": "restarts and iterations are chosen by the attack's own objective",
        "break_down": {name: break_down(rows, name) for name in ATTACKS},
        "rows": [row | {k: row[k]._asdict() for k in ("exact", "recognisable")} for row in rows],
    }


def run(config: Config) -> None:
    """Attacks, prints the table, writes attack.json and attack.png."""
    from jaxdp import data

    _check(config)
    dataset = data.load(config.data, size=config.size) if config.size else data.load(config.data)
    model = models.create(
        config.model, jax.random.key(config.seed), input_shape=tuple(dataset.test_x.shape[1:]),
        classes=len(dataset.classes), activation=config.activation, initialization=config.initialization,
    )  # fmt: skip
    config.output.mkdir(parents=True, exist_ok=True)
    rows, images, originals = attack_model(config, models.cross_entropy(model), model.params, dataset)
    print(table(rows))
    for name in ATTACKS:
        limit = break_down(rows, name)
        print(f"{name}: " + ("no break-down" if limit is None else f"breaks down at sigma = {limit:g}"))
    write_atomically(config.output / "attack.json", json.dumps(record(config, rows), indent=1).encode())
    if originals.ndim == 4:
        write_atomically(config.output / "attack.png", figure(rows, images, originals))
    print(f"written: {config.output}/attack.json" + (", attack.png" if originals.ndim == 4 else ""))
