"""The input of a first dense layer, read off its gradient without any search.

For one example the layer x W + b has the gradients dW = x d^T and db = d: every column of dW is the input
times the matching entry of db.  With noise the stacked matrix [dW; db] is (x, 1) d^T plus noise, of rank one
in expectation: its best rank-one fit is the maximum likelihood estimate of x, and with a Gaussian prior on x
the two factors are found in turn, each in closed form.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdp.attacks.priors import Gaussian


def first_layer(params: PyTree, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Positions among the leaves of the first kernel [prod(input_shape), features] and of the bias beside it.

    Raises:
      ValueError: the network does not start with a dense layer with bias.
    """
    size = math.prod(input_shape)
    paths = jax.tree_util.tree_leaves_with_path(params)
    for kernel, (path, leaf) in enumerate(paths):
        if leaf.ndim == 2 and leaf.shape[0] == size:
            for bias, (other, candidate) in enumerate(paths):
                if other[:-1] == path[:-1] and candidate.shape == leaf.shape[1:]:
                    return kernel, bias
    raise ValueError(f"input_shape={input_shape}: no dense layer [{size}, features] with a bias")


def exact_input(kernel: Float[Array, "n m"], bias: Float[Array, " m"]) -> Float[Array, " n"]:
    """The input behind one example's gradient; exact without noise (Phong et al. 2017).

    Least squares over all columns, dW db / |db|^2, and not one column's ratio: the same without noise,
    and ten times as robust with it.
    """
    return kernel @ bias / jnp.maximum(bias @ bias, 1e-30)


def row_ratios(kernel: Float[Array, "n m"], bias: Float[Array, " m"]) -> Float[Array, "m n"]:
    """One candidate input a neuron: exact wherever a single example of the batch activates it."""
    safe = jnp.where(jnp.abs(bias) > 1e-12, bias, jnp.inf)
    return (kernel / safe[None]).T


def noisy_input(
    kernel: Float[Array, "n m"],
    bias: Float[Array, " m"],
    noise_std: Float[Array, ""] | float,
    prior: Gaussian,
    label: Array | int = 0,
    iterations: int = 200,
) -> Float[Array, " n"]:
    """The input's posterior mean, by variational Bayes over the two factors in turn.

    The backpropagated signal d gets a Gaussian prior whose variance is what the gradient's energy shows
    beyond the noise's own (less two standard errors): where there is no signal the result is the prior mean.

    Args:
      kernel: dW plus noise.
      bias: db plus noise.
      noise_std: standard deviation of the noise per coordinate.
      prior: of the input.
      label: whose mean the prior uses.
      iterations: rounds.
    """
    values, vectors = jnp.linalg.eigh(prior.factor @ prior.factor.T)
    mean, variance = prior.mean[label], jnp.square(jnp.maximum(noise_std, 1e-9))
    entries = kernel.size + bias.size
    energy = jnp.square(kernel).sum() + bias @ bias - (entries + 2 * math.sqrt(2 * entries)) * variance
    power = jnp.maximum(energy, 1e-12 * variance) / (bias.size * (mean @ mean + values.sum() + 1))

    def round_(carry, _):
        x, spread = carry
        precision = x @ x + spread + 1 + variance / power
        delta = (kernel.T @ x + bias) / precision
        strength = delta @ delta + bias.size * variance / precision
        gain = values / (strength * values + variance)
        x = mean + vectors @ (gain * (vectors.T @ (kernel @ delta - strength * mean)))
        return (x, variance * gain.sum()), None

    return jax.lax.scan(round_, (mean, values.sum()), length=iterations)[0][0]
