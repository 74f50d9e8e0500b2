"""Batches of data that do not fit: drawn and read on the host, a few steps ahead of the device.

Which examples a step takes is a function of the secret and the step.  So a thread can draw and read the batches
of steps to come while the device works on others, and of where it is nothing has to be kept: a run that goes on
reads from its step.  The compiled step is that of a run whose data are on the device; it finds its batch in a
`Window` instead of drawing it.
"""

import collections
import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdp.data.stream import Stream
from jaxdp.plan import Plan
from jaxdp.sampling import Sampler
from jaxdp.training.program import Diagnostics, Program, TrainState
from jaxdp.training.window import Window

_WINDOW = 2**24  # bytes: larger batches have a window each
_MOST = 16  # steps of a window
_AHEAD = 2  # windows that are read before they are asked for, and windows that the device may have before it


class Feed:
    """The windows of a run, in the order of its steps, read ahead by a thread; a context manager, that ends it.

    Args:
      stream: the examples.
      sampler: which of them a step takes.
    """

    def __init__(self, stream: Stream, sampler: Sampler):
        self._stream, self._places = stream, sampler.physical_batch_size
        example = jax.tree.leaves(stream.example)
        batch = self._places * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in example)
        self.steps = min(max(_WINDOW // max(batch, 1), 1), _MOST)

        def draw(key, first):
            return jax.lax.map(lambda step: sampler.draw(key, step), first + jnp.arange(self.steps))

        self._draw = jax.jit(draw)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jaxdp-feed")
        self._spans: Iterator[tuple[int, int]] = iter(())
        self._key = np.zeros(8, np.uint32)
        self._waiting: collections.deque[tuple[int, Future[Window]]] = collections.deque()
        self._sent: collections.deque[Array] = collections.deque()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._thread.shutdown(cancel_futures=True)

    @property
    def empty(self) -> Window:
        """A window without a step, to compile for."""
        steps, places = self.steps, self._places
        rows = jax.tree.map(lambda x: jnp.zeros((steps * places, *x.shape), x.dtype), self._stream.example)
        return Window(jnp.int32(0), rows, jnp.zeros((steps, places), bool), jnp.zeros(steps, bool))

    def described(self) -> str:
        """How batches are drawn, as text: what the step's own program does not say."""
        return self._draw.lower(self._key, 0).as_text()

    def begin(self, key: Array, stops: Sequence[int]) -> None:
        """Sets out to read for the steps from the first of `stops` to the last; no window passes one."""
        self._key = np.asarray(key)
        stretches = itertools.pairwise(stops)
        self._spans = ((at, min(at + self.steps, b)) for a, b in stretches for at in range(a, b, self.steps))
        with _on_the_host():
            jax.block_until_ready(self._draw(self._key, stops[0]))  # compiles
        self._read_ahead()

    def advance(
        self, program: Program, plan: Plan, state: TrainState, steps: tuple[int, int]
    ) -> tuple[TrainState, Diagnostics]:
        """`Program.advance`, its batches those that were read; `steps` are two neighbours among the stops."""
        reached, stop = steps
        diagnostics = None
        while reached < stop:
            end, window = self._waiting.popleft()
            self._read_ahead()
            state, diagnostics = program.advance(plan, state, window.result(), (reached, end))
            self._sent.append(diagnostics.loss)
            if len(self._sent) > _AHEAD:  # or the device would hold whatever is read faster than it works
                jax.block_until_ready(self._sent.popleft())
            reached = end
        assert diagnostics is not None
        return state, diagnostics

    def _read_ahead(self) -> None:
        for first, stop in itertools.islice(self._spans, _AHEAD - len(self._waiting)):
            self._waiting.append((stop, self._thread.submit(self._window, first, stop)))

    def _window(self, first: int, stop: int) -> Window:
        with _on_the_host():
            drawn = self._draw(self._key, first)
        indices, mask, overflow = map(np.asarray, drawn)
        wanted = np.where(np.arange(self.steps)[:, None] < stop - first, indices, 0)  # the shape stays
        rows = jax.device_put(self._stream.read(wanted.reshape(-1)), may_alias=True)  # never written to
        return Window(jnp.int32(first), rows, jnp.asarray(mask), jnp.asarray(overflow))


def _on_the_host() -> AbstractContextManager:
    """Where batches are drawn: on an accelerator a draw would wait for the steps before it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # a process that was told to have no CPU
        return contextlib.nullcontext()
