"""What an attacker knows of a language before any gradient: how frequent tokens and their pairs are."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdp import _validate

_LARGEST = 8192  # vocabulary of which a table of pairs is kept


class Ngrams(NamedTuple):
    """A language model of one token before.

    Attributes:
      unigram: log probability of each token, [V].
      bigram: log probability of a token (column) after another (row), [V, V]; None if it does not depend on it.
    """

    unigram: Float[np.ndarray, " v"]
    bigram: Float[np.ndarray, "v v"] | None = None

    def after(self, tokens: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k v"]:
        """Log probabilities of the token after each of the given ones."""
        if self.bigram is None:
            return np.broadcast_to(self.unigram[None], (len(tokens), len(self.unigram)))
        return self.bigram[tokens]

    def log_probability(self, tokens: Int[np.ndarray, "k l"]) -> Float[np.ndarray, " k"]:
        """Of whole examples."""
        total = self.unigram[tokens[:, 0]].astype(np.float64)
        for before, after in zip(tokens[:, :-1].T, tokens[:, 1:].T, strict=True):
            total += self.after(before)[np.arange(len(tokens)), after]
        return total


def uniform(vocabulary: int) -> Ngrams:
    """Nothing is known: every token as probable as any other."""
    return Ngrams(np.full(vocabulary, -np.log(vocabulary)))


def learned(tokens: Int[np.ndarray, "m l"], vocabulary: int, *, weight: float = 10.0) -> Ngrams:
    """Frequencies in public examples, disjoint from every victim.

    Args:
      tokens: public examples [m, L].
      vocabulary: V.
      weight: of the unigram, as if each token had been seen that often before tokens drawn from it.

    Raises:
      ValueError: tokens outside of the vocabulary.
    """
    _validate.whole(vocabulary=vocabulary, minimum=2)
    if tokens.size == 0 or tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(f"tokens {tokens.shape}: needs some, all in 0 .. {vocabulary - 1}")
    counts = np.bincount(tokens.ravel(), minlength=vocabulary) + 0.5
    unigram = counts / counts.sum()
    if vocabulary > _LARGEST:
        return Ngrams(np.log(unigram))
    pairs = np.zeros((vocabulary, vocabulary), np.float32)
    np.add.at(pairs, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1.0)
    following = (pairs + weight * unigram[None]) / (pairs.sum(1, keepdims=True) + weight)
    return Ngrams(np.log(unigram), np.log(following))
