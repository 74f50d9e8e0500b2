"""Which run an attack on a checkpoint belongs to, so that a report shows it beside that run."""

import pathlib
from typing import Any

from jaxdp.laboratory.records import STAGES
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig
from jaxdp.training.record import variant_name


def run_config(checkpoint: pathlib.Path) -> TrainConfig:
    """The configuration of the run in the folder of `jaxdp train --output`, or in its checkpoints."""
    return configured.going_on(checkpoints(checkpoint))


def checkpoints(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the checkpoints, given it or the one of `jaxdp train --output`."""
    inside = folder / "checkpoints"
    return inside if inside.is_dir() else folder


def own_noise(config: TrainConfig, step: int) -> float | None:
    """The noise multiplier of the run's next step; None where it adds none, or decides it while it runs."""
    sigma = configured.noise(config)
    return float(sigma(min(step, config.steps - 1))) if callable(sigma) else None


def fields(config: TrainConfig, step: int, sigma: float) -> dict[str, Any]:
    """What ties the record of an attack to a run: its variant and stage, its data and model.

    An attack behind noise that is not the run's own belongs to no variant: it is `undefended`, a point of the
    curve over noise.  sigma is 0 for what leaks before noise is added.
    """
    subject = {"data": config.data, "model": config.model}
    own = own_noise(config, step)
    if sigma and (own is None or abs(sigma - own) > 1e-6 * own):
        return {"variant": "undefended", "stage": None, "config": subject}
    stage = STAGES[min(2, 3 * step // config.steps)]
    return {"variant": variant_name(config), "stage": stage, "config": subject}
