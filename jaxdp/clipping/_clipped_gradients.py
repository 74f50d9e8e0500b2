"""The clipped sum of a batch, in microbatches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp import gradients
from jaxdp.clipping.clipper import ClippedSum, Clipper
from jaxdp.gradients import microbatches


def clipped_gradients(
    loss_fn: gradients.Loss,
    clipper: Clipper,
    *,
    microbatch_size: int | str | None = "auto",
    method: str = "factored",
    convolution: str = "auto",
) -> Callable[..., tuple[Float[Array, " b"], ClippedSum]]:
    """Losses and clipped sum of a batch, computed in microbatches: what `privatize` takes for large batches.

    Args:
      loss_fn: the loss of one example, see `gradients.per_example`.
      clipper: from `jaxdp.clipping`; its parts add up over microbatches.
      microbatch_size: examples whose gradients exist at the same time; None for all at once, `auto` for
        `microbatches.automatic_size`.  A batch that it does not divide is padded, and the padding masked.
      method: see `gradients.per_example`.
      convolution: see `gradients.per_example`.

    Returns:
      A function `(params, batch, mask [B], clip_state, step) -> (losses [B], ClippedSum)`.

    Formal guarantee: the sum is that of the whole batch, up to the order of the additions.
    """
    if not (microbatch_size in ("auto", None) or (isinstance(microbatch_size, int) and microbatch_size > 0)):
        raise ValueError(f"microbatch_size={microbatch_size!r}: a whole number >= 1, 'auto' or None")
    per_example = gradients.per_example(loss_fn, method=method, convolution=convolution)

    def part(params, batch, mask, clip_state, step):
        losses, grads = per_example(params, batch)
        return losses, clipper.clip(grads, clip_state, step, mask)

    def signed(losses, summed, clip_state, step):
        """With the sensitivity that the parts were clipped to, so that no other is noised for."""
        if clipper.sensitivity is not None:
            summed = summed._replace(sensitivity=clipper.sensitivity(clip_state, step))
        return losses, summed

    def whole(params, batch, mask, clip_state, step):
        return signed(*part(params, batch, mask, clip_state, step), clip_state, step)

    def in_pieces(params, batch, mask, clip_state, step):
        size = mask.shape[0]
        fits = microbatch_size
        if microbatch_size == "auto":
            fits = microbatches.automatic_size(microbatches.example_bytes(per_example, params, batch))
        # Pieces of equal size, so that as little as possible is padding.
        pieces = -(-size // fits)
        piece_size = -(-size // pieces)
        if pieces == 1:
            return whole(params, batch, mask, clip_state, step)

        def cut(x):
            x = jnp.pad(x, [(0, pieces * piece_size - size)] + [(0, 0)] * (x.ndim - 1))
            return x.reshape(pieces, piece_size, *x.shape[1:])

        def add(total, piece):
            batch, mask = piece
            losses, summed = part(params, batch, mask, clip_state, step)
            return jax.tree.map(jnp.add, total, summed), losses

        batches = jax.tree.map(cut, (batch, mask))
        first = jax.tree.map(lambda x: x[0], batches)
        shapes = jax.eval_shape(lambda b, m: part(params, b, m, clip_state, step)[1], *first)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        summed, losses = jax.lax.scan(add, zero, batches)
        return signed(losses.reshape(-1)[:size], summed, clip_state, step)

    return whole if microbatch_size is None else in_pieces
