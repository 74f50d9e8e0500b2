"""Examples made to be noticed, and a small model in which each has a place of its own.

The worst example for a clipped and noised sum is one that contributes as much as it may, in a direction in
which nothing else does.  The model here has four tensors whose first axis is a list of slots, and a canary is
an input that is large in its own slot and zero elsewhere: its gradient has the full allowed norm in every
tensor, and gradients of different canaries are orthogonal in every tensor, so that no clipping (flat, per
layer, automatic) shrinks it and many canaries share a run without disturbing each other.

The four tensors take the four ways that `jaxdp.gradients` treats a leaf: a product of one position, a product
of several (Gram norm), a dense one and a gathered one.  Canaries have constant logits whatever the parameters
are, so their gradient is the same at every step; the other examples train.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxdp import gradients, models, noise
from jaxdp._privatize import privatize_state
from jaxdp.data import Dataset
from jaxdp.sampling import Sampler
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig
from jaxdp.training.configured import Run
from jaxdp.training.program import TrainState

_CLASSES = 4
_BACKGROUND_SLOTS = 4  # and one more, that stays empty
MAGNITUDE = 1e4  # of a canary's input: far above every clip bound, far below where float32 squares overflow

# What an absent canary is, by adjacency: left out of every batch, or there with another input.
_ABSENT_INPUT = {"add_or_remove_one": 0.0, "zero_out": 0.0, "replace_one": -1.0}


class Observation(NamedTuple):
    """What the auditor keeps of a run's output, for every step.

    Attributes:
      along: [steps, canaries], the noised sum along each canary's contribution, in units of that
        contribution: 1 where the canary was there and 0 where not, plus noise.
      by_tensor: [steps, canaries, tensors], the same within each tensor of the parameters.
      energy: [steps], the mean square of the noised sum over the coordinates.
      slot: [steps, coordinates], the noised sum in the first canary's slot, in units of the length of its
        contribution.
      noise: [steps, coordinates], the noised sum in the slot that no example touches, in units of the clipper's
        noise scale: the gradient's sigma times a standard normal, if the noise is what is claimed.
      grid: [steps], the step of the public grid that noise is released on, in units of its deviation.
      released: [steps, numbers], the clipper's state after the step: what it makes public beside the sum.
    """

    along: Float[Array, "steps m"]
    by_tensor: Float[Array, "steps m tensors"]
    energy: Float[Array, " steps"]
    slot: Float[Array, "steps coordinates"]
    noise: Float[Array, "steps coordinates"]
    grid: Float[Array, " steps"]
    released: Float[Array, "steps numbers"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A training run with canaries in its data.

    Attributes:
      config: the run.
      canaries: their number m: the first rows of the data.
      run: the run with all of them.
      observe: `(key, present [m]) -> Observation`: one whole run of its steps, from batches and noise of
        that key, with the canaries that are present.  Traceable.
    """

    config: TrainConfig
    canaries: int
    run: Run
    observe: Callable[[Array, Bool[Array, " m"]], Observation]


def classifier(canaries: int, slots: int) -> models.Model:
    """The model: logits from four tensors; inputs in the first `canaries` slots give zero."""
    weights = jnp.asarray([1.0, 0.5])  # of the positions of the sequence
    direction = jnp.linspace(-1.0, 1.0, _CLASSES)
    params = {name: jnp.zeros((slots, _CLASSES)) for name in ("kernel", "sequence", "table")}
    params["scale"] = jnp.zeros(slots)

    def one(params, x):
        positions = (weights[:, None] * x[None, :]) @ params["sequence"]
        gathered = params["table"][jnp.argmax(jnp.abs(x))] * jnp.sum(x)
        once = (x[None, :] @ params["kernel"])[0]
        logits = once + weights @ positions + jnp.sum(x * params["scale"]) * direction + gathered
        constant = logits - jax.lax.stop_gradient(logits)
        return jnp.where(jnp.any(x[:canaries] != 0), constant, logits)

    batched = jax.vmap(one, in_axes=(None, 0))
    return models.Model(lambda params, x: (one if x.ndim == 1 else batched)(params, x), params)


def _dataset(canaries: int, slots: int, background: int, opposed: int) -> Dataset:
    """Canaries first (padding repeats row 0), then examples against them, then ordinary ones.

    The last slot stays empty.
    """
    rng = np.random.default_rng(0)  # public: the auditor knows all of it
    x = np.zeros((canaries + opposed + background, slots), np.float32)
    x[np.arange(canaries), np.arange(canaries)] = 1
    x[canaries : canaries + opposed, 0] = -1
    x[canaries + opposed :, canaries:-1] = rng.normal(size=(background, slots - canaries - 1))
    y = np.zeros(len(x), np.int32)
    y[canaries + opposed :] = rng.integers(0, _CLASSES, background)
    return Dataset(
        name="canaries", train_x=x, train_y=y, test_x=x[-1:], test_y=y[-1:],
        classes=tuple(map(str, range(_CLASSES))), preprocessing="none",
    )  # fmt: skip


def _only(sampler: Sampler, rows: Bool[Array, " n"]) -> Sampler:
    """The sampler over a part of the data: what it draws of the rest does not count."""

    def draw(key, step):
        drawn = sampler.draw(key, step)
        return drawn._replace(mask=drawn.mask & rows[drawn.indices])

    return dataclasses.replace(sampler, draw=draw)


def _slots_first(tree: PyTree) -> list[Float[Array, "slots width"]]:
    """Each leaf of a tree like the parameters as a matrix, a row a slot."""
    return [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]


def subject(
    config: TrainConfig,
    *,
    canaries: int = 1,
    background: int = 6,
    opposed: int = 0,
    magnitude: float = MAGNITUDE,
) -> Subject:
    """A run to audit, on the small model of this module.

    Args:
      config: the run: clipping, schedules, sampling, steps and adjacency count; data and model do not.
      canaries: number m of canaries.
      background: number of ordinary examples.
      opposed: number of further examples whose gradient points against the first canary's, half as long: with
        the canary an unclipped sum points one way, without it the other.
      magnitude: of the canaries' inputs; NaN for canaries whose gradient is not a number.

    Raises:
      ValueError: shuffled batches under add_or_remove_one, where leaving a row out is not removing it.
    """
    if config.sampling == "shuffled" and config.adjacency == "add_or_remove_one":
        raise ValueError("sampling='shuffled': audit it under zero_out or replace_one")
    config = config.replace(optimizer="sgd", learning_rate=1.0, learning_rate_decay=None)
    slots = canaries + _BACKGROUND_SLOTS + 1
    dataset = _dataset(canaries, slots, background, opposed)
    model = classifier(canaries, slots)
    run = configured.build(config, dataset=dataset, network=model)
    start = run.init()
    reference = _reference(run, slots)
    sizes = np.where(np.arange(len(dataset.train_x)) < canaries, magnitude, 1.0).astype(np.float32)
    sizes[canaries : canaries + opposed] = MAGNITUDE / 2
    labels = jnp.asarray(dataset.train_y)

    def observe(key, present):
        rows = jnp.concatenate([present, jnp.ones(len(sizes) - canaries, bool)])
        inputs = jnp.where(rows, 1.0, _ABSENT_INPUT[config.adjacency])[:, None] * dataset.train_x
        x = jnp.where(dataset.train_x != 0, inputs * sizes[:, None], 0.0)
        sampler = run.plan.batches
        if config.adjacency == "add_or_remove_one":
            sampler = _only(sampler, rows)
        audited = configured.build(config, dataset=dataset, network=model, sampler=sampler)
        secret = noise.secret(key)
        first = start.with_private(privatize_state(start.opt_state)._replace(key=secret))
        first = first._replace(sample_key=secret)

        def step(state, _):
            after = audited.step(state, (x, labels))
            return after, _observed(run, reference, canaries, state, after)

        return jax.lax.scan(step, first, None, length=config.steps)[1]

    return Subject(config=config, canaries=canaries, run=run, observe=observe)


def _observed(run: Run, reference, canaries: int, before: TrainState, after: TrainState) -> Observation:
    """What the auditor keeps of one step: of the noised sum, and of what the clipper has released."""
    clipper, private = run.plan.clipper, privatize_state(before.opt_state)
    assert clipper is not None
    size = run.plan.expected_batch_size
    released = jax.tree.map(lambda a, b: size * (a - b), before.params, after.params)
    noised, contribution = _slots_first(released), reference(private.clip, private.step)
    products = jnp.stack([n[:canaries] @ c for n, c in zip(noised, contribution, strict=True)], axis=1)
    squares = jnp.stack([c @ c for c in contribution])
    sensitivity = jnp.sqrt(squares.sum())
    public = jax.tree.leaves(privatize_state(after.opt_state).clip)
    clipper, schedule = run.plan.clipper, run.plan.schedule
    assert clipper is not None and schedule is not None
    scale = sensitivity * clipper.noise_to_sensitivity
    std = scale * clipper.gradient_noise(schedule(before.step))
    return Observation(
        along=products.sum(axis=1) / squares.sum(),
        by_tensor=products / squares[None],
        energy=sum((jnp.sum(n**2) for n in noised), jnp.zeros(())) / sum(n.size for n in noised),
        slot=jnp.concatenate([n[0] for n in noised]) / sensitivity,
        noise=jnp.concatenate([n[-1] for n in noised]) / scale,
        grid=noise.grid_step(std) / std,
        # never empty, which lax.map does not take in chunks
        released=jnp.concatenate([jnp.zeros(1), *map(jnp.ravel, public)]),
    )


def _reference(run: Run, slots: int):
    """What a canary adds to its slot of each tensor, by the clipper: `(clip_state, step) -> [[width]]`."""
    clipper = run.plan.clipper
    assert clipper is not None
    canary = jnp.zeros((1, slots)).at[0, 0].set(MAGNITUDE), jnp.zeros(1, jnp.int32)
    per_example = gradients.per_example(models.cross_entropy(run.model))
    _, grads = per_example(run.model.params, canary)

    def contribution(clip_state, step):
        summed = clipper.clip(grads, clip_state, step, jnp.ones(1, bool))
        return [rows[0] for rows in _slots_first(summed.gradients)]

    return contribution


@functools.partial(jax.jit, static_argnames=("observe", "chunk"))
def _all(observe, keys, present, chunk):
    return jax.lax.map(lambda key: observe(key, present), keys, batch_size=chunk)


def draws(
    subject: Subject, key: Array, present: Bool[np.ndarray, " m"], number: int, chunk: int = 2048
) -> Observation:
    """Independent runs with the same canaries present, in one compiled call: NumPy arrays [number, ...]."""
    chunk = min(chunk, number)
    whole = -(-number // chunk) * chunk  # a remainder would be compiled once more
    found = _all(subject.observe, jax.random.split(key, whole), present, chunk)
    return jax.tree.map(lambda array: np.asarray(array)[:number], found)
