"""The precision in which bounded products are computed, on whatever multiplies them.

Devices multiply float32 fast by rounding each factor to fewer digits, which can take an example's part over the
bound that its norm was scaled to.  Where they do, factors are rounded once, here, before anything is computed
of them: products of what has no more digits are exact, and added up in float32.  So the norm is that of what
is really summed.  A factor times an example's weight has more digits again, and is multiplied in two parts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp import platforms

EXACT = jax.lax.Precision.HIGHEST
# What fast products of float32 keep of each factor, beside its first bit: TF32, bfloat16.
DIGITS = {"cuda": 10, "gpu": 10, "tpu": 7}


def digits_of(platform: str) -> int | None:
    """To how many digits that platform rounds what it multiplies; None where it does not, or is told not to.

    `jax.default_matmul_precision("highest")` is the way to tell it.
    """
    config: Any = jax.config
    asked = config.jax_default_matmul_precision
    return None if asked in ("highest", "float32") else DIGITS.get(platforms.resolved(platform))


def as_multiplied(x: Array, digits: int | None) -> Array:
    """Factors of float32 with no more digits than a device multiplies exactly."""
    return x if digits is None else jax.lax.reduce_precision(x, jnp.finfo(jnp.float32).nexp, digits)


def in_parts(x: Array, digits: int) -> tuple[Array, Array]:
    """Two arrays of so many digits, whose sum is `x` but for `remainder`."""
    high = as_multiplied(x, digits)
    return high, as_multiplied(x - high, digits)


def remainder(digits: int | None) -> float:
    """The most that `in_parts` leaves out of an entry, relative to it."""
    return 0.0 if digits is None else 2.0 ** (-2 * digits - 2)


def precision(digits: int | None) -> jax.lax.Precision:
    """What products of factors of so many digits ask for: nothing, where all that is fast is exact."""
    return EXACT if digits is None else jax.lax.Precision.DEFAULT


def unit_roundoff(dtype) -> float:
    """The most that one operation rounds by, relative to its result."""
    return float(jnp.finfo(dtype).eps) / 2


def at_least_float32(dtype):
    """The type in which norms and sums are computed."""
    return jnp.promote_types(dtype, jnp.float32)
