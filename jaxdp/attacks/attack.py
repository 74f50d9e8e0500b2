"""An attack as plain choices, and the minimisation they make of one leaked observation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxdp.attacks import labels as label_rules
from jaxdp.attacks import leaks, objectives, priors, starts
from jaxdp.attacks.adam import adam
from jaxdp.attacks.lbfgs import lbfgs
from jaxdp.attacks.leaks import Leak, Loss
from jaxdp.attacks.levenberg_marquardt import levenberg_marquardt
from jaxdp.attacks.smoothing import smoothed
from jaxdp.attacks.solver import Problem, Solver

SOLVERS = ("lbfgs", "adam", "signed_adam", "levenberg_marquardt")

_SHARPENING = 0.01  # the smoothing's width at the end over that at the start
_BOX_STD = 0.02  # with a Gaussian prior the box is soft: this far outside costs as much as one sigma


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Objective x prior x start x solver x label rule.

    Attributes:
      objective: one of `objectives.NAMES`.
      solver: one of `SOLVERS`.
      start: one of `starts.NAMES`.
      labels: one of `labels.NAMES`.
      prior: `none` or `gaussian` (needs public inputs).
      tv: weight of the total variation.
      box: whether the attacker knows that inputs lie in [0, 1].
      clip_aware: whether the clip is modelled.
      noise_aware: whether the noise's standard deviation is known to the attacker.
      iterations: ticks of the solver.
      restarts: starts per victim; the one with the lowest objective is kept.
      learning_rate: of Adam.
      memory: pairs of L-BFGS.
      conjugate_gradients: inner steps of Levenberg-Marquardt.
      tolerance: a lane stops once its objective is below this share of what it was at the start.
      float64: compute in double precision.
      smoothing: width of the smooth ReLUs that the search starts with, relative to the units; it shrinks a
        hundredfold on the way (see `smoothing`).  0 for the network as it is.
    """

    objective: str = "squared_l2"
    solver: str = "lbfgs"
    start: str = "patterned"
    labels: str = "bias"
    prior: str = "none"
    tv: float = 0.0
    box: bool = True
    clip_aware: bool = True
    noise_aware: bool = True
    iterations: int = 300
    restarts: int = 1
    learning_rate: float = 0.03
    memory: int = 20
    conjugate_gradients: int = 50
    tolerance: float = 1e-9
    float64: bool = False
    smoothing: float = 0.0

    def __post_init__(self):
        choices = {
            "objective": objectives.NAMES,
            "solver": SOLVERS,
            "start": starts.NAMES,
            "labels": label_rules.NAMES,
            "prior": priors.NAMES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose from {', '.join(known)}")
        for name in ("iterations", "restarts", "memory", "conjugate_gradients"):
            value = getattr(self, name)
            if value != int(value) or value < 1:
                raise ValueError(f"{name}={value}: must be a whole number >= 1")
        for name in ("tv", "learning_rate", "tolerance", "smoothing"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value}: must be finite and >= 0")
        if self.solver == "levenberg_marquardt" and self.tv > 0:
            raise ValueError(
                f"tv={self.tv}: levenberg_marquardt needs least squares, without total variation"
            )
        if self.smoothing and "adam" not in self.solver:
            raise ValueError(f"smoothing={self.smoothing}: needs adam, which bears a changing objective")


class Public(NamedTuple):
    """What the attacker has of public data.

    Attributes:
      examples: inputs [m, *input_shape] for label templates; grey ones where nothing is known.
      labels: their labels [m], or -1 where every class uses every example.
      mean: the mean input, a start.
      prior: the Gaussian prior, or None.
    """

    examples: Float[Array, "m ..."]
    labels: Int[Array, " m"]
    mean: Float[Array, "..."]
    prior: priors.Gaussian | None = None


class Observation(NamedTuple):
    """One victim as the attacker meets it, without the parameters.

    Attributes:
      observed: the leaked pytree.
      noise_std: standard deviation of its noise, [T].
      bound: the clip bound C.
      learning_rate: of local steps.
      labels: [B], used only by `labels="known"`.
    """

    observed: PyTree
    noise_std: Array | np.ndarray
    bound: Array | np.ndarray
    learning_rate: Array | np.ndarray
    labels: Array | np.ndarray


class Lane(NamedTuple):
    """What one lane minimises: fixed while it runs; `signals` [B, classes] only for `labels="signal"`."""

    target: objectives.Target
    labels: Int[Array, " b"]
    signals: Array
    bound: Float[Array, ""]
    learning_rate: Float[Array, ""]


class Inversion(NamedTuple):
    """The functions of one attack at one leak point, each for a single lane.

    Attributes:
      load: (params, observation, public, key) -> (lane, z0).
      problem: (params, lane, public, progress) -> the solver's problem, progress from 0 to 1.
      decode: (lane, public, z) -> (x, y).
      solver: the solver.
    """

    load: Callable
    problem: Callable
    decode: Callable
    solver: Solver


def _solver(attack: Attack) -> Solver:
    if attack.solver == "lbfgs":
        return lbfgs(attack.memory)
    if attack.solver == "levenberg_marquardt":
        return levenberg_marquardt(attack.conjugate_gradients)
    return adam(attack.learning_rate, attack.solver == "signed_adam", attack.smoothing > 0)


def soft_label_loss(loss_fn: Loss, classes: int) -> Loss:
    """The loss with label logits in place of a label: the expectation over the labels they describe."""

    def loss(params, example):
        x, logits = example
        each = jax.vmap(lambda y: loss_fn(params, (x, y)))(jnp.arange(classes))
        return jax.nn.softmax(logits) @ each

    return loss


def signal_loss(loss_fn: Loss, classes: int) -> Loss:
    """The linear loss <signal, logits>, whose gradient is that of the cross-entropy once signal = p - y.

    A cross-entropy is log Z - z_y, so minus the sum of all labels' losses weighted by the signal is
    <signal, z>: the entries of the signal add up to 0.
    """

    def loss(params, example):
        x, signal = example
        each = jax.vmap(lambda y: loss_fn(params, (x, y)))(jnp.arange(classes))
        return -(signal @ each)

    return loss


def head_signal(leak: Leak, observation: Observation, classes: int) -> Float[Array, "1 classes"]:
    """p - y of one example, which the last layer's bias gradient is, times the clip's unknown scale.

    The gradient predicted from it is linear in it, so for a clip that scales all tensors alike the scale is
    in it already.  Clipped layer by layer, a bias that meets its bound gets a fresh network's signal's length.
    """
    head = label_rules.find_head(observation.observed, classes)
    signal = jax.tree.leaves(observation.observed)[head.bias]
    signal = signal - signal.mean()
    if leak.clip.startswith("per_layer"):
        count = 1 if leak.clip.endswith("published") else len(jax.tree.leaves(observation.observed))
        size = leaks.norm(signal)
        signal = jnp.where(size < 0.999 * observation.bound / math.sqrt(count), signal, signal / size)
    return signal[None]


def _modelled(leak: Leak, attack: Attack) -> Leak:
    """The leak as the attack's prediction computes it."""
    scaled_alike = attack.labels == "signal" and not leak.clip.startswith("per_layer")
    if attack.clip_aware and not scaled_alike:
        return leak
    return Leak(batch_size=leak.batch_size, window=leak.window, local_steps=leak.local_steps)


def templates(loss_fn, leak, params, public, bound, learning_rate, classes):
    """The expected observation of each class on its public examples: pytree with a leading [classes]."""
    single = Leak(clip=leak.clip, window=leak.window, local_steps=leak.local_steps)

    def observe(x, label):
        return leaks.forward(loss_fn, single, params, x[None], label[None], bound, learning_rate)

    def of_class(label):
        weights = ((public.labels == label) | (public.labels < 0)).astype(public.examples.dtype)
        weights = weights / jnp.maximum(weights.sum(), 1)
        each = jax.vmap(observe, in_axes=(0, None))(public.examples, label)
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), each)

    return jax.lax.map(of_class, jnp.arange(classes))


def _average_prediction(loss_fn, head, params, public, classes):
    """The model's mean softmax on the public examples, read off its bias gradient."""

    def one(x):
        gradient = jax.grad(loss_fn)(params, (x, jnp.zeros((), jnp.int32)))
        return jax.tree.leaves(gradient)[head.bias]

    return jax.vmap(one)(public.examples).mean(0) + jnp.eye(classes)[0]


def infer_labels(
    rule: str,
    loss_fn: Loss,
    leak: Leak,
    params: PyTree,
    observation: Observation,
    public: Public,
    classes: int,
) -> Int[Array, " b"]:
    """Labels of one victim by one of `labels.NAMES`.

    Raises:
      ValueError: the model has no head of the shape the rule reads, or the rule is for one example only.
    """
    if rule == "known":
        return jnp.asarray(observation.labels)
    if rule == "joint":
        return jnp.zeros(leak.batch_size, jnp.int32)
    total = leak.batch_size
    if rule == "template":
        expected = templates(
            loss_fn, leak, params, public, observation.bound, observation.learning_rate, classes
        )
        std = jnp.maximum(observation.noise_std, 1e-6)

        def flat(tree, lead):
            scale = std.reshape(*(1 for _ in lead), leak.window, 1)
            rows = [
                (leaf.reshape(*lead, leak.window, -1) / scale).reshape(*lead, -1)
                for leaf in jax.tree.leaves(tree)
            ]
            return jnp.concatenate(rows, axis=-1)

        return label_rules.from_templates(flat(observation.observed, ()), flat(expected, (classes,)), total)
    first = params if leak.window == 1 else jax.tree.map(lambda leaf: leaf[0], params)
    head = label_rules.find_head(first, classes)
    leaves = jax.tree.leaves(observation.observed)
    if leak.window > 1:
        leaves = [leaf.mean(0) for leaf in leaves]
    if rule in ("bias", "signal"):
        if head.bias is None:
            raise ValueError(f"labels={rule!r}: the last layer has no bias; use column_norm or template")
        average = (
            _average_prediction(loss_fn, head, first, public, classes) if total > 1 else leaves[head.bias]
        )
        return label_rules.from_bias(leaves[head.bias], average, total)
    if total > 1:
        raise ValueError(f"labels={rule!r}: finds one label, batch_size={total}; use bias or template")
    from_kernel = label_rules.from_row_sum if rule == "row_sum" else label_rules.from_column_norm
    return from_kernel(leaves[head.kernel])


def inversion(
    loss_fn: Loss, leak: Leak, attack: Attack, input_shape: tuple[int, ...], classes: int
) -> Inversion:
    """The attack's functions for one lane; pure, to be mapped and compiled by the engine."""
    size, batch, window = math.prod(input_shape), leak.batch_size, leak.window
    modelled = _modelled(leak, attack)
    joint, signal = attack.labels == "joint", attack.labels == "signal"
    whitened = attack.prior == "gaussian"
    if signal and (batch, window, leak.local_steps) != (1, 1, 1):
        raise ValueError(
            f"labels='signal': reads one gradient of one example, {batch=}, {window=}, "
            f"local_steps={leak.local_steps}; use bias or template"
        )
    loss = loss_fn
    if joint or signal:
        loss = (soft_label_loss if joint else signal_loss)(loss_fn, classes)

    def split(z):
        return z[: batch * size].reshape(batch, size), z[batch * size :].reshape(batch, -1)

    def load(params, observation, public, key):
        y = infer_labels(attack.labels, loss_fn, modelled, params, observation, public, classes)
        target = objectives.target(attack.objective, observation.observed, observation.noise_std, window)
        start_key, label_key = jax.random.split(key)
        x = starts.draw(attack.start, start_key, (batch, *input_shape), public.mean)
        x = x.astype(public.mean.dtype).reshape(batch, size)
        z = priors.encode(public.prior if whitened else None, x, y).ravel()
        if joint:
            logits = 0.1 * jax.random.normal(label_key, (batch * classes,), z.dtype)
            z = jnp.concatenate([z, logits])
        signals = head_signal(leak, observation, classes) if signal else jnp.zeros((), z.dtype)
        return Lane(target, y, signals, observation.bound, observation.learning_rate), z

    def pixels(lane, public, z):
        return priors.decode(public.prior if whitened else None, split(z)[0], lane.labels)

    def problem(params, lane, public, progress=1.0):
        def residual(z):
            x = pixels(lane, public, z)
            y = split(z)[1] if joint else lane.signals if signal else lane.labels
            predicted = leaks.forward(
                smooth_loss,
                modelled,
                params,
                x.reshape(batch, *input_shape),
                y,
                lane.bound,
                lane.learning_rate,
            )
            terms = [objectives.residual(attack.objective, predicted, lane.target, window)]
            if whitened:
                terms.append(split(z)[0] * jnp.sqrt(lane.target.prior_weight))
            if whitened and attack.box:
                outside = x - jnp.clip(x, 0, 1)
                terms.append(outside * jnp.sqrt(lane.target.prior_weight) / _BOX_STD)
            return terms

        def objective(z):
            value = objectives.half_square(residual(z))
            if attack.tv:
                images = pixels(lane, public, z).reshape(batch, *input_shape)
                value = value + attack.tv * priors.total_variation(images)
            return value

        smooth_loss = loss
        if attack.smoothing:
            width = attack.smoothing * _SHARPENING ** jnp.clip(progress, 0, 1)
            smooth_loss = smoothed(loss, width)
        lower, upper = -jnp.inf, jnp.inf
        if attack.box and not whitened:
            free = jnp.full(batch * classes, jnp.inf)
            lower = jnp.concatenate([jnp.zeros(batch * size), -free]) if joint else 0.0
            upper = jnp.concatenate([jnp.ones(batch * size), free]) if joint else 1.0
        return Problem(objective, residual, lower, upper, progress)

    def decode(lane, public, z):
        x = pixels(lane, public, z).reshape(batch, *input_shape)
        y = jnp.argmax(split(z)[1], axis=-1) if joint else lane.labels
        return (jnp.clip(x, 0, 1) if attack.box else x), y

    return Inversion(load, problem, decode, _solver(attack))
