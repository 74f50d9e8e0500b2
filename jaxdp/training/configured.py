"""The parts of a training run as its configuration describes them: schedule, clipper, network, optimizer."""

from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PyTree
from optax import GradientTransformation

from jaxdp import accounting, clipping, models, schedules
from jaxdp import adaptive_noise as following
from jaxdp.accounting import filters
from jaxdp.accounting.ledger import Filter
from jaxdp.adaptive_noise import Following
from jaxdp.clipping import adaptive as adaptive_clipping
from jaxdp.data import Dataset
from jaxdp.schedules import Schedule
from jaxdp.training.config import TrainConfig

OPTIMIZERS = {
    "sgd": lambda rate: optax.sgd(rate),
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": lambda rate: optax.adam(rate),
}
DECAYS = {
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
}


def noise_schedule(config: TrainConfig) -> Schedule | None:
    """sigma(t) as configured, before any scaling to a target epsilon; None for `none` and `adaptive`."""
    if config.schedule in ("none", "adaptive"):
        return None
    given = {"value": config.noise_multiplier, "start": config.start, "end": config.end}
    given = {name: value for name, value in given.items() if value is not None}
    schedule = schedules.create(config.schedule, config.steps, **given)
    return schedule if config.scale == 1 else schedules.scaled(schedule, config.scale)


def adaptive_range(config: TrainConfig) -> tuple[float, float]:
    """The largest and the smallest noise multiplier of an adaptive schedule."""
    start = schedules.PUBLISHED_START if config.start is None else config.start
    end = schedules.PUBLISHED_END if config.end is None else config.end
    return config.scale * start, config.scale * end


def make_following(config: TrainConfig, sampling_rate: float, kept: Filter | None) -> Following | None:
    """What chooses the noise multipliers of an adaptive schedule, under its filter.

    Args:
      config: the run.
      sampling_rate: q.
      kept: the filter of a run that goes on; None makes a new one, at the order that suits the geometric mean
        of the range.

    Raises:
      ValueError: a range that is none, a filter that is not the configured one.
    """
    if config.schedule != "adaptive":
        return None
    start, end = adaptive_range(config)
    settings: dict[str, Any] = dict(
        epsilon=config.budget_epsilon, delta=config.delta, adjacency=config.adjacency
    )
    for name, value in settings.items():
        if kept is not None and getattr(kept, name) != value:
            raise ValueError(f"{name}={value}: the run's filter was fixed at {name}={getattr(kept, name)}")
    if kept is None:
        middle = (start * end) ** 0.5 if start > 0 and end > 0 else start
        kept = filters.create(
            settings["epsilon"],
            accounting.Claim(delta=config.delta, adjacency=config.adjacency),
            sampling_rate=sampling_rate,
            noise_multiplier=middle,
        )
    return following.create(kept, start=start, end=end, sampling_rate=sampling_rate, steps=config.steps)


def make_optimizer(config: TrainConfig, learning_rate: float | Float[Array, ""]) -> GradientTransformation:
    """The optimizer as configured, at this learning rate before any decay.

    Raises:
      ValueError: an unknown optimizer or decay.
    """
    for name, known in (("optimizer", OPTIMIZERS), ("learning_rate_decay", {None: None, **DECAYS})):
        if getattr(config, name) not in known:
            raise ValueError(f"{name}={getattr(config, name)!r}: choose from {', '.join(map(str, known))}")
    make = OPTIMIZERS[config.optimizer]
    if config.learning_rate_decay is None:
        return make(learning_rate)
    decay = DECAYS[config.learning_rate_decay](config.steps)
    return make(lambda step: learning_rate * decay(step))


def make_model(config: TrainConfig, dataset: Dataset) -> models.Model:
    """The network as configured, for examples like the data set's."""
    return models.create(
        config.model,
        jax.random.key(config.seed),
        input_shape=dataset.input_shape,
        classes=len(dataset.classes),
        activation=config.activation,
        initialization=config.initialization,
    )


def make_clipper(
    config: TrainConfig, params: PyTree, sigma: Schedule | None, expected_batch_size: float
) -> clipping.Clipper:
    """The clipper as configured, for parameters of this structure and this noise multiplier."""
    bound = config.l2_norm_clip
    if config.clipping.startswith("quantile"):
        largest = adaptive_range(config)[0]
        if sigma is not None:
            largest = float(schedules.values(sigma, config.steps).max())
        default = adaptive_clipping.default_count_noise(expected_batch_size, largest)
        return clipping.create(
            config.clipping,
            bound,
            expected_batch_size=expected_batch_size,
            target_quantile=config.target_quantile,
            learning_rate=config.clip_learning_rate,
            count_noise=default if config.count_noise is None else config.count_noise,
        )
    if config.l2_norm_clip_end is not None:
        bound = schedules.linear(config.steps, start=bound, end=config.l2_norm_clip_end)
    return clipping.create(config.clipping, bound, layers=len(jax.tree.leaves(params)))
