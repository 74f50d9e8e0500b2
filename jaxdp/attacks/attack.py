"""An attack as plain choices, and the minimisation they make of one leaked observation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdp.attacks import labels as label_rules
from jaxdp.attacks import leaks, objectives, priors, starts
from jaxdp.attacks.inference import head_signal, infer_labels, signal_loss, soft_label_loss
from jaxdp.attacks.leaks import Leak, Loss
from jaxdp.attacks.smoothing import smoothed
from jaxdp.attacks.solvers.adam import adam
from jaxdp.attacks.solvers.lbfgs import lbfgs
from jaxdp.attacks.solvers.levenberg_marquardt import levenberg_marquardt
from jaxdp.attacks.solvers.problem import Problem, Solver

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
      tv: weight of the total variation, averaged over pixels; with `likelihood`, the rate of a Laplace prior
        of the differences between neighbours, which the noise then weighs (10 suits digits).
      box: whether the attacker knows the range of inputs, [0, 1] for images.
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


def _modelled(leak: Leak, attack: Attack) -> Leak:
    """The leak as the attack's prediction computes it."""
    scaled_alike = attack.labels == "signal" and not leak.clip.startswith("per_layer")
    if attack.clip_aware and not scaled_alike:
        return leak
    return Leak(batch_size=leak.batch_size, window=leak.window, local_steps=leak.local_steps)


def inversion(
    loss_fn: Loss, leak: Leak, attack: Attack, input_shape: tuple[int, ...], classes: int
) -> Inversion:
    """The attack's functions for one lane; pure, to be mapped and compiled by the engine."""
    size, batch, window = math.prod(input_shape), leak.batch_size, leak.window
    modelled = _modelled(leak, attack)
    if attack.tv and len(input_shape) != 3:
        raise ValueError(f"tv={attack.tv}: needs images, input_shape={input_shape}")
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

    def box(public):
        each = (jnp.broadcast_to(side, input_shape).ravel() for side in (public.lower, public.upper))
        return [jnp.tile(side[None], (batch, 1)) for side in each]

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
                outside = x - jnp.clip(x, *box(public))
                terms.append(outside * jnp.sqrt(lane.target.prior_weight) / _BOX_STD)
            return terms

        def objective(z):
            value = objectives.half_square(residual(z))
            if attack.tv:
                images = pixels(lane, public, z).reshape(batch, *input_shape)
                scale = batch * size * lane.target.prior_weight if attack.objective == "likelihood" else 1.0
                value = value + attack.tv * scale * priors.total_variation(images)
            return value

        smooth_loss = loss
        if attack.smoothing:
            width = attack.smoothing * _SHARPENING ** jnp.clip(progress, 0, 1)
            smooth_loss = smoothed(loss, width)
        lower, upper = -jnp.inf, jnp.inf
        if attack.box and not whitened:
            free = jnp.full(batch * classes, jnp.inf)
            lower, upper = (side.ravel() for side in box(public))
            if joint:
                lower, upper = jnp.concatenate([lower, -free]), jnp.concatenate([upper, free])
        return Problem(objective, residual, lower, upper, progress)

    def decode(lane, public, z):
        x = pixels(lane, public, z)
        y = jnp.argmax(split(z)[1], axis=-1) if joint else lane.labels
        x = jnp.clip(x, *box(public)) if attack.box else x
        return x.reshape(batch, *input_shape), y

    return Inversion(load, problem, decode, _solver(attack))
