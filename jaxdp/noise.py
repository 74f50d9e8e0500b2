"""Standard normal noise, drawn once a step for all parameters together."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


def noise_like(key: Array, tree: PyTree) -> PyTree:
    """Standard normal noise in the shape of `tree`, at least float32: one draw, cut into the leaves."""
    leaves, structure = jax.tree.flatten(tree)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    draws = jax.random.normal(key, (sum(sizes),), jnp.promote_types(jnp.result_type(*leaves), jnp.float32))
    starts = np.cumsum([0, *sizes])
    return jax.tree.unflatten(
        structure,
        [
            jax.lax.slice(draws, (int(start),), (int(start + size),)).reshape(leaf.shape)
            for start, size, leaf in zip(starts, sizes, leaves, strict=False)
        ],
    )
