"""Labels of one victim, and the losses that do without them.

`labels` has the rules as functions of what they read; here they are applied to an observation.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdp.attacks import labels as label_rules
from jaxdp.attacks import leaks
from jaxdp.attacks.given import Observation, Public
from jaxdp.attacks.leaks import Leak, Loss


def soft_label_loss(loss_fn: Loss, classes: int) -> Loss:
    """The loss with label logits in place of a label: the expectation over the labels they describe."""

    def loss(params, example):
        x, logits = example
        each = jax.vmap(lambda y: loss_fn(params, (x, y)))(jnp.arange(classes))
        return jax.nn.softmax(logits) @ each

    return loss


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


def head_signal(leak: Leak, observation: Observation, classes: int) -> Float[Array, "1 classes"]:
    """p - y of one example, which the last layer's bias gradient is, times the clip's unknown scale.

    The gradient predicted from it is linear in it, so for a clip that scales all tensors alike the scale is
    in it already.  Clipped layer by layer, a bias that meets its bound gets a fresh network's signal's length.
    """
    head = label_rules.find_head(observation.observed, classes)
    if head.bias is None:
        raise ValueError("labels='signal': the last layer has no bias; use column_norm or template")
    signal = jax.tree.leaves(observation.observed)[head.bias]
    signal = signal - signal.mean()
    if leak.clip.startswith("per_layer"):
        count = 1 if leak.clip.endswith("published") else len(jax.tree.leaves(observation.observed))
        size = leaks.norm(signal)
        signal = jnp.where(size < 0.999 * observation.bound / math.sqrt(count), signal, signal / size)
    return signal[None]


def templates(loss_fn, leak, params, public, bound, learning_rate, classes):
    """The expected observation of each class on its public examples: pytree with a leading [classes]."""
    single = Leak(clip=leak.clip, window=leak.window, local_steps=leak.local_steps)

    def observe(x, label):
        return leaks.forward(loss_fn, single, params, x[None], label[None], bound, learning_rate)

    def of_class(label):
        weights = ((public.labels == label) | (public.labels < 0)).astype(public.examples.dtype)
        weights = weights / jnp.maximum(weights.sum(), 1)
        each = jax.vmap(observe, in_axes=(0, None))(public.examples, label)
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), each)

    return jax.lax.map(of_class, jnp.arange(classes))


def _average_prediction(loss_fn, head, params, public, classes):
    """The model's mean softmax on the public examples, read off its bias gradient."""

    def one(x):
        gradient = jax.grad(loss_fn)(params, (x, jnp.zeros((), jnp.int32)))
        return jax.tree.leaves(gradient)[head.bias]

    return jax.vmap(one)(public.examples).mean(0) + jnp.eye(classes)[0]


def infer_labels(
    rule: str,
    loss_fn: Loss,
    leak: Leak,
    params: PyTree,
    observation: Observation,
    public: Public,
    classes: int,
) -> Int[Array, " b"]:
    """Labels of one victim by one of `labels.NAMES`.

    Raises:
      ValueError: the model has no head of the shape the rule reads, or the rule is for one example only.
    """
    if rule == "known":
        return jnp.asarray(observation.labels)
    if rule == "joint":
        return jnp.zeros(leak.batch_size, jnp.int32)
    total = leak.batch_size
    if rule == "template":
        expected = templates(
            loss_fn, leak, params, public, observation.bound, observation.learning_rate, classes
        )
        std = jnp.maximum(observation.noise_std, 1e-6)

        def flat(tree, lead):
            scale = std.reshape(*(1 for _ in lead), leak.window, 1)
            rows = [
                (leaf.reshape(*lead, leak.window, -1) / scale).reshape(*lead, -1)
                for leaf in jax.tree.leaves(tree)
            ]
            return jnp.concatenate(rows, axis=-1)

        return label_rules.from_templates(flat(observation.observed, ()), flat(expected, (classes,)), total)
    first = params if leak.window == 1 else jax.tree.map(lambda leaf: leaf[0], params)
    head = label_rules.find_head(first, classes)
    leaves = jax.tree.leaves(observation.observed)
    if leak.window > 1:
        leaves = [leaf.mean(0) for leaf in leaves]
    if rule in ("bias", "signal"):
        if head.bias is None:
            raise ValueError(f"labels={rule!r}: the last layer has no bias; use column_norm or template")
        average = (
            _average_prediction(loss_fn, head, first, public, classes) if total > 1 else leaves[head.bias]
        )
        return label_rules.from_bias(leaves[head.bias], average, total)
    if total > 1:
        raise ValueError(f"labels={rule!r}: finds one label, batch_size={total}; use bias or template")
    from_kernel = label_rules.from_row_sum if rule == "row_sum" else label_rules.from_column_norm
    return from_kernel(leaves[head.kernel])
