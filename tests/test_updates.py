"""What `privatize` takes and refuses, and the optimizers that it stands in."""

import dataclasses
import io

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from jaxdp import clipped_gradients, clipping, gradients
from jaxdp._privatize import PrivatizeState, privatize, privatize_state

PARAMS = {"b": jnp.zeros(3), "w": jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)), jnp.float32)
CLIPPER = clipping.quantile(0.5, 4.0, count_noise=2.0)


def loss_fn(params, x):
    return jnp.sum((x @ params["w"] + params["b"]) ** 2)


def link():
    return privatize(CLIPPER, 1.0, 4.0, key=jax.random.key(0))


def clipped_sum(state=None, params=PARAMS, loss=loss_fn):
    clip = CLIPPER.init(PARAMS) if state is None else state.clip
    return clipped_gradients(loss, CLIPPER, microbatch_size=None)(params, X, None, clip, 0)[1]


def test_noise_of_another_scale_than_is_charged_is_not_added():
    """A clipper whose noise is a hundredth of what its sensitivity asks: an error, compiled not a number."""
    grads = jax.vmap(jax.grad(loss_fn), (None, 0))(PARAMS, X)
    for clipper in (clipping.flat(2.0), clipping.per_layer_published(2.0, layers=2)):
        for factor in (0.01, 0.9, 1.0):
            scale = lambda *given, clipper=clipper, factor=factor: factor * clipper.noise_scale(*given)  # noqa: E731
            transform = privatize(dataclasses.replace(clipper, noise_scale=scale), 1.0, 4.0)
            state = transform.init(PARAMS)
            compiled, _ = jax.jit(transform.update)(grads, state, PARAMS)
            assert jnp.isfinite(compiled["w"]).all() == (factor == 1.0) != jnp.isnan(compiled["w"]).all()
            if factor < 1:
                with pytest.raises(
                    ValueError, match=r"noise_scale=.* of the sensitivity: clipper .* is charged"
                ):
                    transform.update(grads, state, PARAMS)


# --- shapes --------------------------------------------------------------------------------------------------


def test_an_ordinary_gradient_does_not_pass_for_those_of_examples():
    """The rows of W would be taken for examples, each of norm C."""
    params = {"w": PARAMS["w"]}
    transform = link()
    ordinary = jax.grad(lambda p: jax.vmap(lambda x: jnp.sum((x @ p["w"]) ** 2))(X).mean())(params)
    for update in (transform.update, jax.jit(transform.update)):
        with pytest.raises(
            ValueError, match=r"updates\['w'\]: has shape \(5, 3\), must be \[B, 5, 3\].*per_example"
        ):
            update(ordinary, transform.init(params), params)


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda g: dict(g, b=g["b"][:3]), r"gradients\['w'\]: has 4 rows where the first leaf has 3"),
        (lambda g: dict(g, w=g["w"][:, :, :1]), r"updates\['w'\]: has shape \(4, 5, 1\)"),
        (lambda g: dict(g, b=g["b"][..., None]), r"updates\['b'\]: has shape \(4, 3, 1\), must be \[B, 3\]"),
        (lambda g: {"w": g["w"]}, "updates: has 1 leaves for 2 parameters"),
    ],
)
def test_updates_of_other_shapes_are_refused_by_name(change, text):
    transform = link()
    dense = change(jax.vmap(jax.grad(loss_fn), (None, 0))(PARAMS, X))
    with pytest.raises(ValueError, match=text):
        transform.update(dense, transform.init(PARAMS), PARAMS)


def test_factored_gradients_and_sums_have_the_shapes_of_the_parameters():
    transform, state = link(), link().init(PARAMS)
    _, grads = gradients.per_example(loss_fn)(PARAMS, X)
    assert isinstance(grads["w"], gradients.Factored) and grads["w"].shape == (4, 5, 3)
    a, _ = transform.update(grads, state, PARAMS)
    b, _ = transform.update(clipped_sum(), state, PARAMS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)
    other = dict(PARAMS, w=PARAMS["w"].T)
    for updates in (grads, clipped_sum()):
        with pytest.raises(ValueError, match=r"updates\['w'\]: has shape \(.*5, 3\), must be \[.*3, 5\]"):
            transform.update(updates, state, other)


def test_a_second_privatize_is_refused():
    chain = optax.chain(link(), link())
    with pytest.raises(ValueError, match="comes first in a chain"):
        chain.update(clipped_sum(), chain.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="opt_state: holds 2 states of privatize"):
        privatize_state(chain.init(PARAMS))


# --- devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, checked, text",
    [
        (PartitionSpec("devices"), True, "values that differ over devices"),
        (PartitionSpec("devices"), False, "check_vma=False"),
    ],
)
def test_parameters_in_shards_are_refused(spec, checked, text):
    """Each shard would be clipped to C by itself, and take the same noise."""
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(AxisType.Auto,))
    transform, params = link(), {"w": jnp.ones((4, 3))}

    def step(params, x):
        _, grads = gradients.per_example(lambda p, x: jnp.sum(p["w"] @ x))(params, x)
        return transform.update(grads, transform.init(params), params)[0]

    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=checked
    )
    with pytest.raises(ValueError, match=f"shard_map: {text}.*psum the ClippedSum"):
        sharded(params, jnp.ones((2, 3)))


def test_a_sum_over_devices_is_taken_inside_shard_map():
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(AxisType.Auto,))
    transform, state = link(), link().init(PARAMS)

    def step(params, state, x):
        gradient = clipped_gradients(loss_fn, CLIPPER, microbatch_size=2)
        summed = gradient(params, x, None, state.clip, state.step)[1]
        return transform.update(jax.lax.psum(summed, "devices"), state, params)[0]

    whole = PartitionSpec()
    specs = (whole, whole, PartitionSpec("devices"))
    found = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=whole))(PARAMS, state, X)
    expected, _ = transform.update(clipped_sum(), state, PARAMS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)


# --- optimizers ----------------------------------------------------------------------------------------------

LABELS = {"b": "frozen", "w": "trained"}
BEHIND = {
    "chain": lambda: optax.chain(link(), optax.adam(0.1)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(lambda lr: optax.chain(link(), optax.sgd(lr)))(
        lr=0.1
    ),
    "MultiSteps": lambda: optax.chain(link(), optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()),
    "apply_if_finite": lambda: optax.chain(link(), optax.apply_if_finite(optax.adam(0.1), 2)),
    "masked": lambda: optax.chain(link(), optax.masked(optax.adam(0.1), {"b": False, "w": True})),
    "partition": lambda: optax.chain(
        link(), optax.partition({"trained": optax.adam(0.1), "frozen": optax.set_to_zero()}, LABELS)
    ),
}


@pytest.mark.parametrize("name", BEHIND)
def test_the_state_is_found_in_any_optimizer_and_moves_on(name):
    optimizer = BEHIND[name]()
    state = optimizer.init(PARAMS)
    for step in range(2):
        found = privatize_state(state)
        assert isinstance(found, PrivatizeState) and found.step == step
        _, state = jax.jit(optimizer.update)(clipped_sum(found), state, PARAMS)
    assert privatize_state(state).clip.bound != CLIPPER.init(PARAMS).bound
    with pytest.raises(ValueError, match="opt_state: holds 0 states of privatize"):
        privatize_state(optax.adam(0.1).init(PARAMS))


@pytest.mark.parametrize(
    "around",
    [
        lambda: optax.masked(link(), {"b": False, "w": True}),
        lambda: optax.partition({"trained": link(), "frozen": optax.set_to_zero()}, LABELS),
    ],
)
def test_a_wrapper_that_hides_parameters_from_the_clip_is_refused(around):
    with pytest.raises(ValueError, match=r"hidden by optax\.masked or partition"):
        around().init(PARAMS)


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize(
    "around",
    [
        lambda: optax.MultiSteps(optax.chain(link(), optax.sgd(0.1)), 2).gradient_transformation(),
        lambda: optax.apply_if_finite(optax.chain(link(), optax.sgd(0.1)), 2),
    ],
)
def test_a_wrapper_that_looks_at_private_gradients_does_not_pass(around, summed):
    updates = clipped_sum() if summed else jax.vmap(jax.grad(loss_fn), (None, 0))(PARAMS, X)
    optimizer = around()
    with pytest.raises((ValueError, TypeError)):
        optimizer.update(updates, optimizer.init(PARAMS), PARAMS)


def test_a_traced_noise_multiplier_is_refused_in_one_line():
    injected = optax.inject_hyperparams(
        lambda noise: optax.chain(privatize(CLIPPER, noise, 4.0, key=jax.random.key(0)))
    )(noise=1.0)
    with pytest.raises(ValueError, match=r"noise_multiplier=.*: must be finite and >= 0, or a schedule"):
        jax.jit(injected.update)(clipped_sum(), injected.init(PARAMS), PARAMS)


def test_nnx_optimizers_take_per_example_gradients():
    network = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.chain(link(), optax.sgd(0.1)), wrt=nnx.Param)
    graph, params, rest = nnx.split(network, nnx.Param, ...)
    loss = lambda p, x: jnp.sum(nnx.merge(graph, p, rest)(x) ** 2)  # noqa: E731
    state = privatize_state(optimizer)
    expected, after = link().update(clipped_sum(state, params, loss), state, params)
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(params))
    optimizer.update(network, jax.vmap(jax.grad(loss), (None, 0))(params, X))
    moved = jax.tree.map(lambda a, b: (a - b) / -0.1, nnx.to_pure_dict(nnx.state(network, nnx.Param)), before)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), moved, nnx.to_pure_dict(expected)
    )
    assert privatize_state(optimizer).step == 1 and privatize_state(optimizer).clip.bound == after.clip.bound
    with pytest.raises(ValueError, match=r"privatize takes gradients of jaxdp\.per_example"):
        optimizer.update(network, clipped_sum(state, params, loss))


# --- the state as data ---------------------------------------------------------------------------------------


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


@pytest.mark.parametrize("key", [None, jax.random.key(7), jax.random.key(7, impl="rbg")])
def test_the_state_goes_through_serialisers(key):
    transform = optax.chain(privatize(CLIPPER, 1.0, 4.0, key=key), optax.adam(0.1))
    state = transform.update(clipped_sum(), transform.init(PARAMS), PARAMS)[1]
    written = io.BytesIO()
    eqx.tree_serialise_leaves(written, state)
    written.seek(0)
    by_flax = flax.serialization.from_bytes(state, flax.serialization.to_bytes(state))
    expected = transform.update(clipped_sum(state[0]), state, PARAMS)
    for read in (eqx.tree_deserialise_leaves(written, state), by_flax):
        assert same(read, state)
        assert same(transform.update(clipped_sum(read[0]), read, PARAMS), expected)


@pytest.mark.parametrize("key", [None, jax.random.key(7)])
def test_the_state_may_be_donated(key):
    transform = privatize(CLIPPER, 1.0, 4.0, key=key)
    step = jax.jit(
        lambda params, state: transform.update(clipped_sum(state), state, params), donate_argnums=1
    )
    state = transform.init(PARAMS)
    for _ in range(2):
        _, state = step(PARAMS, state)
    assert state.step == 2
    assert transform.init(PARAMS).step == 0  # the given key is still there
