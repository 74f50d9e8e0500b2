"""The clipped sum of a batch, in microbatches."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxdp import _validate, gradients, platforms
from jaxdp.clipping.clipper import ClippedSum, Clipper
from jaxdp.gradients import convolution, independence, microbatches, shards


def clipped_gradients(
    loss_fn: gradients.Loss,
    clipper: Clipper,
    *,
    has_aux: bool = False,
    microbatch_size: int | str | None = "auto",
    method: str = "factored",
    convolution: str = "auto",
    platform: str = "auto",
    batch_axes: str | Sequence[str] | None = None,
    poisson: bool = False,
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
      batch_axes: axes of a mesh along which the batch is split, each of whose devices clips the examples that
        it holds: None for those in its type, or where it says none (`AxisType.Auto`) the mesh's first axis.
        Parameters that are split along these are gathered once; () leaves all to XLA, which gathers no batch,
        and reduces after every microbatch.
      poisson: whether batches have the places of `sampling.poisson`, of which the last are padding most of the
        time: with `auto`, these are then computed in small microbatches, so that few are padding.

    Returns:
      A function `(params, batch, mask, clip_state, step, *shared) -> (losses [B], ClippedSum)`, with `has_aux`
      `((losses, aux), ClippedSum)`.  `mask` [B] is False or 0 for padding, None where there is none.  A batch
      without rows has a sum of zero.

    On a CPU microbatches behind the last real example are not computed (a real example's place is computed
    wherever it is), and the losses of their padding are 0: there a sum with a mask cannot be differentiated.
    Elsewhere the device would ask the host whether to go on, and all are computed.

    Formal guarantee: the sum is that of the whole batch, up to the order of the additions.  On a mesh every
    example is in the part of one device, and the parts are added up once.
    """
    if microbatch_size not in ("auto", None):
        _validate.whole(microbatch_size=microbatch_size)
    method = "dense" if clipper.whole else method
    per_example = gradients.per_example(
        loss_fn, has_aux=has_aux, method=method, convolution=convolution, platform=platform
    )

    def part(params, batch, mask, clip_state, step, *shared):
        value, grads = per_example(params, batch, *shared)
        return value, clipper.clip(grads, clip_state, step, mask)

    def size_of_pieces(params, batch, *shared):
        if not isinstance(microbatch_size, str):
            return microbatch_size
        example = microbatches.example_bytes(per_example, params, batch, *shared)
        return microbatches.automatic_size(example, platform)

    def in_pieces(params, batch, mask, padded, clip_state, step, *shared):
        size, fits = len(mask), size_of_pieces(params, batch, *shared)
        skips = padded and not has_aux and platforms.resolved(platform) == "cpu"
        sure, rest = microbatches.sure_of(size) if poisson and microbatch_size == "auto" else (0, size)
        if not skips or fits is None or fits <= rest or not sure:
            return pieces_of(fits, skips, params, batch, mask, clip_state, step, *shared)
        # Large pieces are fast and small ones fit: the one for rows that are real most of the time, the other
        # for those that seldom are.
        (first, second) = (
            pieces_of(many, skips, params, *part, clip_state, step, *shared)
            for many, skips, part in (
                (fits, False, jax.tree.map(lambda x: x[:sure], (batch, mask))),
                (rest, True, jax.tree.map(lambda x: x[sure:], (batch, mask))),
            )
        )
        return jnp.concatenate([first[0], second[0]]), jax.tree.map(jnp.add, first[1], second[1])

    def pieces_of(fits, skips, params, batch, mask, clip_state, step, *shared):
        # Pieces of equal size, so that as little as possible is padding.
        if (pieces := 1 if fits is None else -(-len(mask) // int(fits))) <= 1:
            return part(params, batch, mask, clip_state, step, *shared)
        cut = microbatches.Cut(len(mask), pieces, interleaved=shards.partitioned_by_xla(batch))
        batches = (jax.tree.map(cut, batch), cut(mask) & cut.counts())

        def piece_of(piece):
            return part(params, *piece, clip_state, step, *shared)

        def add(total, piece):
            value, summed = piece_of(piece)
            return jax.tree.map(jnp.add, total, summed), value

        value, summed = jax.eval_shape(piece_of, jax.tree.map(lambda x: x[0], batches))
        zero = _zeros(summed)
        if skips and not cut.interleaved:
            summed, values = microbatches.scan_to_last(add, zero, batches, value)
        else:
            summed, values = jax.lax.scan(add, zero, batches)
        values = jax.tree.map(cut.joined, values)
        return values, independence.vary_as(clipper.signed(summed, clip_state, step), summed)

    def in_shards(params, batch, mask, clip_state, step, *shared):
        padded, size = mask is not None, gradients.batch_size(batch)
        mask = gradients.as_mask(mask, size)
        spread = shards.of(batch, batch_axes) if size else None
        if spread is None:
            return in_pieces(params, batch, mask, padded, clip_state, step, *shared)

        def on_device(split, whole):
            (batch, mask), (params, *rest) = split, whole
            value, summed = in_pieces(params, batch, mask, padded, *rest)
            return value, jax.lax.psum(summed, spread.axes)

        whole = jax.tree.map(jnp.asarray, (params, clip_state, step, *shared))
        specs = (PartitionSpec(spread.axes), PartitionSpec())
        return shards.on_each(spread, on_device, (batch, mask), whole, specs)

    return in_shards


def _zeros(shapes: Any) -> Any:
    return independence.vary_as(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), shapes)


def mean_gradient(loss_fn: gradients.Loss, platform: str) -> Callable[..., tuple]:
    """Ordinary training: losses, and the mean gradient over the examples at hand; inside `shard_map`, over
    those of all devices.
    """
    fast = convolution.with_patches(loss_fn) if convolution.uses_patches("auto", platform) else loss_fn

    def mean_loss(params, batch, mask):
        losses = jax.vmap(fast, in_axes=(None, 0))(params, batch)
        count, axes = mask.sum(), tuple(independence.varying(mask))
        count = jax.lax.psum(count, axes) if axes else count
        return jnp.where(mask, losses, 0).sum() / jnp.maximum(count, 1), losses

    def gradient(params, opt_state, batch, mask=None):
        if mask is None:
            mask = jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)
        mask = independence.vary_as(mask, batch)
        # Of parameters that are the same on all devices JAX adds the gradients up.
        grads, losses = jax.grad(mean_loss, has_aux=True)(params, batch, mask)
        return losses, grads

    return gradient
