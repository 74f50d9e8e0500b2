"""Clipping and noise in the coordinates of an adaptive optimizer: scale, then privatize."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdp import _validate, gradients
from jaxdp.clipping.clipper import Clipper
from jaxdp.clipping.fixed import as_schedule, flat
from jaxdp.schedules import Schedule


class Moments(NamedTuple):
    """What the noised gradients of the steps before say of each coordinate: public, as they are.

    Attributes:
      squares: moving average of their squares, as the parameters, float32.
      count: of the steps that are in it.
    """

    squares: PyTree[Float[Array, "..."]]
    count: Int[Array, ""]


def preconditioned(l2_norm_clip: float | Schedule, decay: float = 0.99, floor: float = 0.3) -> Clipper:
    """Clips to norm C, and so noises, gradients in which every coordinate is as large as the others.

    Each coordinate is multiplied by s = 1 / (v + floor * root mean square of v), with v the root of a moving
    average of the squares of past noised gradients, and all of s by one number so that its mean square is 1.
    The noised mean is divided by s: noise is small where gradients are, where noise of one size for all would
    be most of what Adam divides by.  Put `optax.adam` or momentum behind it.

    Whole gradients are made for it, also of what other clippers take in factors.

    Args:
      l2_norm_clip: the bound C, or C(t), of scaled gradients; with equal squares s is 1 and C what it is for
        `flat`.
      decay: of the moving average.
      floor: keeps s within 1 and 1 / floor of each other for small and average coordinates.

    Formal guarantee: s of a step is a function of earlier noised sums, so that given these adding or removing
    one example moves the sum of scaled gradients by at most C(t); dividing by s is post-processing.

    Source: Ganesh, McMahan & Thakurta 2025, "On design principles for private adaptive optimizers", arXiv
    2507.01129.  There s comes of Adam's average as it is; its mean square is fixed here, since else clipped
    gradients shrink the average, and that the gradients, step by step.
    """
    bound, inner = as_schedule(l2_norm_clip), flat(l2_norm_clip)
    _validate.between(0, 1, decay=decay)
    _validate.positive(floor=floor)

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), params)
        return Moments(zeros, jnp.zeros((), jnp.int32))

    def rule(grads, state, step, mask):
        scaled = jax.tree.map(
            lambda g, s: _whole(g) * s[None], grads, scale(state, floor), is_leaf=gradients.is_leaf
        )
        return inner.rule(scaled, (), step, mask)

    def after(state, noised, step):
        found = jax.tree.map(jnp.divide, noised, scale(state, floor))
        squares = jax.tree.map(
            lambda v, g: decay * v + (1 - decay) * jnp.square(g.astype(jnp.float32)), state.squares, found
        )
        return Moments(squares, state.count + 1), found

    return Clipper(
        name="preconditioned",
        rule=rule,
        sensitivity=lambda state, step: bound(step),
        noise_scale=lambda summed, state, step: bound(step),
        init=init,
        after=after,
        whole=True,
    )


def _whole(leaf: Any) -> Array:
    return leaf if isinstance(leaf, jax.Array) else leaf.dense()


def scale(moments: Moments, floor: float) -> PyTree[Float[Array, "..."]]:
    """s, as the parameters; 1 before the first step."""
    roots = jax.tree.map(jnp.sqrt, moments.squares)
    leaves: Any = jax.tree.leaves(roots)
    size = max(1, sum(leaf.size for leaf in leaves))
    typical = jnp.sqrt(sum((jnp.square(leaf).sum() for leaf in leaves), jnp.zeros(())) / size)
    typical = jnp.where(typical > 0, typical, 1)
    inverse = jax.tree.map(lambda root: 1 / (root / typical + floor), roots)
    mean = sum((jnp.square(leaf).sum() for leaf in jax.tree.leaves(inverse)), jnp.zeros(())) / size
    return jax.tree.map(lambda leaf: leaf * jax.lax.rsqrt(mean), inverse)
