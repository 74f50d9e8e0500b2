"""An attack as plain choices, and the minimisation they make of one leaked observation."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdp import _validate
from jaxdp.attacks import labels as label_rules
from jaxdp.attacks import leaks, objectives, starts
from jaxdp.attacks import public as _priors
from jaxdp.attacks.leaks import Leak, Observation
from jaxdp.attacks.public import Public, Setting
from jaxdp.attacks.smoothing import smoothed
from jaxdp.attacks.solvers.adam import adam
from jaxdp.attacks.solvers.lbfgs import lbfgs
from jaxdp.attacks.solvers.problem import Problem, Solver

SOLVERS = ("lbfgs", "adam")

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
    tolerance: float = 1e-9
    float64: bool = False
    smoothing: float = 0.0

    def __post_init__(self):
        _validate.one_of(objectives.NAMES, objective=self.objective)
        _validate.one_of(SOLVERS, solver=self.solver)
        _validate.one_of(starts.NAMES, start=self.start)
        _validate.one_of(label_rules.NAMES, labels=self.labels)
        _validate.one_of(_priors.PRIORS, prior=self.prior)
        _validate.whole(iterations=self.iterations, restarts=self.restarts, memory=self.memory)
        for name in ("tv", "learning_rate", "tolerance", "smoothing"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value}: must be finite and >= 0")
        if self.smoothing and self.solver != "adam":
            raise ValueError(f"smoothing={self.smoothing}: needs adam, which bears a changing objective")


def fitted(setting: Setting, attack: Attack, params: PyTree) -> tuple[Setting, Attack]:
    """The setting with its last layer found, and the attack with a label rule that this layer allows.

    Args:
      setting: what is attacked.
      attack: how.
      params: of one network.

    Raises:
      ValueError: no last layer, or one of another number of classes than the setting's.
    """
    if attack.labels in ("known", "template"):
        return setting, attack
    head = setting.head or label_rules.find_head(setting.loss_fn, params, setting.input_shape)
    return replace(setting, head=head), replace(
        attack, labels=label_rules.usable(attack.labels, head, setting.leak)
    )


class Lane(NamedTuple):
    """What one lane minimises: fixed while it runs; `signals` [B, classes] only for `labels="signal"`."""

    target: objectives.Target
    labels: Int[Array, " b"]
    signals: Array
    bound: Float[Array, ""]
    learning_rate: Float[Array, ""]


@dataclass(frozen=True)
class Inversion:
    """One attack in one setting as pure functions of a single lane, to be mapped and compiled.

    Attributes:
      setting: what is attacked; its public data is an argument of the functions.
      attack: how, fitted to the setting.
    """

    setting: Setting
    attack: Attack

    def __post_init__(self):
        setting, attack = self.setting, self.attack
        if attack.tv and len(setting.input_shape) != 3:
            raise ValueError(f"tv={attack.tv}: needs images, input_shape={setting.input_shape}")
        if attack.labels == "signal" and not setting.leak.single:
            leak = setting.leak
            raise ValueError(
                f"labels='signal': reads one gradient of one example, batch_size={leak.batch_size}, "
                f"window={leak.window}, local_steps={leak.local_steps}; use bias or template"
            )

    @property
    def solver(self) -> Solver:
        """The solver of one lane."""
        attack = self.attack
        if attack.solver == "lbfgs":
            return lbfgs(attack.memory)
        return adam(attack.learning_rate, keep_last=attack.smoothing > 0)

    @property
    def modelled(self) -> Leak:
        """The leak as the attack's prediction computes it."""
        leak, attack = self.setting.leak, self.attack
        scaled_alike = attack.labels == "signal" and not leak.clip.startswith("per_layer")
        return leak if attack.clip_aware and not scaled_alike else replace(leak, clip="none")

    def load(
        self, params: PyTree, observation: Observation, public: Public, key: Array
    ) -> tuple[Lane, Array]:
        """What a lane minimises for one victim, and where it starts."""
        setting, attack, leak = self.setting, self.attack, self.setting.leak
        y = label_rules.infer_labels(attack.labels, setting, self.modelled, params, observation, public)
        target = objectives.target(attack.objective, observation.observed, observation.noise_std, leak.window)
        start_key, _ = jax.random.split(key)
        x = starts.draw(attack.start, start_key, (leak.batch_size, *setting.input_shape), public.mean)
        z = self.encoded(x.astype(public.mean.dtype), y, public)
        signals = jnp.zeros((), z.dtype)
        if attack.labels == "signal":
            signals = label_rules.head_signal(setting, observation)
        return Lane(target, y, signals, observation.bound, observation.learning_rate), z

    def encoded(self, x: Array, y: Array, public: Public) -> Float[Array, " n"]:
        """The solver's coordinates of inputs [B, *input_shape]."""
        return _priors.encode(self._prior(public), x.reshape(len(x), -1), y).ravel()

    def decode(self, lane: Lane, public: Public, z: Array) -> tuple[Array, Array]:
        """Inputs and labels at the solver's coordinates."""
        x = self._pixels(lane, public, z)
        x = jnp.clip(x, *self._box(public)) if self.attack.box else x
        return self._images(x), lane.labels

    def problem(self, params: PyTree, lane: Lane, public: Public, progress: Array | float = 1.0) -> Problem:
        """What the solver minimises, at `progress` from 0 to 1."""
        attack, loss = self.attack, self.setting.loss_fn
        if attack.labels == "signal":
            loss = label_rules.signal_loss(loss, self.setting.classes)
        if attack.smoothing:
            width = attack.smoothing * _SHARPENING ** jnp.clip(progress, 0, 1)
            loss = smoothed(loss, width)

        def objective(z):
            x = self._pixels(lane, public, z)
            value = objectives.half_square(
                [self._mismatch(loss, params, lane, x), *self._apart(lane, public, z, x)]
            )
            return value + self._variation(lane, x) if attack.tv else value

        lower, upper = -jnp.inf, jnp.inf
        if attack.box and attack.prior == "none":
            lower, upper = (side.ravel() for side in self._box(public))
        return Problem(objective, lower, upper, progress)

    def _prior(self, public: Public) -> _priors.Gaussian | None:
        return public.prior if self.attack.prior == "gaussian" else None

    def _pixels(self, lane, public, z):
        """Flat inputs [B, n]."""
        return _priors.decode(self._prior(public), self._rows(z), lane.labels)

    def _rows(self, z):
        return z.reshape(self.setting.leak.batch_size, -1)

    def _images(self, x):
        return x.reshape(self.setting.leak.batch_size, *self.setting.input_shape)

    def _box(self, public):
        """Lower and upper bounds of flat inputs, [B, n] each."""
        shape, batch = self.setting.input_shape, self.setting.leak.batch_size
        each = (jnp.broadcast_to(side, shape).ravel() for side in (public.lower, public.upper))
        return [jnp.tile(side[None], (batch, 1)) for side in each]

    def _mismatch(self, loss, params, lane, x):
        """The residual between the leak that inputs would make and the one observed."""
        y = lane.signals if self.attack.labels == "signal" else lane.labels
        numbers = lane.bound, lane.learning_rate
        predicted = leaks.forward(loss, self.modelled, params, self._images(x), y, *numbers)
        return objectives.residual(self.attack.objective, predicted, lane.target, self.modelled.window)

    def _apart(self, lane, public, z, x):
        """The residuals of the Gaussian prior, and of its soft box."""
        terms, scale = [], jnp.sqrt(lane.target.prior_weight)
        if self.attack.prior == "gaussian":
            terms.append(self._rows(z) * scale)
            if self.attack.box:
                terms.append((x - jnp.clip(x, *self._box(public))) * scale / _BOX_STD)
        return terms

    def _variation(self, lane, x):
        """The penalty of the total variation."""
        scale = x.size * lane.target.prior_weight if self.attack.objective == "likelihood" else 1.0
        return self.attack.tv * scale * _priors.total_variation(self._images(x))
