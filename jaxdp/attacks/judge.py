"""One row of an attack table: who knew what, and how well it went."""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxdp import intervals
from jaxdp.attacks import metrics
from jaxdp.attacks.attack import Attack
from jaxdp.attacks.engine import Reconstruction, invert
from jaxdp.attacks.given import Public
from jaxdp.attacks.leaks import Leak, Loss
from jaxdp.attacks.observe import observe


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What the attacker is granted, declared beside every figure.

    Attributes:
      model: architecture and parameters at the leak.
      clip: the clip rule and its bound, or that it is not modelled.
      noise: the noise's standard deviation per coordinate, or that it is not modelled.
      batch_size: B.
      labels: given, or by which rule inferred.
      prior: what is known of inputs.
      window: observations of the same batch.
      local_steps: steps before the update leaked.
    """

    model: str
    clip: str
    noise: str
    batch_size: int
    labels: str
    prior: str
    window: int
    local_steps: int

    def __str__(self) -> str:
        return "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in asdict(self).items())


def knowledge(leak: Leak, attack: Attack, *, noise_std: Any = 0.0, bound: Any = 1.0) -> Knowledge:
    """What `attack` uses of a leak."""
    modelled = f"{leak.clip}, bound {bound}" if attack.clip_aware else "not modelled"
    uses_noise = attack.noise_aware and (attack.objective == "likelihood" or attack.prior == "gaussian")
    box = "[0, 1] box" if attack.box else "no box"
    smooth = f", total variation {attack.tv}" if attack.tv else ""
    gaussian = ", Gaussian from public inputs" if attack.prior == "gaussian" else ""
    return Knowledge(
        model="architecture and parameters at the leak",
        clip="none" if leak.clip == "none" else modelled,
        noise=f"standard deviation {noise_std}" if uses_noise else "not modelled",
        batch_size=leak.batch_size,
        labels="given" if attack.labels == "known" else f"inferred by {attack.labels}",
        prior=box + smooth + gaussian,
        window=leak.window,
        local_steps=leak.local_steps,
    )


def judge(
    reconstruction: Reconstruction, x: np.ndarray, y: np.ndarray, mean: Array | np.ndarray
) -> dict[str, Any]:
    """The metrics of a reconstruction against the truth, images of a batch in their best order.

    Args:
      reconstruction: of N victims.
      x: the truth [N, B, *input_shape], images or tabular rows: each has its own thresholds.
      y: labels [N, B].
      mean: the mean public input, the baseline.

    Returns:
      Medians over images; shares with 95 % Wilson intervals, for batches over images.
    """
    axes = x.ndim - 2
    guess = metrics.matched(reconstruction.x, x)
    criterion = metrics.IMAGES if axes == 3 else metrics.TABULAR
    error = np.asarray(metrics.rmse(guess, x, axes)).ravel()
    baseline = np.asarray(metrics.rmse(np.broadcast_to(mean, x.shape), x, axes))
    row = {
        "victims": len(x),
        "exact": intervals.success_rate(error < criterion.exact),
        "recognisable": intervals.success_rate(error < criterion.recognisable),
        "rmse": float(np.median(error)),
        "rmse_mean_image": float(np.median(baseline)),
        "psnr": float(np.median(metrics.psnr(guess, x, axes))),
        "gain": float(np.median(metrics.gain_over_mean(guess, x, mean, axes))),
        "labels": float(np.mean(np.sort(reconstruction.labels, 1) == np.sort(y, 1))),
        "iterations": float(np.median(reconstruction.iterations)),
        "objective": float(np.median(reconstruction.objective)),
    }
    if axes == 3:
        row["ssim"] = float(np.median(metrics.ssim(guess, x)))
    return row


def evaluate(
    loss_fn: Loss,
    leak: Leak,
    attack: Attack,
    params: PyTree,
    x: np.ndarray,
    y: np.ndarray,
    key: Array,
    *,
    noise_std: Any = 0.0,
    bound: Any = 1.0,
    learning_rate: Any = 0.1,
    public: Public | None = None,
    classes: int = 10,
    own_params: bool = False,
    lanes: int | None = None,
    progress: bool = False,
) -> tuple[dict[str, Any], Reconstruction]:
    """Leaks, attacks and judges: one row of a table, and the reconstructions behind it.

    Args:
      loss_fn: `(params, (x, y)) -> scalar` for one example.
      leak: what leaks.
      attack: how it is attacked.
      params: parameters at the leak.
      x: victims' inputs [N, B, *input_shape].
      y: their labels [N, B].
      key: of noise and starts.
      noise_std: per coordinate of the observation.
      bound: clip bound C.
      learning_rate: of local steps.
      public: the attacker's public data.
      classes: number of labels.
      own_params: whether `params` has a leading axis [N].
      lanes: minimisations at once.
      progress: show a progress bar.
    """
    noise_key, start_key = jax.random.split(key)
    victims = observe(
        loss_fn, leak, params, x, y, noise_key,
        noise_std=noise_std, bound=bound, learning_rate=learning_rate, own_params=own_params,
    )  # fmt: skip
    result = invert(
        loss_fn, leak, attack, victims, start_key, input_shape=tuple(x.shape[2:]), classes=classes,
        public=public, own_params=own_params, lanes=lanes, progress=progress,
    )  # fmt: skip
    mean = np.full(x.shape[2:], 0.5) if public is None else np.asarray(public.mean)
    return judge(result, x, y, mean), result
