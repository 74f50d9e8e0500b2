"""Normal numbers by inversion, to 1e-13, in operations that a compiler puts into one vectorised loop.

The tail probability t = P(|z| > x) comes as whole numbers, so that it is known to 1e-16 of itself however
small it is.  A first x from float32 arithmetic is good to 2e-4; float64 then solves for the rest: with Mills'
ratio M(x) = P(z > x) / phi(x), and r = M(x) - t / (2 phi(x)), the quantile is x + r + x r^2 / 2 + (2 x^2 + 1)
r^3 / 6 up to r^4.

All that is here is additions, products, comparisons and bits.  XLA on CPUs evaluates what it takes for
expensive (`exp`, `log`, `sqrt`, a quotient) by itself as soon as two others use it, and the loop falls apart
into dozens; so there are polynomials in place of the first three, and Newton's steps in place of the last.
Coefficients are of Chebyshev interpolants (the quotient in `_start`: least squares, reweighted), highest power
first; the errors that they leave are measured by the tests.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Float64, UInt32

# Mills' ratio over |z| < 11.5, in y = (z - 5) / (z + 5), to 2e-14.
_MILLS = (
    -5.16699128425930772e-7, -3.52147691855298566e-6, -4.38210968617971412e-6, 1.67436411560308127e-5,
    2.97185805449776492e-6, -1.51249319894412768e-4, 3.36520685615152928e-4, 5.50277523866886298e-4,
    -5.96288019849311912e-3, 2.25380288194317329e-2, -5.86899443837721636e-2, 1.19955578911959648e-1,
    -2.02745813739504783e-1, 2.90941365679750248e-1, -3.59594764233922655e-1, 1.92808104715305698e-1,
)  # fmt: skip
_CENTRE = 5.0
# log2 over [1, 2) to 1.2e-4; 2^x over [-1/2, 1/2] to 5e-16.
_LOG2 = (
    -0.078440676209126853,
    0.626032182163813574,
    -2.07833516825145404,
    4.02921139107122411,
    -2.49835314881407,
)
_EXP2 = (
    7.0725859492692237e-9, 1.02086902999583058e-7, 1.32154425879222169e-6, 1.52526572602008371e-5,
    1.54035304417360502e-4, 1.33335582301649739e-3, 9.61812910760688853e-3, 5.55041086644477192e-2,
    0.240226506959100982, 0.693147180559949983, 1.0,
)  # fmt: skip
# The quantile as a quotient of polynomials in -log2(t) / 40 up to -log2(t) = 96, to 4e-5.
_NUMERATOR = (88.70729734, 1785.77537899, 2897.34232174, 772.27083415, 34.72120454, 0.0)
_DENOMINATOR = (82.08915705, 395.23789131, 266.72670147, 35.90864711, 1.0)
_BITS_OF_ONE = 0x3F800000  # of float32
_RECIPROCAL = 0x7EF311C7  # less the bits of x: those of about 1 / x


def two_sided_quantile(
    first: UInt32[Array, "..."], second: UInt32[Array, "..."], third: UInt32[Array, "..."]
) -> Float64[Array, "..."]:
    """The x >= 0 with P(|standard normal| > x) = t, for t a number of 95 bits below the binary point.

    Needs 64-bit mode.

    Args:
      first: the first 31 bits of t, as a number below 2^31.
      second, third: the next 32 bits, and the last.
    """
    tail = _whole(first) + (_whole(second) + (_whole(third) + 0.5) * 2.0**-32) * 2.0**-32  # times 2^31
    tail = tail * 2.0**-31
    x = _start(tail.astype(jnp.float32))
    near = _reciprocal(x + _CENTRE).astype(jnp.float64)
    x = x.astype(jnp.float64)
    near = near * (2 - (x + _CENTRE) * near)
    mills = _polynomial(_MILLS, 1 - 2 * _CENTRE * near)
    r = mills - tail * (_exp2(x * x * (0.5 / math.log(2))) * math.sqrt(math.pi / 2))
    return x + r * (1 + r * (x * 0.5 + r * ((2 * x * x + 1) * (1 / 6))))


def _start(tail: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """The quantile to 2e-4."""
    bits = jax.lax.bitcast_convert_type(tail, jnp.int32)
    exponent = ((bits >> 23) - 127).astype(jnp.float32)
    mantissa = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | _BITS_OF_ONE, jnp.float32)
    w = (exponent + _polynomial(_LOG2, mantissa)) * (-1 / 40)
    return jnp.abs(_polynomial(_NUMERATOR, w) * _reciprocal(_polynomial(_DENOMINATOR, w)))


def _reciprocal(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """1 / x for x > 0, to 1e-7 of itself: three of Newton's steps after a guess from the bits."""
    guess = jnp.int32(_RECIPROCAL) - jax.lax.bitcast_convert_type(x, jnp.int32)
    near = jax.lax.bitcast_convert_type(guess, jnp.float32)
    for _ in range(3):
        near = near * (2 - x * near)
    return near


def _exp2(x: Float64[Array, "..."]) -> Float64[Array, "..."]:
    """2^x for 0 <= x < 1000."""
    whole = jnp.round(x)
    power = (whole.astype(jnp.int32) + 1023).astype(jnp.int64) << 52
    return _polynomial(_EXP2, x - whole) * jax.lax.bitcast_convert_type(power, jnp.float64)


def _polynomial(coefficients: tuple[float, ...], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Horner's rule in the type of x."""
    value = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + jnp.asarray(coefficient, x.dtype)
    return value


def _whole(word: UInt32[Array, "..."]) -> Float64[Array, "..."]:
    return word.astype(jnp.float64)
