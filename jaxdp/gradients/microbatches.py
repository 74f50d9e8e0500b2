"""How many examples' gradients to compute at the same time."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from jaxdp import platforms
from jaxdp.gradients import independence, jaxprs


class ExampleBytes(NamedTuple):
    """What one example takes while its gradient is computed.

    Attributes:
      gradient: bytes of its gradient, in the form in which it is kept.
      largest: bytes of the largest array on the way there.
    """

    gradient: int
    largest: int


# On a CPU an array that stays in the cache is written and read back many times as fast: pieces of which the
# largest array takes this much were the fastest, within a few percent, of convolutional networks, a transformer
# and an MLP.
_CACHED = 2**22
_CPU_GRADIENTS, _SHARE = 2**26, 8  # bytes; that part of the memory of another device
_LEAST = 4
# Of batches with places to spare; half of the last piece with a real example is computed for nothing.
_LEAST_PADDED, _PADDED_PIECES = 128, 20


def automatic_size(example: ExampleBytes, platform: str = "auto") -> int:
    """The largest power of two that the budgets allow, at least 4.

    On a CPU the largest array of a piece fits 4 MiB and its gradients 64 MiB; elsewhere its gradients fit an
    eighth of the device's memory, whatever else it takes.  Peak memory for gradients is bounded by the larger
    of that budget and four gradients.
    """
    if platforms.resolved(platform) == "cpu":
        fits = min(_CPU_GRADIENTS // max(example.gradient, 1), _CACHED // max(example.largest, 1))
    else:
        fits = platforms.memory() // _SHARE // max(example.gradient, 1)
    return max(_LEAST, 2 ** int(math.log2(max(fits, 1))))


def sure_of(places: int) -> tuple[int, int]:
    """How many of the first places of a Poisson batch are real most of the time, and the size of the pieces in
    which the others are best computed, so that few are padding; (0, places) of a small batch.

    The places are about 7.5 standard deviations above the mean, see `sampling.physical_size`; the sure ones one
    below it.
    """
    if places < _LEAST_PADDED:
        return 0, places
    deviation = math.sqrt(places + 7.5**2 / 4) - 7.5 / 2
    return int(deviation**2 - deviation), -(-places // _PADDED_PIECES)


@dataclasses.dataclass(frozen=True)
class Cut:
    """A batch of `size` rows in `pieces` equal ones; the first rows fill the last piece up.

    Contiguous, so that padding at the end fills pieces of its own; or interleaved, so that each piece lies on
    the devices as the batch does, where XLA spread it.
    """

    size: int
    pieces: int
    interleaved: bool = False

    @property
    def piece_size(self) -> int:
        return -(-self.size // self.pieces)

    def __call__(self, x: Array) -> Array:
        """[size, ...] as [pieces, piece_size, ...]; keys of any kind too."""
        missing = self.pieces * self.piece_size - self.size
        x = jnp.concatenate([x, x[:missing]]) if missing else x
        if self.interleaved:
            return x.reshape(self.piece_size, self.pieces, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(self.pieces, self.piece_size, *x.shape[1:])

    def counts(self) -> Bool[Array, "pieces piece_size"]:
        """Which places are rows, and not what fills the last piece up."""
        places = jnp.arange(self.pieces * self.piece_size) < self.size
        shape = (self.piece_size, self.pieces) if self.interleaved else (self.pieces, self.piece_size)
        return places.reshape(shape).T if self.interleaved else places.reshape(shape)

    def joined(self, x: Array) -> Array:
        """[pieces, piece_size, ...] as [size, ...] again."""
        x = x.swapaxes(0, 1) if self.interleaved else x
        return x.reshape(-1, *x.shape[2:])[: self.size]


def scan_to_last(
    step: Callable[..., Any], start: PyTree, pieces: tuple[PyTree, Bool[Array, "pieces size"]], value: Any
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` over the pieces of a batch up to the last one with a real example.

    Args:
      step: `(carry, (batch, mask)) -> (carry, value)`.
      start: the carry before the first.
      pieces: the batch, [pieces, size, ...], and its mask.
      value: the shapes of a piece's.

    Returns:
      The carry, and the values of every piece, [pieces, ...]: zeros of those that were skipped.
    """
    real = pieces[1].any(1)
    number = jnp.where(real, jnp.arange(1, len(real) + 1), 0).max()
    values = jax.tree.map(lambda v: jnp.zeros((len(real), *v.shape), v.dtype), value)

    def body(state):
        at, carry, values = state
        carry, found = step(carry, jax.tree.map(lambda x: x[at], pieces))
        return at + 1, carry, jax.tree.map(lambda all_, x: all_.at[at].set(x), values, found)

    first = (jnp.zeros_like(number), start, independence.vary_as(values, start))
    _, carry, values = jax.lax.while_loop(lambda state: state[0] < number, body, first)
    return carry, values


def example_bytes(per_example, params: PyTree, batch: PyTree, *shared: PyTree) -> ExampleBytes:
    """What one example takes in `per_example(params, batch)`: what an example more adds to its arrays."""
    two, three = (_traced(per_example, params, batch, shared, size) for size in (2, 3))
    gradient = sum(map(_bytes, three.out_avals)) - sum(map(_bytes, two.out_avals))
    of_two, of_three = _sizes(two.jaxpr), _sizes(three.jaxpr)
    if len(of_two) == len(of_three):
        largest = max(b - a for a, b in zip(of_two, of_three, strict=True))
    else:  # a batching rule of its own, that takes the examples one by one
        largest = max(of_three) // 3
    return ExampleBytes(gradient=gradient, largest=largest)


def _traced(per_example, params, batch, shared, size: int):
    examples = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), batch)
    return jax.make_jaxpr(per_example)(params, examples, *shared)


def _sizes(jaxpr) -> list[int]:
    """Bytes of every array that is computed, in calls and loops too."""
    return [_bytes(variable.aval) for equation in jaxprs.equations(jaxpr) for variable in equation.outvars]


def _bytes(aval) -> int:
    return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0)
