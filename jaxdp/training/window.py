"""Batches that were drawn and read beforehand, as the compiled step finds them."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from jaxdp.sampling import Batch


class Window(NamedTuple):
    """The batches of a few successive steps, on the device.

    Attributes:
      first: the step of the first batch.
      rows: a tree of arrays [steps * b, ...], a batch behind the other, b its places.
      mask: see `Batch`.
      overflow: see `Batch`.
    """

    first: Int[Array, ""]
    rows: PyTree
    mask: Bool[Array, "steps b"]
    overflow: Bool[Array, " steps"]

    def drawn(self, step: Int[Array, ""]) -> Batch:
        """The batch of a step; its indices are rows of the window."""
        place, size = step - self.first, self.mask.shape[1]
        return Batch(place * size + jnp.arange(size), self.mask[place], self.overflow[place])
