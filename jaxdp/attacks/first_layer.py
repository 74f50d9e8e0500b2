"""The input of a first dense layer, read off its gradient without any search.

For one example the layer x W + b has the gradients dW = x d^T and db = d: every column of dW is the input times
the matching entry of db.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxdp.attacks.labels import probe
from jaxdp.attacks.leaks import Loss, Victims, precise

_AGREE = 1e-3


def first_layer(loss_fn: Loss, params: PyTree, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Finds the first dense layer: the kernel whose gradient is the input times a bias's gradient.

    Args:
      loss_fn: `(params, (x, y)) -> scalar`.
      params: of one network, as trees of any framework name them.
      input_shape: of one input.

    Returns:
      Positions among the leaves of the kernel and of the bias, and the kernel's axis of inputs: -2 in Flax,
      -1 in Equinox.

    Raises:
      ValueError: the network does not start with a dense layer with bias.
    """
    size = math.prod(input_shape)
    if any(leaf.ndim == 2 and size in leaf.shape for leaf in jax.tree.leaves(params)):
        x, gradients = probe(loss_fn, params, input_shape)
        for kernel, of_kernel in enumerate(gradients):
            for bias, of_bias in enumerate(gradients):
                for axis in (-2, -1):
                    if _is_product(of_kernel, of_bias, x.reshape(len(x), 1, -1), axis):
                        return kernel, bias, axis
    raise ValueError(f"input_shape={input_shape}: no dense layer [{size}, features] with a bias")


def _is_product(kernel: np.ndarray, bias: np.ndarray, x: np.ndarray, axis: int) -> bool:
    """Whether gradients [probes, 2, ., .] are the inputs times the gradients [probes, 2, features]."""
    if kernel.ndim != 4 or bias.ndim != 3:
        return False
    kernel = np.moveaxis(kernel, axis, -2)
    if kernel.shape[2:] != (x.shape[-1], bias.shape[-1]):
        return False
    product = x[..., None] * bias[..., None, :]
    return bool(np.abs(kernel - product).max() < _AGREE * np.abs(product).max())


def exact_input(kernel: Float[Array, "n m"], bias: Float[Array, " m"]) -> Float[Array, " n"]:
    """The input behind one example's gradient; exact without noise (Phong et al. 2017).

    Least squares over all columns, dW db / |db|^2, and not one column's ratio: the same without noise,
    and ten times as robust with it.
    """
    return kernel @ bias / jnp.maximum(bias @ bias, 1e-30)


def closed_form(loss_fn: Loss, params: PyTree, victims: Victims, input_shape: tuple[int, ...]) -> np.ndarray:
    """The inputs behind gradients of one example each, [N, 1, *input_shape].

    Args:
      loss_fn: `(params, (x, y)) -> scalar`.
      params: of one network.
      victims: what leaked, each from one step and one example, all tensors scaled alike if clipped.
      input_shape: of one input.

    Raises:
      ValueError: the network does not start with a dense layer with bias.
    """
    kernel, bias, axis = first_layer(loss_fn, params, input_shape)
    leaves = jax.tree.leaves(victims.observed)
    rows = jnp.moveaxis(jnp.asarray(leaves[kernel]), axis, -2)
    found = np.asarray(jax.vmap(precise(exact_input))(rows, jnp.asarray(leaves[bias])))
    return found.reshape(-1, 1, *input_shape)
