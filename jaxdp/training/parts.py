"""The parts of a training run as its configuration describes them: optimizer, network, noise, clipper, plan."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxdp import _validate, calibration, clipping, models, sampling, schedules
from jaxdp.adaptive_noise import Adaptive
from jaxdp.clipping import adaptive
from jaxdp.data import Dataset
from jaxdp.models import Model
from jaxdp.plan import Plan
from jaxdp.sampling import Sampler
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


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimizer as configured; its learning rate is a part of its state, so that rates share a program.

    Raises:
      ValueError: an unknown optimizer or decay.
    """
    _validate.one_of(OPTIMIZERS, optimizer=config.optimizer)
    _validate.one_of((None, *DECAYS), learning_rate_decay=config.learning_rate_decay)
    make = OPTIMIZERS[config.optimizer]

    def of_rate(learning_rate: Any):
        if config.learning_rate_decay is None:
            return make(learning_rate)
        decay = DECAYS[config.learning_rate_decay](config.steps)
        return make(lambda step: learning_rate * decay(step))

    return optax.inject_hyperparams(of_rate)(learning_rate=config.learning_rate)


def imported(place: str) -> Any:
    """What `FILE.py:NAME` names.

    Raises:
      ValueError: no such file, one that cannot be run, or one without that name.
    """
    file, _, name = place.rpartition(":")
    path = pathlib.Path(file)
    if not path.is_file() or path.suffix != ".py" or not name.isidentifier():
        raise ValueError(f"model or loss={place!r}: needs an existing FILE.py:NAME")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        return getattr(module, name)
    except Exception as error:  # whatever a user's file raises
        raise ValueError(f"model or loss={place!r}: {type(error).__name__}: {error}") from error


def model(config: TrainConfig, dataset: Dataset) -> Model:
    """The network as configured, for examples like the data set's."""
    key, shape, classes = jax.random.key(config.seed), dataset.input_shape, len(dataset.classes)
    if ":" not in config.model:
        return models.create(
            config.model,
            key,
            input_shape=shape,
            classes=classes,
            activation=config.activation,
            initialization=config.initialization,
        )
    for name in ("activation", "initialization"):
        if getattr(config, name) != getattr(TrainConfig(), name):
            raise ValueError(f"{name}={getattr(config, name)!r}: {config.model} is a network of your own")
    made = imported(config.model)(key, shape, classes)
    return models.of_module(made) if isinstance(made, nnx.Module) else Model(*made)


def loss_fn(config: TrainConfig, network: Model) -> Callable[[PyTree, Any], Float[Array, ""]]:
    """The loss of one example as configured."""
    if config.loss is None:
        return models.cross_entropy(network)
    of_output = imported(config.loss)
    return lambda params, example: of_output(network.apply(params, example[0]), example[1])


def noise(config: TrainConfig) -> schedules.Schedule | Adaptive | None:
    """sigma as configured, before any scaling to a target epsilon; None for `none`."""
    if config.schedule == "none":
        return None
    if config.schedule == "adaptive":
        start = schedules.PUBLISHED_START if config.start is None else config.start
        end = schedules.PUBLISHED_END if config.end is None else config.end
        scaled = {"start": config.scale * start, "end": config.scale * end}
        return Adaptive(epsilon=config.budget_epsilon, claim=config.claim, **scaled)
    given = {"value": config.noise_multiplier, "start": config.start, "end": config.end}
    if config.schedule == "quarter_cosine":  # which is given by its angle
        given["end"] = None
    chosen = {name: value for name, value in given.items() if value is not None}
    schedule = schedules.create(config.schedule, config.steps, **chosen)
    if config.schedule == "quarter_cosine" and config.end is not None:
        schedule = schedule.ending_at(config.end)
    return schedule if config.scale == 1 else schedules.scaled(schedule, config.scale)


def clipper(
    config: TrainConfig, params: PyTree, sigma: schedules.Schedule | Adaptive, expected_batch_size: float
) -> clipping.Clipper:
    """The clipper as configured, for parameters of this structure and this noise."""
    bound = config.l2_norm_clip
    if config.clipping.startswith("quantile"):
        largest = sigma.start if isinstance(sigma, Adaptive) else schedules.values(sigma, config.steps).max()
        default = adaptive.default_count_noise(expected_batch_size, float(largest))
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


def plan(config: TrainConfig, examples: int, params: PyTree, sampler: Sampler | None = None) -> Plan:
    """The plan as configured, its target epsilon aside."""
    if sampler is None:
        sampler = sampling.create(
            config.sampling, examples, config.sampling_rate, config.steps, config.batch_size_limit
        )
    sigma = noise(config)
    bounded = None if sigma is None else clipper(config, params, sigma, sampler.expected_batch_size)
    return Plan(
        clipper=bounded,
        noise_multiplier=sigma,
        sampler=sampler,
        steps=config.steps,
        seed=config.noise_seed,
        generator=config.generator,
    )


def resolved(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The configuration with its target epsilon turned into the scale of the schedule that spends it.

    For a run that is not private this is nominal: the scale at which the published accounting would give it.
    """
    if config.target_epsilon is None:
        return config
    config, target = config.replace(target_epsilon=None), config.target_epsilon
    wanted = plan(config, dataset.train_size, model(config, dataset).params)
    assert wanted.clipper is not None  # a target needs one
    # The charge alone decides, which of a clipper that is not private is a nominal one, as published; the count
    # noise of quantile clipping follows the scale.
    charged = dataclasses.replace(
        clipping.flat(1.0), noise_to_sensitivity=wanted.clipper.noise_to_sensitivity
    )
    calibrated = calibration.calibrate(dataclasses.replace(wanted, clipper=charged), target, config.claim)
    assert isinstance(calibrated.noise_multiplier, schedules.Parametric)
    return config.replace(scale=calibrated.noise_multiplier.factor)
