"""A run as its configuration describes it, for `jaxdp.train`; and the run that a checkpoint goes on with."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxdp import data
from jaxdp.accounting import ledger
from jaxdp.adaptive_noise import Adaptive
from jaxdp.data import Dataset
from jaxdp.data.source import as_source
from jaxdp.models import Model
from jaxdp.plan import Plan
from jaxdp.sampling import Sampler
from jaxdp.training import checkpoints, placement
from jaxdp.training.config import OPTIONS, TrainConfig
from jaxdp.training.parts import loss_fn, model, noise, optimizer, plan, resolved
from jaxdp.training.program import Program, TrainState
from jaxdp.training.resume import restored
from jaxdp.training.run import Callback, TrainResult, train

# What a run that goes on must leave as it was; the rest may change, and the ledger keeps the old and the new.
FIXED = (
    *("data", "image_size", "model", "loss", "activation", "initialization"),
    *("optimizer", "learning_rate_decay", "ema_decay", "seed", "noise_seed"),
)
# Options of an argument of the program: runs that differ in nothing else share what is compiled.
_ARGUMENTS: dict[str, Any] = {"seed": 0, "noise_seed": None, "learning_rate": 1.0, "evaluate_every": 1}


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
    mesh: Mesh | str | None = None,
) -> Run:
    """Makes what a configuration describes.

    Args:
      config: what to train and how.
      dataset: the data; None loads `config.data`.
      network: a network with its initial parameters, whatever the seed; None makes the configured one.
      sampler: how batches are drawn; None makes the configured one.
      kept: of an adaptive schedule that goes on, its filter.
      mesh: the devices, see `jaxdp.train`.

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
        placement=placement.of(mesh, made.params),
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
