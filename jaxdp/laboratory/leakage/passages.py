"""A text that ships with Python, the topics of `help()`, as passages of words: half public, half private."""

import functools
import pydoc_data.topics
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxdp import _validate

_WORD = re.compile(r"\w+|([^\w\s])\1*")  # a run of one sign, as of a ruled line, is one word
_UNKNOWN = "?"


class Passages(NamedTuple):
    """Passages of L words as numbers below V.

    Attributes:
      words: the vocabulary, V words: the commonest of the public half, after one that stands for all others.
      public: passages of the first half of the topics, [m, L].
      private: of the second half, in a random order, [n, L].
    """

    words: tuple[str, ...]
    public: Int[np.ndarray, "m l"]
    private: Int[np.ndarray, "n l"]

    @property
    def chance(self) -> float:
        """How often the best guess of a token is right that knows the private half as a whole, and no more.

        The share of the commonest token at each place, on average over the places.
        """
        return float(np.mean([np.bincount(place).max() for place in self.private.T]) / len(self.private))

    def text(self, tokens: Int[np.ndarray, " l"]) -> str:
        """A passage as it reads."""
        return " ".join(self.words[i] for i in tokens)


@functools.cache
def load(vocabulary: int = 1000, length: int = 17) -> Passages:
    """The passages.

    Args:
      vocabulary: V.
      length: L, words a passage.
    """
    _validate.whole(vocabulary=vocabulary, length=length, minimum=2)
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    halves = [
        [match[0] for text in part for match in _WORD.finditer(text)]
        for part in (topics[: len(topics) // 2], topics[len(topics) // 2 :])
    ]
    words = (_UNKNOWN, *(word for word, _ in Counter(halves[0]).most_common(vocabulary - 1)))
    number = {word: i for i, word in enumerate(words)}
    public, private = (
        np.array([number.get(word, 0) for word in half[: len(half) // length * length]], np.int32)
        for half in halves
    )
    private = np.random.default_rng(0).permutation(private.reshape(-1, length))
    return Passages(words, public.reshape(-1, length), private)
