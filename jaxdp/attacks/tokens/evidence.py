"""What a leaked gradient says of each token at each place, before any sequence is put together."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxdp.attacks.leaks import precise
from jaxdp.attacks.tokens import products, spans
from jaxdp.attacks.tokens.products import Layer, Layers

_AT_ONCE = 64  # sequences computed at a time
_TINY = 1e-12
_RESIDUAL = 1e-6  # of float32, the share of an input outside of the span that it is in
_MOST = 20.0  # nats that a table's row may say of its token: what it assumes of the signal is rough


class Test(NamedTuple):
    """The span of one layer, and what shares of its inputs lie outside of it.

    Attributes:
      outside: see `spans.Span`.
      null, std: mean and standard deviation of that share for tokens that were not there.
      true: the share to be expected of those that were.
      directions: how many the span has, see `spans.Span.share`.
    """

    outside: Float[np.ndarray, "n n"]
    null: float
    std: float
    true: float
    directions: float

    def log_ratio(self, share: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """How much likelier a share is for a token that was there, in nats: both normal, of one deviation."""
        return (self.null - self.true) * (self.null + self.true - 2 * share) / (2 * self.std**2)


@functools.lru_cache(maxsize=32)
def _shares(loss_fn, layers: tuple[Layer, ...]):
    def shares(params, tokens, outside):
        inputs = products.inputs_of(loss_fn, layers, params, tokens)
        return [
            jnp.square(x @ each).sum(-1) / jnp.maximum(jnp.square(x).sum(-1), _TINY)
            for x, each in zip(inputs, outside, strict=True)
        ]

    def mapped(params, tokens, outside):
        return jax.lax.map(lambda ids: shares(params, ids, outside), tokens, batch_size=_AT_ONCE)

    return jax.jit(precise(mapped))


class Spans(NamedTuple):
    """The tests of several layers, and their score.

    Attributes:
      loss_fn: `(params, tokens [L]) -> scalar`.
      params: at the leak.
      layers: which.
      tests: one a layer.
      aware: whether the score is the log likelihood ratio behind the noise, or minus the log of the share.
    """

    loss_fn: object
    params: PyTree
    layers: tuple[Layer, ...]
    tests: tuple[Test, ...]
    aware: bool

    def scores(self, tokens: Int[np.ndarray, "k l"]) -> Float[np.ndarray, "k t"]:
        """The score of each token of each sequence, given those before it."""
        outside = [jnp.asarray(test.outside) for test in self.tests]
        shares = _shares(self.loss_fn, self.layers)(self.params, jnp.asarray(tokens, jnp.int32), outside)
        each = [
            test.log_ratio(np.asarray(share, np.float64))
            if self.aware
            else -np.log(np.asarray(share, np.float64) + _RESIDUAL)
            for test, share in zip(self.tests, shares, strict=True)
        ]
        return np.sum(each, axis=0)


def tested(
    loss_fn,
    params: PyTree,
    gradient: PyTree,
    layers: tuple[Layer, ...],
    length: int,
    *,
    tokens: int,
    noise_std: float,
    reference: Int[np.ndarray, "k l"],
    aware: bool,
) -> Spans:
    """Tests of the layers' inputs against their gradients.

    Args:
      loss_fn: `(params, tokens [L]) -> scalar`.
      params: at the leak.
      gradient: what leaked.
      layers: the layers, which share their rows.
      length: L.
      tokens: N, that went through each layer.
      noise_std: on every entry of the gradient; used if `aware`.
      reference: sequences that were not there, for what the tests say of such.
      aware: of the noise.
    """
    matrices = products.matrices_program(loss_fn, tuple(layer.products for layer in layers), length)
    found = [
        spans.span(np.asarray(matrix, np.float64), tokens, noise_std if aware else 0.0)
        for matrix in matrices(params, gradient)
    ]
    outside = [jnp.asarray(each.outside) for each in found]
    shares = _shares(loss_fn, layers)(params, jnp.asarray(reference, jnp.int32), outside)
    tests = []
    for layer, each, share in zip(layers, found, shares, strict=True):
        null, std = float(share.mean()), max(float(share.std()), 1e-3)
        # A token that was there has its length in the N directions that were seen, another one in all n.
        part = (1 - min(each.share / tokens, 1.0)) / max(1 - each.share / layer.width, _TINY)
        tests.append(Test(each.outside, null, std, null * min(part, 1.0), each.share))
    return Spans(loss_fn, params, layers, tuple(tests), aware)


def by_place(spans_of: Spans, layers: Layers, vocabulary: int) -> Float[np.ndarray, "t v"]:
    """The score of every token of the vocabulary at every place, from layers that take them one by one."""
    same = np.repeat(np.arange(vocabulary, dtype=np.int32)[:, None], layers.length, axis=1)
    return spans_of.scores(same).T


def presence(gradient: PyTree, vocabulary: int, tokens: int, noise_std: float) -> Float[np.ndarray, " v"]:
    """How much likelier it is that a token was in the batch than not, from tables with a row a token, in nats.

    A row of an embedding or of an output has a gradient where its token was there: entries of N(0, s^2 + a^2)
    against N(0, s^2), with a^2 from what all rows have beyond the noise, and s^2 no less than the median row.

    Args:
      gradient: what leaked.
      vocabulary: V, the length of one axis of a table and of no other.
      tokens: N, in the batch.
      noise_std: s.
    """
    total = np.zeros(vocabulary)
    for leaf in jax.tree.leaves(gradient):
        if leaf.shape.count(vocabulary) != 1 or leaf.ndim < 2:
            continue
        rows = np.moveaxis(np.asarray(leaf, np.float64), leaf.shape.index(vocabulary), 0)
        rows = rows.reshape(vocabulary, -1)
        n, energy = rows.shape[1], np.square(rows).sum(1)
        noise = max(noise_std**2, float(np.median(energy)) / n, 1e-8 * float(energy.max()) / n, 1e-30)
        signal = max(float((energy - noise * n).sum()), 0.0) / (n * min(tokens, vocabulary))
        ratio = signal / (noise + signal)
        total += np.clip((energy / noise * ratio + n * np.log1p(-ratio)) / 2, -_MOST, _MOST)
    return total
