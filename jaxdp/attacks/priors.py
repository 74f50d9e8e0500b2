"""What the attacker knows about inputs before any gradient: box, total variation, Gaussian from public data.

The Gaussian prior is a change of variables, x = mean + factor z with z standard normal: the penalty is then
|z|^2 / 2, and the optimiser works in coordinates in which the prior is round.  With a factor of full rank
nothing is excluded, so an undefended gradient is still matched exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NAMES = ("none", "gaussian")


class Gaussian(NamedTuple):
    """N(mean, factor factor^T) over flat inputs, in closed form from public examples.

    Attributes:
      mean: [classes, n]; the rows are equal if the prior does not depend on the label.
      factor: [n, n], the symmetric square root of the covariance.
    """

    mean: Float[Array, "classes n"]
    factor: Float[Array, "n n"]


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


def outside_box(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Half the squared distance to the box [0, 1]."""
    return 0.5 * jnp.square(x - jax.lax.stop_gradient(jnp.clip(x, 0, 1))).sum()
