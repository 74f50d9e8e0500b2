"""How many examples' gradients to compute at the same time."""

import math
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from jaxdp.gradients import jaxprs, platforms


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
_CPU_GRADIENTS, _DEVICE_GRADIENTS = 2**26, 2**30
_LEAST = 4


def automatic_size(example: ExampleBytes, platform: str = "auto") -> int:
    """The largest power of two that the budgets allow, at least 4.

    On a CPU the largest array of a piece fits 4 MiB and its gradients 64 MiB; elsewhere its gradients fit
    1 GiB, whatever else it takes.  Peak memory for gradients is bounded by the larger of that budget and four
    gradients.
    """
    if platforms.resolved(platform) == "cpu":
        fits = min(_CPU_GRADIENTS // max(example.gradient, 1), _CACHED // max(example.largest, 1))
    else:
        fits = _DEVICE_GRADIENTS // max(example.gradient, 1)
    return max(_LEAST, 2 ** int(math.log2(max(fits, 1))))


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
