"""Gaussian noise released on a grid, so that the last digits of a sum tell nothing.

A float32 that is a sum plus float32 noise lies on a lattice that the sum shifts: whoever knows two candidate
sums sees which of them it was.  What is released here is

    gamma K,    K = round((S + Z) / gamma),    Z ~ N(0, std^2),    gamma = 2^j with std / gamma in [6.4, 12.8)

which is a function of S + Z and public numbers alone: post-processing of the Gaussian mechanism, whose epsilon
it keeps.  The grid adds at most 0.2 % to the variance.  No sum S + Z of finite precision is ever formed: with
N the whole number next to S / gamma and f = S / gamma - N, both exact since gamma is a power of two, K = N + k
for k = round(f + (std / gamma) z), and the z that decides it is a quantile to 1e-13 (`jaxdp.noise.quantile`).
How far the probabilities of k are from the ideal ones is charged for (`jaxdp.accounting.generator`).

Eight numbers are made of a block: a sign and 63 bits of tail probability from two words of their own, and 32
more bits, which matter once in 2^57 draws, from the second word of the next.  The place of an entry is its
leaf's number in the tree and its own in the leaf (row-major): block `place // 8`, number `place % 8`.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int32, PyTree, Shaped, UInt32, UInt64

from jaxdp import platforms
from jaxdp.noise.chacha import GENERATORS, Generate
from jaxdp.noise.quantile import two_sided_quantile

IN_BLOCK = 8  # numbers
MOST = 127  # of |k|, 9.9 standard deviations at least
_WHERE_IT_LIVES = 1 << 16  # entries from which on a leaf is drawn by itself, the others together
_VECTOR = 8  # blocks that XLA on CPUs computes at a time; what is left over of a row takes as long each
_SMALLEST, _LARGEST = 1e-36, 1e36  # standard deviations, so that gamma and its inverse are normal numbers
_BITS_OF_8_OVER_5 = 0x4CCCCD  # the mantissa of 1.6


class Stream(NamedTuple):
    """Whose draws: the secret, the step, what for (one of `jaxdp.noise`'s streams), by which generator."""

    secret: UInt32[Array, "8"]
    step: Shaped[Array, ""] | int
    purpose: int
    generator: str = "chacha12"
    platform: str = "auto"  # that the program is made for, see `platforms.resolved`


def released(stream: Stream, tree: PyTree, std: Float[Array, ""] | float) -> PyTree:
    """The tree plus Gaussian noise, rounded to the public grid; in its own types, float32 at least.

    Args:
      stream: of the draws; one is used once.
      tree: sums, of real floats, whole on every device or in shards.
      std: standard deviation of the noise, may be traced.  Where it is not in [1e-36, 1e36], the result is not
        a number.

    Raises:
      ValueError: a leaf that is not of real floats.

    Formal guarantee: for an ideal generator the result is a function of tree + N(0, std^2) and of std, but for
    draws beyond 9.9 standard deviations.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"tree{jax.tree_util.keystr(path)}={leaf.dtype}: must be real floats")
    leaves, structure = jax.tree.flatten(tree)
    dtype = jnp.result_type(jnp.float32, *leaves)
    gamma, inverse = _grid(jnp.asarray(std, jnp.float32))
    scale = jnp.asarray(std).astype(dtype) * inverse.astype(dtype)
    noised: list = [None] * len(leaves)
    for part in _parts([leaf.shape for leaf in leaves], _together(stream)):
        sums = part.gather([leaves[place].astype(dtype) for place in part.leaves]) * inverse.astype(dtype)
        near = jnp.round(sums)
        drawn = _rounded_noise(stream, part, sums - near, scale).astype(dtype)
        for place, leaf in zip(part.leaves, part.scatter((near + drawn) * gamma.astype(dtype)), strict=True):
            noised[place] = leaf
    return jax.tree.unflatten(structure, noised)


def grid_step(std: Float[Array, ""] | float) -> Float[Array, ""]:
    """gamma for noise of a standard deviation: public, as that is."""
    return _grid(jnp.asarray(std, jnp.float32))[0]


def _grid(std: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """gamma and its inverse, exact; not numbers where there is no such grid."""
    bits = jax.lax.bitcast_convert_type(std, jnp.int32)
    exponent = (bits >> 23) - 3 + ((bits & 0x7FFFFF) >= _BITS_OF_8_OVER_5)
    fits = (std >= _SMALLEST) & (std <= _LARGEST)
    power = lambda e: jax.lax.bitcast_convert_type(e << 23, jnp.float32)  # noqa: E731
    return jnp.where(fits, power(exponent), jnp.nan), jnp.where(fits, power(254 - exponent), jnp.nan)


class _Part(NamedTuple):
    """Leaves that are drawn together, as [blocks..., 8]."""

    leaves: list[int]
    leaf: Callable[[], UInt32[Array, "..."]]  # number of the leaf that each block is of
    counter: Callable[[], UInt32[Array, "..."]]
    gather: Callable[[list[Array]], Array]
    scatter: Callable[[Array], list[Array]]


def _together(stream: Stream) -> bool:
    """Whether all leaves are joined: a device that has no other computes copies faster than it compiles."""
    return platforms.resolved(stream.platform) != "cpu" and jax.device_count() == 1


def _parts(shapes: list[tuple[int, ...]], together: bool) -> Iterator[_Part]:
    """Large leaves as they lie in memory, each by itself; the small ones, or all, joined."""
    small = []
    for place, shape in enumerate(shapes):
        if not together and math.prod(shape) >= _WHERE_IT_LIVES and math.prod(shape) % IN_BLOCK == 0:
            yield _alone(place, shape)
        elif math.prod(shape):
            small.append(place)
    if small:
        yield _joined(small, [shapes[place] for place in small])
    empty = [place for place, shape in enumerate(shapes) if not math.prod(shape)]
    if empty:
        yield _joined(empty, [shapes[place] for place in empty])


def _alone(place: int, shape: tuple[int, ...]) -> _Part:
    """In its own axes, so that shards along any of them stay where they are, unless rows fill no vectors."""
    blocks = (*shape[:-1], shape[-1] // IN_BLOCK)
    if shape[-1] % (IN_BLOCK * _VECTOR):
        blocks = (math.prod(shape) // IN_BLOCK,)

    def counter():
        strides = np.cumprod([1, *blocks[:0:-1]], dtype=np.uint64)[::-1]
        each = (
            jax.lax.broadcasted_iota(jnp.uint32, blocks, axis) * jnp.uint32(stride)
            for axis, stride in enumerate(strides)
        )
        return sum(each, jnp.zeros((), jnp.uint32))

    return _Part(
        leaves=[place],
        leaf=lambda: jnp.asarray(place, jnp.uint32),
        counter=counter,
        gather=lambda leaves: leaves[0].reshape(*blocks, IN_BLOCK),
        scatter=lambda noised: [noised.reshape(shape)],
    )


def _joined(places: list[int], shapes: list[tuple[int, ...]]) -> _Part:
    sizes = [math.prod(shape) for shape in shapes]
    blocks = [-(-size // IN_BLOCK) for size in sizes]
    blocks[-1] += -sum(blocks) % _VECTOR
    starts = np.cumsum([0, *blocks]) * IN_BLOCK

    def gather(leaves):
        flat = [
            jnp.pad(leaf.reshape(-1), (0, count * IN_BLOCK - size))
            for leaf, count, size in zip(leaves, blocks, sizes, strict=True)
        ]
        return jnp.concatenate(flat).reshape(-1, IN_BLOCK)

    def scatter(noised):
        flat = noised.reshape(-1)
        return [
            flat[start : start + size].reshape(shape)
            for start, size, shape in zip(starts, sizes, shapes, strict=False)
        ]

    # Constants, so that a CPU's loop reads them; not where all leaves are joined, which may be any number.
    array = jnp if sum(sizes) > len(sizes) * _WHERE_IT_LIVES else np

    def every(of_leaf):
        parts = [of_leaf(place, n) for place, n in zip(places, blocks, strict=True)]
        return jnp.asarray(array.concatenate(parts))

    return _Part(
        leaves=places,
        leaf=lambda: every(lambda place, n: array.full(n, place, np.uint32)),
        counter=lambda: every(lambda _, n: array.arange(n, dtype=np.uint32)),
        gather=gather,
        scatter=scatter,
    )


def _rounded_noise(
    stream: Stream, part: _Part, fractions: Float[Array, "... 8"], scale: Float[Array, ""]
) -> Int32[Array, "... 8"]:
    """k = round(f + scale z) of every entry."""
    step = jnp.asarray(stream.step).astype(jnp.uint32)
    with jax.enable_x64(True):
        place = (step, part.leaf(), stream.purpose)
        generate = GENERATORS[stream.generator]
        if platforms.resolved(stream.platform) != "cpu":
            words = jnp.stack(generate(stream.secret, part.counter(), place, staged=True), -1)
            drawn = _number_by_number(jax.lax.optimization_barrier(words), fractions, scale)
            return jax.lax.optimization_barrier(drawn)  # computed once, whatever takes parts of it
        packed = _packed(generate, stream.secret, part.counter(), place, fractions, scale)
        # One value of a block, behind what XLA evaluates once: a quotient of whole numbers, here by one.  Else
        # it computes the block again for each of its numbers.
        packed = packed // (step >> 31).astype(jnp.uint64).__add__(jnp.uint64(1))
        shape = (*packed.shape, IN_BLOCK)
        shifts = jax.lax.broadcasted_iota(jnp.uint64, shape, len(shape) - 1) * jnp.uint64(8)
        every = jax.lax.broadcast_in_dim(packed, shape, tuple(range(packed.ndim)))
        return ((every >> shifts) & jnp.uint64(255)).astype(jnp.int32) - 128


def _number_by_number(
    words: UInt32[Array, "... 16"], fractions: Float[Array, "... 8"], scale: Float[Array, ""]
):
    """k of the eight numbers of every block, each by a thread of its own."""
    first, second = words[..., 0::2], words[..., 1::2]
    size = scale.astype(jnp.float64) * two_sided_quantile(
        first >> jnp.uint32(1), second, jnp.roll(second, -1, -1)
    )
    return rounded(fractions.astype(jnp.float64), jnp.where((first & 1).astype(bool), -size, size))


def _packed(
    generate: Generate, secret, counter, place, fractions: Float[Array, "... 8"], scale: Float[Array, ""]
) -> UInt64[Array, "..."]:
    """k + 128 of the eight numbers of a block, one byte each."""
    words = generate(secret, counter, place)
    scale, packed = scale.astype(jnp.float64), jnp.zeros(counter.shape, jnp.uint64)
    for number in range(IN_BLOCK):
        first, second, third = words[2 * number], words[2 * number + 1], words[(2 * number + 3) % 16]
        size = scale * two_sided_quantile(first >> jnp.uint32(1), second, third)
        k = rounded(fractions[..., number].astype(jnp.float64), jnp.where(first & 1, -size, size))
        packed = packed | ((k + 128).astype(jnp.uint64) << jnp.uint64(8 * number))
    return packed


def rounded(fraction: Float64[Array, "..."], noise: Float64[Array, "..."]) -> Int32[Array, "..."]:
    """The whole number next to their sum, within a byte; what is not a number spills into no neighbour."""
    k = jnp.round(fraction + noise)
    k = jnp.where(k > -MOST, k, -float(MOST))
    return jnp.where(k < MOST, k, float(MOST)).astype(jnp.int32)
