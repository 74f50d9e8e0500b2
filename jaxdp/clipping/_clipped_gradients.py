"""The clipped sum of a batch, in microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp import _validate, gradients
from jaxdp.clipping.clipper import ClippedSum, Clipper
from jaxdp.gradients import convolution, independence, microbatches


def clipped_gradients(
    loss_fn: gradients.Loss,
    clipper: Clipper,
    *,
    has_aux: bool = False,
    microbatch_size: int | str | None = "auto",
    method: str = "factored",
    convolution: str = "auto",
    platform: str = "auto",
) -> Callable[..., tuple[Any, ClippedSum]]:
    """Losses and clipped sum of a batch, computed in microbatches: what `privatize` takes for large batches.

    Args:
      loss_fn: the loss of one example, see `gradients.per_example`.
      clipper: from `jaxdp.clipping`; its parts add up over microbatches.
      has_aux: see `gradients.per_example`.
      microbatch_size: examples whose gradients exist at the same time; None for all at once, `auto` for
        `microbatches.automatic_size`.  A batch that it does not divide is padded, and the padding masked.
      method: see `gradients.per_example`.
      convolution, platform: see `gradients.per_example`.

    Returns:
      A function `(params, batch, mask, clip_state, step, *shared) -> (losses [B], ClippedSum)`, with `has_aux`
      `((losses, aux), ClippedSum)`.  `mask` [B] is False or 0 for padding, None where there is none.  A batch
      without rows has a sum of zero.

    Formal guarantee: the sum is that of the whole batch, up to the order of the additions.
    """
    if microbatch_size not in ("auto", None):
        _validate.whole(microbatch_size=microbatch_size)
    per_example = gradients.per_example(
        loss_fn, has_aux=has_aux, method=method, convolution=convolution, platform=platform
    )

    def part(params, batch, mask, clip_state, step, *shared):
        value, grads = per_example(params, batch, *shared)
        return value, clipper.clip(grads, clip_state, step, mask)

    def in_pieces(params, batch, mask, clip_state, step, *shared):
        size = gradients.batch_size(batch)
        mask = gradients.as_mask(mask, size)
        fits = microbatch_size
        if fits == "auto":
            fits = microbatches.automatic_size(
                microbatches.example_bytes(per_example, params, batch, *shared), platform
            )
        # Pieces of equal size, so that as little as possible is padding.
        pieces = 1 if fits is None else -(-size // int(fits))
        if pieces <= 1:
            return part(params, batch, mask, clip_state, step, *shared)
        piece_size = -(-size // pieces)

        def cut(x):
            """The first rows fill the last piece up, so that keys of any kind can be padded."""
            x = jnp.concatenate([x, x[: pieces * piece_size - size]])
            return x.reshape(pieces, piece_size, *x.shape[1:])

        def piece_of(batch, mask):
            return part(params, batch, mask, clip_state, step, *shared)

        def add(total, piece):
            value, summed = piece_of(*piece)
            return jax.tree.map(jnp.add, total, summed), value

        counts = jnp.arange(pieces * piece_size).reshape(pieces, piece_size) < size
        batches = (jax.tree.map(cut, batch), cut(mask) & counts)
        shapes = jax.eval_shape(lambda all_: piece_of(*jax.tree.map(lambda x: x[0], all_))[1], batches)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        summed, values = jax.lax.scan(add, independence.vary_as(zero, shapes), batches)
        values = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], values)
        return values, independence.vary_as(clipper.signed(summed, clip_state, step), summed)

    return in_pieces


def mean_gradient(loss_fn: gradients.Loss, platform: str) -> Callable[..., tuple]:
    """Ordinary training: losses, and the mean gradient over the examples at hand."""
    fast = convolution.with_patches(loss_fn) if convolution.uses_patches("auto", platform) else loss_fn

    def mean_loss(params, batch, mask):
        losses = jax.vmap(fast, in_axes=(None, 0))(params, batch)
        return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1), losses

    def gradient(params, opt_state, batch, mask=None):
        if mask is None:
            mask = jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)
        grads, losses = jax.grad(mean_loss, has_aux=True)(params, batch, mask)
        return losses, grads

    return gradient
