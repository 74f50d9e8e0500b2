"""A clip bound that follows the norms of the gradients, privately.

The private counterpart of `clipping.l2_max`: the bound C_t moves towards a quantile of the per-example
norms, and all that it learns about them is a noised count, which is paid for.

Source: Andrew, Thakkar, McMahan & Ramaswamy, "Differentially Private Learning with Adaptive Clipping"
(NeurIPS 2021, arXiv 1905.03871), Algorithm 1 with the geometric update.

One step, with noise multiplier z for the pair of gradient and count, and s_b the count's noise:

    b_i = 1/2 if norm(g_i) <= C_t else -1/2
    released:  sum_i clip(g_i, C_t) + z_grad C_t N(0, I),    sum_i b_i + s_b N(0, 1)
    z_grad = (z^-2 - (2 s_b)^-2)^(-1/2)
    C_t+1 = C_t exp(-rate (noised count / expected batch size + 1/2 - target))

**The pair costs one Gaussian of multiplier z.**  One example added or removed moves the sum of gradients by
at most C_t and the sum of counts by exactly 1/2, since b_i is centred.  Divide each by its own noise: the
pair is one vector with noise N(0, I), moved by at most

    ( (C_t / (z_grad C_t))^2 + ((1/2) / s_b)^2 )^(1/2) = ( z_grad^-2 + (2 s_b)^-2 )^(1/2) = 1 / z,

and the bound is reached by any example above C_t.  So the accountant charges for z, no more and no less; it
needs z < 2 s_b, or the count alone would cost more than the pair may.  An exchanged example moves both sums
by at most twice as much, as the accountant's replace-one assumes.

The update is as long as C_t allows, so the effective learning rate grows with the bound: where the norms grow
with the weights, a learning rate chosen for C = 1 can drive both up.  Take a smaller one, or Adam.

**Ordinary composition holds.**  C_t is computed from noised counts of earlier steps and nothing else.  The
noise of step t scales with C_t, but its multiplier z(t) was fixed before the run: given what was released
before, each step is a Gaussian mechanism of a known multiplier, and that is what composition asks for.  (A z
that follows C_t is another matter: see `jaxdp.accounting.filters`.)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdp import _validate
from jaxdp.clipping.clipper import Clipper, clipped_sum, down_to, global_norm, leaf_norms
from jaxdp.clipping.fixed import SMALLEST
from jaxdp.schedules import Schedule

RANGE = (SMALLEST, 1e6)  # of every bound: public, so that no noise can make it zero or infinite
TARGET_QUANTILE = 0.5
LEARNING_RATE = 0.2  # the paper's, as is the next
BATCHES_PER_COUNT_NOISE = 20


class QuantileState(NamedTuple):
    """What a quantile clipper remembers; a function of noised counts only, so it may be published.

    Attributes:
      bound: C_t, shape []; per layer [layers].
    """

    bound: Float[Array, "..."]


def gradient_noise_multiplier(noise_multiplier: float, count_noise: float) -> float:
    """z_grad, the gradient's own noise multiplier, where the pair of gradient and count has `noise_multiplier`.

    Args:
      noise_multiplier: z of the pair, > 0.
      count_noise: s_b.

    Raises:
      ValueError: z >= 2 s_b: no noise on the gradient is large enough.

    >>> round(gradient_noise_multiplier(6.0, 5.0), 6)
    7.5
    """
    if not 0 < noise_multiplier < 2 * count_noise:
        raise ValueError(refusal(noise_multiplier, count_noise))
    return float(_split(noise_multiplier, count_noise))


def refusal(noise_multiplier: float, count_noise: float) -> str:
    """Why gradient and count cannot share this noise multiplier."""
    return (
        f"noise_multiplier={noise_multiplier:g}, count_noise={count_noise:g}: the noised count alone costs "
        f"more than both may; noise_multiplier must be in (0, {2 * count_noise:g}), or count_noise above "
        f"{noise_multiplier / 2:g}"
    )


def _split(z, count_noise):
    """z_grad; not a number, so that nothing passes for private, where the split is impossible."""
    return z * (1 - (z / (2 * count_noise)) ** 2) ** -0.5


def default_count_noise(expected_batch_size: float, largest_noise_multiplier: float = 0.0) -> float:
    """s_b: a twentieth of the batch, as the paper advises, but not below the largest noise multiplier.

    The second part makes every split possible, at z_grad <= 1.155 z.
    """
    return max(expected_batch_size / BATCHES_PER_COUNT_NOISE, largest_noise_multiplier)


def _first_bound(l2_norm_clip: float | Schedule) -> float:
    if callable(l2_norm_clip):
        raise ValueError(
            "l2_norm_clip=<schedule>: quantile clipping starts from a number and finds its own bound"
        )
    if not RANGE[0] <= l2_norm_clip <= RANGE[1]:
        raise ValueError(f"l2_norm_clip={l2_norm_clip}: must lie in [{RANGE[0]:g}, {RANGE[1]:g}]")
    return l2_norm_clip


def _quantile(
    name: str,
    per_layer: bool,
    l2_norm_clip: float | Schedule,
    expected_batch_size: float | None,
    target_quantile: float,
    learning_rate: float,
    count_noise: float | None,
) -> Clipper:
    if expected_batch_size is None:
        raise ValueError("expected_batch_size=None: turns the count of quantile clipping into a share")
    count_noise = default_count_noise(expected_batch_size) if count_noise is None else count_noise
    first = _first_bound(l2_norm_clip)
    _validate.between(0, 1, target_quantile=target_quantile)
    _validate.positive(
        expected_batch_size=expected_batch_size, learning_rate=learning_rate, count_noise=count_noise
    )

    def init(params: PyTree) -> QuantileState:
        shape = (len(jax.tree.leaves(params)),) if per_layer else ()
        return QuantileState(jnp.full(shape, first, jnp.float32))

    def clip(grads, state, step, mask):
        norms = leaf_norms(grads)
        whole = global_norm(norms)
        finite = jnp.isfinite(whole)
        measured = jnp.stack(norms) if per_layer else whole[None]  # [quantiles, B]
        bounds = jnp.reshape(state.bound, (-1, 1))
        factors = down_to(bounds, measured)
        # 1/2 below the bound, -1/2 above; padding and what is not finite add nothing here either.
        halves = jnp.where(finite & mask, jnp.where(measured <= bounds, 0.5, -0.5), 0)
        weights = list(factors) if per_layer else [factors[0]] * len(norms)
        counts = halves.astype(jnp.float32).sum(axis=1).reshape(state.bound.shape)
        return clipped_sum(grads, weights, finite, mask, counts)

    def update(state, summed, step, release):
        counts = summed.statistic
        noised = release(counts, count_noise * math.sqrt(max(counts.size, 1)))
        above = noised / expected_batch_size + (0.5 - target_quantile)
        return QuantileState(jnp.clip(state.bound * jnp.exp(-learning_rate * above), *RANGE))

    of_norms = "the noised counts of tensor norms" if per_layer else "the noised count of norms"
    each = " sqrt(layers)" if per_layer else ""

    def sensitivity(state, step):
        return jnp.sqrt(jnp.vdot(state.bound, state.bound, precision=jax.lax.Precision.HIGHEST))

    return Clipper(
        name=name,
        rule=clip,
        sensitivity=sensitivity,
        noise_scale=lambda summed, state, step: sensitivity(state, step),
        init=init,
        update=update,
        gradient_noise=lambda z: _split(z, count_noise),
        noise_multiplier_limit=2 * count_noise,
        refusal=lambda z: refusal(z, count_noise),
        charged=(
            f"z, charged for the gradient and {of_norms} below the bound together: noise "
            f"{count_noise:g}{each} on a sum of halves, (z^-2 - {2 * count_noise:g}^-2)^(-1/2) times the bound "
            "on the gradient"
        ),
    )


def quantile(
    l2_norm_clip: float | Schedule,
    expected_batch_size: float | None,
    *,
    target_quantile: float = TARGET_QUANTILE,
    learning_rate: float = LEARNING_RATE,
    count_noise: float | None = None,
) -> Clipper:
    """Clips the whole gradient of an example to C_t, which follows a quantile of the norms.

    Args:
      l2_norm_clip: C_0, where the bound starts: public, so not taken from the data.
      expected_batch_size: what turns the count into a share.  Never the size of the batch at hand.
      target_quantile: the share of examples that are to be below the bound.
      learning_rate: of ln C_t; a step moves it by about this times the share's distance from the target.
      count_noise: s_b, standard deviation of the noise on the count; None for `default_count_noise`.

    Raises:
      ValueError: an argument out of range.  A noise multiplier z >= 2 s_b is refused where it is known: by
        `privatize` for a number, by the plan of the run for a schedule, by an update that is not compiled;
        in a compiled one the update is not a number.

    Formal guarantee: adding or removing one example moves the sum of gradients by at most C_t and the count
    by 1/2; with gradient noise z_grad C_t and count noise s_b the pair is a Gaussian mechanism of multiplier z
    (the module says why), up to the rounding of float32.
    """
    return _quantile(
        "quantile", False, l2_norm_clip, expected_batch_size, target_quantile, learning_rate, count_noise
    )


def quantile_per_layer(
    l2_norm_clip: float | Schedule,
    expected_batch_size: float | None,
    *,
    target_quantile: float = TARGET_QUANTILE,
    learning_rate: float = LEARNING_RATE,
    count_noise: float | None = None,
) -> Clipper:
    """Clips each of the L tensors to its own bound, each of which follows the quantile of its tensor's norms.

    The gradient's noise is the same on all coordinates, scaled by the bound on the whole,
    (sum_l C_l^2)^(1/2).  The L counts of an example are a vector of halves, of norm sqrt(L) / 2 exactly; each
    gets noise s_b sqrt(L), so that together they cost what one count with noise s_b costs and the split is the
    same formula whatever L.

    Args:
      l2_norm_clip: C_l at the start, for every tensor: `per_layer` with bound C has C / sqrt(L).
      expected_batch_size, target_quantile, learning_rate, count_noise: as `quantile`.

    Raises:
      ValueError: as `quantile`.

    Formal guarantee: adding or removing one example moves the sum of gradients by at most
    (sum_l C_l^2)^(1/2), for each tensor moves it by at most C_l, and the L counts by sqrt(L) / 2.  Over their
    noise these are 1 / z_grad and (sqrt(L) / 2) / (s_b sqrt(L)) = 1 / (2 s_b), so the whole is a Gaussian
    mechanism of multiplier z as in `quantile`.
    """
    return _quantile(
        "quantile_per_layer",
        True,
        l2_norm_clip,
        expected_batch_size,
        target_quantile,
        learning_rate,
        count_noise,
    )


BY_NAME: dict[str, Callable[..., Clipper]] = {"quantile": quantile, "quantile_per_layer": quantile_per_layer}
