"""Noise on several devices, audited from outside: whole and sharded, and drawn wrongly."""

from on_devices import run

_SETTING = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from noise_oracle import grid_step, is_normal
from jaxdp import clipping, noise, privatize
from jaxdp.laboratory.audit import law

def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

STD = 1.3
"""

_SHARDS = """
tree = {"rows": jnp.zeros((4096, 256)), "columns": jnp.zeros((512, 2048)), "small": jnp.zeros(7)}
transform = privatize(clipping.flat(1.0), STD, 1.0, key=5)
one = transform.init(tree)
grads = jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), tree)
summed = jax.jit(lambda: clipping.flat(1.0).clip(grads, (), 0))()
update = lambda summed, state: transform.update(summed, state, summed.gradients)[0]
expected = jax.device_get(jax.jit(update)(summed, one))
for devices in (1, 2, 4):
    mesh = mesh_of(devices)
    on = lambda *spec: NamedSharding(mesh, P(*spec))
    split = {"rows": on("data"), "columns": on(None, "data"), "small": on()}
    placed = jax.device_put(summed, on())._replace(gradients=jax.device_put(summed.gradients, split))
    step = jax.jit(update, out_shardings=split)
    drawn = step(placed, jax.device_put(one, on()))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(drawn), expected)  # to the bit
    for leaf in jax.tree.leaves(drawn):
        values = np.asarray(leaf)[..., :256].ravel()
        assert is_normal(values, STD)
        assert not values.size > 100 or not (is_normal(values, STD * 2 / 3) or is_normal(values, STD * 3 / 2))
    compiled = step.lower(placed, jax.device_put(one, on())).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert not any(f"{word}(" in text for word in ("all-gather", "all-to-all", "collective-permute"))
    shard = 4 * (4096 * 256 + 512 * 2048) / devices
    assert memory.temp_size_in_bytes <= 1.5 * shard, (devices, memory.temp_size_in_bytes / shard)
    print(f"temporaries {memory.temp_size_in_bytes / shard:.2f} of a shard")
"""


def test_shards_draw_the_numbers_of_one_device_in_the_memory_of_a_shard():
    assert run(_SETTING + _SHARDS).count("temporaries") == 3


_AUDIT = """
RUNS, mesh = 1500, mesh_of(4)
on = lambda *spec: NamedSharding(mesh, P(*spec))
zeros = jax.device_put(jnp.zeros(8), on("data"))

def released(step, tree):
    return noise.released(noise.Stream(noise.secret(7), step, noise.GRADIENTS), tree, STD)

def in_shards(function, out):
    return jax.shard_map(function, mesh=mesh, in_specs=(P(), P("data")), out_specs=out, check_vma=False)

def on_each_device(step, part):  # every device noises its part of a sum, and then they are added up
    key = noise.secret(7).at[0].add(jax.lax.axis_index("data").astype(jnp.uint32))
    whole = jnp.zeros(8)
    return jax.lax.psum(noise.released(noise.Stream(key, step, noise.GRADIENTS), whole, STD), "data")

def on_one_shard(step, part):
    return jnp.where(jax.lax.axis_index("data") == 0, released(step, part), part)

WAYS = {
    "right": released,
    "on each device": in_shards(on_each_device, P()),
    "on one shard": in_shards(on_one_shard, P("data")),
    "one key on all shards": in_shards(released, P("data")),
}
for name, way in WAYS.items():
    every = jax.jit(lambda zeros: jax.lax.map(lambda step: way(step, zeros), jnp.arange(RUNS)))
    draws = np.asarray(every(zeros))
    grid = np.full((RUNS, 1), grid_step(STD) / STD)
    found = law.examine(draws[:, None, :] / STD, 0.01, grid)
    worst = min(found.p_values, key=found.p_values.get)
    print(name, "departs" if found.departs else "holds", worst if found.departs else "")
"""


def test_noise_that_is_drawn_wrongly_on_several_devices_is_caught():
    """Too much, too little, and the same on several shards; what is right passes."""
    right, each, one, same = run(_SETTING + _AUDIT).splitlines()
    assert right.split() == ["right", "holds"]
    assert each.startswith("on each device departs") and one.startswith("on one shard departs")
    assert same.startswith("one key on all shards departs")
    assert same.endswith(("sums and differences", "sizes", "lattice"))
