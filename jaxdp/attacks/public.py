"""What an attacker knows before any gradient: the setting, public data, the box, a Gaussian prior.

The Gaussian prior is a change of variables, x = mean + factor z with z standard normal: the penalty is then
|z|^2 / 2, and the optimiser works in coordinates in which the prior is round.  With a factor of full rank
nothing is excluded, so an undefended gradient is still matched exactly.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdp import _validate
from jaxdp.attacks.leaks import Leak, Loss

PRIORS = ("none", "gaussian")


class Gaussian(NamedTuple):
    """N(mean, factor factor^T) over flat inputs, in closed form from public examples.

    Attributes:
      mean: [classes, n]; the rows are equal if the prior does not depend on the label.
      factor: [n, n], the symmetric square root of the covariance.
    """

    mean: Float[Array, "classes n"]
    factor: Float[Array, "n n"]


class Public(NamedTuple):
    """What the attacker has of public data.

    Attributes:
      examples: inputs [m, *input_shape] for label templates; grey ones where nothing is known.
      labels: their labels [m], or -1 where every class uses every example.
      mean: the mean input, a start.
      prior: the Gaussian prior, or None.
      lower, upper: the box that inputs lie in, scalars or [*input_shape]; [0, 1] for images.
    """

    examples: Float[Array, "m ..."]
    labels: Int[Array, " m"]
    mean: Float[Array, "..."]
    prior: Gaussian | None = None
    lower: Array | np.ndarray | float = 0.0
    upper: Array | np.ndarray | float = 1.0


class Head(NamedTuple):
    """The last layer among the leaves of the parameters, counted as `jax.tree.leaves` does.

    Attributes:
      kernel: position of its kernel; None if there is none.
      bias: position of its bias [classes]; None if there is none.
      axis: which axis of the kernel runs over the classes: -1 in Flax, 0 in Equinox.
      classes: their number.
    """

    kernel: int | None
    bias: int | None
    axis: int = -1
    classes: int = 10

    def bias_of(self, leaves: list[Array]) -> Float[Array, " classes"]:
        """The bias among the leaves of a gradient."""
        assert self.bias is not None  # no rule that reads it is used on a layer without
        return leaves[self.bias]

    def kernel_of(self, leaves: list[Array]) -> Float[Array, "features classes"]:
        """The kernel among the leaves of a gradient, its classes last."""
        assert self.kernel is not None
        return jnp.moveaxis(leaves[self.kernel], self.axis, -1).reshape(-1, self.classes)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all attacks on one leak share.

    Attributes:
      loss_fn: `(params, (x, y)) -> scalar` for one example; the same function object again means no second
        compilation.
      leak: what leaked.
      input_shape: shape of one input.
      classes: number of labels.
      public: the attacker's public data; None for none.
      head: the last layer; None to have it found (see `labels.find_head`).
    """

    loss_fn: Loss
    leak: Leak
    input_shape: tuple[int, ...]
    classes: int = 10
    public: Public | None = None
    head: Head | None = None

    def __post_init__(self):
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        _validate.whole(classes=self.classes, minimum=2)
        if self.head is not None and self.head.classes != self.classes:
            raise ValueError(f"classes={self.classes}: the last layer has {self.head.classes}")
        if self.public is not None and self.public.mean.shape != self.input_shape:
            raise ValueError(
                f"public inputs of shape {self.public.mean.shape}: needs input_shape={self.input_shape}"
            )

    @property
    def known(self) -> Public:
        """The public data, or what stands for it where there is none."""
        return grey(self.input_shape) if self.public is None else self.public

    @property
    def static(self) -> "Setting":
        """The setting without what is an argument of its programs, so that these are shared."""
        return replace(self, public=None)


def grey(input_shape: tuple[int, ...], lower: float = 0.0, upper: float = 1.0) -> Public:
    """What an attacker without public data assumes: the middle of the box."""
    x = jnp.full(input_shape, (lower + upper) / 2)
    return Public(x[None], jnp.full(1, -1, jnp.int32), x, None, lower, upper)


def public_knowledge(
    x: Float[np.ndarray, "m ..."] | Array,
    y: np.ndarray | Array,
    *,
    classes: int = 10,
    templates: int = 64,
    class_prior: bool = False,
) -> Public:
    """Public examples as the attacker uses them.

    Of images the box is [0, 1]; of tabular rows it is the range that each feature has among the public ones,
    widened by half of it to either side, since victims may lie outside.

    Args:
      x: public inputs, images [m, height, width, channels] in [0, 1] or rows [m, features]; disjoint from
        every victim.
      y: their labels [m].
      classes: number of labels.
      templates: how many of them serve as label templates.
      class_prior: whether the Gaussian prior has one mean a class.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y, np.int32)
    prior = gaussian(x, y if class_prior else None, classes=classes)
    few = slice(0, templates)
    box = (0.0, 1.0)
    if x.ndim == 2:
        low, high = x.min(0), x.max(0)
        box = (jnp.asarray(1.5 * low - 0.5 * high), jnp.asarray(1.5 * high - 0.5 * low))
    return Public(jnp.asarray(x[few]), jnp.asarray(y[few]), jnp.asarray(x.mean(0)), prior, *box)


def gaussian(
    x: Float[Array, "..."] | np.ndarray,
    y: Array | np.ndarray | None = None,
    *,
    classes: int = 10,
    floor: float = 0.02,
) -> Gaussian:
    """The Gaussian prior of public examples.

    Args:
      x: public inputs [m, ...], disjoint from every victim.
      y: their labels; given, each class has its own mean and all share the covariance within classes.
      classes: number of labels.
      floor: standard deviation added to every direction, so that inputs outside the span of the public
        ones stay possible.

    Raises:
      ValueError: fewer than two examples, or labels that do not fit.
    """
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    if len(flat) < 2:
        raise ValueError(f"x has {len(flat)} public examples: a prior needs at least 2")
    mean = np.broadcast_to(flat.mean(0), (classes, flat.shape[1])).copy()
    centred = flat - mean[0]
    if y is not None:
        y = np.asarray(y)
        if y.shape != (len(flat),) or y.min() < 0 or y.max() >= classes:
            raise ValueError(f"y of shape {y.shape}: needs [{len(flat)}] labels below classes={classes}")
        for label in np.unique(y):
            mean[label] = flat[y == label].mean(0)
        centred = flat - mean[y]
    covariance = centred.T @ centred / len(flat) + floor**2 * np.eye(flat.shape[1])
    values, vectors = np.linalg.eigh(covariance)
    factor = (vectors * np.sqrt(np.maximum(values, floor**2))) @ vectors.T
    return Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(factor, jnp.float32))


def decode(prior: Gaussian | None, z: Float[Array, "..."], y: Array) -> Float[Array, "..."]:
    """Inputs from optimiser coordinates: `z` [B, n] for labels `y` [B]."""
    return z if prior is None else prior.mean[y] + z @ prior.factor


def encode(prior: Gaussian | None, x: Float[Array, "..."], y: Array) -> Float[Array, "..."]:
    """The inverse of `decode`."""
    if prior is None:
        return x
    return jnp.linalg.solve(prior.factor, (x - prior.mean[y]).T).T


def total_variation(images: Float[Array, "b h w c"], smoothing: float = 1e-3) -> Float[Array, ""]:
    """Mean over pixels of the (smoothed) anisotropic total variation, |.| as sqrt(.^2 + smoothing^2)."""

    def magnitude(difference):
        return (jnp.sqrt(jnp.square(difference) + smoothing**2) - smoothing).mean()

    return magnitude(jnp.diff(images, axis=1)) + magnitude(jnp.diff(images, axis=2))
