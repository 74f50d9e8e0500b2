"""The words that noise and batches are made of: ChaCha, or JAX's threefry, as functions of a place.

A block is 16 words of 32 bits.  Which one it is say a counter and three more words, its place: in this library
`(step, leaf, stream)`, see `jaxdp.noise`.  Nothing is advanced, so that any device can compute the block that
it needs.

Source: Bernstein, "ChaCha, a variant of Salsa20" (2008); RFC 8439 for 20 rounds, whose state this is, with a
counter of 32 bits and a nonce of 96.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
from jaxtyping import Array, UInt32

Blocks = list[UInt32[Array, "..."]]
Generate = Callable[..., Blocks]  # of `(secret, counter, place, staged=)`, see `blocks`
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
_ROUND_OF_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_STAGE = 2  # double rounds
_ROUND_OF_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def blocks(
    secret: UInt32[Array, "8"],
    counter: UInt32[Array, "..."],
    place: Sequence[Any],
    rounds: int = 12,
    staged: bool = False,
) -> Blocks:
    """ChaCha's block function.

    Args:
      secret: the key, 256 bits.
      counter: of the blocks, in any shape.
      place: the three words of the nonce, scalars or in the counter's shape.
      rounds: 8, 12 or 20.
      staged: in kernels of a few rounds each, which take a compiler for GPUs a quarter of the time that one
        kernel of all takes it; a CPU wants one loop.

    Returns:
      16 arrays in the counter's shape, each of one word of every block.
    """
    # Typed as an array each: 64-bit mode, in which the caller may be, takes bare numbers for 64 bits.
    nonce = [jnp.asarray(word).astype(jnp.uint32) for word in place]
    first = [*map(jnp.uint32, _CONSTANTS), *(secret[i] for i in range(8)), counter, *nonce]

    state = list(jnp.broadcast_arrays(*first)) if staged else list(first)
    for done in range(1, rounds // 2 + 1):
        for quarter in (*_ROUND_OF_COLUMNS, *_ROUND_OF_DIAGONALS):
            _quarter_round(state, *quarter)
        if staged and done % _STAGE == 0:
            state = list(jax.lax.optimization_barrier(state))
    return [a + b for a, b in zip(state, first, strict=True)]


def _quarter_round(state: Blocks, a: int, b: int, c: int, d: int) -> None:
    for into, other, mixed, left in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[into] = state[into] + state[other]
        word = state[mixed] ^ state[into]
        state[mixed] = (word << jnp.uint32(left)) | (word >> jnp.uint32(32 - left))


def threefry_blocks(
    secret: UInt32[Array, "8"], counter: UInt32[Array, "..."], place: Sequence[Any], staged: bool = False
) -> Blocks:
    """JAX's own generator in the same form, from 64 bits of the secret; not one that cryptographers accept."""
    step, leaf, stream = (jnp.asarray(word).astype(jnp.uint32) for word in place)
    threefry = jax.extend.random.threefry2x32_p.bind
    one, two = threefry(secret[0], secret[1], step, stream)
    whole = jnp.zeros(jnp.broadcast_shapes(counter.shape, leaf.shape), jnp.uint32)
    one, two, counter, leaf = (word + whole for word in (one, two, counter, leaf))
    pairs = [threefry(one, two, counter, leaf * jnp.uint32(8) + jnp.uint32(i)) for i in range(8)]
    return [word for pair in pairs for word in pair]


GENERATORS: dict[str, Generate] = {
    "chacha12": blocks,
    "chacha20": functools.partial(blocks, rounds=20),
    "threefry": threefry_blocks,
}
