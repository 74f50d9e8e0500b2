"""One model attacked at every leak point and noise level: the rows of `jaxdp attack`.

Every attack at a leak point is one compiled program: bounds, noise and iterations are arguments, and a raw
gradient is one clipped to an infinite bound.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdp import _validate
from jaxdp.attacks import (
    Attack,
    Conditions,
    Leak,
    Public,
    Reconstruction,
    Setting,
    evaluate,
    first_layer,
    judge,
    metrics,
    observe,
    portfolio,
)
from jaxdp.attacks.leaks import Loss
from jaxdp.attacks.portfolio import PLAIN, POSTERIOR, RELU, SIGNAL
from jaxdp.gradients import convolution

MEANING = {
    "analytic": "the first layer's input in closed form",
    "published": "least squares by L-BFGS as published; knows the clip, neither the noise nor other images",
    "signal": "the same with p - y read off the gradient",
    "relu": "cosine distance by Adam with smoothed ReLUs",
    "posterior": "the most probable input; knows the clip, the noise and public images",
}
_WINDOW_RATE, _WINDOW_BATCH = 0.1, 32  # SGD between the observations of a window


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is attacked.

    Attributes:
      loss_fn: `(params, (x, y)) -> scalar` for one example.
      params: parameters at the leak.
      x, y: held-out examples the victims are taken from, [n, *input_shape] and [n].
      train_x, train_y: examples that move the parameters within a window.
      public: what the attacker has of public data.
      classes: number of labels.
    """

    loss_fn: Loss
    params: PyTree
    x: np.ndarray
    y: np.ndarray
    train_x: np.ndarray
    train_y: np.ndarray
    public: Public
    classes: int

    def setting(self, leak: Leak) -> Setting:
        """The model at a leak point, as an attacker meets it."""
        return Setting(
            loss_fn=self.loss_fn, leak=leak, input_shape=self.x.shape[1:], classes=self.classes,
            public=self.public,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The leak points and how hard each is attacked."""

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
    iterations: int = 400
    """Ticks of the solver; Adam takes at least 1000."""
    restarts: int = 1
    """Starts a victim; the attack's own objective chooses."""
    seed: int = 0
    """Seed of weights, noise and starts: the leaks are synthetic, nobody is protected by it."""

    def __post_init__(self):
        for name in ("victims", "batch_size", "window", "local_steps", "iterations", "restarts"):
            _validate.whole(**{name: getattr(self, name)})
        _validate.positive(l2_norm_clip=self.l2_norm_clip, learning_rate=self.learning_rate)
        if not self.sigmas or not all(math.isfinite(s) and s > 0 for s in self.sigmas):
            raise ValueError(f"sigmas={self.sigmas}: needs at least one finite value > 0")


class Point(NamedTuple):
    """One row to be: a leak point, its noise multiplier, the attack's name, and the clip bound."""

    name: str
    leak: Leak
    sigma: float
    attack: str
    bound: float


def attacks(model: Model) -> dict[str, Attack]:
    """The attacks by name: published, `signal`, `relu` where the network has any, and the posterior."""
    known = {"published": PLAIN, "signal": SIGNAL, "posterior": POSTERIOR}
    if portfolio.takes_relu(model.setting(Leak()), model.params):
        known["relu"] = RELU
    return {name: portfolio.for_rows(attack, model.x.shape[1:]) for name, attack in known.items()}


def _begins_dense(model: Model) -> bool:
    try:
        first_layer.first_layer(model.loss_fn, model.params, model.x.shape[1:])
    except ValueError:
        return False
    return True


def points(model: Model, settings: Settings) -> list[Point]:
    """What is tried, programs that are the same next to each other."""
    one, bound = Leak(clip="flat"), settings.l2_norm_clip
    exact = [name for name in attacks(model) if name != "posterior"]
    if _begins_dense(model):
        exact.insert(0, "analytic")
    rows = [Point("raw", one, 0.0, name, math.inf) for name in exact]
    rows += [Point("clipped", one, 0.0, name, bound) for name in exact]
    for name in ("published", "posterior"):
        rows += [Point("noised", one, sigma, name, bound) for sigma in settings.sigmas]
    if settings.local_steps > 1:
        rows.append(Point("update", Leak(local_steps=settings.local_steps), 0.0, "published", bound))
    if settings.batch_size > 1:
        batch = Leak(clip="flat", batch_size=settings.batch_size)
        rows.append(Point("clipped batch", batch, 0.0, "posterior", bound))
        rows += [Point("noised batch", batch, sigma, "posterior", bound) for sigma in settings.sigmas]
    if settings.window > 1:
        window = Leak(clip="flat", window=settings.window)
        rows += [Point("window", window, sigma, "posterior", bound) for sigma in settings.sigmas]
    return rows


def trajectory(model: Model, steps: int, seed: int) -> PyTree:
    """Parameters at `steps` successive steps of SGD from the model's on, stacked, [T, ...]."""
    loss_fn = convolution.with_patches(model.loss_fn)
    x, y = jnp.asarray(model.train_x), jnp.asarray(model.train_y)

    def step(params, key):
        i = jax.random.randint(key, (_WINDOW_BATCH,), 0, len(x))
        mean = lambda p: jax.vmap(loss_fn, (None, 0))(p, (x[i], y[i])).mean()  # noqa: E731
        moved = jax.tree.map(lambda p, g: p - _WINDOW_RATE * g, params, jax.grad(mean)(params))
        return moved, params

    keys = jax.random.split(jax.random.key(seed), steps)
    return jax.jit(lambda params: jax.lax.scan(step, params, keys)[1])(model.params)


def _closed_form(model: Model, point: Point, params, x, y, key) -> tuple[dict[str, Any], Reconstruction]:
    """The first layer's input read off its gradient: no search."""
    victims = observe(model.loss_fn, point.leak, params, x, y, key, Conditions(bound=point.bound))
    found = first_layer.closed_form(model.loss_fn, model.params, victims, x.shape[2:])
    zeros = np.zeros(len(x))
    result = Reconstruction(found, y, zeros, zeros.astype(int), zeros.astype(int))
    row = judge(result, x, y, np.asarray(model.public.mean))
    return row | {"labels": float("nan"), "knowledge": {"model": "gradient of the first layer"}}, result


def _attacked(model: Model, settings: Settings, point: Point, std: float, params, x, y, key, progress):
    """Metrics with the declared knowledge, reconstruction and method of one row."""
    if point.attack == "analytic":
        return *_closed_form(model, point, params, x, y, key), {"method": "closed form"}
    method = attacks(model)[point.attack]
    budget = settings.iterations if method.solver != "adam" else max(settings.iterations, 1000)
    method = replace(method, iterations=budget, restarts=settings.restarts)
    conditions = Conditions(std, point.bound, settings.learning_rate)
    setting = model.setting(point.leak)
    row, found = evaluate(setting, method, params, x, y, key, conditions, progress=progress)
    return row, found, asdict(method)


def sweep(
    model: Model, settings: Settings, progress: bool = False
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Attacks every point; yields each row with its reconstructions [victims, *input_shape].

    A batch's gradient does not say which image is which: its images stand in the order that fits the originals.

    Raises:
      ValueError: fewer examples than victims.
    """
    shape = model.x.shape[1:]
    if settings.victims > len(model.x):
        raise ValueError(f"victims={settings.victims}: the data set has {len(model.x)} test examples")
    window = trajectory(model, settings.window, settings.seed) if settings.window > 1 else None
    for index, point in enumerate(points(model, settings)):
        leak, size = point.leak, point.leak.batch_size
        batches = max(1, settings.victims // size)
        x = np.asarray(model.x[: batches * size]).reshape(batches, size, *shape)
        y = np.asarray(model.y[: batches * size]).reshape(batches, size)
        params = model.params if leak.window == 1 else window
        key = jax.random.fold_in(jax.random.key(settings.seed), index)
        std = point.sigma * settings.l2_norm_clip / size
        began = time.perf_counter()
        row, found, method = _attacked(model, settings, point, std, params, x, y, key, progress)
        facts = {"leak": point.name, "attack": point.attack, "sigma": point.sigma, "noise_std": std}
        facts |= {"batch_size": size, "window": leak.window, "local_steps": leak.local_steps}
        spent = {"seconds": time.perf_counter() - began, "method": method}
        yield facts | row | spent, metrics.matched(found.x, x).reshape(batches * size, *shape)


def break_down(rows: Sequence[dict], attack: str) -> float | None:
    """The smallest sigma at which fewer than half of the noised inputs are recognisable; None if none is."""
    own = [row for row in rows if (row["attack"], row["leak"]) == (attack, "noised")]
    return min((row["sigma"] for row in own if row["recognisable"].estimate < 0.5), default=None)
