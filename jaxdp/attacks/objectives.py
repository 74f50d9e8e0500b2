"""What a reconstruction is asked to match: every data term as a least-squares residual.

The objective is half the squared norm of a residual.  All are normalised by the observation's own norm: near
the end of training a gradient of norm 1e-4 must not stall an optimiser that thinks in absolute numbers.

| name         | residual                              | source                                          |
|--------------|---------------------------------------|-------------------------------------------------|
| `squared_l2` | (g - g*) / |g*|                       | Zhu et al. 2019 (DLG), Wei et al. 2020 (CPL)     |
| `cosine`     | g/|g| - g*/|g*|                       | Geiping et al. 2020; 1 - cos without cancellation |
| `likelihood` | (g_t - g*_t) / sigma_t, renormalised  | Balunovic et al. 2022, Bayes-optimal with a prior |

With `window` > 1, `squared_l2` sums the steps as they are; `cosine` compares each step's direction;
`likelihood` weighs step t by 1 / sigma_t^2, as Gaussian noise demands.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdp import _validate
from jaxdp.attacks.leaks import norm, square_norm

NAMES = ("squared_l2", "cosine", "likelihood")

# Rounding acts as noise: below this share of the gradient's root mean square, noise is not worth modelling.
_ROUNDING = 1e-4


class Target(NamedTuple):
    """An observation made ready for comparison.

    Attributes:
      reference: the weighted observation, pytree like the parameters.
      weights: what a prediction is multiplied by, per leaf.
      prior_weight: variance of the weighted noise: the factor of -log prior that makes the sum a posterior.
    """

    reference: PyTree
    weights: PyTree
    prior_weight: Float[Array, ""]


def _rows(leaf, window):
    """The leaf as one row a step."""
    return leaf.reshape(window, -1)


def _step_norms(tree, window):
    """The norm of each step's gradient over all leaves, [T]."""
    squares = sum(jnp.square(_rows(leaf, window)).sum(1) for leaf in jax.tree.leaves(tree))
    return jnp.sqrt(squares + 1e-30)


def _times(tree, weights, window):
    """Each leaf times its weight, [T] or scalar."""

    def one(leaf, weight):
        weight = jnp.broadcast_to(weight, (window,)) if window > 1 else jnp.reshape(weight, ())
        return leaf * weight.reshape(weight.shape + (1,) * (leaf.ndim - weight.ndim))

    return jax.tree.map(one, tree, weights)


def _everywhere(tree, weight):
    return jax.tree.map(lambda _: weight, tree)


def target(name: str, observed: PyTree, noise_std: Float[Array, "..."], window: int = 1) -> Target:
    """The observation as the objective `name` compares with it.

    Args:
      name: one of `NAMES`.
      observed: what leaked; leaves with a leading axis [T] if `window` > 1.
      noise_std: standard deviation per coordinate of the noise in it, scalar or [T]; zero if none.
      window: T.

    Raises:
      ValueError: an unknown objective.
    """
    _validate.one_of(NAMES, objective=name)
    total = norm(observed)
    size = sum(leaf.size for leaf in jax.tree.leaves(observed)) / window
    step_norms = _step_norms(observed, window)
    floor = _ROUNDING * step_norms / jnp.sqrt(size)
    std = jnp.maximum(jnp.broadcast_to(jnp.asarray(noise_std, total.dtype), (window,)), floor)
    precision = jnp.square(1 / std).sum()
    prior_weight = window / precision / total**2
    if name == "cosine":
        weights = _everywhere(observed, 1 / (step_norms * jnp.sqrt(jnp.asarray(window, total.dtype))))
    elif name == "likelihood":
        weights = _everywhere(observed, jnp.sqrt(window / precision) / std / total)
    else:
        weights = _everywhere(observed, 1 / total)
    return Target(_times(observed, weights, window), weights, prior_weight)


def residual(name: str, predicted: PyTree, target: Target, window: int = 1) -> PyTree:
    """What is left between a predicted gradient and the target, pytree like the parameters."""
    if name == "cosine":
        scale = 1 / (_step_norms(predicted, window) * jnp.sqrt(jnp.asarray(window, jnp.float32)))
        predicted = _times(predicted, _everywhere(predicted, scale), window)
    else:
        predicted = _times(predicted, target.weights, window)
    return jax.tree.map(jnp.subtract, predicted, target.reference)


def half_square(tree: PyTree) -> Float[Array, ""]:
    """Half the squared norm of a residual: the objective's value."""
    return 0.5 * square_norm(tree)
