"""One training run: step, epoch, evaluation.

The data stay on the device and an epoch (any number of steps) is one compiled loop: nothing goes back to the
host inside it.  The number of the last step is an argument, so a run is compiled once whatever the length of
its epochs, and sigma is traced, so it is compiled once whatever the schedule.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdp import clipping, data, models, sampling
from jaxdp._privatize import PrivatizeState, entropy_key, privatize
from jaxdp.accounting.ledger import Filter
from jaxdp.adaptive_noise import Following
from jaxdp.clipping import clipped_gradients
from jaxdp.data import Dataset
from jaxdp.gradients import convolution
from jaxdp.sampling import Sampler
from jaxdp.schedules import Schedule
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig


class TrainState(NamedTuple):
    """All that changes during a run, and all that a checkpoint needs of it.

    Attributes:
      step: steps made.
      params: the model's parameters.
      opt_state: of the whole chain; its first part is `PrivatizeState` in a private run.
      sample_key: the secret that batches are derived from.
      overflow: whether a Poisson batch ever outgrew its places; the run must not go on then.
      follow: of an adaptive schedule, what it spent and which noise multipliers it used.
      average: exponential moving average of the parameters after each step, see `averaged`; () without one.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    sample_key: Array
    overflow: Bool[Array, ""]
    follow: PyTree = ()
    average: PyTree = ()

    @property
    def evaluated(self) -> PyTree:
        """The parameters to evaluate and to use: the average where one is kept, else those of the step."""
        return self.average if jax.tree.leaves(self.average) else self.params


class Adjustable(NamedTuple):
    """What a run may change without being compiled again: arguments of its compiled loop.

    Attributes:
      scale: factor on the noise schedule.
      learning_rate: factor on the optimizer's updates.
    """

    scale: Float[Array, ""]
    learning_rate: Float[Array, ""]


def adjustable(config: TrainConfig) -> Adjustable:
    """The arguments as configured."""
    return Adjustable(jnp.float32(config.scale), jnp.float32(config.learning_rate))


class Diagnostics(NamedTuple):
    """Of an epoch's last step, computed without noise: for the curator, covered by no epsilon.

    Attributes:
      loss: mean training loss of the batch.
      clipped: share of the batch that was scaled down; NaN without privacy.
      nonfinite: examples left out since the start, their gradient not being finite.
    """

    loss: Float[Array, ""]
    clipped: Float[Array, ""]
    nonfinite: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A configuration made into functions.

    Attributes:
      config: what it was made from.
      dataset: the data.
      model: the network with its initial parameters.
      sampler: draws the batches.
      clipper: bounds the gradients; None without privacy.
      noise_multiplier: the schedule sigma(t); None without privacy, and where it is chosen during the run.
      following: what chooses it then; None otherwise.
      init: `config -> TrainState`: initial weights from its seed, keys from its noise seed.
      step: `(state, (x, y)) -> (state, Diagnostics)`.
      epoch: `(state, (x, y), stop) -> (state, Diagnostics)`: compiled; steps until `state.step == stop`, or
        until the filter of an adaptive schedule admits no more.
      admits: `state -> bool`: whether that filter admits the next step; true without one.
      evaluate: `params -> accuracy` on the test split, compiled; of a state's `evaluated` parameters.
      traces: grows by one entry each time the step is traced.
      adjustable_step, adjustable_epoch: `step` and `epoch` before their `Adjustable`, the first argument.
    """

    config: TrainConfig
    dataset: Dataset
    model: models.Model
    sampler: Sampler
    clipper: clipping.Clipper | None
    noise_multiplier: Schedule | None
    following: Following | None
    init: Callable[[TrainConfig], TrainState]
    step: Callable[..., tuple[TrainState, Diagnostics]]
    epoch: Callable[..., tuple[TrainState, Diagnostics]]
    admits: Callable[[TrainState], Bool[Array, ""] | bool]
    evaluate: Callable[[PyTree], Float[Array, ""]]
    traces: list[int]
    adjustable_step: Callable[..., tuple[TrainState, Diagnostics]]
    adjustable_epoch: Callable[..., tuple[TrainState, Diagnostics]]

    def adjusted(self, config: TrainConfig) -> "Run":
        """The run of another configuration, with nothing compiled again.

        Args:
          config: differs at most in the seeds, the learning rate, how often it is evaluated, and the scale of a
            schedule whose clipper does not depend on it.

        Raises:
          ValueError: a configuration that needs a program of its own.
        """
        if program(config) != program(self.config):
            names = [f.name for f in dataclasses.fields(config)]
            other = [n for n in names if getattr(program(config), n) != getattr(program(self.config), n)]
            raise ValueError(f"{other[0]}={getattr(config, other[0])!r}: the run was compiled for another")
        given = adjustable(config)
        same = config.scale == self.config.scale
        return dataclasses.replace(
            self,
            config=config,
            noise_multiplier=self.noise_multiplier if same else configured.noise_schedule(config),
            step=lambda state, train: self.adjustable_step(given, state, train),
            epoch=lambda state, train, stop: self.adjustable_epoch(given, state, train, stop),
        )

    def train_arrays(self) -> tuple[Array, Array]:
        """The training split on the device, as stored: `(x, y)`."""
        return jnp.asarray(self.dataset.train_x), jnp.asarray(self.dataset.train_y)


def program(config: TrainConfig) -> TrainConfig:
    """The configuration without what needs no other program: equal ones share what is compiled."""
    fixed: dict[str, Any] = {"seed": 0, "noise_seed": None, "learning_rate": 1.0, "evaluate_every": 1}
    if not config.clipping.startswith("quantile"):  # whose noise on the count depends on the largest sigma
        fixed["scale"] = 1.0
    return dataclasses.replace(config, **fixed)


def averaged(average: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """The exponential moving average of the parameters with those after one more step.

    After n steps their weights are decay^(n - 1), ..., decay, 1, divided by their sum: the initial parameters
    have none, and no bias is left to correct (it is what `optax.ema` gives with its debiasing).

    Formal guarantee: the average is a function of the noised parameters alone, which the run's epsilon covers
    all together (post-processing), so it costs no privacy.  Without noise it protects nothing, and it hides
    nothing: whoever sees the run sees the parameters of the steps, and those are what attacks are given.

    Args:
      average: the average before, of the structure of `params`; whatever it is before the first step.
      params: the parameters after the step.
      step: the number of the step, from 0.
      decay: in (0, 1).
    """
    sum_of_weights = -jnp.expm1(math.log(decay) * (step + 1)) / (1 - decay)
    return optax.incremental_update(params, average, 1 / sum_of_weights)


def _keys(config: TrainConfig) -> tuple[Array, Array]:
    """The secrets behind the batches and behind the noise."""
    key = entropy_key() if config.noise_seed is None else jax.random.key(config.noise_seed)
    sample_key, noise_key = jax.random.split(key)
    return sample_key, noise_key


def _private_step(run_parts, sampler, clipper, sigma):
    """The optimizer, for any `Adjustable`, and the gradient function of DP-SGD."""
    loss_fn, optimizer, microbatch_size = run_parts

    def chain(given: Adjustable):
        scaled = None if sigma is None else (lambda step: given.scale * sigma(step))
        private = privatize(clipper, scaled, sampler.expected_batch_size)
        return optax.chain(private, optimizer(given.learning_rate))

    gradient = clipped_gradients(loss_fn, clipper, microbatch_size=microbatch_size)

    def gradients_of(params, opt_state, batch, mask):
        state: PrivatizeState = opt_state[0]
        return gradient(params, batch, mask, state.clip, state.step)

    def diagnostics(opt_state, losses, mask):
        state: PrivatizeState = opt_state[0]
        count = jnp.maximum(state.examples, 1)
        loss = jnp.where(mask, losses, 0).sum() / count
        return Diagnostics(loss, state.clipped / count, state.nonfinite)

    return chain, gradients_of, diagnostics


def _ordinary_step(run_parts):
    """The same for ordinary SGD: the mean gradient over the batch at hand."""
    loss_fn, optimizer, _ = run_parts
    if convolution.uses_patches("auto"):
        loss_fn = convolution.with_patches(loss_fn)

    def mean_loss(params, batch, mask):
        losses = jax.vmap(loss_fn, in_axes=(None, 0))(params, batch)
        return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1), losses

    def gradients_of(params, opt_state, batch, mask):
        grads, losses = jax.grad(mean_loss, has_aux=True)(params, batch, mask)
        return losses, grads

    def diagnostics(opt_state, losses, mask):
        loss = jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1)
        return Diagnostics(loss, jnp.float32(jnp.nan), jnp.int32(0))

    return lambda given: optimizer(given.learning_rate), gradients_of, diagnostics


def build(
    config: TrainConfig,
    *,
    dataset: Dataset | None = None,
    model: models.Model | None = None,
    sampler: Sampler | None = None,
    kept: Filter | None = None,
) -> Run:
    """Makes the functions of a run.

    Args:
      config: what to train and how; a target epsilon must have become a scale (see `jaxdp.runs`).
      dataset: the data; None loads `config.data`.
      model: a network with its initial parameters, whatever the seed; None makes the configured one.
      sampler: how batches are drawn; None makes the configured one.
      kept: of an adaptive schedule that goes on, its filter.

    Raises:
      ValueError: a configuration that cannot be run.
    """
    if config.target_epsilon is not None:
        raise ValueError(f"target_epsilon={config.target_epsilon}: resolve it first (jaxdp.runs.resolved)")
    dataset = data.load(config.data, size=config.image_size) if dataset is None else dataset
    configured.make_optimizer(config, config.learning_rate)  # or an error before anything is made
    given = model
    model = configured.make_model(config, dataset) if given is None else given
    if sampler is None:
        sampler = sampling.create(config.sampling, dataset.train_size, config.sampling_rate, config.steps)
    sigma = configured.noise_schedule(config)
    follow = configured.make_following(config, sampler.sampling_rate, kept)
    clipper = None
    if config.schedule != "none":
        clipper = configured.make_clipper(config, model.params, sigma, sampler.expected_batch_size)
    optimizer = functools.partial(configured.make_optimizer, config)
    parts = (models.cross_entropy(model), optimizer, config.microbatch_size)
    if clipper is None:
        chain, gradients_of, diagnostics = _ordinary_step(parts)
    else:
        unscaled = configured.noise_schedule(dataclasses.replace(config, scale=1.0))
        chain, gradients_of, diagnostics = _private_step(parts, sampler, clipper, unscaled)
    traces: list[int] = []

    def bound(state: TrainState) -> Float[Array, ""]:
        assert clipper is not None and clipper.sensitivity is not None
        return clipper.sensitivity(state.opt_state[0].clip, state.step)

    def admits(state: TrainState):
        return True if follow is None else follow.admits(state.follow, bound(state))

    def step(
        given: Adjustable, state: TrainState, train: tuple[Array, Array]
    ) -> tuple[TrainState, Diagnostics]:
        traces.append(1)
        drawn = sampler.draw(state.sample_key, state.step)
        batch = (dataset.to_float(train[0][drawn.indices]), train[1][drawn.indices])
        losses, grads = gradients_of(state.params, state.opt_state, batch, drawn.mask)
        followed, chosen = state.follow, {}
        if follow is not None:
            followed, chosen["noise_multiplier"] = follow.charge(followed, bound(state), state.step)
        updates, opt_state = chain(given).update(grads, state.opt_state, state.params, **chosen)
        params, average = optax.apply_updates(state.params, updates), state.average
        if config.ema_decay is not None:
            average = averaged(average, params, state.step, config.ema_decay)
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            sample_key=state.sample_key,
            overflow=state.overflow | drawn.overflow,
            follow=followed,
            average=average,
        ), diagnostics(opt_state, losses, drawn.mask)

    @jax.jit
    def epoch(given, state, train, stop):
        nothing = Diagnostics(jnp.float32(jnp.nan), jnp.float32(jnp.nan), jnp.int32(0))
        return jax.lax.while_loop(
            lambda carry: (carry[0].step < stop) & admits(carry[0]),
            lambda carry: step(given, carry[0], train),
            (state, nothing),
        )

    def init(config: TrainConfig) -> TrainState:
        params = configured.make_model(config, dataset).params if given is None else given.params
        sample_key, noise_key = _keys(config)
        opt_state: Any = chain(adjustable(config)).init(params)
        if clipper is not None:
            opt_state = (opt_state[0]._replace(key=noise_key), *opt_state[1:])
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=opt_state,
            sample_key=sample_key,
            overflow=jnp.zeros((), bool),
            follow=() if follow is None else follow.init(),
            average=() if config.ema_decay is None else params,
        )

    given_first = adjustable(config)
    return Run(
        config=config,
        dataset=dataset,
        model=model,
        sampler=sampler,
        clipper=clipper,
        noise_multiplier=sigma,
        following=follow,
        init=init,
        step=functools.partial(step, given_first),
        epoch=functools.partial(epoch, given_first),
        admits=admits,
        evaluate=evaluator(model, dataset),
        traces=traces,
        adjustable_step=step,
        adjustable_epoch=epoch,
    )


def evaluator(model: models.Model, dataset: Dataset, batch_size: int = 256):
    """Accuracy on a data set's test split, a compiled function of the parameters, a batch at a time."""
    x, y = jnp.asarray(dataset.test_x), jnp.asarray(dataset.test_y)

    @jax.jit
    def evaluate(params):
        def correct(example):
            image, label = example
            return jnp.argmax(model.apply(params, dataset.to_float(image))) == label

        return jax.lax.map(correct, (x, y), batch_size=min(batch_size, len(y))).mean()

    return evaluate


def noise_state(state: TrainState) -> PrivatizeState | None:
    """The part of the state that `privatize` owns; None in a run without privacy."""
    first = state.opt_state[0] if isinstance(state.opt_state, tuple) and state.opt_state else None
    return first if isinstance(first, PrivatizeState) else None
