"""How well an attack went, and who knew what."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxdp import intervals
from jaxdp.attacks import metrics
from jaxdp.attacks.attack import Attack, fitted
from jaxdp.attacks.lanes import Reconstruction, first_network, invert_many
from jaxdp.attacks.leaks import NOISELESS, Conditions, Leak, observe
from jaxdp.attacks.public import Setting


def knowledge(leak: Leak, attack: Attack, conditions: Conditions = NOISELESS) -> dict[str, Any]:
    """What the attacker is granted and uses, to be declared beside every figure.

    Args:
      leak: what leaked.
      attack: how it is attacked.
      conditions: of the leak.

    Returns:
      By name: what is known of the model, the clip, the noise, the labels and of inputs, and the leak's shape.
    """
    noise_std, bound, _ = conditions
    unclipped = leak.clip == "none" or (isinstance(bound, float) and math.isinf(bound))
    modelled = f"{leak.clip}, bound {bound}" if attack.clip_aware else "not modelled"
    uses_noise = attack.noise_aware and (attack.objective == "likelihood" or attack.prior == "gaussian")
    box = "[0, 1] box" if attack.box else "no box"
    smooth = f", total variation {attack.tv}" if attack.tv else ""
    gaussian = ", Gaussian from public inputs" if attack.prior == "gaussian" else ""
    return {
        "model": "architecture and parameters at the leak",
        "clip": "none" if unclipped else modelled,
        "noise": f"standard deviation {noise_std}" if uses_noise else "not modelled",
        "batch_size": leak.batch_size,
        "labels": "given" if attack.labels == "known" else f"inferred by {attack.labels}",
        "prior": box + smooth + gaussian,
        "window": leak.window,
        "local_steps": leak.local_steps,
    }


def judge(
    reconstruction: Reconstruction,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    mean: Array | np.ndarray | float = 0.5,
) -> dict[str, Any]:
    """The metrics of a reconstruction against the truth, images of a batch in their best order.

    Args:
      reconstruction: of N victims, or of one gradient as `invert` returns it.
      x: the truth [N, B, *input_shape], or [B, *input_shape] of one gradient; images or tabular rows, each has
        its own thresholds.
      y: labels [N, B], or [B].
      mean: the mean public input, the baseline.

    Returns:
      Medians over images; shares with 95 % Wilson intervals, for batches over images.
    """
    x, y = np.asarray(x), np.asarray(y)
    if np.ndim(reconstruction.objective) == 0:
        reconstruction, x, y = (
            Reconstruction(*(np.asarray(f)[None] for f in reconstruction)),
            x[None],
            y[None],
        )
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
        "gain": float(np.median(metrics.gain_over_mean(guess, x, np.asarray(mean), axes))),
        "labels": float(np.mean(np.sort(reconstruction.labels, 1) == np.sort(y, 1))),
        "iterations": float(np.median(reconstruction.iterations)),
        "objective": float(np.median(reconstruction.objective)),
    }
    if axes == 3:
        row["ssim"] = float(np.median(metrics.ssim(guess, x)))
    return row


def evaluate(
    setting: Setting,
    attack: Attack,
    params: PyTree,
    x: np.ndarray,
    y: np.ndarray,
    key: Array,
    conditions: Conditions = NOISELESS,
    *,
    own_params: bool = False,
    lanes: int | None = None,
    progress: bool = False,
) -> tuple[dict[str, Any], Reconstruction]:
    """Leaks, attacks and judges: one row of a table, and the reconstructions behind it.

    Args:
      setting: what is attacked.
      attack: how.
      params: parameters at the leak.
      x: victims' inputs [N, B, *input_shape].
      y: their labels [N, B].
      key: of noise and starts.
      conditions: noise, clip bound and learning rate of the leak, all known to the attacker.
      own_params: whether `params` has a leading axis [N].
      lanes: minimisations at once.
      progress: show a progress bar.

    Returns:
      The metrics with the knowledge of the attack as it was fitted to the network, and the reconstructions.
    """
    noise_key, start_key = jax.random.split(key)
    victims = observe(
        setting.loss_fn, setting.leak, params, x, y, noise_key, conditions, own_params=own_params
    )
    setting, attack = fitted(setting, attack, first_network(victims, setting.leak))
    result = invert_many(setting, attack, victims, start_key, lanes=lanes, progress=progress)
    row = judge(result, x, y, np.asarray(setting.known.mean))
    return row | {"knowledge": knowledge(setting.leak, attack, conditions)}, result
