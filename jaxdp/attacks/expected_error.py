"""The reconstruction error to expect at a step, without running an attack.

Linearised at the truth, the posterior of the input given the gradient g(x) + N(0, s^2) and the prior N(mean,
Sigma) is Gaussian with covariance (J^T J / s^2 + Sigma^-1)^-1, J = dg/dx: the Laplace approximation, equally
the Bayesian Cramer-Rao expression at one point.  One eigendecomposition gives the whole curve over s.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdp.attacks import leaks
from jaxdp.attacks.leaks import Leak, Loss, precise
from jaxdp.attacks.public import Gaussian


@precise
def information(
    loss_fn: Loss, leak: Leak, params: PyTree, x: Array, y: Array, bound=1.0
) -> Float[Array, "n n"]:
    """J^T J of the leak at one input.

    Args:
      loss_fn: `(params, (x, y)) -> scalar`.
      leak: with `batch_size` 1.
      params: parameters at the leak.
      x: the input [*input_shape].
      y: its label.
      bound: clip bound.

    Raises:
      ValueError: a leak of more than one example.
    """
    if leak.batch_size != 1:
        raise ValueError(f"batch_size={leak.batch_size}: the risk curve is for one example")

    def observe(flat):
        return leaks.forward(loss_fn, leak, params, flat.reshape(1, *x.shape), y[None], bound)

    jacobian = jax.jacfwd(observe)(x.ravel())
    squares = [
        jnp.tensordot(leaf, leaf, ([*range(leaf.ndim - 1)], [*range(leaf.ndim - 1)]))
        for leaf in jax.tree.leaves(jacobian)
    ]
    return jnp.asarray(sum(squares))


@precise
def expected_mse(
    information: Float[Array, "n n"], noise_std: Float[Array, " k"] | Sequence[float], prior: Gaussian
) -> Float[Array, " k"]:
    """tr((J^T J / s^2 + Sigma^-1)^-1) / n for every noise level s.

    Args:
      information: J^T J of one leak, or the sum over independent leaks each divided by its own s_t^2 (then
        with `noise_std` 1).
      noise_std: the noise levels, > 0.
      prior: of the input.

    Returns:
      The predicted mean squared error a pixel, from 0 up to the prior's own variance.
    """
    factor = prior.factor
    values, vectors = jnp.linalg.eigh(factor.T @ information @ factor)
    spread = jnp.square(factor @ vectors).sum(0)
    levels = jnp.asarray(noise_std)[:, None]
    return (spread[None] / (1 + jnp.maximum(values, 0)[None] / jnp.square(levels))).sum(1) / factor.shape[0]
