"""How much of a layer's input lies in the span of the gradient of its matrices.

The test of DAGER (Petrov, Dimitrov, Baader, Mueller, Vechev, "DAGER: Exact Gradient Inversion for Large
Language Models", NeurIPS 2024): the gradient [n, m] of a matrix that N tokens went through has rank N, and
where N < n the input of each of them lies in the span of its columns, which nothing else does.

Behind noise of standard deviation s every gradient has full rank.  Noise alone has singular values up to
s (sqrt n + sqrt m); a signal's direction whose value y exceeds that is seen at an angle whose squared cosine
follows from y (Benaych-Georges & Nadakuditi 2012), and counts by it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_ROUNDING = 3e-7  # of float32 gradients, relative to their largest singular value


class Span(NamedTuple):
    """The span of one layer's gradient.

    Attributes:
      outside: [n, n]; the squared length of h @ outside is what of h lies outside of the span.
      seen: the number of its directions.
      share: the sum of their squared cosines: their number, where they are exact.
    """

    outside: Float[np.ndarray, "n n"]
    seen: int
    share: float


def span(gradient: Float[np.ndarray, "n m"], tokens: int, noise_std: float = 0.0) -> Span:
    """The span of a gradient.

    Args:
      gradient: of the layer's matrices, side by side.
      tokens: N, how many went through the layer: no more directions are kept.
      noise_std: s, of the noise on every entry; 0 keeps what float32 resolves, each direction as exact.
    """
    n, m = gradient.shape
    vectors, values, _ = np.linalg.svd(np.asarray(gradient, np.float64), full_matrices=m < n)
    values = np.concatenate([values, np.zeros(n - len(values))])
    floor = _ROUNDING * values[0] / (np.sqrt(n) + np.sqrt(m))
    kept = squared_cosines(values, n, m, noise_std) if noise_std > floor else (values > _ROUNDING * values[0])
    kept = np.where(np.arange(n) < tokens, kept, 0.0)
    return Span((vectors * np.sqrt(1 - kept)).astype(np.float32), int((kept > 0).sum()), float(kept.sum()))


def squared_cosines(
    values: Float[np.ndarray, " n"], rows: int, columns: int, noise_std: float
) -> Float[np.ndarray, " n"]:
    """Between the left singular vectors of a signal and of it plus noise, [rows, columns], large matrices.

    Args:
      values: singular values with the noise.
      rows, columns: n, m.
      noise_std: s, of every entry.

    Returns:
      0 up to the edge s (sqrt n + sqrt m) of what noise alone explains.
    """
    y = np.square(np.asarray(values, np.float64) / noise_std)
    edge = np.square(np.sqrt(rows) + np.sqrt(columns))
    above = np.maximum(y, edge) - rows - columns
    x = (above + np.sqrt(np.maximum(np.square(above) - 4.0 * rows * columns, 0))) / 2  # the signal's, squared
    cosines = (np.square(x) - rows * columns) / (x * (x + rows))
    return np.where(y > edge, np.clip(cosines, 0, 1), 0.0)
