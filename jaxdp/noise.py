"""Standard normal noise, drawn once a step for all parameters together."""

import math
import os

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt32

# erfinv(x) / x as polynomials in w = -log(1 - x^2), highest power first: near the middle Giles's in w - 2.5
# (2010, "Approximating the erfinv function"), beyond w = 5 a least-squares fit in sqrt(w) - 4.5 up to w = 45.
_CENTRAL = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
    -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_TAIL = (
    -2.5580903e-06, 9.174656e-06, 3.486347e-08, -1.688665e-05, -4.3560816e-05, 0.000188807, -0.00043030598,
    0.00030673316, 1.0102329, 4.3447556,
)  # fmt: skip
VERSION = 2  # of what a key gives: a run that began with another goes on with new keys
_REFINED = 16  # of the 2^31 magnitudes, the outermost
_ROUNDED = 64  # numbers are drawn by as many: XLA on CPUs takes six times as long over arrays of odd size


def entropy_key() -> Array:
    """A key from the operating system's entropy: all 64 bits of a threefry key."""
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(os.urandom(8), np.uint32)), impl="threefry2x32")


def standard_normal(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal float32 numbers, out to 9 standard deviations.

    `jax.random.normal` inverts a uniform number of 23 bits, so that no float32 draw ever passes 5.42: what lies
    beyond then betrays an example for certain, with a probability that is not below every delta.  Here the
    sign takes one bit and the tail probability the other 31; a draw among the outermost 16 of the 2^31 (once in
    1.3e8) takes 32 more.

    Args:
      key: of the draw.
      shape: of the result.
    """
    first, second = jax.random.split(key)
    size = math.prod(shape)
    rounded = -(-size // _ROUNDED) * _ROUNDED
    bits = _words(first, rounded)
    magnitude = bits >> 1
    outer = magnitude < _REFINED

    def refined():
        fine = _words(second, rounded)
        return jnp.where(outer, (fine.astype(jnp.float32) + 0.5) * 2.0**-32, 0.5)

    within = jax.lax.cond(outer.any(), refined, lambda: jnp.full(rounded, 0.5, jnp.float32))
    tail = (magnitude.astype(jnp.float32) + within) * 2.0**-31  # P(|z| > result), in (0, 1]
    draws = _two_sided_quantile(jnp.minimum(tail, 1.0))
    return jnp.where(bits & 1, draws, -draws)[:size].reshape(shape)


def _words(key: Array, size: int) -> UInt32[Array, " size"]:
    """Random words, an even number: both of each threefry block, of which JAX gives the exclusive or."""
    if jax.random.key_impl(key) == "threefry2x32" and size < 2**32:
        data = key if jnp.issubdtype(key.dtype, jnp.uint32) else jax.random.key_data(key)
        return jax.extend.random.threefry_2x32(data, jax.lax.iota(jnp.uint32, size))
    return jax.random.bits(key, (size,), jnp.uint32)


def _two_sided_quantile(tail: Float[Array, "..."]) -> Float[Array, "..."]:
    """The z >= 0 with P(|standard normal| > z) = tail, to 3e-6 of itself, for tails down to 2^-65."""
    w = -jnp.log(tail * (2 - tail))
    central = jnp.polyval(jnp.asarray(_CENTRAL, jnp.float32), w - 2.5)
    outer = jnp.polyval(jnp.asarray(_TAIL, jnp.float32), jnp.sqrt(w) - 4.5)
    return math.sqrt(2) * (1 - tail) * jnp.where(w < 5, central, outer)


def noise_like(key: Array, tree: PyTree) -> PyTree:
    """Standard normal noise in the shape of `tree`, at least float32: one draw, cut into the leaves.

    Raises:
      ValueError: a leaf that is not of real floats: the others would take noise of its type.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"tree{jax.tree_util.keystr(path)}={leaf.dtype}: must be real floats")
    leaves, structure = jax.tree.flatten(tree)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    dtype = jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    shape = (sum(sizes),)
    draws = standard_normal(key, shape) if dtype == jnp.float32 else jax.random.normal(key, shape, dtype)
    starts = np.cumsum([0, *sizes])
    return jax.tree.unflatten(
        structure,
        [
            jax.lax.slice(draws, (int(start),), (int(start + size),)).reshape(leaf.shape)
            for start, size, leaf in zip(starts, sizes, leaves, strict=False)
        ],
    )
