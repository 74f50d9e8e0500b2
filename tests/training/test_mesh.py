"""Runs on several devices: the batches, the noise and the ledger of one, wherever the parts lie."""

import jax
import jax.numpy as jnp
import pytest
from on_devices import run

from jaxdp import noise, sampling
from jaxdp.training import placement

_SETTING = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax, pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxdp
from jaxdp import clipping, noise, sampling
from jaxdp.training import checkpoints, placement
from jaxdp.training.program import Program

N, STEPS = 1000, 20
rng = np.random.default_rng(0)
DATA = (rng.normal(size=(N, 64)).astype(np.float32), rng.integers(0, 10, N).astype(np.int32))
PARAMS = {"a": jnp.asarray(rng.normal(size=(64, 32)) * 0.1, jnp.float32), "b": jnp.zeros(32),
          "c": jnp.asarray(rng.normal(size=(32, 10)) * 0.1, jnp.float32)}
CLAIM = jaxdp.Claim(delta=1e-5, adjacency="zero_out")

def loss_fn(params, example):
    x, y = example
    logits = jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)

def mesh_of(*shape, names=("data", "model")):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names[: len(shape)], axis_types=(AxisType.Auto,) * len(shape), devices=devices)

def planned(kind="poisson", clipper=clipping.flat(1.0), sigma=2.0, steps=STEPS):
    sampler = sampling.create(kind, N, 0.1, steps)
    sigma = None if clipper is None else sigma
    return jaxdp.Plan(clipper=clipper, noise_multiplier=sigma, sampler=sampler, steps=steps, seed=3)

def trained(mesh, params=PARAMS, plan=None, optimizer=optax.adam(0.05), **options):
    plan = planned() if plan is None else plan
    options = {"ema_decay": 0.9, "every": 10} | options
    return jaxdp.train(loss_fn, params, DATA, plan, optimizer, CLAIM, mesh=mesh, **options)

def apart(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, jax.device_get((a, b)))))
"""

_SAME = """
# Noise on a grid so fine that a cell more or less is below what is compared.
cases = [(kind, clipping.flat(1.0), 1e-3) for kind in ("poisson", "full")]
for kind, clipper, sigma in (*cases, ("poisson", None, None)):
    plan = planned(kind, clipper, sigma)
    one = trained(None, plan=plan, optimizer=optax.sgd(0.5))
    many = trained(mesh_of(4), plan=plan, optimizer=optax.sgd(0.5))
    print(kind, apart(one.params, many.params), file=sys.stderr)
    assert apart(one.params, many.params) < 1e-6
    assert many.ledger == one.ledger and many.epsilon == one.epsilon
    assert many.program.placement.parts == 4 and "4 devices" in str(many.program.placement)
one, many = trained(None), trained("auto")  # as noisy as runs are: the grid hides how sums are rounded
assert many.program.placement.mesh.size == 4 and apart(one.params, many.params) < 1e-6
print("held")
"""


def test_four_devices_train_as_one():
    assert run(_SETTING + _SAME) == "held\n"


_SHARDED = """
one, folder = trained(None), sys.argv[1]
mesh = mesh_of(4)
split = {"a": P("data"), "b": P(), "c": P()}
place = lambda tree: jax.device_put(tree, jax.tree.map(lambda s: NamedSharding(mesh, s), split))
many = trained("auto", place(PARAMS), folder=folder, plan=planned())
assert apart(one.params, many.params) < 1e-6
adam = many.state.opt_state[1][0]
for tree in (many.state.params, adam.mu, adam.nu, many.state.average):
    assert jax.tree.map(lambda x: x.sharding.spec, tree) == split
assert many.state.step.sharding.spec == P()

# What is compiled: the sum is scattered, not gathered.
program, state = many.program, many.state
rows = program.rows(DATA)
text = program._compiled[0].lower(None, state, rows, jnp.int32(3)).compile().as_text()
assert "reduce-scatter" in text
print("held")
"""


def test_parameters_and_what_the_optimizer_keeps_stay_in_shards(tmp_path):
    assert run(_SETTING + _SHARDED, str(tmp_path)) == "held\n"


_TWO_AXES = """
mesh = mesh_of(2, 2)
split = {"a": P(None, "model"), "b": P("model"), "c": P("model")}
params = jax.device_put(PARAMS, jax.tree.map(lambda s: NamedSharding(mesh, s), split))
many = trained("auto", params)
assert jax.tree.map(lambda x: x.sharding.spec, many.state.params) == split
assert apart(trained(None).params, many.params) < 1e-6
print("held")
"""


def test_examples_along_one_axis_and_parameters_along_another():
    assert run(_SETTING + _TWO_AXES) == "held\n"


_CHANGES = """
folder, devices, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
calls = []
def interrupt(step, params):
    if step >= stop:
        raise KeyboardInterrupt
try:
    result = trained(mesh_of(devices) if devices > 1 else None, folder=folder, resume=True,
                     callbacks=[interrupt] if stop else [])
except KeyboardInterrupt:
    sys.exit(0)
key = np.asarray(result.state.sample_key).tolist()
np.savez(folder + ".npz", **jax.device_get(result.params))
assert str(result.ledger.to_json()) == str(trained(None).ledger.to_json())
same = key == np.asarray(noise.secret(3)).tolist()
print("same keys" if same else "other keys", apart(result.params, trained(None).params))
"""


def test_a_run_goes_on_on_another_number_of_devices_with_the_same_noise(tmp_path):
    folder = str(tmp_path / "run")
    run(_SETTING + _CHANGES, folder, "4", "10")
    keys, apart = run(_SETTING + _CHANGES, folder, "2", "0", devices=2).rsplit(" ", 1)
    assert keys == "same keys" and float(apart) < 1e-6


def test_a_copy_that_goes_on_on_another_number_of_devices_shares_no_noise(tmp_path):
    """One of them would meet a sum rounded otherwise, and from there on others, with the other's noise."""
    import shutil

    folder, copy = str(tmp_path / "run"), str(tmp_path / "copy")
    run(_SETTING + _CHANGES, folder, "4", "10")
    shutil.copytree(folder, copy)
    assert run(_SETTING + _CHANGES, copy, "1", "0", devices=1).startswith("other keys")


_LAID = """
from jaxdp.training import resume
mesh, plan = mesh_of(2, 2), planned()
def found(spec):
    params = PARAMS | {"a": jax.device_put(PARAMS["a"], NamedSharding(mesh, spec))}
    made = Program(plan=plan, loss_fn=loss_fn, optimizer=optax.sgd(1.0), placement=placement.of(mesh, params))
    return resume._devices(made)
assert found(P()) == found(P()) != found(P(None, "model"))
"""


def test_parameters_that_lie_otherwise_are_told_apart():
    """Their products are summed in other parts: a copy of the run may not meet the same noise so."""
    run(_SETTING + _LAID)


def test_the_places_of_all_shards_together_suffice():
    from scipy import stats

    for shards in (1, 4, 64):
        sampler = sampling.poisson(60_000, 0.01, steps=5_000)
        rows, draw = sampler.on_shards(shards)
        places = jax.eval_shape(draw, noise.secret(0), 0, 0).mask.shape[0]
        assert stats.binom.sf(places, rows, 0.01) * 5_000 * shards <= 1e-9 < 1e-3


def test_what_cannot_be_placed_is_refused():
    params = {"w": jnp.zeros(3)}
    with pytest.raises(ValueError, match="mesh='all': must be 'auto', None or"):
        placement.of("all", params)
    assert placement.of("auto", params) is None and placement.of(None, params) is None


_REFUSED = """
explicit = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
with pytest.raises(ValueError, match="mesh=.*Explicit.*a run's axes are Auto"):
    trained(explicit)
elsewhere = jax.device_put(PARAMS, NamedSharding(mesh_of(2), P()))
with pytest.raises(ValueError, match="mesh=.*: the parameters lie on another"):
    trained(mesh_of(4), elsewhere)

# Each device by its own part of the parameters, clipped by the norm of that part: refused by name.
mesh, clipper = mesh_of(4), clipping.flat(1.0)
transform = jaxdp.privatize(clipper, 1.0, 8.0, key=0)
state = transform.init(PARAMS)
def by_part(params, x):
    loss = lambda p, x: jnp.sum(p["a"] * x[:16, None])
    _, summed = jaxdp.clipped_gradients(loss, clipper)(params, x, None, (), 0)
    return transform.update(summed, state, params)[0]["a"]
mapped = jax.shard_map(by_part, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
with pytest.raises(ValueError, match="shard_map: values that differ over data: each device would clip"):
    jax.jit(mapped)({"a": PARAMS["a"]}, DATA[0][:8])
print("held")
"""


def test_meshes_and_shards_that_would_clip_by_their_own_part_are_refused():
    assert run(_SETTING + _REFUSED) == "held\n"
