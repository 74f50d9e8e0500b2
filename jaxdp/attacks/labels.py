"""Labels from a gradient, before any pixel is known.

For a cross-entropy head z = h W + b the gradients of one example are db = p - y and dW = h (p - y)^T.

| name          | rule                                                                          |
|---------------|-------------------------------------------------------------------------------|
| `known`       | given                                                                         |
| `bias`        | the most negative entry of db; for batches, counts n_j = B (p_j - db_j)         |
| `row_sum`     | the most negative sum of dW over features (iDLG, CPL): needs positive features  |
| `column_norm` | the largest |dW_j|: exact for one example whatever the activation              |
| `template`    | the labels whose expected gradients on public (or grey) inputs fit best          |
| `joint`       | none: soft labels are optimised with the inputs (DLG)                         |
| `signal`      | none needed: db is p - y itself and takes the place of the loss's derivative    |

`signal` is what makes trained networks as easy as fresh ones.  Their p - y is tiny and depends exponentially
on the input, so the gradients of a guess and of the truth differ by orders of magnitude; with p - y read off
the leak, the gradient to be matched is that of a linear function of the logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

NAMES = ("known", "bias", "row_sum", "column_norm", "template", "joint", "signal")


class Head(NamedTuple):
    """Positions of the last layer among the leaves of the parameters; `bias` is None without one."""

    kernel: int
    bias: int | None


def find_head(params: PyTree, classes: int) -> Head:
    """The last kernel [features, classes], and the bias [classes] beside it.

    Raises:
      ValueError: no leaf has that shape.
    """
    paths = jax.tree_util.tree_leaves_with_path(params)
    shapes = [leaf.shape for _, leaf in paths]
    kernels = [i for i, shape in enumerate(shapes) if len(shape) == 2 and shape[1] == classes]
    if not kernels:
        raise ValueError(f"classes={classes}: no kernel [features, {classes}] among the parameters")
    kernel = kernels[-1]
    parent = paths[kernel][0][:-1]
    biases = [i for i, (path, leaf) in enumerate(paths) if path[:-1] == parent and leaf.shape == (classes,)]
    return Head(kernel, biases[0] if biases else None)


def _rounded_counts(counts, total):
    """Whole counts >= 0 that add up to `total`, by largest remainder."""
    counts = jnp.clip(counts, 0, total)
    counts = counts * (total / jnp.maximum(counts.sum(), 1e-9))
    whole = jnp.floor(counts)
    missing = total - whole.sum()
    rank = jnp.argsort(jnp.argsort(-(counts - whole)))
    return (whole + (rank < missing)).astype(jnp.int32)


def labels_from_counts(counts: Int[Array, " classes"], total: int) -> Int[Array, " total"]:
    """The labels 0, .., with multiplicity, in increasing order."""
    return jnp.repeat(jnp.arange(counts.shape[0]), counts, total_repeat_length=total)


def from_bias(
    bias: Float[Array, " classes"], average: Float[Array, " classes"], total: int
) -> Int[Array, " total"]:
    """Labels of a batch from the bias gradient and the model's average prediction.

    Args:
      bias: mean over the batch of p - y.
      average: p_j the attacker expects, from public or grey inputs.
      total: B; for one example the rule is argmin and exact.
    """
    if total == 1:
        return jnp.argmin(bias)[None]
    return labels_from_counts(_rounded_counts(total * (average - bias), total), total)


def from_row_sum(kernel: Float[Array, "features classes"]) -> Int[Array, " 1"]:
    """The published rule for one example."""
    return jnp.argmin(kernel.sum(0))[None]


def from_column_norm(kernel: Float[Array, "features classes"]) -> Int[Array, " 1"]:
    """For one example |p_y - 1| is the sum of all other probabilities, so column y is the longest."""
    return jnp.argmax(jnp.square(kernel).sum(0))[None]


def from_templates(
    observed: Float[Array, " d"], templates: Float[Array, "classes d"], total: int
) -> Int[Array, " total"]:
    """The multiset of labels whose mean template lies nearest to the observation.

    For one example and Gaussian noise this is maximum likelihood given the templates.  For more, labels
    are added one at a time, each the best next one, then each is reconsidered twice.

    Args:
      observed: the observation over the noise's standard deviation, flat.
      templates: the expected observation of each class, likewise.
      total: B.
    """
    classes = templates.shape[0]
    inner = templates @ observed
    gram = templates @ templates.T

    def cost(counts):
        share = counts / total
        return share @ gram @ share - 2 * share @ inner

    def add(counts, _):
        candidates = counts[None] + jnp.eye(classes)
        scaled = candidates * (total / candidates.sum(1, keepdims=True))
        return candidates[jnp.argmin(jax.vmap(cost)(scaled))], None

    def swap(counts, _):
        moves = jnp.eye(classes)[None, :] - jnp.eye(classes)[:, None]
        candidates = (counts[None, None] + moves).reshape(-1, classes)
        costs = jnp.where((candidates >= 0).all(1), jax.vmap(cost)(candidates), jnp.inf)
        return candidates[jnp.argmin(costs)], None

    counts, _ = jax.lax.scan(add, jnp.zeros(classes), length=total)
    if total > 1:
        counts, _ = jax.lax.scan(swap, counts, length=2 * total)
    return labels_from_counts(jnp.round(counts).astype(jnp.int32), total)
