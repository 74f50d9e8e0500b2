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
import math
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from tqdm import tqdm

from jaxdp import platforms
from jaxdp.attacks.attack import Attack, Inversion, fitted
from jaxdp.attacks.leaks import Leak, Victims, observations, precise
from jaxdp.attacks.public import Setting
from jaxdp.attacks.queue import Queue, split
from jaxdp.attacks.solvers.problem import rows_where
from jaxdp.gradients import convolution

_SEGMENT = 25  # ticks between two looks at which lanes are done
_FEW, _MANY = 256, 2_048  # lanes of an accelerator
_RESIDENT = 2**30  # bytes of victims' parameters that are kept on the device


class Reconstruction(NamedTuple):
    """What the attack says the inputs were; NumPy arrays, without the axis [N] if one gradient was given.

    Attributes:
      x: [N, B, *input_shape].
      labels: [N, B].
      objective: [N], of the restart kept.
      iterations: [N], ticks it took.
      restart: [N], which one was kept.
    """

    x: Float[np.ndarray, "..."]
    labels: Int[np.ndarray, "..."]
    objective: Float[np.ndarray, "..."]
    iterations: Int[np.ndarray, "..."]
    restart: Int[np.ndarray, "..."]


class _Programs(NamedTuple):
    take: Any
    load: Any
    merge: Any
    advance: Any
    finish: Any


def default_lanes(jobs: int, lane_bytes: int = 0) -> int:
    """Lanes that keep the device busy: 8 on a CPU, whose caches are small; else 256, or 2,048 for many jobs, so
    far as `lane_bytes` of each fit a quarter of the device's memory.
    """
    if platforms.resolved("auto") == "cpu":
        return 8
    fits = platforms.memory() // 4 // max(lane_bytes, 1)
    wanted = _FEW if jobs <= _FEW else _MANY
    return max(1, min(wanted, 2 ** int(math.log2(max(fits, 1)))))


def _threads(jobs: int, lanes: int) -> int:
    """How many batches of lanes run beside each other.

    A batch of small convolutions keeps little more than one core busy, so each core of a CPU gets its own.
    """
    cores = (os.cpu_count() or 1) if platforms.resolved("auto") == "cpu" else 1
    return max(1, min(cores, 8, -(-jobs // lanes)))


class CompiledOnce:
    """A jitted function that threads may share: whoever calls it first compiles, the others wait for that."""

    def __init__(self, function: Callable):
        self._function, self._lock, self._ready = function, threading.Lock(), False

    def __call__(self, *arguments: Any) -> Any:
        if self._ready:
            return self._function(*arguments)
        with self._lock:
            result = self._function(*arguments)
            self._ready = True
        return result


@functools.lru_cache(maxsize=128)
def _programs(setting: Setting, attack: Attack, own_params: bool) -> _Programs:
    """The compiled functions of one combination; victims, bounds, noise and keys are arguments."""
    lane = inversion(setting, attack)
    solver = lane.solver
    axis = 0 if own_params else None

    def load(params, observation, public, key, victim, restart):
        keys = jax.vmap(lambda v, r: jax.random.fold_in(jax.random.fold_in(key, v), r))(victim, restart)
        data, z = jax.vmap(lane.load, in_axes=(axis, 0, None, 0))(params, observation, public, keys)
        return data, jax.vmap(solver.init)(z), jnp.full(z.shape[0], jnp.inf, z.dtype)

    def tick_lane(params, data, public, state, iterations):
        return solver.tick(lane.problem(params, data, public, state.ticks / iterations), state)

    tick = jax.vmap(tick_lane, in_axes=(axis, 0, None, 0, None))

    def advance(params, data, public, state, first, idle, iterations, tolerance):
        def go(carry):
            count, state, first = carry
            new = tick(params, data, public, state, iterations)
            first = jnp.where(new.ticks == 1, new.value, first)
            spent = (new.ticks >= iterations) | (new.value < tolerance * first)
            new = new._replace(done=new.done | spent)
            return count + 1, solver.advance(state, new), first

        def busy(carry):
            count, state, _ = carry
            return (count < _SEGMENT) & ~state.done.all()

        state = state._replace(done=state.done | idle)
        if platforms.resolved("auto") == "cpu":
            return jax.lax.while_loop(busy, go, (0, state, first))[1:]
        # A device would ask the host before each tick whether all lanes are done.
        return jax.lax.fori_loop(0, _SEGMENT, lambda _, carry: go(carry), (0, state, first))[1:]

    finish = jax.vmap(lane.decode, in_axes=(0, None, 0))
    return _Programs(
        *(CompiledOnce(jax.jit(precise(function))) for function in (rows, load, rows_where, advance, finish))
    )


def _compiled_part(attack: Attack) -> Attack:
    """The attack without what is an argument of its programs, so that these are shared."""
    return dataclasses.replace(attack, iterations=1, restarts=1, tolerance=0.0, noise_aware=True)


def inversion(setting: Setting, attack: Attack) -> Inversion:
    """The attack's functions with the convolutions of the network as patches, on every device.

    Each lane has inputs, and perhaps weights, of its own: a device's convolution would be one with as many
    groups as lanes.
    """
    static = setting.static
    return Inversion(dataclasses.replace(static, loss_fn=convolution.with_patches(static.loss_fn)), attack)


def first_network(victims: Victims, leak: Leak) -> PyTree:
    """The parameters of the first victim at the first step."""
    axes = victims.own_params + (leak.window > 1)
    return jax.tree.map(lambda leaf: leaf[(0,) * axes], victims.params)


def count_victims(victims: Victims, leak: Leak) -> int:
    """The number of victims, after comparing every leaf's shape."""
    observed, params = jax.tree.leaves(victims.observed), jax.tree.leaves(victims.params)
    if jax.tree.structure(victims.observed) != jax.tree.structure(victims.params):
        raise ValueError("observed: its tree differs from the parameters' tree")
    count = observed[0].shape[0] if observed[0].ndim else 0
    for gradient, parameter in zip(observed, params, strict=True):
        expected = parameter.shape if victims.own_params else (count, *parameter.shape)
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


def invert_many(
    setting: Setting,
    attack: Attack,
    victims: Victims,
    key: Array,
    *,
    lanes: int | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Reconstructs the inputs behind the leaked gradients of N victims.

    Among restarts and iterations the attack's own objective chooses, never the truth.

    Args:
      setting: what is attacked.
      attack: how.
      victims: the observations.
      key: randomness of the starts; victim i and restart r depend on (key, i, r) alone.
      lanes: minimisations that run at once; None for what suits the device.
      progress: show a progress bar.

    Raises:
      ValueError: shapes that do not fit one another, or an attack that needs public data without any.
    """
    count = count_victims(victims, setting.leak)
    if attack.prior == "gaussian" and setting.known.prior is None:
        raise ValueError("prior='gaussian': needs public inputs (public_knowledge)")
    setting, attack = fitted(setting, attack, first_network(victims, setting.leak))
    leaked = observations(victims, setting.leak, count)
    if not attack.noise_aware:
        leaked = leaked._replace(noise_std=np.zeros_like(leaked.noise_std))
    programs = _programs(setting.static, _compiled_part(attack), victims.own_params)
    host = [jax.tree.map(np.asarray, tree) for tree in (victims.params, leaked, setting.known)]
    given = [_cast(tree, attack.float64) for tree in host]
    if lanes is None:
        one = first_network(victims, setting.leak)
        lanes = default_lanes(count * attack.restarts, _lane_bytes(one, setting, attack))
    results = _through_lanes(programs, given, key, attack, count, victims.own_params, lanes, progress)
    return _choose(results, count, attack.restarts)


def _through_lanes(programs, given, key, attack, count, own_params, lanes, progress) -> list[np.ndarray]:
    """The results of every victim and restart, in their order, column by column."""
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
    return [np.stack(column)[order] for column in columns]


def _lane_bytes(params: PyTree, setting: Setting, attack: Attack) -> int:
    """About what a lane takes: a few gradients of the network, and the solver's memory of its inputs."""
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    inputs = setting.leak.batch_size * math.prod(setting.input_shape)
    return 4 * gradient + 8 * (attack.memory + 4) * inputs


def _choose(results, count, restarts):
    """The restart with the lowest objective for each victim."""
    x, labels, objective, iterations = [array.reshape(count, restarts, *array.shape[1:]) for array in results]
    best = np.argmin(np.where(np.isfinite(objective), objective, np.inf), axis=1)
    kept = np.arange(count), best
    return Reconstruction(x[kept], labels[kept], objective[kept], iterations[kept], best)


def _run(programs, given, key, queue, *, attack, own_params, bar) -> None:
    """Every job of the queue through its lanes."""
    with _precision(attack.float64):  # a setting of the thread
        params, observations, public = given
        public = jax.device_put(public)
        weights = _on_device(params, queue.running.size if own_params else 0)
        at_hand = isinstance(jax.tree.leaves(weights)[0], jax.Array)
        take = (programs.take if at_hand else rows) if own_params else (lambda weights, victim: weights)
        batch: Any = None
        own: Any = None
        while True:
            fresh = queue.refill()
            if queue.idle.all():
                return
            if fresh.any():
                victim, restart = queue.at()
                own = take(weights, victim)
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


def _on_device(params: PyTree, lanes: int) -> PyTree:
    """Weights on the device: one network's, or of all victims, as many as a power of two times the lanes so
    that few programs are compiled; those that take more than a gigabyte stay with the host.
    """
    leaves = jax.tree.leaves(params)
    if not lanes:
        return jax.device_put(params)
    if sum(leaf.nbytes for leaf in leaves) > _RESIDENT:
        return params
    size = lanes * 2 ** max(0, math.ceil(math.log2(leaves[0].shape[0] / lanes)))
    places = np.minimum(np.arange(size), leaves[0].shape[0] - 1)
    return jax.device_put(rows(params, places))


def rows(tree: PyTree, index: Int[Array, " n"] | Int[np.ndarray, " n"]) -> PyTree:
    """The chosen rows of every array."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
