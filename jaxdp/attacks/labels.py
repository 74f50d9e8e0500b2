"""Labels from a gradient, before any pixel is known.

For a cross-entropy head z = h W + b the gradients of one example are db = p - y and dW = h (p - y)^T.

| name          | rule                                                                          |
|---------------|-------------------------------------------------------------------------------|
| `known`       | given                                                                         |
| `bias`        | the most negative entry of db; for batches, counts n_j = B (p_j - db_j)         |
| `column_norm` | the largest |dW_j|: exact for one example whatever the activation              |
| `template`    | the labels whose expected gradients on public (or grey) inputs fit best          |
| `signal`      | none needed: db is p - y itself and takes the place of the loss's derivative    |

`signal` is what makes trained networks as easy as fresh ones.  Their p - y is tiny and depends exponentially
on the input, so the gradients of a guess and of the truth differ by orders of magnitude; with p - y read off
the leak, the gradient to be matched is that of a linear function of the logits.

Which leaf is the last layer is found by experiment: the one whose gradient moves as p - y does from one label
to another.  No name and no shape says so.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxdp.attacks import leaks
from jaxdp.attacks.leaks import Leak, Loss, Observation, precise
from jaxdp.attacks.public import Head, Public, Setting
from jaxdp.gradients import convolution

NAMES = ("known", "bias", "column_norm", "template", "signal")

_PROBES = 2  # random inputs that the last layer is looked for with
_AGREE = 1e-3


@functools.lru_cache(maxsize=32)
def _probing(loss_fn: Loss):
    """The gradients of random inputs with the labels 0 and 1, [probes, 2, ...]."""
    gradient = jax.grad(convolution.with_patches(loss_fn))

    def probe(params, x, y):
        each = jax.vmap(jax.vmap(gradient, (None, (None, 0))), (None, (0, None)))
        return each(params, (x, y))

    return jax.jit(precise(probe))


def probe(loss_fn: Loss, params: PyTree, input_shape: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Random inputs [probes, *input_shape] and the leaves of their gradients with the labels 0 and 1.

    Args:
      loss_fn: `(params, (x, y)) -> scalar`.
      params: of one network.
      input_shape: of one input.

    Returns:
      The inputs, and for each leaf [probes, 2, *leaf].
    """
    x = np.random.default_rng(0).uniform(size=(_PROBES, *input_shape)).astype(np.float32)
    gradients = _probing(loss_fn)(params, x, np.arange(2, dtype=np.int32))
    return x, [np.asarray(leaf, float) for leaf in jax.tree.leaves(gradients)]


def find_head(loss_fn: Loss, params: PyTree, input_shape: tuple[int, ...]) -> Head:
    """Finds the last layer: the bias whose gradient is p - y, the kernel whose gradient is h (p - y)^T.

    From label 0 to label 1 these change by e_0 - e_1 and h (e_0 - e_1)^T, whatever the network's p, and p adds
    up to 1; hidden layers as wide as the classes do not.  Where several leaves pass, as two kernels that add up
    to the logits do, each serves.

    Args:
      loss_fn: a cross-entropy `(params, (x, y)) -> scalar`.
      params: of one network, as trees of any framework name them.
      input_shape: of one input.

    Raises:
      ValueError: no leaf has such a gradient, as with a loss that is not a plain cross-entropy.
    """
    _, gradients = probe(loss_fn, params, input_shape)
    biases = [i for i, leaf in enumerate(gradients) if _is_bias(leaf)]
    kernels = [
        (i, axis)
        for i, leaf in enumerate(gradients)
        for axis in range(2 - leaf.ndim, 0)
        if leaf.ndim > 3 and _is_kernel(np.moveaxis(leaf, axis, -1))
    ]
    if not (biases or kernels):
        raise ValueError(
            "head=None: no layer has the gradient p - y of a cross-entropy; name it by head=Head(...), "
            "or take labels='template'"
        )
    sizes = [gradients[i].shape[-1] for i in biases] + [gradients[i].shape[axis] for i, axis in kernels]
    kernel, axis = kernels[-1] if kernels else (None, -1)
    return Head(kernel, biases[-1] if biases else None, axis, sizes[0])


def _is_bias(gradient: np.ndarray) -> bool:
    """Whether gradients [probes, 2, classes] are p - y."""
    if gradient.ndim != 3 or gradient.shape[-1] < 2:
        return False
    p = gradient + np.eye(2, gradient.shape[-1])
    alike = np.allclose(p[:, 0], p[:, 1], atol=_AGREE)
    return alike and bool(p.min() > -_AGREE) and np.allclose(p.sum(-1), 1, atol=_AGREE)


def _is_kernel(gradient: np.ndarray) -> bool:
    """Whether gradients [probes, 2, ..., classes] are h (p - y)^T."""
    gradient = gradient.reshape(*gradient.shape[:2], -1, gradient.shape[-1])
    h = gradient[:, 1, :, 0] - gradient[:, 0, :, 0]
    length = np.square(h).sum(-1)
    if not length.min() > 0:
        return False
    signal = np.einsum("pf,plfc->plc", h, gradient) / length[:, None, None]
    product = h[:, None, :, None] * signal[:, :, None]
    return _is_bias(signal) and bool(np.abs(gradient - product).max() < _AGREE * np.abs(gradient).max())


def usable(rule: str, head: Head, leak: Leak) -> str:
    """The rule, or where the last layer has no bias to read the next best one."""
    if rule in ("bias", "signal") and head.bias is None:
        return "column_norm" if leak.batch_size == 1 else "template"
    return "bias" if rule == "column_norm" and head.kernel is None else rule


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


def signal_loss(loss_fn: Loss, classes: int) -> Loss:
    """The linear loss <signal, logits>, whose gradient is that of the cross-entropy once signal = p - y.

    A cross-entropy is log Z - z_y, so minus the sum of all labels' losses weighted by the signal is
    <signal, z>: the entries of the signal add up to 0.
    """

    def loss(params, example):
        x, signal = example
        each = jax.vmap(lambda y: loss_fn(params, (x, y)))(jnp.arange(classes))
        return -(signal @ each)

    return loss


def head_signal(setting: Setting, observation: Observation) -> Float[Array, "1 classes"]:
    """p - y of one example, which the last layer's bias gradient is, times the clip's unknown scale.

    The gradient predicted from it is linear in it, so for a clip that scales all tensors alike the scale is
    in it already.  Clipped layer by layer, a bias that meets its bound gets a fresh network's signal's length.
    """
    leaves, clip = jax.tree.leaves(observation.observed), setting.leak.clip
    signal = _the(setting.head).bias_of(leaves)
    signal = signal - signal.mean()
    if clip.startswith("per_layer"):
        count = 1 if clip.endswith("published") else len(leaves)
        size = leaks.norm(signal)
        signal = jnp.where(size < 0.999 * observation.bound / math.sqrt(count), signal, signal / size)
    return signal[None]


def _the(head: Head | None) -> Head:
    """The head, which a rule that reads it must have been given."""
    if head is None:
        raise ValueError("head=None: find it first (`attack.fitted`)")
    return head


def templates(setting, leak, params, observation, public):
    """The expected observation of each class on its public examples: pytree with a leading [classes]."""
    single = Leak(clip=leak.clip, window=leak.window, local_steps=leak.local_steps)
    numbers = observation.bound, observation.learning_rate

    def observe(x, label):
        return leaks.forward(setting.loss_fn, single, params, x[None], label[None], *numbers)

    def of_class(label):
        weights = ((public.labels == label) | (public.labels < 0)).astype(public.examples.dtype)
        weights = weights / jnp.maximum(weights.sum(), 1)
        each = jax.vmap(observe, in_axes=(0, None))(public.examples, label)
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), each)

    return jax.lax.map(of_class, jnp.arange(setting.classes))


def _by_template(setting, leak, params, observation, public):
    """Labels of one victim by the rule `template`, every step weighed by its noise."""
    expected = templates(setting, leak, params, observation, public)
    std = jnp.maximum(observation.noise_std, 1e-6)

    def flat(tree, lead):
        scale = std.reshape(*(1 for _ in lead), leak.window, 1)
        rows = [
            (leaf.reshape(*lead, leak.window, -1) / scale).reshape(*lead, -1)
            for leaf in jax.tree.leaves(tree)
        ]
        return jnp.concatenate(rows, axis=-1)

    return from_templates(flat(observation.observed, ()), flat(expected, (setting.classes,)), leak.batch_size)


def _average_prediction(setting, head, params, public):
    """The model's mean softmax on the public examples, read off its bias gradient."""

    def one(x):
        gradient = jax.grad(setting.loss_fn)(params, (x, jnp.zeros((), jnp.int32)))
        return head.bias_of(jax.tree.leaves(gradient))

    return jax.vmap(one)(public.examples).mean(0) + jnp.eye(setting.classes)[0]


@precise
def infer_labels(
    rule: str, setting: Setting, leak: Leak, params: PyTree, observation: Observation, public: Public
) -> Int[Array, " b"]:
    """Labels of one victim.

    Args:
      rule: one of `NAMES`.
      setting: with its head, for a rule that reads it.
      leak: as the attacker models it.
      params: at the leak.
      observation: what leaked.
      public: the attacker's public data.

    Raises:
      ValueError: a rule that is for one example only.
    """
    if rule == "known":
        return jnp.asarray(observation.labels)
    if rule == "template":
        return _by_template(setting, leak, params, observation, public)
    head, total = _the(setting.head), leak.batch_size
    leaves = jax.tree.leaves(observation.observed)
    if leak.window > 1:
        params = jax.tree.map(lambda leaf: leaf[0], params)
        leaves = [leaf.mean(0) for leaf in leaves]
    if rule in ("bias", "signal"):
        bias = head.bias_of(leaves)
        average = bias if total == 1 else _average_prediction(setting, head, params, public)
        return from_bias(bias, average, total)
    if total > 1:
        raise ValueError(f"labels={rule!r}: finds one label, batch_size={total}; use bias or template")
    return from_column_norm(head.kernel_of(leaves))
