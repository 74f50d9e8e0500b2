"""How much of a text came back: tokens in place, tokens anywhere, ROUGE."""

from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment


def matched(found: Int[np.ndarray, "b l"], truth: Int[np.ndarray, "b l"]) -> Int[np.ndarray, "b l"]:
    """The found examples in the order that agrees with the truth in most places: a batch has no order."""
    agree = (found[None] == truth[:, None]).mean(-1)
    return found[linear_sum_assignment(-agree)[1]]


def in_place(found: Int[np.ndarray, "*b l"], truth: Int[np.ndarray, "*b l"]) -> float:
    """The share of places with the right token.

    >>> in_place(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 4, 3]]))
    0.5
    """
    return float((found == truth).mean())


def anywhere(found: Int[np.ndarray, "..."], truth: Int[np.ndarray, "..."]) -> float:
    """The share of the true tokens that were found, wherever: both as multisets.

    >>> anywhere(np.array([1, 2, 2, 4]), np.array([2, 1, 4, 3]))
    0.75
    """
    return (Counter(found.ravel().tolist()) & Counter(truth.ravel().tolist())).total() / truth.size


def rouge(found: Int[np.ndarray, " l"], truth: Int[np.ndarray, " k"], n: int = 1) -> float:
    """ROUGE-n (Lin 2004), its F1: of two texts' n-grams as multisets, of equal weight to recall and precision.

    >>> rouge(np.array([1, 2, 3]), np.array([1, 2, 4]), n=2)
    0.5
    """
    grams = [
        Counter(tuple(text[i : i + n].tolist()) for i in range(len(text) - n + 1)) for text in (found, truth)
    ]
    total = sum(each.total() for each in grams)
    return 2 * (grams[0] & grams[1]).total() / total if total else 0.0


def judged(found: Int[np.ndarray, "n b l"], truth: Int[np.ndarray, "n b l"]) -> dict[str, Any]:
    """Means over N batches, the examples of each put in the order that fits.

    Args:
      found: tokens [N, B, L].
      truth: of the same shape.

    Raises:
      ValueError: of another shape.
    """
    if found.shape != truth.shape:
        raise ValueError(f"found {found.shape}: the truth has {truth.shape}")
    ordered = np.stack([matched(f, t) for f, t in zip(found, truth, strict=True)])
    pairs = list(zip(ordered.reshape(-1, truth.shape[-1]), truth.reshape(-1, truth.shape[-1]), strict=True))
    shares = [in_place(f, t) for f, t in pairs]
    return {
        "examples": len(pairs),
        "tokens": float(np.mean(shares)),
        "tokens_standard_error": float(np.std(shares) / np.sqrt(len(shares))),
        "tokens_anywhere": float(np.mean([anywhere(f, t) for f, t in zip(found, truth, strict=True)])),
        "exact": float(np.mean([bool((f == t).all()) for f, t in pairs])),
        "rouge1": float(np.mean([rouge(f, t, 1) for f, t in pairs])),
        "rouge2": float(np.mean([rouge(f, t, 2) for f, t in pairs])),
    }
