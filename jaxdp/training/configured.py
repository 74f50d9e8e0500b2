"""A training run as its configuration describes it: data, network, plan and optimizer, for `jaxdp.train`."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxdp import _validate, calibration, clipping, data, models, sampling, schedules
from jaxdp.accounting import ledger
from jaxdp.adaptive_noise import Adaptive
from jaxdp.clipping import adaptive
from jaxdp.data import Dataset
from jaxdp.data.source import as_source
from jaxdp.models import Model
from jaxdp.plan import Plan
from jaxdp.sampling import Sampler
from jaxdp.training import checkpoints
from jaxdp.training.config import OPTIONS, TrainConfig
from jaxdp.training.program import Program, TrainState
from jaxdp.training.resume import restored
from jaxdp.training.run import Callback, TrainResult, train

OPTIMIZERS = {
    "sgd": lambda rate: optax.sgd(rate),
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": lambda rate: optax.adam(rate),
}
DECAYS = {
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
}
# What a run that goes on must leave as it was; the rest may change, and the ledger keeps the old and the new.
FIXED = (
    *("data", "image_size", "model", "loss", "activation", "initialization"),
    *("optimizer", "learning_rate_decay", "ema_decay", "seed", "noise_seed"),
)
# Options of an argument of the program: runs that differ in nothing else share what is compiled.
_ARGUMENTS: dict[str, Any] = {"seed": 0, "noise_seed": None, "learning_rate": 1.0, "evaluate_every": 1}


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
        sampler = sampling.create(config.sampling, examples, config.sampling_rate, config.steps)
    sigma = noise(config)
    bounded = None if sigma is None else clipper(config, params, sigma, sampler.expected_batch_size)
    return Plan(
        clipper=bounded, noise_multiplier=sigma, sampler=sampler, steps=config.steps, seed=config.noise_seed
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
    # Of a clipper that is not private the number is a nominal one, as published; the count noise of quantile
    # clipping follows the scale.
    nominal = dataclasses.replace(wanted.clipper, private=True, noise_multiplier_limit=float("inf"))
    calibrated = calibration.calibrate(dataclasses.replace(wanted, clipper=nominal), target, config.claim)
    assert isinstance(calibrated.noise_multiplier, schedules.Parametric)
    return config.replace(scale=calibrated.noise_multiplier.factor)


def program_of(config: TrainConfig) -> TrainConfig:
    """The configuration without what needs no other program: equal ones share what is compiled."""
    fixed = dict(_ARGUMENTS)
    if not config.clipping.startswith("quantile"):  # whose noise on the count depends on the largest sigma
        fixed["scale"] = 1.0
    return config.replace(**fixed)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A configuration made into what `jaxdp.train` takes.

    Attributes:
      config: what it was made from, its target epsilon resolved.
      target_epsilon: the one that was asked for.
      dataset: the data.
      model: the network with its initial parameters.
      program: plan, loss and optimizer, compiled once.
      plan: of this configuration.
      evaluate: `params -> {"test_accuracy": share}` on the test split, compiled.
    """

    config: TrainConfig
    target_epsilon: float | None
    dataset: Dataset
    model: Model
    program: Program
    plan: Plan
    evaluate: Callable[[PyTree], dict[str, Array]]
    given_model: bool = False

    def adjusted(self, config: TrainConfig) -> "Run":
        """The run of another configuration, with nothing compiled again.

        Args:
          config: differs at most in the seeds, the learning rate, how often it is evaluated, and the scale of a
            schedule whose clipper does not depend on it.

        Raises:
          ValueError: a configuration that needs a program of its own.
        """
        mine, other = program_of(self.config).options(), program_of(config).options()
        for name in OPTIONS:
            if mine[name] != other[name]:
                raise ValueError(f"{name}={other[name]!r}: the run was compiled for another")
        changed = dataclasses.replace(self.plan, noise_multiplier=noise(config), seed=config.noise_seed)
        network = self.model if self.given_model else model(config, self.dataset)
        return dataclasses.replace(
            self, config=config, plan=changed, model=self.model._replace(params=network.params)
        )

    def init(self) -> TrainState:
        """The state at the start."""
        return dataclasses.replace(self.program, optimizer=optimizer(self.config)).init(
            self.model.params, self.plan
        )

    @property
    def arrays(self) -> tuple[Array, Array]:
        """The training split on the device, as stored: `(x, y)`."""
        return jnp.asarray(self.dataset.train_x), jnp.asarray(self.dataset.train_y)

    def step(self, state: TrainState, arrays: PyTree) -> TrainState:
        """One step; traceable."""
        return self.program.step(self.plan, state, arrays)[0]

    def epoch(self, state: TrainState, arrays: PyTree, stop: Any) -> TrainState:
        """Steps until `state.step == stop`, compiled."""
        return self.program.epoch(self.plan, state, arrays, stop)[0]

    def train(
        self,
        *,
        folder: str | pathlib.Path | None = None,
        resume: bool = False,
        callbacks: tuple[Callback, ...] = (),
        progress: bool = False,
    ) -> TrainResult:
        """Trains; options as of `jaxdp.train`.

        Raises:
          ValueError: as `jaxdp.train`, and a run in `folder` that was begun with other settings of `FIXED`.
        """
        config = self.config
        if folder is not None and resume and checkpoints.latest_step(folder) is not None:
            self._check_goes_on(folder)
        adaptive = self.plan.policy is not None
        return train(
            self.program.loss_fn,
            self.model.params,
            self.dataset,
            self.plan,
            optimizer(config),
            config.claim,
            budget=None if adaptive else config.budget_epsilon,
            evaluate=self.evaluate,
            callbacks=callbacks,
            every=config.evaluate_every,
            diagnostics=config.diagnostics,
            document={"config": config.options()},
            program=self.program,
            folder=folder,
            resume=resume,
            progress=progress,
        )

    def _check_goes_on(self, folder: str | pathlib.Path) -> None:
        before = going_on(folder)
        for name in FIXED:
            was, wanted = getattr(before, name), getattr(self.config, name)
            if was != wanted:
                raise ValueError(f"{name}={wanted!r}: the run was begun with {name}={was!r}")
        if self.target_epsilon is not None and self.config.scale != before.scale:
            raise ValueError(
                f"target_epsilon={self.target_epsilon}: for a run as a whole, and this one began with other "
                "noise; give scale and budget_epsilon"
            )


def build(
    config: TrainConfig,
    *,
    dataset: Dataset | None = None,
    network: Model | None = None,
    sampler: Sampler | None = None,
    kept: ledger.Filter | None = None,
) -> Run:
    """Makes what a configuration describes.

    Args:
      config: what to train and how.
      dataset: the data; None loads `config.data`.
      network: a network with its initial parameters, whatever the seed; None makes the configured one.
      sampler: how batches are drawn; None makes the configured one.
      kept: of an adaptive schedule that goes on, its filter.

    Raises:
      ValueError: a configuration that cannot be run.
    """
    update = optimizer(config)  # or an error before anything is made
    dataset = data.load(config.data, size=config.image_size) if dataset is None else dataset
    target, config = config.target_epsilon, resolved(config, dataset)
    made = model(config, dataset) if network is None else network
    wanted = plan(config, dataset.train_size, made.params, sampler)
    if kept is not None and isinstance(wanted.noise_multiplier, Adaptive):
        adaptive_noise = dataclasses.replace(wanted.noise_multiplier, kept=kept)
        wanted = dataclasses.replace(wanted, noise_multiplier=adaptive_noise)
    program = Program(
        plan=wanted,
        loss_fn=loss_fn(config, made),
        optimizer=update,
        decode=as_source(dataset).decode,
        ema_decay=config.ema_decay,
        microbatch_size=config.microbatch_size,
    )
    return Run(
        config=config,
        target_epsilon=target,
        dataset=dataset,
        model=made,
        program=program,
        plan=wanted,
        evaluate=evaluator(made, dataset),
        given_model=network is not None,
    )


def evaluator(
    network: Model, dataset: Dataset, batch_size: int = 256
) -> Callable[[PyTree], dict[str, Array]]:
    """Accuracy on a data set's test split, a compiled function of the parameters, a batch at a time."""
    x, y = jnp.asarray(dataset.test_x), jnp.asarray(dataset.test_y)

    @jax.jit
    def evaluate(params, x, y):
        def correct(example):
            image, label = example
            return jnp.argmax(network.apply(params, dataset.to_float(image))) == label

        return jax.lax.map(correct, (x, y), batch_size=min(batch_size, len(y))).mean()

    return lambda params: {"test_accuracy": evaluate(params, x, y)}


def going_on(folder: str | pathlib.Path) -> TrainConfig:
    """The configuration of the run whose checkpoints are in a folder.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a damaged one, or of an older version.
    """
    return _config(checkpoints.restore(folder).document, folder)


def _config(document: dict[str, Any], folder: str | pathlib.Path) -> TrainConfig:
    options = document.get("config")
    if not isinstance(options, dict) or "run" not in document:
        raise ValueError(
            f"checkpoint={str(folder)!r}: was written by an older version, or not by jaxdp train"
        )
    return TrainConfig.of(**options)


def from_checkpoint(folder: str | pathlib.Path) -> tuple[Run, TrainState, ledger.Ledger]:
    """The run, state and privacy spent of the newest checkpoint in a folder."""
    document = checkpoints.restore(folder).document
    spent = ledger.from_json(document["ledger"])
    run = build(_config(document, folder), kept=spent.filter)
    return run, restored(pathlib.Path(folder), run.init()).state, spent
