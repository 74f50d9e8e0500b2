"""Runs one attack on any number of victims and restarts: a fixed number of lanes, refilled as they finish.

Lanes advance together in one compiled loop; a lane that has converged takes the next job at the next
segment, so that easy victims do not wait for hard ones.  The number of lanes is fixed whatever the number of
victims: memory is bounded, nothing is compiled for another number, and the same victim meets the same
program, bit for bit, alone or among thousands.  On a CPU each core drives a batch of lanes of its own.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from tqdm import tqdm

from jaxdp.attacks import priors
from jaxdp.attacks.attack import Attack, Inversion, inversion
from jaxdp.attacks.given import Observation, Public
from jaxdp.attacks.jobs import CompiledOnce, Queue, split
from jaxdp.attacks.leaks import Leak, Loss
from jaxdp.gradients import convolution

_SEGMENT = 25  # ticks between two looks at which lanes are done


class Victims(NamedTuple):
    """What leaked of N victims.

    Attributes:
      params: parameters at the leak, shared by all victims, or with a leading axis [N] (see `invert`);
        with `window` > 1 each leaf has an axis [T] (after [N]).
      observed: the leaked gradients, [N, ...].
      noise_std: noise per coordinate as the attacker knows it: scalar, [N], or [N, T].
      bound: clip bound C: scalar or [N].
      learning_rate: of local steps: scalar or [N].
      labels: [N, B], only for `labels="known"`.
    """

    params: PyTree
    observed: PyTree
    noise_std: Any = 0.0
    bound: Any = 1.0
    learning_rate: Any = 0.1
    labels: Any = None


class Reconstruction(NamedTuple):
    """What the attack says the inputs were; NumPy arrays.

    Attributes:
      x: [N, B, *input_shape].
      labels: [N, B].
      objective: [N], of the restart kept.
      iterations: [N], ticks it took.
      restart: [N], which one was kept.
    """

    x: Float[np.ndarray, "n b ..."]
    labels: Int[np.ndarray, "n b"]
    objective: Float[np.ndarray, " n"]
    iterations: Int[np.ndarray, " n"]
    restart: Int[np.ndarray, " n"]


class _Programs(NamedTuple):
    load: Any
    merge: Any
    advance: Any
    finish: Any


def default_lanes() -> int:
    """Lanes that keep the device busy: few on a CPU, whose caches are small."""
    return 8 if jax.default_backend() == "cpu" else 256


def _threads(jobs: int, lanes: int) -> int:
    """How many batches of lanes run beside each other.

    A batch of small convolutions keeps little more than one core busy, so each core of a CPU gets its own.
    """
    cores = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    return max(1, min(cores, 8, -(-jobs // lanes)))


@functools.lru_cache(maxsize=128)
def _programs(
    loss_fn: Loss, leak: Leak, attack: Attack, input_shape: tuple[int, ...], classes: int, own_params: bool
) -> _Programs:
    """The compiled functions of one combination; victims, bounds, noise and keys are arguments."""
    if convolution.uses_patches("auto"):
        loss_fn = convolution.with_patches(loss_fn)
    lane: Inversion = inversion(loss_fn, leak, attack, input_shape, classes)
    axis = 0 if own_params else None

    def load(params, observation, public, key, victim, restart):
        keys = jax.vmap(lambda v, r: jax.random.fold_in(jax.random.fold_in(key, v), r))(victim, restart)
        data, z = jax.vmap(lane.load, in_axes=(axis, 0, None, 0))(params, observation, public, keys)
        return data, jax.vmap(lane.solver.init)(z), jnp.full(z.shape[0], jnp.inf, z.dtype)

    def tick_lane(params, data, public, state, iterations):
        return lane.solver.tick(lane.problem(params, data, public, state.ticks / iterations), state)

    tick = jax.vmap(tick_lane, in_axes=(axis, 0, None, 0, None))

    def advance(params, data, public, state, first, idle, iterations, tolerance):
        def go(carry):
            count, state, first = carry
            new = tick(params, data, public, state, iterations)
            first = jnp.where(new.ticks == 1, new.value, first)
            spent = (new.ticks >= iterations) | (new.value < tolerance * first)
            new = new._replace(done=new.done | spent)
            return count + 1, _where(~state.done, new, state), first

        def busy(carry):
            count, state, _ = carry
            return (count < _SEGMENT) & ~state.done.all()

        state = state._replace(done=state.done | idle)
        return jax.lax.while_loop(busy, go, (0, state, first))[1:]

    finish = jax.vmap(lane.decode, in_axes=(0, None, 0))
    return _Programs(*(CompiledOnce(jax.jit(function)) for function in (load, _where, advance, finish)))


def _compiled_part(attack: Attack) -> Attack:
    """The attack without what is an argument of its programs, so that these are shared."""
    return dataclasses.replace(attack, iterations=1, restarts=1, tolerance=0.0, noise_aware=True)


def _where(mask, new, old):
    """New rows where the mask holds, old ones elsewhere."""

    def choose(new, old):
        return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new, old)


def grey(input_shape: tuple[int, ...]) -> Public:
    """What an attacker without public data assumes: grey."""
    x = jnp.full(input_shape, 0.5)
    return Public(x[None], jnp.full(1, -1, jnp.int32), x, None)


def public_knowledge(
    x: Float[np.ndarray, "m ..."] | Array,
    y: np.ndarray | Array,
    *,
    classes: int = 10,
    templates: int = 64,
    class_prior: bool = False,
) -> Public:
    """Public examples as the attacker uses them.

    Of images the box is [0, 1]; of tabular rows it is the range that each feature has among the public ones,
    widened by half of it to either side, since victims may lie outside.

    Args:
      x: public inputs, images [m, height, width, channels] in [0, 1] or rows [m, features]; disjoint from
        every victim.
      y: their labels [m].
      classes: number of labels.
      templates: how many of them serve as label templates.
      class_prior: whether the Gaussian prior has one mean a class.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y, np.int32)
    prior = priors.gaussian(x, y if class_prior else None, classes=classes)
    few = slice(0, templates)
    box = (0.0, 1.0)
    if x.ndim == 2:
        low, high = x.min(0), x.max(0)
        box = (jnp.asarray(1.5 * low - 0.5 * high), jnp.asarray(1.5 * high - 0.5 * low))
    return Public(jnp.asarray(x[few]), jnp.asarray(y[few]), jnp.asarray(x.mean(0)), prior, *box)


def observations(victims: Victims, leak: Leak, count: int) -> Observation:
    """The victims' observations as host arrays, every field with a leading [N]."""
    std = np.asarray(victims.noise_std, np.float32)
    std = np.broadcast_to(std[:, None] if std.ndim == 1 else std, (count, leak.window))
    scalar = lambda value: np.broadcast_to(np.asarray(value, np.float32), (count,))  # noqa: E731
    labels = victims.labels if victims.labels is not None else np.zeros((count, leak.batch_size), np.int32)
    labels = np.asarray(labels, np.int32)
    if labels.shape != (count, leak.batch_size):
        raise ValueError(f"labels of shape {labels.shape}: needs [{count}, {leak.batch_size}]")
    observed = jax.tree.map(np.asarray, victims.observed)
    return Observation(observed, std, scalar(victims.bound), scalar(victims.learning_rate), labels)


def _check(victims: Victims, leak: Leak, own_params: bool) -> int:
    """The number of victims, after comparing every leaf's shape."""
    observed, params = jax.tree.leaves(victims.observed), jax.tree.leaves(victims.params)
    if jax.tree.structure(victims.observed) != jax.tree.structure(victims.params):
        raise ValueError("observed: its tree differs from the parameters' tree")
    count = observed[0].shape[0] if observed[0].ndim else 0
    for gradient, parameter in zip(observed, params, strict=True):
        expected = parameter.shape if own_params else (count, *parameter.shape)
        if gradient.shape != expected:
            raise ValueError(
                f"observed has a leaf of shape {gradient.shape}: needs {expected}, [N, *parameter]"
            )
        if leak.window > 1 and gradient.shape[1:2] != (leak.window,):
            raise ValueError(f"window={leak.window}: a leaf of shape {gradient.shape} has no such axis")
    return count


def _precision(float64: bool):
    return jax.enable_x64(True) if float64 else contextlib.nullcontext()


def _cast(tree, float64):
    """Floating leaves in the attack's precision."""
    dtype = np.float64 if float64 else np.float32
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf, tree
    )


def invert(
    loss_fn: Loss,
    leak: Leak,
    attack: Attack,
    victims: Victims,
    key: Array,
    *,
    input_shape: tuple[int, ...],
    classes: int = 10,
    public: Public | None = None,
    own_params: bool = False,
    lanes: int | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Reconstructs the inputs behind leaked gradients.

    Among restarts and iterations the attack's own objective chooses, never the truth.

    Args:
      loss_fn: `(params, (x, y)) -> scalar` for one example; the same function object again means no
        second compilation.
      leak: what leaked.
      attack: how to attack it.
      victims: the observations.
      key: randomness of the starts; victim i and restart r depend on (key, i, r) alone.
      input_shape: shape of one input.
      classes: number of labels.
      public: the attacker's public data; None for none.
      own_params: whether each victim has parameters of its own (a leading axis [N]).
      lanes: minimisations that run at once; None for what suits the device.
      progress: show a progress bar.

    Raises:
      ValueError: shapes that do not fit one another, or an attack that needs public data without any.
    """
    count = _check(victims, leak, own_params)
    if attack.prior == "gaussian" and (public is None or public.prior is None):
        raise ValueError("prior='gaussian': needs public inputs (public_knowledge)")
    public = grey(input_shape) if public is None else public
    if public.mean.shape != tuple(input_shape):
        raise ValueError(
            f"public inputs of shape {public.mean.shape}: needs input_shape={tuple(input_shape)}"
        )
    leaked = observations(victims, leak, count)
    if not attack.noise_aware:
        leaked = leaked._replace(noise_std=np.zeros_like(leaked.noise_std))
    programs = _programs(loss_fn, leak, _compiled_part(attack), tuple(input_shape), classes, own_params)
    host = [jax.tree.map(np.asarray, tree) for tree in (victims.params, leaked, public)]
    given = [_cast(tree, attack.float64) for tree in host]
    lanes = lanes or default_lanes()
    total = count * attack.restarts
    queues = [Queue(jobs, lanes) for jobs in split(count, attack.restarts, _threads(total, lanes))]
    with tqdm(total=total, unit="attack", disable=not progress) as bar:
        work = functools.partial(_run, programs, given, key, attack=attack, own_params=own_params, bar=bar)
        if len(queues) == 1:
            work(queues[0])
        else:
            with concurrent.futures.ThreadPoolExecutor(len(queues)) as pool:
                list(pool.map(work, queues))
    order = np.argsort(np.concatenate([queue.jobs @ (attack.restarts, 1) for queue in queues]))
    columns = zip(*(result for queue in queues for result in queue.results), strict=True)
    return _choose([np.stack(column)[order] for column in columns], count, attack.restarts)


def _choose(results, count, restarts):
    """The restart with the lowest objective for each victim."""
    x, labels, objective, iterations = [array.reshape(count, restarts, *array.shape[1:]) for array in results]
    best = np.argmin(np.where(np.isfinite(objective), objective, np.inf), axis=1)
    rows = np.arange(count)
    return Reconstruction(
        x[rows, best], labels[rows, best], objective[rows, best], iterations[rows, best], best
    )


def _run(programs, given, key, queue, *, attack, own_params, bar) -> None:
    """Every job of the queue through its lanes."""
    with _precision(attack.float64):  # a setting of the thread
        params, observations, public = given
        public, own = jax.device_put(public), jax.device_put(None if own_params else params)
        batch: Any = None
        while True:
            fresh = queue.refill()
            if queue.idle.all():
                return
            if fresh.any():
                victim, restart = queue.at()
                own = rows(params, victim) if own_params else own
                new = programs.load(own, rows(observations, victim), public, key, victim, restart)
                batch = new if batch is None else programs.merge(fresh, new, batch)
            data, state, first = batch
            state, first = programs.advance(
                own, data, public, state, first, queue.idle, attack.iterations, attack.tolerance
            )
            batch = data, state, first
            done = np.asarray(state.done) & ~queue.idle
            if done.any():
                found = programs.finish(data, public, state.z)
                queue.finish(done, [np.asarray(c) for c in (*found, state.value, state.ticks)])
                bar.update(int(done.sum()))


def rows(tree: PyTree, index: np.ndarray) -> PyTree:
    """The chosen rows of host arrays."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
