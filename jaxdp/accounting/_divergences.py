"""Renyi divergence of one step under an adjacency, whatever its sampling."""

import functools
import math

import numpy as np
from jaxtyping import Float

from jaxdp.accounting import rdp
from jaxdp.accounting.sampling import Part

REMEMBERED = 2000  # noise multipliers of a run whose divergences are kept


def divergences(
    rate: float,
    sigmas: Float[np.ndarray, " n"],
    adjacency: str,
    orders=rdp.ORDERS,
    parts: tuple[Part, ...] = (),
) -> Float[np.ndarray, "n orders"]:
    """RDP of one step at each noise multiplier under an adjacency; read-only where it is remembered.

    Of truncated batches: the moments of the parts, added up by their weights.
    """
    if parts:
        return _of_parts(sigmas, orders, parts)
    if orders is rdp.ORDERS and sigmas.size <= REMEMBERED:
        return _remembered_divergences(float(rate), np.asarray(sigmas, float).tobytes(), adjacency)
    return (rdp.replace_one if adjacency == "replace_one" else rdp.poisson_gaussian)(rate, sigmas, orders)


def _of_parts(sigmas: np.ndarray, orders: np.ndarray, parts: tuple[Part, ...]) -> np.ndarray:
    """ln of the mean of the parts' moments over order - 1; of small ones as ln(1 + mean of (moment - 1))."""
    grown, logs = np.zeros((sigmas.size, orders.size)), np.full((sigmas.size, orders.size), -np.inf)
    for part in (part for part in parts if part.weight * part.rate > 0):
        adjacency = "replace_one" if part.shift == 2 else "add_or_remove_one"
        scaled = (orders - 1) * divergences(part.rate, sigmas, adjacency, orders)
        grown += part.weight * np.expm1(np.minimum(scaled, 50.0))
        logs = np.logaddexp(logs, math.log(part.weight) + scaled)
    return np.where(logs < 1, np.log1p(grown), logs) / (orders - 1)


@functools.lru_cache(maxsize=16)
def _remembered_divergences(rate: float, sigmas: bytes, adjacency: str) -> np.ndarray:
    """The same run is accounted for again and again: over seeds, for its claim and for its curve."""
    of_step = rdp.replace_one if adjacency == "replace_one" else rdp.poisson_gaussian
    table = of_step(rate, np.frombuffer(sigmas), rdp.ORDERS)
    table.setflags(write=False)
    return table
