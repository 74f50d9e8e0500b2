"""What a leaked gradient says of each token at each place, before any sequence is put together."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxdp.attacks.leaks import precise
from jaxdp.attacks.tokens import products, spans
from jaxdp.attacks.tokens.products import Layer, Layers

_AT_ONCE = 64  # sequences computed at a time
_TINY = 1e-12
_RESIDUAL = 1e-6  # of float32, the share of an input outside of the span that it is in
_UNSEEN = 0.01  # the least probability that a token is seen, and that it is not
_NARROW = 1e-3  # the least deviation of a share
_MOST = 20.0  # nats that a table's row may say of its token: what it assumes of the signal is rough


class Test(NamedTuple):
    """The span of one layer, and what shares of its inputs lie outside of it.

    Attributes:
      outside: see `spans.Span`.
      null, std: mean and standard deviation of that share at each place, for tokens that were not there.
      left: what of the mean is left for those that were, and are seen: 0 where the span is exact.
      seen: the probability that a token that was there is seen: directions a token.
      directions: how many the span has, see `spans.Span.share`.
    """

    outside: Float[Array, "n n"]
    null: Float[np.ndarray, " t"]
    std: Float[np.ndarray, " t"]
    left: float
    seen: float
    directions: float

    def log_ratio(self, share: Float[np.ndarray, "k _"], place: int | None) -> Float[np.ndarray, "k _"]:
        """How much likelier a share is for a token that was there than for another, in nats.

        Of a token that was there and is not seen it is as likely as of any other.  Else both are normal; that
        of tokens that were there has a mean and a deviation smaller by `left`, and a share below its mean
        counts as the mean.
        """
        there = slice(None) if place is None else slice(place, place + 1)
        null, std = self.null[there], self.std[there]
        narrow = np.maximum(self.left * std, _NARROW)
        beyond = np.maximum(share - (self.left * null)[None], 0)
        ratio = np.square((share - null[None]) / std[None]) - np.square(beyond / narrow[None])
        ratio = ratio / 2 + np.log(std / narrow)[None]
        return np.logaddexp(np.log(self.seen) + ratio, np.log1p(-self.seen))


@functools.lru_cache(maxsize=32)
def _program(loss_fn, layers: tuple[Layer, ...], one: bool):
    """The shares outside of the spans: of sequences [k, L] at every place, or at one alone."""

    def shares(params, tokens, outside, place):
        found = []
        for x, each in zip(products.inputs_of(loss_fn, layers, params, tokens), outside, strict=True):
            x = jax.lax.dynamic_slice_in_dim(x, place, 1) if one else x
            found.append(jnp.square(x @ each).sum(-1) / jnp.maximum(jnp.square(x).sum(-1), _TINY))
        return found

    return jax.jit(precise(jax.vmap(shares, (None, 0, None, None))))


def _shares(loss_fn, layers, params, tokens, outside, place=None) -> list[np.ndarray]:
    """Of each layer [K, T], or [K, 1] at a place; as many at a time as one program takes."""
    program, each = _program(loss_fn, layers, place is not None), []
    for first in range(0, len(tokens), _AT_ONCE):
        some = np.zeros((_AT_ONCE, tokens.shape[1]), np.int32)
        part = tokens[first : first + _AT_ONCE]
        some[: len(part)] = part
        found = program(params, some, outside, place or 0)
        each.append([np.asarray(x, np.float64)[: len(part)] for x in found])
    return [np.concatenate(column) for column in zip(*each, strict=True)]


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

    def scores(self, tokens: Int[np.ndarray, "k l"], place: int | None = None) -> Float[np.ndarray, "k t"]:
        """The score of each token of each sequence, given those before it; [K, 1] of one place."""
        outside = [test.outside for test in self.tests]
        shares = _shares(self.loss_fn, self.layers, self.params, tokens, outside, place)
        each = [
            test.log_ratio(share, place) if self.aware else -np.log(share + _RESIDUAL)
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
    shares = _shares(loss_fn, layers, params, reference, [jnp.asarray(each.outside) for each in found])
    tests = []
    for layer, each, share in zip(layers, found, shares, strict=True):
        # A token that is seen has its length in the directions that are seen, another one in all n.
        left = (1 - each.share / max(each.seen, 1)) / max(1 - each.share / layer.width, _TINY)
        seen = float(np.clip(each.seen / tokens, _UNSEEN, 1 - _UNSEEN))
        std = np.maximum(share.std(0), _NARROW)
        tests.append(Test(jnp.asarray(each.outside), share.mean(0), std, min(left, 1.0), seen, each.share))
    return Spans(loss_fn, params, layers, tuple(tests), aware)


def by_place(spans_of: Spans, layers: Layers, vocabulary: int) -> Float[np.ndarray, "t v"]:
    """The score of every token of the vocabulary at every place, from layers that take them one by one."""
    same = np.repeat(np.arange(vocabulary, dtype=np.int32)[:, None], layers.length, axis=1)
    return spans_of.scores(same).T


def presence(gradient: PyTree, vocabulary: int, tokens: int, noise_std: float) -> Float[np.ndarray, " v"]:
    """How much likelier it is that a token was in the batch than not, from tables with a row a token, in nats.

    A row of an embedding or of an output has a gradient where its token was there: entries of N(0, s^2 + a^2)
    against N(0, s^2), with a^2 from what all rows have beyond the noise, and s^2 no less than the median row.
    The table that says most counts: what stands first is not predicted, what stands last goes nowhere in.

    Args:
      gradient: what leaked.
      vocabulary: V, the length of one axis of a table and of no other.
      tokens: N, in the batch.
      noise_std: s.
    """
    tables = []
    for leaf in jax.tree.leaves(gradient):
        if leaf.shape.count(vocabulary) != 1 or leaf.ndim < 2:
            continue
        rows = np.moveaxis(np.asarray(leaf, np.float64), leaf.shape.index(vocabulary), 0)
        rows = rows.reshape(vocabulary, -1)
        n, energy = rows.shape[1], np.square(rows).sum(1)
        noise = max(noise_std**2, float(np.median(energy)) / n, 1e-8 * float(energy.max()) / n, 1e-30)
        signal = max(float((energy - noise * n).sum()), 0.0) / (n * min(tokens, vocabulary))
        ratio = signal / (noise + signal)
        tables.append(np.clip((energy / noise * ratio + n * np.log1p(-ratio)) / 2, -_MOST, _MOST))
    return np.max(tables, axis=0) if tables else np.zeros(vocabulary)
