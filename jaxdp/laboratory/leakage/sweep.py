"""One model attacked at every leak point and noise level: the rows of `jaxdp attack`.

Every attack at a leak point is one compiled program: bounds, noise and iterations are arguments, and a raw
gradient is one clipped to an enormous bound.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdp.attacks import first_layer as analytic
from jaxdp.attacks import judge as evaluation
from jaxdp.attacks.attack import Attack
from jaxdp.attacks.engine import Reconstruction
from jaxdp.attacks.given import Public
from jaxdp.attacks.leaks import Leak, Loss
from jaxdp.attacks.observe import observe
from jaxdp.attacks.portfolio import PLAIN, POSTERIOR, RELU, SIGNAL
from jaxdp.attacks.smoothing import has_relu
from jaxdp.gradients import convolution

_UNBOUNDED = 1e9
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is attacked; see `jaxdp.commands.attack.Config`."""

    victims: int
    sigmas: Sequence[float]
    l2_norm_clip: float
    batch_size: int
    window: int
    local_steps: int
    learning_rate: float
    iterations: int
    restarts: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row to be: a leak point, its noise multiplier, and the attack's name."""

    name: str
    leak: Leak
    sigma: float
    attack: str
    bound: float


def attacks(model: Model) -> dict[str, Attack]:
    """The attacks by name: published, `signal`, `relu` where the network has any, and the posterior."""
    tabular = model.x.ndim == 2
    known = {"published": PLAIN, "signal": SIGNAL, "posterior": POSTERIOR}
    if has_relu(model.loss_fn, model.params, (model.x[0], model.y[0])):
        known["relu"] = replace(RELU, tv=0.0) if tabular else RELU
    start = "mean" if tabular else "constant"
    return {name: replace(a, start=start) if a.start == "constant" else a for name, a in known.items()}


def _begins_dense(model: Model) -> bool:
    try:
        analytic.first_layer(model.params, model.x.shape[1:])
    except ValueError:
        return False
    return True


def points(model: Model, settings: Settings) -> list[Point]:
    """What is tried, programs that are the same next to each other."""
    one, bound = Leak(clip="flat"), settings.l2_norm_clip
    exact = [name for name in attacks(model) if name != "posterior"]
    if _begins_dense(model):
        exact.insert(0, "analytic")
    rows = [("raw", one, 0.0, name, _UNBOUNDED) for name in exact]
    rows += [("clipped", one, 0.0, name, bound) for name in exact]
    for name in ("published", "posterior"):
        rows += [("noised", one, sigma, name, bound) for sigma in settings.sigmas]
    if settings.local_steps > 1:
        rows.append(("update", Leak(local_steps=settings.local_steps), 0.0, "published", bound))
    if settings.batch_size > 1:
        batch = Leak(clip="flat", batch_size=settings.batch_size)
        rows.append(("clipped batch", batch, 0.0, "posterior", bound))
        rows += [("noised batch", batch, sigma, "posterior", bound) for sigma in settings.sigmas]
    if settings.window > 1:
        window = Leak(clip="flat", window=settings.window)
        rows += [("window", window, sigma, "posterior", bound) for sigma in settings.sigmas]
    return [Point(name=n, leak=k, sigma=s, attack=a, bound=b) for n, k, s, a, b in rows]


def trajectory(model: Model, steps: int, seed: int) -> PyTree:
    """Parameters at `steps` successive steps of SGD from the model's on, stacked, [T, ...]."""
    loss_fn = convolution.with_patches(model.loss_fn) if convolution.uses_patches("auto") else model.loss_fn
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
    victims = observe(model.loss_fn, point.leak, params, x, y, key, bound=point.bound)
    kernel, bias = analytic.first_layer(model.params, x.shape[2:])
    leaves = jax.tree.leaves(victims.observed)
    found = np.asarray(jax.vmap(analytic.exact_input)(leaves[kernel], leaves[bias])).reshape(x.shape)
    zeros = np.zeros(len(x))
    result = Reconstruction(found, y, zeros, zeros.astype(int), zeros.astype(int))
    return evaluation.judge(result, x, y, model.public.mean) | {"labels": float("nan")}, result


def _attacked(model: Model, settings: Settings, point: Point, params, x, y, key, progress):
    """Metrics, reconstruction and declared knowledge of one row."""
    std = point.sigma * settings.l2_norm_clip / point.leak.batch_size
    if point.attack == "analytic":
        row, found = _closed_form(model, point, params, x, y, key)
        return row, found, {"model": "gradient of the first layer"}, {"method": "closed form"}
    method = attacks(model)[point.attack]
    budget = settings.iterations if "adam" not in method.solver else max(settings.iterations, 1000)
    method = replace(method, iterations=budget, restarts=settings.restarts)
    row, found = evaluation.evaluate(
        model.loss_fn, point.leak, method, params, x, y, key, noise_std=std, bound=point.bound,
        learning_rate=settings.learning_rate, public=model.public, classes=model.classes, progress=progress,
    )  # fmt: skip
    shown = replace(point.leak, clip="none") if point.bound == _UNBOUNDED else point.leak
    known = evaluation.knowledge(shown, method, noise_std=std, bound=point.bound)
    return row, found, asdict(known), asdict(method)


def sweep(
    model: Model, settings: Settings, progress: bool = False
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Attacks every point; yields each row with its reconstructions [victims, *input_shape].

    Raises:
      ValueError: fewer examples than victims.
    """
    shape = model.x.shape[1:]
    if settings.victims > len(model.x):
        raise ValueError(f"victims={settings.victims}: the data set has {len(model.x)} test examples")
    window = trajectory(model, settings.window, settings.seed) if settings.window > 1 else None
    for index, point in enumerate(points(model, settings)):
        batches = max(1, settings.victims // point.leak.batch_size)
        count = batches * point.leak.batch_size
        x = np.asarray(model.x[:count]).reshape(batches, point.leak.batch_size, *shape)
        y = np.asarray(model.y[:count]).reshape(batches, point.leak.batch_size)
        params = model.params if point.leak.window == 1 else window
        key = jax.random.fold_in(jax.random.key(settings.seed), index)
        began = time.perf_counter()
        row, found, known, method = _attacked(model, settings, point, params, x, y, key, progress)
        facts = {
            "leak": point.name,
            "attack": point.attack,
            "sigma": point.sigma,
            "noise_std": point.sigma * settings.l2_norm_clip / point.leak.batch_size,
            "batch_size": point.leak.batch_size,
            "window": point.leak.window,
            "local_steps": point.leak.local_steps,
        }
        spent = {"seconds": time.perf_counter() - began, "knowledge": known, "method": method}
        yield facts | row | spent, np.asarray(found.x).reshape(count, *shape)


def break_down(rows: Sequence[dict], attack: str, leak: str = "noised") -> float | None:
    """The smallest sigma at which fewer than half of the inputs are recognisable; None if there is none."""
    sigmas = [
        row["sigma"]
        for row in rows
        if (row["attack"], row["leak"]) == (attack, leak) and row["recognisable"].estimate < 0.5
    ]
    return min(sigmas, default=None)
