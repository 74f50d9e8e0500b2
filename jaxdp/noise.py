"""Standard normal noise, drawn once a step for all parameters.

threefry in counter mode gives two 32-bit words a block; both are used, and each pair makes two independent
normals by the Box-Muller transform.  `jax.random.normal` takes one word of every block and an inverse error
function for each number: the same distribution, about twice the time.  The noise of a large dense model is a
good part of its step, so this shows.

What is drawn is as unpredictable as threefry itself, and its tails are finer: |z| reaches 6.7, where
`jax.random.normal` in float32 ends at 5.5, since the radius uses all 32 bits of its word.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, PyTree

_BLOCKS = 2**31 - 1  # of one key: a counter is one 32-bit word here


def _unit_circle(word: Array) -> tuple[Array, Array]:
    """Cosine and sine of 2 pi word / 2^32 - pi / 4, without the range reduction of `cos` and `sin`.

    The two highest bits are the quadrant; the next 24 an angle in (-pi/4, pi/4), where Taylor's series to the
    ninth power errs by less than float32 rounds.
    """
    steps = ((word << 2) >> 8).astype(jnp.int32).astype(jnp.float32) + 0.5
    x = (steps * 2.0**-24 - 0.5) * (math.pi / 2)
    y = x * x
    sine = x * (1 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y / 362880))))
    cosine = 1 + y * (-1 / 2 + y * (1 / 24 + y * (-1 / 720 + y / 40320)))
    odd, half = (word >> 30) & 1, word >> 31
    sign = 1 - 2 * half.astype(jnp.int32).astype(jnp.float32)
    return sign * jnp.where(odd, -sine, cosine), sign * jnp.where(odd, cosine, sine)


def _box_muller(first: Array, second: Array) -> tuple[Array, Array]:
    """Two independent standard normals of two words of independent random bits."""
    uniform = (first.astype(jnp.float32) + 0.5) * 2.0**-32  # in (0, 1]: the logarithm is finite
    radius = jnp.sqrt(-2 * jnp.log(uniform))
    cosine, sine = _unit_circle(second)
    return radius * cosine, radius * sine


def standard_normal(key: Array, size: int, dtype=jnp.float32) -> Float[Array, " size"]:
    """`size` independent standard normal numbers.

    Args:
      key: a JAX key.  threefry keys in float32 take the fast way; any other is left to `jax.random.normal`.
      size: how many.
      dtype: float32 or float64.
    """
    pairs = (size + 1) // 2
    threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    if dtype != jnp.float32 or not threefry or not 0 < pairs <= _BLOCKS:
        return jax.random.normal(key, (size,), dtype)
    words = threefry_2x32(jax.random.key_data(key), jnp.arange(2 * pairs, dtype=jnp.uint32))
    return jnp.concatenate(_box_muller(words[:pairs], words[pairs:]))[:size]


def noise_like(key: Array, tree: PyTree) -> PyTree:
    """Standard normal noise in the shape of `tree`, at least float32: one draw, cut into the leaves."""
    leaves, structure = jax.tree.flatten(tree)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    draws = standard_normal(key, sum(sizes), jnp.promote_types(jnp.result_type(*leaves), jnp.float32))
    starts = np.cumsum([0, *sizes])
    return jax.tree.unflatten(
        structure,
        [
            jax.lax.slice(draws, (int(start),), (int(start + size),)).reshape(leaf.shape)
            for start, size, leaf in zip(starts, sizes, leaves, strict=False)
        ],
    )
