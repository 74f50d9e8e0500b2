"""The secret of a run, and what is drawn from it: noise on a public grid, and the choice of batches.

Every draw is a function of the secret, the step, what it is for, and its place: no state is advanced, no two
are the same, and any device can compute its own part.
"""

import hashlib
import hmac
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree, Shaped, UInt32

from jaxdp import platforms
from jaxdp.noise.chacha import GENERATORS as GENERATORS
from jaxdp.noise.chacha import blocks
from jaxdp.noise.grid import Stream as Stream
from jaxdp.noise.grid import grid_step as grid_step
from jaxdp.noise.grid import released as released

VERSION = 3  # of what a secret gives: a run that began with another goes on with new keys
GRADIENTS, CLIPPER, BATCHES, ORDERS = range(4)  # what a stream of draws is for
IN_BLOCK = 16  # words: places of examples that are drawn together


def entropy_key() -> UInt32[Array, "8"]:
    """A secret from the operating system's entropy: the 256 bits of a ChaCha key."""
    return jnp.asarray(np.frombuffer(os.urandom(32), np.uint32))


def secret(key: Array | np.ndarray | int) -> UInt32[Array, "8"]:
    """The secret that a key stands for.

    Args:
      key: of `entropy_key`; or a seed, or a key of `jax.random`, which are expanded to its length and are as
        easy to guess as before.

    Raises:
      ValueError: none of these.
    """
    if isinstance(key, int):
        return jnp.asarray(np.frombuffer(hashlib.sha256(f"jaxdp seed {key}".encode()).digest(), np.uint32))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
        return jax.random.bits(key, (8,), jnp.uint32)
    if key.dtype == jnp.uint32 and key.shape == (2,):
        return jax.random.bits(jnp.asarray(key), (8,), jnp.uint32)
    if key.dtype == jnp.uint32 and key.shape == (8,):
        return jnp.asarray(key)
    raise ValueError(
        f"key={key.dtype}{list(key.shape)}: must be of jaxdp.entropy_key (uint32[8]), one key of jax.random, "
        "or a whole number"
    )


def renewed(key: UInt32[Array, "8"], settings: str) -> UInt32[Array, "8"]:
    """Another secret, which these settings alone give: HMAC-SHA-256."""
    digest = hmac.digest(np.asarray(key).tobytes(), settings.encode(), "sha256")
    return jnp.asarray(np.frombuffer(digest, np.uint32))


def words(key: Array, epoch: Shaped[Array, ""] | int, count: int) -> UInt32[Array, " count"]:
    """Random words for the order of an epoch."""
    return jnp.stack(_blocks(key, epoch, count, ORDERS), axis=1).reshape(-1)[:count]


def below(
    key: Array,
    step: Shaped[Array, ""] | int,
    count: int,
    threshold: UInt32[Array, ""],
    first: Shaped[Array, ""] | int = 0,
) -> Bool[Array, " count"]:
    """Whether random words for the batch of a step are below a threshold.

    Args:
      key, step: of the batch.
      count: words, of the places `first .. first + count - 1`.
      threshold: what each is compared with.
      first: a multiple of 16, `IN_BLOCK`.
    """
    bits = [
        (word < threshold).astype(jnp.uint32) << jnp.uint32(i)
        for i, word in enumerate(_blocks(key, step, count, BATCHES, first))
    ]
    # One value of a block behind a quotient, as in `grid`.
    packed = sum(bits, jnp.uint32(0)) // ((jnp.asarray(step).astype(jnp.uint32) >> 31) + 1)
    shape = (len(packed), IN_BLOCK)
    every = jax.lax.broadcast_in_dim(packed, shape, (0,)) >> jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
    return (every & 1).astype(bool).reshape(-1)[:count]


def _blocks(key, step, count: int, purpose: int, first: Array | int = 0) -> list[Array]:
    counter = jax.lax.iota(jnp.uint32, -(-count // IN_BLOCK))
    if not (isinstance(first, int) and first == 0):
        counter = counter + jnp.asarray(first // IN_BLOCK).astype(jnp.uint32)
    return blocks(secret(key), counter, (step, 0, purpose), staged=platforms.resolved("auto") != "cpu")


def noise_like(key: Array, tree: PyTree) -> PyTree:
    """Standard normal numbers in the shape of a tree, at least float32, where an attack is simulated.

    They protect nothing: they are drawn by `jax.random.normal` and lie on a visible lattice.
    """
    leaves, structure = jax.tree.flatten(tree)
    dtype = jnp.result_type(jnp.float32, *leaves)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, x.shape, dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
