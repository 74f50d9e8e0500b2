"""A batch that is spread over devices: each clips what it holds, and the sum is that of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_devices import run

from jaxdp import clipped_gradients, clipping
from jaxdp.gradients import microbatches

_SETTING = """
import functools, re
import jax, jax.numpy as jnp, numpy as np, pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxdp import clipped_gradients, clipping

rng = np.random.default_rng(0)
PARAMS = {"a": jnp.asarray(rng.normal(size=(12, 16)), jnp.float32), "b": jnp.zeros(16)}
X, MASK = jnp.asarray(rng.normal(size=(64, 12)), jnp.float32), jnp.arange(64) % 5 > 0
CLIPPER = clipping.quantile(0.5, 12.0, count_noise=4.0)

def loss_fn(params, example):
    x, key = example
    return jnp.sum(jnp.tanh(x @ params["a"] + params["b"]) ** 2) * jax.random.uniform(key)

BATCH = (X, jax.random.split(jax.random.key(0), 64))
def summed(params, batch, mask, size=8, axes=None):
    gradient = clipped_gradients(loss_fn, CLIPPER, microbatch_size=size, batch_axes=axes)
    return gradient(params, batch, mask, CLIPPER.init(PARAMS), 3)
WHOLE = jax.jit(summed)(PARAMS, BATCH, MASK)

def is_the_whole(found):
    (losses, got), (expected, whole) = found, WHOLE
    assert got.examples == whole.examples == 51 and got.clipped == whole.clipped
    assert abs(got.sensitivity / whole.sensitivity - 1) < 1e-6 and bool(got.bounds.all_are(whole.sensitivity))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got.gradients, whole.gradients)
    close(np.where(MASK, losses, 0), np.where(MASK, expected, 0))

def text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()
"""

_EACH_ITS_OWN = (
    _SETTING
    + """
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    placed = jax.device_put((BATCH, MASK), NamedSharding(mesh, P("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    for size in (None, 3, 8, "auto"):
        function = functools.partial(summed, size=size)
        is_the_whole(jax.jit(function)(params, *placed))
        program = text(function, params, *placed)
        assert not re.search("all-gather|all-to-all|collective-permute", program)
        outside = [part for part in program.split("\\n\\n") if "all-reduce(" in part]
        assert len(outside) == 1 and outside[0].lstrip().startswith("ENTRY")  # behind the loop, in none
    if kind == AxisType.Auto:
        is_the_whole(summed(params, *placed))  # not compiled
print("held")
"""
)


def test_each_device_clips_what_it_holds_and_one_sum_goes_over_the_devices():
    assert run(_EACH_ITS_OWN) == "held\n"


_OTHER_MESHES = (
    _SETTING
    + """
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
on = lambda *spec: NamedSharding(mesh, P(*spec))
split = {"a": on(None, "model"), "b": on("model")}
rows = jax.device_put((BATCH, MASK), on("data"))
params = jax.device_put(PARAMS, split)
for axes in (None, "data", ("data", "model"), ()):
    function = functools.partial(summed, axes=axes)
    is_the_whole(jax.jit(function)(params, *rows))
for axes in (None, "data"):  # parameters stay as they are: nothing of their size is gathered
    program = text(functools.partial(summed, axes=axes), params, *rows)
    assert not re.search(r"f32\\[12,16\\][^=]* all-gather", program)
both = jax.device_put((BATCH, MASK), on(("data", "model")))
for axes in (None, ("data", "model"), ()):
    is_the_whole(jax.jit(functools.partial(summed, axes=axes))(PARAMS, *both))
with pytest.raises(ValueError, match=r"batch_axes=\\('batch',\\): the mesh has data, model"):
    summed(params, *rows, axes="batch")

# Parameters split as the examples are: gathered, and never clipped by their parts.
row = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split = jax.device_put(PARAMS, NamedSharding(row, P("data")))
placed = jax.device_put((BATCH, MASK), NamedSharding(row, P("data")))
for axes in (None, ()):
    is_the_whole(jax.jit(functools.partial(summed, axes=axes))(split, *placed))

# In a shard_map of the caller's.
one = lambda params, batch, mask: jax.lax.psum(summed(params, batch, mask)[1], "data")
mapped = jax.shard_map(one, mesh=row, in_specs=(P(), P("data"), P("data")), out_specs=P())
got = jax.jit(mapped)(PARAMS, *placed)
is_the_whole((WHOLE[0], got))
print("held")
"""
)


def test_meshes_with_other_axes_and_a_shard_map_of_the_callers():
    assert run(_OTHER_MESHES) == "held\n"


def linear_loss(params, x):
    return jnp.sum(x @ params["w"])


def places_computed(places: int, count: int, size) -> int:
    """How many rows' losses a padded batch computes: those of skipped pieces are 0, and no other is."""
    x, mask = jnp.ones((places, 4)), jnp.arange(places) < count
    gradient = clipped_gradients(
        linear_loss, clipping.flat(1.0), microbatch_size=size, platform="cpu", poisson=size == "auto"
    )
    losses, summed = jax.jit(gradient, static_argnums=(3,))({"w": jnp.ones((4, 3))}, x, mask, (), 0)
    assert int(summed.examples) == count and bool(summed.bounds.all_are(jnp.float32(1.0)))
    np.testing.assert_allclose(summed.gradients["w"].sum(), count * np.sqrt(12), rtol=1e-5)
    assert (np.asarray(losses)[:count] == 12).all()
    return int((np.asarray(losses) != 0).sum())


@pytest.mark.parametrize("count", [0, 1, 16, 17, 100, 160])
def test_pieces_of_padding_alone_are_not_computed(count):
    assert places_computed(160, count, 16) == -(-count // 16) * 16


def test_of_a_poisson_batch_at_most_one_place_in_twenty_is_computed_for_padding():
    """n = 60,000 and B = 1,000: places for the binomial tail, counts as they are drawn."""
    from jaxdp import sampling

    sampler = sampling.poisson(60_000, 1_000 / 60_000, steps=1_000)
    counts = np.random.default_rng(0).binomial(60_000, 1_000 / 60_000, size=200)
    sure, rest = microbatches.sure_of(sampler.physical_batch_size)
    computed = sure + -(-np.maximum(counts - sure, 0) // rest) * rest
    assert computed.sum() <= 1.05 * counts.sum()
    for count in counts[:2]:
        assert places_computed(sampler.physical_batch_size, int(count), "auto") <= computed.max()


def test_elsewhere_than_on_a_cpu_no_piece_asks_the_host():
    gradient = clipped_gradients(linear_loss, clipping.flat(1.0), microbatch_size=16, platform="cuda")
    arguments = ({"w": jnp.ones((4, 3))}, jnp.ones((160, 4)), jnp.arange(160) < 100)
    program = jax.make_jaxpr(lambda p, x, m: gradient(p, x, m, (), 0))(*arguments)
    assert " while[" not in str(program) and " scan[" in str(program)
