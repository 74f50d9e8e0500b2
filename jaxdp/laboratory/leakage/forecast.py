"""What leaks at noise levels where no pixel can be read: labels, candidates, and the error to expect.

Three measures that need no search.  They resolve the noise multipliers of real runs, at which every pixel
attack has long failed: labels by likelihood templates over many looks at the same example; the informed
adversary, who has k candidates, beside the most that any adversary could reach; the linearised error.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp import intervals
from jaxdp.accounting import reconstruction
from jaxdp.attacks import candidates as candidate_attacks
from jaxdp.attacks import expected_error
from jaxdp.attacks.leaks import Leak
from jaxdp.laboratory.leakage.sweep import Model

LOOKS = (1, 10, 100)
CANDIDATES = 10


def labels(
    model: Model, sigmas: Sequence[float], *, bound: float, victims: int, seed: int
) -> list[dict[str, Any]]:
    """The share of labels read off noised gradients of the same example, after each of `LOOKS`.

    Args:
      model: its parameters stay as they are between the looks.
      sigmas: noise multipliers: noise of standard deviation sigma C on a sum that the example is in, and in
        which the adversary knows all others.
      bound: the clip bound C.
      victims: examples.
      seed: of the noise.
    """
    x, y = np.asarray(model.x[:victims]), np.asarray(model.y[:victims])
    known = min(256, len(model.train_x))
    rows, steps = [], max(LOOKS)
    for index, sigma in enumerate(sigmas):
        found = candidate_attacks.label_leakage(
            model.loss_fn, "flat", [model.params] * steps, x, y, model.train_x[:known], model.train_y[:known],
            np.full(steps, sigma * bound, np.float32), jax.random.key(seed + index), bound=bound,
            classes=model.classes,
        )  # fmt: skip
        for look in LOOKS:
            right = intervals.success_rate(found[:, look - 1] == y)
            rows.append({"sigma": sigma, "looks": look, "right": right, "chance": 1 / model.classes})
    return rows


def candidates(
    model: Model, sigmas: Sequence[float], *, bound: float, seed: int, trials: int = 2000
) -> list[dict[str, Any]]:
    """The informed adversary against the reconstruction bound, for worst-case and for real records.

    After each of `LOOKS`: steps that used the record, seen without amplification by sampling.

    The model's first `CANDIDATES` held-out examples are the real records.
    """
    k, steps, rows = CANDIDATES, max(LOOKS), []
    real = candidate_attacks.gram(model.loss_fn, "flat", model.params, model.x[:k], model.y[:k], bound)
    grams = {"worst case": candidate_attacks.canaries(k, bound), "real": np.asarray(real)}
    along = {kind: jnp.asarray(np.broadcast_to(g, (steps, k, k)), jnp.float32) for kind, g in grams.items()}
    for index, sigma in enumerate(sigmas):
        noise, key = jnp.full(steps, sigma * bound), jax.random.key(seed + index)
        hits = {
            kind: np.asarray(candidate_attacks.informed_adversary(gram, noise, key, trials=trials))
            for kind, gram in along.items()
        }
        for look in LOOKS:
            limit = float(reconstruction.gaussian_bound(np.sqrt(look) / sigma, 1 / k))
            shares = {kind: intervals.success_rate(hit[:, look - 1]) for kind, hit in hits.items()}
            rows.append({"sigma": sigma, "looks": look, "chance": 1 / k, "bound": limit, **shares})
    return rows


def errors(
    model: Model, sigmas: Sequence[float], *, bound: float, victims: int = 4
) -> list[dict[str, Any]] | None:
    """The root mean square error that the linearised posterior expects, averaged over victims.

    None without a prior learned from public inputs.
    """
    prior, leak = model.public.prior, Leak(clip="flat")
    if prior is None:
        return None
    program = jax.jit(lambda x, y: expected_error.information(model.loss_fn, leak, model.params, x, y, bound))
    levels = [float(sigma * bound) for sigma in sigmas]
    each = [
        expected_error.expected_mse(program(jnp.asarray(x), jnp.asarray(y)), levels, prior)
        for x, y in zip(model.x[:victims], model.y[:victims], strict=True)
    ]
    expected = np.sqrt(np.mean(each, axis=0))
    return [{"sigma": s, "rmse": float(e)} for s, e in zip(sigmas, expected, strict=True)]
