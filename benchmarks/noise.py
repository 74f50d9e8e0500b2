"""What a step's noise costs and how it is distributed: `python -m benchmarks noise`.

`drawn` is the noise of `jax.random.normal` in the same shapes, the plainest there is, of 23 bits and on a
visible lattice; `released` is the library's.  `--draws` is of the test of the distribution.
"""

import argparse
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks import timing
from jaxdp import noise

SHAPES = {
    "26010": [(8, 8, 1, 16), (16,), (4, 4, 16, 32), (32,), (512, 32), (32,), (32, 10), (10,)],
    "34720": [(34_720,)],
    "532110": [(784, 600), (600,), (600, 100), (100,), (100, 10), (10,)],
    "10000000": [(10_000, 1_000)],
}


def cost(name: str, rounds: int, generators: Sequence[str] = tuple(noise.GENERATORS)) -> list[dict]:
    """One record for each generator of the release, beside the plain draw."""
    tree = [jnp.zeros(shape) for shape in SHAPES[name]]
    secret = noise.secret(0)

    def drawn(step, std):
        return jax.tree.map(lambda x, z: x + std * z, tree, noise.noise_like(jax.random.key(step), tree))

    programs = {"drawn": jax.jit(drawn)}
    for generator in generators:
        programs[generator] = jax.jit(
            lambda step, std, g=generator: noise.released(noise.Stream(secret, step, 0, g), tree, std)
        )
    runs = {k: (lambda p=p: p(np.int32(1), np.float32(1.7))) for k, p in programs.items()}
    compile_seconds = {k: timing.first_call(run) for k, run in runs.items()}
    seconds = timing.interleaved({k: timing.timed(run) for k, run in runs.items()}, rounds)
    return [
        {
            "numbers": sum(x.size for x in tree),
            "generator": k,
            "median_ms": 1e3 * float(np.median(times)),
            "ratio_to_drawn": timing.ratio(times, seconds["drawn"]),
            "compile_seconds": compile_seconds[k],
        }
        for k, times in seconds.items()
    ]


def distribution(draws: int, std: float = 1.0, sum_: float = 0.37) -> dict:
    """Counts of the cells over so many draws, against the rounded Gaussian."""
    size, most = 1 << 22, 200
    secret, gamma = noise.entropy_key(), float(noise.grid_step(std))
    sums = jnp.full(size, sum_)

    @jax.jit
    def counted(step):
        released = noise.released(noise.Stream(secret, step, 0), sums, std)
        cells = jnp.round(released / gamma).astype(jnp.int32)
        lags = jnp.stack([jnp.corrcoef(released, jnp.roll(released, lag))[0, 1] for lag in (1, 7, 8, 64)])
        return jnp.zeros(2 * most + 1, jnp.int32).at[cells + most].add(1), lags

    steps = -(-draws // size)
    counts, lags = np.zeros(2 * most + 1), []
    for step in range(steps):
        more, correlations = counted(step)
        counts += np.asarray(more)
        lags.append(np.asarray(correlations))
    n, cells = steps * size, np.arange(-most, most + 1)
    edges = (gamma * (np.arange(-most, most + 2) - 0.5) - np.float64(np.float32(sum_))) / std
    law = np.where(edges[:-1] < 0, np.diff(stats.norm.cdf(edges)), -np.diff(stats.norm.sf(edges)))
    enough = n * law > 10
    parts = lambda x: np.append(x[enough], x[~enough].sum())  # noqa: E731
    centred = gamma * cells - sum_
    variance = float(counts @ centred**2 / n)
    return {
        "draws": n,
        "chi_square_p": float(stats.chisquare(parts(counts), n * parts(law), sum_check=False).pvalue),
        "mean_in_deviations_of_it": float(counts @ centred / n / (std / n**0.5)),
        "variance_over_expected": variance / float(law @ centred**2),
        "kurtosis": float(counts @ centred**4 / n / variance**2),
        "beyond": {
            str(far): [float(counts[np.abs(cells * gamma - sum_) > far].sum()),
                       float(n * law[np.abs(cells * gamma - sum_) > far].sum())]
            for far in (4.0, 5.0, 5.5, 6.0)
        },
        "largest_lag_correlation_in_deviations": float(
            np.abs(np.mean(lags, axis=0)).max() * (n**0.5)
        ),
    }  # fmt: skip


def main() -> None:
    """Measures and writes `records/noise_DEVICE.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks noise", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="how often each is timed")
    parser.add_argument("--draws", type=int, default=1_000_000_000, help="of the test of the distribution")
    options = parser.parse_args()
    rows = [row for name in SHAPES for row in cost(name, options.rounds)]
    for row in rows:
        print(
            f"{row['numbers']:<10}{row['generator']:<10}{row['median_ms']:9.3f} ms  {row['ratio_to_drawn']}"
        )
    found = distribution(options.draws)
    print(found)
    usable = len(os.sched_getaffinity(0))
    timing.write(f"noise_{jax.default_backend()}", rows, distribution=found, usable_cores=usable)


if __name__ == "__main__":
    main()
