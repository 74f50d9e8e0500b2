"""The whole gradient as evidence: examples that explain it, chosen and then bettered token by token.

The examples of a batch leave the residual R = B g - sum of c(g_b), with g the leaked mean and c the clip.
Behind noise of standard deviation s on the mean, minus the log posterior of the batch is |R|^2 / (2 B^2 s^2)
minus the log prior: every choice below is the best of some candidates in this, all other examples as they are.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from jaxdp.attacks import leaks
from jaxdp.attacks.leaks import Leak, precise
from jaxdp.attacks.tokens.ngrams import Ngrams

_AT_ONCE = 8  # gradients that are held at a time

Proposals = Callable[["Batch", int, int], Int[np.ndarray, " k"]]


class Problem(NamedTuple):
    """What is to be explained.

    Attributes:
      loss_fn: `(params, tokens [L]) -> scalar`.
      params: at the leak.
      clip: one of `leaks.CLIPS`.
      bound: the clip bound C.
      std: standard deviation of the noise on the sum over the batch.
      prior: of the language.
    """

    loss_fn: Callable
    params: PyTree
    clip: str
    bound: float
    std: float
    prior: Ngrams

    def costs(self, residual: PyTree, tokens: Int[np.ndarray, "k l"]) -> np.ndarray:
        """Minus the log posterior of each example as the one that the residual is of, up to a constant."""
        left = _mismatches(self.loss_fn, self.clip)(self.params, residual, jnp.asarray(tokens), self.bound)
        return np.asarray(left, np.float64) / (2 * self.std**2) - self.prior.log_probability(tokens)


class Batch(NamedTuple):
    """Examples found so far.

    Attributes:
      tokens: [B, L].
      parts: the clipped gradient of each, a list of pytrees; None for a place that is free.
      residual: what of the sum of the batch's gradients they leave.
    """

    tokens: Int[np.ndarray, "b l"]
    parts: list
    residual: PyTree

    def without(self, place: int) -> PyTree:
        """The residual if the example at a place were not there."""
        part = self.parts[place]
        return self.residual if part is None else _sum(self.residual, part, 1.0)

    def put(self, problem: Problem, place: int, tokens: Int[np.ndarray, " l"]) -> "Batch":
        """The batch with an example put at a place."""
        program = _part(problem.loss_fn, problem.clip)
        part = program(problem.params, jnp.asarray(tokens), problem.bound)
        residual = _sum(self.without(place), part, -1.0)
        placed, parts = self.tokens.copy(), list(self.parts)
        placed[place], parts[place] = tokens, part
        return Batch(placed, parts, residual)


@functools.lru_cache(maxsize=32)
def example_loss(loss_fn: Callable) -> leaks.Loss:
    """A loss of tokens as one of pairs, which `leaks` takes: of (tokens, anything)."""
    return lambda params, example: loss_fn(params, example[0])


def _clipped(loss_fn, clip):
    def part(params, tokens, bound):
        label = jnp.zeros(1, jnp.int32)
        return leaks.forward(example_loss(loss_fn), Leak(clip=clip), params, tokens[None], label, bound)

    return part


@functools.lru_cache(maxsize=32)
def _part(loss_fn, clip):
    return jax.jit(_clipped(loss_fn, clip))


@functools.lru_cache(maxsize=32)
def _mismatches(loss_fn, clip):
    """|R - c(g)|^2 - |R|^2 of each example."""
    part = _clipped(loss_fn, clip)

    def mismatches(params, residual, tokens, bound):
        def one(tokens):
            found = part(params, tokens, bound)
            products = jax.tree.map(lambda g, r: jnp.vdot(g, g - 2 * r), found, residual)
            return jnp.asarray(sum(jax.tree.leaves(products)))

        return jax.lax.map(one, tokens, batch_size=_AT_ONCE)

    return jax.jit(precise(mismatches))


@jax.jit
def _sum(a, b, factor):
    return jax.tree.map(lambda x, y: x + factor * y, a, b)


def chosen(problem: Problem, total: PyTree, candidates: Int[np.ndarray, "k l"], size: int) -> Batch:
    """The batch, chosen from candidates one after the other, each as often as it explains the gradient best.

    Args:
      problem: what is to be explained.
      total: the sum of the batch's gradients as it leaked.
      candidates: examples [K, L].
      size: B.
    """
    batch = Batch(np.zeros((size, candidates.shape[1]), np.int32), [None] * size, total)
    for place in range(size):
        best = int(np.argmin(problem.costs(batch.residual, candidates)))
        batch = batch.put(problem, place, candidates[best])
    return batch


def chosen_again(problem: Problem, batch: Batch, candidates: Int[np.ndarray, "k l"]) -> Batch:
    """The batch after each example gave way to the candidate, or the copy of another, that explains more."""
    for place in range(len(batch.tokens)):
        tried = np.concatenate([batch.tokens[place][None], batch.tokens, candidates])
        best = int(np.argmin(problem.costs(batch.without(place), tried)))
        if (tried[best] != tried[0]).any():
            batch = batch.put(problem, place, tried[best])
    return batch


def bettered(problem: Problem, batch: Batch, places: list[int], propose: Proposals, sweeps: int) -> Batch:
    """The batch after sweeps in which each token gives way to what makes the batch more probable.

    Args:
      problem: what is to be explained.
      batch: a first guess.
      places: of the tokens that may change.
      propose: `(batch, example, place) -> tokens`, as many every time.
      sweeps: at most; one that changes nothing is the last.
    """
    for _ in range(sweeps):
        before = batch.tokens
        for example in range(len(batch.tokens)):
            for place in places:
                proposed = propose(batch, example, place)
                tokens = np.repeat(batch.tokens[example][None], len(proposed) + 1, axis=0)
                tokens[1:, place] = proposed
                best = int(np.argmin(problem.costs(batch.without(example), tokens)))
                if tokens[best, place] != tokens[0, place]:
                    batch = batch.put(problem, example, tokens[best])
        if (batch.tokens == before).all():
            break
    return batch
