"""RDP of many noise multipliers as a weighted sum over Chebyshev nodes in ln sigma: for searches."""

import numpy as np

from jaxdp.accounting import rdp
from jaxdp.accounting._divergences import divergences
from jaxdp.accounting.pld import Steps

_NODES = 40


class Compressed:
    """Steps whose divergences are those of a few nodes, weighted.

    The weights of the barycentric interpolant do not change when all noise multipliers are scaled, so a
    search costs `_NODES` divergences an evaluation.  Never reported: the answer is checked with the exact
    sum.
    """

    def __init__(self, runs: list[Steps], adjacency: str):
        self.adjacency = adjacency
        self.runs = [self._compress(run) for run in runs]

    @staticmethod
    def _compress(run: Steps) -> Steps:
        logs = np.log(run.noise_multipliers)
        if logs.size <= _NODES or np.ptp(logs) < 1e-9:
            return run
        angles = (np.arange(_NODES) + 0.5) * np.pi / _NODES
        nodes = logs[0] + np.ptp(logs) * (1 - np.cos(angles)) / 2
        basis = (-1.0) ** np.arange(_NODES) * np.sin(angles)
        distance = logs[:, None] - nodes[None, :]
        distance[distance == 0] = 1e-300
        matrix = basis / distance
        weights = run.counts @ (matrix / matrix.sum(axis=1, keepdims=True))
        return Steps(run.sampling_rate, np.exp(nodes), weights, run.parts)

    def epsilon(self, delta: float, scale: float = 1.0, rate: float | None = None) -> float:
        """About epsilon at delta, with all noise multipliers scaled and at another sampling rate."""
        total = np.zeros(rdp.ORDERS.size)
        for run in self.runs:
            q = run.sampling_rate if rate is None else rate
            table = divergences(q, scale * run.noise_multipliers, self.adjacency, parts=run.parts)
            unusable = np.isinf(table).any(axis=0)
            total += np.where(unusable, np.inf, run.counts @ np.where(unusable, 0.0, table))
        return float(rdp.epsilon(total, delta)[0])
