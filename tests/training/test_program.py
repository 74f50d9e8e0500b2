"""The compiled loop: in the place of the state, and on a GPU without asking whether to go on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import clipping, sampling
from jaxdp.adaptive_noise import Adaptive
from jaxdp.training.program import Program

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
CLAIM = jaxdp.Claim(delta=1e-5, adjacency="add_or_remove_one")
PARAMS = {"w": jnp.ones(4)}


def loss_fn(params, example):
    return (example @ params["w"]) ** 2


def planned(noise: object = 2.0, steps=64):
    sampler, clipper = sampling.create("poisson", 64, 0.25, steps), clipping.flat(1.0)
    if isinstance(noise, Adaptive):
        clipper = clipping.quantile(1.0, 16.0, count_noise=50.0)
    return jaxdp.Plan(clipper=clipper, noise_multiplier=noise, sampler=sampler, steps=steps, seed=1)


def program(plan, **options):
    return Program(plan=plan, loss_fn=loss_fn, optimizer=optax.adam(0.1), ema_decay=0.9, **options)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def test_in_place_and_in_chunks_are_the_loop_and_leave_nothing_behind():
    plan = planned()
    on_gpu, on_cpu, arrays = program(plan, platform="cuda"), program(plan), jnp.asarray(X)
    start = on_cpu.init(PARAMS)
    for made, platform, chunk in ((on_cpu, "cpu", 0), (on_gpu, "cuda", 32)):
        expected, _ = program(plan, platform=platform).epoch(plan, start, arrays, 64)
        used = jax.tree.map(jnp.copy, start)
        found, _ = made.advance(plan, used, arrays, (0, 64), chunk)
        assert len(made.traces) == 1 and int(found.step) == 64
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(used.params))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found.params, expected.params)


def test_a_chunk_asks_nothing_and_the_loop_asks():
    plan = planned()
    made, arrays = program(plan, platform="cuda"), jnp.asarray(X)
    state = made.init(PARAMS)
    counted = made._counted.trace(plan.schedule, state, arrays, 32).jaxpr.jaxpr
    asking = made._compiled[1].trace(plan.schedule, state, arrays, jnp.int32(32)).jaxpr.jaxpr
    assert "while" not in primitives(counted) and "while" in primitives(asking)


@pytest.mark.parametrize(
    "platform, noise, stops, chunk",
    [
        ("cuda", 2.0, [0, 100, 200, 300], 100), ("cuda", 2.0, [0, 100, 150], 50), ("tpu", 2.0, [20, 64], 44),
        ("cuda", 2.0, [0, 100, 101], 0), ("cuda", 2.0, [7], 0), ("cpu", 2.0, [0, 100], 0),
        ("cuda", Adaptive(epsilon=3.0, claim=CLAIM), [0, 100], 0),
    ],
)  # fmt: skip
def test_chunks_divide_every_pause_of_a_run_of_known_length(platform, noise, stops, chunk):
    assert program(planned(noise), platform=platform).chunk(stops) == chunk


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_what_callbacks_evaluations_and_callers_keep_is_theirs(platform):
    """Pauses every 16 steps, each state in the place of the one before."""
    plan, kept, seen = planned(), [], []

    def evaluate(params):
        seen.append(params)
        return {"first": params["w"][0]}

    made = program(plan, platform=platform)
    result = jaxdp.train(
        loss_fn, PARAMS, X, plan, made.optimizer, CLAIM, every=16, program=made, evaluate=evaluate,
        callbacks=[lambda step, params: kept.append(params["w"])],
    )  # fmt: skip
    assert len(kept) == 5 and len({np.asarray(w).tobytes() for w in kept}) == 5
    np.testing.assert_array_equal(PARAMS["w"], np.ones(4, np.float32))
    np.testing.assert_array_equal(kept[-1], result.state.params["w"])
    np.testing.assert_array_equal([params["w"][0] for params in seen[1:]], result.curves["first"])
    assert len(made.traces) == 1
