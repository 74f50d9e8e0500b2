"""Where a reconstruction starts: `(key, shape, mean) -> x` with x of `shape` [B, ...] in [0, 1] or near it.

| name        | start                                                                    |
|-------------|--------------------------------------------------------------------------|
| `patterned` | one random tile of half the height and width, repeated 2 x 2 (CPL)         |
| `constant`  | .5 everywhere, with a hundredth of noise so that a batch's images differ |
| `uniform`   | U(0, 1) in every pixel                                                   |
| `normal`    | N(0, 1) in every pixel (DLG)                                             |
| `mean`      | the mean of the public images, with a hundredth of noise                 |
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp import _validate


def _patterned(key, shape, mean):
    if len(shape) != 4:
        return jax.random.uniform(key, shape)
    batch, height, width, channels = shape
    tile = jax.random.uniform(key, (batch, -(-height // 2), -(-width // 2), channels))
    return jnp.tile(tile, (1, 2, 2, 1))[:, :height, :width]


def _constant(key, shape, mean):
    return 0.5 + 0.01 * jax.random.normal(key, shape)


def _uniform(key, shape, mean):
    return jax.random.uniform(key, shape)


def _normal(key, shape, mean):
    return jax.random.normal(key, shape)


def _mean(key, shape, mean):
    return jnp.broadcast_to(mean.reshape(1, *shape[1:]), shape) + 0.01 * jax.random.normal(key, shape)


_BY_NAME = {
    "patterned": _patterned,
    "constant": _constant,
    "uniform": _uniform,
    "normal": _normal,
    "mean": _mean,
}
NAMES = tuple(_BY_NAME)


def draw(name: str, key: Array, shape: tuple[int, ...], mean: Float[Array, "..."]) -> Float[Array, "..."]:
    """One start.

    Args:
      name: one of `NAMES`.
      key: its randomness; `constant` and `mean` use it only to tell the images of a batch apart.
      shape: [B, *input_shape].
      mean: the mean public input, used by `mean`.

    Raises:
      ValueError: an unknown name.
    """
    _validate.one_of(NAMES, start=name)
    return _BY_NAME[name](key, shape, mean)
