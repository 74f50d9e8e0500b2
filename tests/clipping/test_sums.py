"""Sums of clipped sums: however parts are added up, the sum is the batch's; what is no such sum is refused."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdp import clipped_gradients, clipping, schedules
from jaxdp._privatize import privatize

pytestmark = pytest.mark.default_precision

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(12, 5)), jnp.float32)
BOUND = schedules.linear(10, start=0.5, end=0.1)
CLIPPERS = {"flat": clipping.flat(BOUND), "quantile": clipping.quantile(0.5, 12.0, count_noise=4.0)}


def loss_fn(params, x):
    return jnp.sum(jnp.tanh(x @ params["w"]) ** 2)


def part(clipper, x, step=3):
    state = clipper.init(PARAMS)
    return clipped_gradients(loss_fn, clipper, microbatch_size=2)(PARAMS, x, None, state, step)[1]


def by_adding(clipper):
    a, b, c = (part(clipper, x) for x in (X[:2], X[2:8], X[8:]))
    return jax.tree.map(jnp.add, jax.tree.map(jnp.add, a, b), c)


def by_scan(clipper):
    def add(total, x):
        return jax.tree.map(jnp.add, total, part(clipper, x)), None

    zero = jax.tree.map(jnp.zeros_like, part(clipper, X[:4]))
    return jax.lax.scan(add, zero, X.reshape(3, 4, 5))[0]


def by_psum(clipper):
    summed = jax.vmap(lambda x: jax.lax.psum(part(clipper, x), "parts"), axis_name="parts")(
        X.reshape(3, 4, 5)
    )
    return jax.tree.map(lambda x: x[0], summed)


def noised(clipper, summed, step=3, compiled=True):
    transform = privatize(clipper, 2.0, 12.0, key=jax.random.key(0))
    state = transform.init(PARAMS)._replace(step=jnp.int32(step))
    update = jax.jit(transform.update) if compiled else transform.update
    return np.asarray(update(summed, state, PARAMS)[0]["w"])


@pytest.mark.parametrize("name", CLIPPERS)
@pytest.mark.parametrize("by", [by_adding, by_scan, by_psum])
def test_the_sum_of_the_parts_is_the_sum_of_the_batch(by, name):
    clipper = CLIPPERS[name]
    summed, whole = by(clipper), part(clipper, X)
    assert summed.examples == 12
    assert float(summed.sensitivity) == pytest.approx(float(whole.sensitivity), rel=1e-6)
    for compiled in (True, False):
        expected = noised(clipper, whole, compiled=compiled)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(noised(clipper, summed, compiled=compiled), expected, rtol=1e-5, atol=1e-6)


def test_parts_of_several_bounds_are_refused_though_their_mean_is_right():
    clipper = CLIPPERS["flat"]
    other = [clipping.flat(factor * float(BOUND(3))) for factor in (0.5, 1.5)]
    mixed = jax.tree.map(jnp.add, part(other[0], X[:6]), part(other[1], X[6:]))
    assert float(mixed.sensitivity) == pytest.approx(float(BOUND(3)))
    late = jax.tree.map(jnp.add, part(clipper, X[:6], 3), part(clipper, X[6:], 4))
    for summed in (mixed, late):
        assert np.isnan(noised(clipper, summed)).all()
        with pytest.raises(
            ValueError, match=r"sensitivity=.*: parts of the sum were clipped to another bound"
        ):
            noised(clipper, summed, compiled=False)


@pytest.mark.parametrize("link", [optax.scale(0.5), optax.scale_by_learning_rate(0.1)])
def test_what_scales_the_sum_before_the_noise_is_refused(link):
    clipper = CLIPPERS["flat"]
    chain = optax.chain(link, privatize(clipper, 2.0, 12.0, key=jax.random.key(0)))
    for update in (chain.update, jax.jit(chain.update)):
        with pytest.raises(ValueError, match="a ClippedSum that was scaled"):
            update(part(clipper, X, 0), chain.init(PARAMS), PARAMS)


def test_a_sum_that_does_not_say_its_bound_is_refused():
    clipper = CLIPPERS["flat"]
    with pytest.raises(ValueError, match="a ClippedSum without bounds"):
        noised(clipper, part(clipping.l2_max(), X))


_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from test_sums import CLIPPERS, PARAMS, X, clipped_gradients, loss_fn, noised, part

mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
for clipper in CLIPPERS.values():
    whole = part(clipper, X)
    for size in (None, 2, 4):
        gradient = clipped_gradients(loss_fn, clipper, microbatch_size=size)
        of_part = lambda p, x: jax.lax.psum(gradient(p, x, None, clipper.init(PARAMS), 3)[1], "devices")
        in_part = jax.shard_map(of_part, mesh=mesh, in_specs=(P(), P("devices")), out_specs=P())
        summed = jax.jit(in_part)(PARAMS, X)
        assert summed.examples == 12
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, summed.gradients, whole.gradients)
        close(noised(clipper, summed), noised(clipper, whole))
print("held")
"""


def test_parts_on_two_devices():
    """Each in its own microbatches, with JAX's check of what varies over devices."""
    here = os.path.dirname(__file__)
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
    }
    ran = subprocess.run([sys.executable, "-c", _DEVICES], env=environment, capture_output=True, text=True)
    assert ran.stdout == "held\n", ran.stderr
