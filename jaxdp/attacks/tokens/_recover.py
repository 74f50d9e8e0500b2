"""The tokens behind one leaked gradient of a language model."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxdp import _validate
from jaxdp.attacks.leaks import NOISELESS, RAW, Conditions, Leak, norm, precise
from jaxdp.attacks.tokens import evidence, likelihood, ngrams, products
from jaxdp.attacks.tokens.evidence import Spans
from jaxdp.attacks.tokens.ngrams import Ngrams
from jaxdp.attacks.tokens.products import Layers

_UNLIKELY = 40.0  # nats behind the best token of a place
_OUTSIDE = 9.0  # the same of minus the log of the share that lies outside of the span
_ROUNDS = 3  # of choosing among sequences
_HOPELESS = 40.0  # nats behind the last sequence that may be of the batch
_ROUNDING = 1e-6  # of a float32 gradient, relative to its norm


@dataclass(frozen=True, kw_only=True)
class TokenAttack:
    """How tokens are looked for.

    Attributes:
      noise_aware: directions of the spans count by what the noise left of them, and what is known of the
        language and the likelihood of the whole gradient decide with them; else the spans alone decide, as
        in DAGER, as if nothing had been added.
      candidates: tokens tried at a place, at most.
      proposals: tokens that one may give way to.
      beam: sequences kept from one place to the next.
      sweeps: at most, in which each token is reconsidered.
    """

    noise_aware: bool = True
    candidates: int = 64
    proposals: int = 8
    beam: int = 16
    sweeps: int = 2

    def __post_init__(self):
        _validate.whole(candidates=self.candidates, beam=self.beam, proposals=self.proposals)
        _validate.whole(0, sweeps=self.sweeps)


_STRONGEST = TokenAttack()
PLAIN = TokenAttack(noise_aware=False)


class Recovered(NamedTuple):
    """What came back.

    Attributes:
      tokens: [B, L], in no order.
      unexplained: the share of the leaked gradient's squared norm that they leave; near 0 if all is right.
      directions: of the first layer's span, how many were seen, each counted as much as noise left of it.
    """

    tokens: Int[np.ndarray, "b l"]
    unexplained: float
    directions: float


class _Search(NamedTuple):
    """What all parts of one search share."""

    size: int
    layers: Layers
    causal: Spans
    local: Float[np.ndarray, "t v"]
    directions: float
    prior: Ngrams
    attack: TokenAttack

    def beam(self) -> Int[np.ndarray, "k l"]:
        """Sequences from the first place to the last, those with the best scores kept at each."""
        width, rows = self.attack.beam, self.layers.rows
        kept, totals = np.zeros((1, self.layers.length), np.int32), np.zeros(1)
        for place in range(rows):
            known = self.prior.after(kept[:, place - 1]) if place else self.prior.unigram[None]
            tried = self._tried(place)
            longer = np.repeat(kept, len(tried), axis=0)
            longer[:, place] = np.tile(tried, len(kept))
            step = (self.local[place][None] + known)[:, tried].ravel()
            scores = np.repeat(totals, len(tried)) + step + self.causal.scores(longer, place)[:, 0]
            chosen = best(scores, width)
            hopeless = scores[chosen] < scores[chosen[: self.size]].min() - _HOPELESS
            kept, totals = longer[chosen[~hopeless]], scores[chosen[~hopeless]]
        for place in range(rows, self.layers.length):
            kept[:, place] = self.prior.after(kept[:, place - 1]).argmax(1)
        return kept[np.minimum(np.arange(width), len(kept) - 1)]

    def _tried(self, place: int) -> Int[np.ndarray, " k"]:
        """The tokens tried at a place: those whose scores are near the best, which many of one batch may share.

        The inputs of the first layer are sums of a token's and a place's vector: the span of a batch that has a
        token at two places, and two at one, holds what it never had.
        """
        scores = self.local[place] + self.prior.unigram
        found = best(scores, self.attack.candidates)
        return found[scores[found] > scores[found[0]] - (_UNLIKELY if self.attack.noise_aware else _OUTSIDE)]

    def propose(self, problem: likelihood.Problem, batch: likelihood.Batch, example: int, place: int):
        """The tokens that the spans, and that the output's gradient at the place before, make likely."""
        count, rows = self.attack.proposals, self.layers.rows
        predicted = self._predicted(problem, batch, example, place)
        if predicted is None:
            if place >= rows:
                return np.arange(len(self.prior.unigram), dtype=np.int32)
            return best(self.local[place] + self.prior.unigram, count)
        if place >= rows:
            return best(predicted, count)
        half = best(self.local[place] + self.prior.unigram, count - count // 2)
        return np.concatenate([half, best(predicted, count // 2)]) if count > 1 else half

    def _predicted(self, problem, batch, example, place) -> Float[np.ndarray, " v"] | None:
        """How much an output's gradient falls along the input of the place before: for the next token."""
        if self.layers.output is None or not 0 < place <= self.layers.rows:
            return None
        falls = _falls(problem.loss_fn, self.layers.output)
        tokens = jnp.asarray(batch.tokens[example])
        return np.asarray(falls(problem.params, batch.without(example), tokens)[place - 1], np.float64)


@functools.lru_cache(maxsize=32)
def _falls(loss_fn, output: int):
    """By how much an output's gradient falls along its input at each place, for each token, [T, V]."""

    def falls(params, gradient, tokens):
        product = products.products(loss_fn, params, gradient, tokens)[output]
        return -product.inputs.astype(jnp.float32) @ product.gradient

    return jax.jit(precise(falls))


def best(scores: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
    """The places of the largest scores, the largest first."""
    return np.argsort(-scores, kind="stable")[:count].astype(np.int32)


def recover(
    loss_fn: Callable[[PyTree, Array], Float[Array, ""]],
    params: PyTree,
    gradient: PyTree,
    *,
    length: int,
    vocabulary: int,
    leak: Leak = RAW,
    conditions: Conditions = NOISELESS,
    prior: Ngrams | None = None,
    attack: TokenAttack = _STRONGEST,
) -> Recovered:
    """Recovers the tokens behind one leaked gradient of one's own causal language model.

    First every token at every place is tested against the span of the first layers' gradients, then sequences
    grow from place to place against the spans of all later ones, whose inputs depend on what stands before.
    Those that explain the whole gradient best are the batch; tokens that are only predicted, as the last, are
    read off the output's gradient and decided by the whole.  After DAGER (Petrov et al., NeurIPS 2024), with
    weights for noise, the language and the likelihood added.

    Args:
      loss_fn: `(params, tokens [L]) -> scalar` for one example, as `decoder.next_token_loss` makes it.
      params: the parameters at the leak, a pytree of any framework.
      gradient: what leaked, a pytree like `params`: the mean over the batch.
      length: L, tokens of an example.
      vocabulary: V, number of tokens.
      leak: batch size and clip; what leaks after one step.
      conditions: the noise's standard deviation and the clip bound.
      prior: of the language, from public text; None for none.
      attack: how.

    Raises:
      ValueError: a model in which no span tells tokens, more tokens than its layers are wide, a gradient that
        does not fit, a leak of several steps.
    """
    _validate.whole(length=length, vocabulary=vocabulary, minimum=2)
    if leak.window > 1 or leak.local_steps > 1:
        raise ValueError(
            f"window={leak.window}, local_steps={leak.local_steps}: tokens need one step's gradient"
        )
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, gradient)]
    if shapes[0] != shapes[1]:
        raise ValueError("gradient: its leaves must be those of params, in shape and structure")
    if prior is not None and len(prior.unigram) != vocabulary:
        raise ValueError(f"prior: of {len(prior.unigram)} tokens, vocabulary={vocabulary}")
    layers = products.find(loss_fn, params, length, vocabulary)
    count = leak.batch_size * layers.rows
    widest = max(layer.width for layer in layers.local)
    if count >= widest:
        raise ValueError(
            f"batch_size={leak.batch_size}: its {count} tokens fill all {widest} directions of a layer"
        )
    known = ngrams.uniform(vocabulary) if prior is None or not attack.noise_aware else prior
    search = _prepared(loss_fn, params, gradient, layers, count, float(conditions.noise_std), known, attack)
    return _found(search, loss_fn, params, gradient, leak, conditions)


def _prepared(loss_fn, params, gradient, layers, count, noise_std, prior, attack) -> _Search:
    """The evidence of the spans, and of the rows of tables."""
    vocabulary = len(prior.unigram)
    random = np.random.default_rng(0).integers(
        0, vocabulary, (attack.beam * attack.candidates, layers.length)
    )
    local, causal = (
        evidence.tested(
            loss_fn, params, gradient, kind, layers.length, tokens=count, noise_std=noise_std,
            reference=random, aware=attack.noise_aware,
        )
        for kind in (layers.local, layers.causal)
    )  # fmt: skip
    scores = evidence.by_place(local, layers, vocabulary)
    if attack.noise_aware:
        scores = scores + evidence.presence(gradient, vocabulary, count, noise_std)[None]
    return _Search(count // layers.rows, layers, causal, scores, local.tests[0].directions, prior, attack)


def _found(search, loss_fn, params, gradient, leak, conditions) -> Recovered:
    """The batch that explains the gradient best."""
    size, bound = leak.batch_size, float(np.minimum(conditions.bound, np.finfo(np.float32).max))
    total = jax.tree.map(lambda leaf: size * jnp.asarray(leaf), gradient)
    entries = sum(leaf.size for leaf in jax.tree.leaves(total))
    whole = float(norm(total))
    std = max(size * float(conditions.noise_std), _ROUNDING * whole / entries**0.5, 1e-30)
    problem = likelihood.Problem(loss_fn, params, leak.clip, bound, std, search.prior)
    rows, length = search.layers.rows, search.layers.length
    propose, sweeps = functools.partial(search.propose, problem), search.attack.sweeps
    candidates = search.beam()
    batch = likelihood.chosen(problem, total, candidates, size)
    for _ in range(_ROUNDS if size > 1 else 1):
        before = batch.tokens
        batch = likelihood.bettered(problem, batch, [*range(rows, length)], propose, sweeps)
        if size > 1:  # who was chosen when the predicted tokens were not yet known
            batch = likelihood.chosen_again(problem, batch, candidates)
        if (batch.tokens == before).all():
            break
    unexplained = float(norm(batch.residual)) ** 2 > 2 * entries * std**2
    if search.attack.noise_aware and (conditions.noise_std > 0 or unexplained):
        batch = likelihood.bettered(problem, batch, [*range(length)], propose, sweeps)
    left = float(norm(batch.residual)) ** 2 / max(whole**2, 1e-30)
    return Recovered(batch.tokens, left, search.directions)
