"""The private gradient: against stock Optax, its noise in both directions, keys, traces, microbatches."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters import batching
from noise_oracle import is_normal
from optax import contrib

from jaxdp import Plan, clipping, gradients, models, noise, schedules
from jaxdp._privatize import ClippedSum, privatize
from jaxdp.accounting.ledger import Sampling
from jaxdp.clipping import clipped_gradients
from jaxdp.gradients.microbatches import ExampleBytes, automatic_size, example_bytes

SCHEDULED = ("flat", "automatic", "per_layer", "per_layer_published")
PARAMS = {"w": jnp.zeros((40, 50)), "b": jnp.zeros(50)}


def charged(clipper, sigma, steps):
    return Plan(
        clipper=clipper, noise_multiplier=sigma, sampler=Sampling(rate=0.1), steps=steps
    ).noise_multipliers()


def some_gradients(examples=8, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=(examples, *p.shape)).astype(np.float32)), PARAMS
    )


def noise_only(sigma, step=0, bound=2.0, key=0, divide_by=16.0, clipper=None):
    """The update of gradients that are all zero."""
    transform = privatize(clipper or clipping.flat(bound), sigma, divide_by, key=jax.random.key(key))
    state = transform.init(PARAMS)._replace(step=jnp.int32(step))
    zeros = jax.tree.map(lambda p: jnp.zeros((3, *p.shape)), PARAMS)
    updates, _ = jax.jit(transform.update)(zeros, state)
    return np.concatenate([np.asarray(u).ravel() for u in jax.tree.leaves(updates)])


def test_without_noise_equals_stock_optax():
    grads = some_gradients()
    ours = privatize(clipping.flat(3.0), 0.0, 8.0, key=jax.random.key(0))
    theirs = contrib.differentially_private_aggregate(3.0, 0.0, key=jax.random.key(0))
    a, _ = jax.jit(ours.update)(grads, ours.init(PARAMS))
    b, _ = jax.jit(theirs.update)(grads, theirs.init(PARAMS))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


@pytest.mark.parametrize("name", SCHEDULED)
def test_noise_has_the_stated_scale_and_no_other(name):
    """std = sigma * noise scale / expected batch size; 2/3 and 3/2 of it are rejected."""
    clipper = clipping.create(name, 2.0, layers=2)
    draws = noise_only(5.0, clipper=clipper)
    std = 5.0 * 2.0 / 16
    assert is_normal(draws, std)
    assert not is_normal(draws, std * 2 / 3) and not is_normal(draws, std * 3 / 2)


def test_noise_follows_sigma_and_clip_schedules_at_every_step():
    sigma = schedules.linear(100, start=15.0, end=4.85)
    bound = schedules.linear(100, start=6.0, end=2.0)
    for step in (0, 50, 99):
        draws = noise_only(sigma, step, bound=bound)
        std = (15 - 10.15 * step / 100) * (6 - 4 * step / 100) / 16
        assert is_normal(draws, std)
        assert not is_normal(draws, std * 1.3) and not is_normal(draws, std / 1.3)


def test_noise_of_steps_keys_and_leaves_is_unrelated():
    base = noise_only(1.0)
    limit = 6 / np.sqrt(len(base))
    for other in (noise_only(1.0, step=1), noise_only(1.0, step=2), noise_only(1.0, key=1)):
        assert abs(np.corrcoef(base, other)[0, 1]) < limit
    w, b = base[50:], base[:50]
    assert abs(np.corrcoef(w[:50], b)[0, 1]) < 6 / np.sqrt(50)


def test_same_key_and_step_give_the_same_noise():
    np.testing.assert_array_equal(noise_only(1.0, step=7), noise_only(1.0, step=7))


def test_without_a_key_the_noise_comes_from_entropy():
    transform = privatize(clipping.flat(1.0), 1.0, 4.0)
    first, second = (np.asarray(transform.init(PARAMS).key) for _ in range(2))
    assert first.shape == (8,) and (first != second).all()


@pytest.mark.parametrize(
    "transformed",
    [
        lambda init: jax.jit(init)(PARAMS),
        lambda init: jax.vmap(init)(PARAMS["w"]),
        lambda init: jax.jit(lambda: init(PARAMS))(),
        lambda init: jax.vmap(lambda _: init(PARAMS))(jnp.arange(4)),
        lambda init: jax.lax.scan(lambda carry, _: (carry, init(PARAMS)), 0, None, 2),
        lambda init: jax.jit(jax.vmap(lambda _: init(PARAMS)))(jnp.arange(4)),
    ],
    ids=["jit", "vmap", "closed over in jit", "closed over in vmap", "scan", "jit of vmap"],
)
def test_no_key_is_baked_into_a_transformed_init(transformed):
    """One key from entropy, drawn while tracing, would serve every run that calls the compiled init."""
    with pytest.raises(ValueError, match="key=None: under jit, vmap or scan"):
        transformed(privatize(clipping.flat(1.0), 1.0, 1.0).init)
    transformed(privatize(clipping.flat(1.0), 1.0, 1.0, key=jax.random.key(0)).init)


def test_the_shapes_of_the_state_can_be_asked_for_without_a_key():
    transform = privatize(clipping.flat(1.0), 1.0, 1.0)
    shapes, state = jax.eval_shape(transform.init, PARAMS), transform.init(PARAMS)
    jax.tree.map(lambda s, x: np.testing.assert_equal((s.shape, s.dtype), (x.shape, x.dtype)), shapes, state)


@pytest.mark.parametrize("generator", noise.GENERATORS)
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_bare_and_typed_keys_in_the_state_draw_what_the_given_key_draws(implementation, generator):
    key = jax.random.key(3, impl=implementation)
    transform = privatize(clipping.flat(1.0), 1.0, 4.0, key=key, generator=generator)
    state, grads = transform.init(PARAMS), some_gradients()
    assert state.key.dtype == jnp.uint32
    bare, after = transform.update(grads, state)
    typed, _ = transform.update(grads, state._replace(key=key))
    jax.tree.map(np.testing.assert_array_equal, bare, typed)
    np.testing.assert_array_equal(after.key, noise.secret(key))
    zeros = jax.tree.map(jnp.zeros_like, grads)
    drawn, _ = transform.update(zeros, state)
    stream = noise.Stream(noise.secret(key), 0, noise.GRADIENTS, generator)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(4 * a, b), drawn, noise.released(stream, PARAMS, 1.0)
    )


def test_a_sum_clipped_to_another_bound_is_not_released():
    """Of another clipper, or of another step: an error where the values are known, else NaN throughout."""
    falling = clipping.flat(schedules.linear(10, start=2.0, end=1.0))

    def update(clip, clip_step, noise_for, compiled):
        gradient = clipped_gradients(lambda p, x: jnp.sum(x @ p["w"]), clip, microbatch_size=2)
        transform = privatize(noise_for, 1.0, 4.0, key=jax.random.key(0))
        params = {"w": jnp.zeros((3, 2))}
        _, summed = gradient(params, jnp.ones((4, 3)), jnp.ones(4, bool), (), clip_step)
        function = jax.jit(transform.update) if compiled else transform.update
        return np.asarray(function(summed, transform.init(params), params)[0]["w"])

    assert np.isfinite(update(falling, 0, falling, compiled=False)).all()
    assert np.isfinite(update(falling, 0, falling, compiled=True)).all()
    for clip, step, noise_for in ((clipping.flat(10.0), 0, clipping.flat(1.0)), (falling, 3, falling)):
        assert np.isnan(update(clip, step, noise_for, compiled=True)).all()
        with pytest.raises(ValueError, match=r"sensitivity=.*clipped to another bound"):
            update(clip, step, noise_for, compiled=False)


def test_divides_by_the_expected_batch_size_whatever_the_batch():
    transform = privatize(clipping.flat(1e6), 0.0, 10.0)
    for size in (2, 5):
        grads = jax.tree.map(lambda p, n=size: jnp.ones((n, *p.shape)), PARAMS)
        updates, _ = transform.update(grads, transform.init(PARAMS))
        np.testing.assert_allclose(updates["b"], size / 10)


def test_padding_and_bad_examples_are_counted_apart():
    grads = some_gradients(6)
    grads["w"] = grads["w"].at[1, 0, 0].set(jnp.nan)
    transform = privatize(clipping.flat(1.0), 0.0, 4.0)
    updates, state = transform.update(grads, transform.init(PARAMS), mask=jnp.arange(6) < 5)
    assert (state.examples, state.clipped, state.nonfinite) == (5, 4, 1)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
    _, state = transform.update(grads, state)
    assert state.nonfinite == 2  # counted over the run


@pytest.mark.parametrize("schedule", [6.0, *schedules.DYNAMIC])
def test_one_trace_serves_a_whole_run_in_a_chain(schedule):
    sigma = schedules.create(schedule, 50) if isinstance(schedule, str) else schedule
    chain = optax.chain(privatize(clipping.flat(1.0), sigma, 8.0, key=jax.random.key(0)), optax.adam(0.1))
    traces = []

    @jax.jit
    def step(params, state, grads):
        traces.append(1)
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state, grads = PARAMS, chain.init(PARAMS), some_gradients()
    for _ in range(50):
        params, state = step(params, state, grads)
    assert len(traces) == 1 and state[0].step == 50


@pytest.mark.parametrize(
    "name, microbatch_size",
    [*((name, 3) for name in clipping.NAMES), ("flat", 1), ("flat", 8), ("flat", "auto")],
)
def test_microbatches_change_nothing(name, microbatch_size):
    model = models.create("mlp", jax.random.key(0), input_shape=(6,), classes=3)
    loss_fn = models.cross_entropy(model)
    layers = len(jax.tree.leaves(model.params))
    clipper = clipping.create(name, 0.5, layers=layers, expected_batch_size=40.0)
    batch = (jax.random.normal(jax.random.key(1), (8, 6)), jnp.arange(8) % 3)
    mask = jnp.arange(8) != 2
    run = {
        size: jax.jit(clipped_gradients(loss_fn, clipper, microbatch_size=size))(
            model.params, batch, mask, clipper.init(model.params), jnp.int32(0)
        )
        for size in (None, microbatch_size)
    }
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), run[None], run[microbatch_size]
    )
    # privatize takes the sum as it takes the gradients
    transform = privatize(clipper, 1.0, 8.0, key=jax.random.key(5))
    summed, _ = transform.update(run[microbatch_size][1], transform.init(model.params), model.params)
    assert isinstance(run[microbatch_size][1], ClippedSum)
    _, grads = jax.jit(gradients.per_example(loss_fn, method="dense"))(model.params, batch)
    whole, _ = transform.update(grads, transform.init(model.params), model.params, mask=mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), summed, whole)


@pytest.mark.parametrize("field, budget", [("gradient", 2**26), ("largest", 2**22)])
def test_automatic_microbatch_is_bounded(field, budget):
    none = ExampleBytes(gradient=1, largest=1)
    sizes = [automatic_size(none._replace(**{field: bytes_})) for bytes_ in (1, 10_000, 2**20, 2**30)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 4
    assert budget / 2 < automatic_size(none._replace(**{field: 3 * 2**12})) * 3 * 2**12 <= budget


def test_a_batching_rule_that_unrolls_does_not_stop_the_choice():
    double = jax.extend.core.Primitive("double")
    double.def_abstract_eval(lambda x: x)

    def one_by_one(arguments, dims):
        return jnp.stack([double.bind(x) for x in jnp.moveaxis(arguments[0], dims[0], 0)]), 0

    batching.primitive_batchers[double] = one_by_one

    def loss_fn(params, x):
        return (double.bind(x) @ params["w"]).sum()

    found = example_bytes(gradients.per_example(loss_fn), {"w": jnp.ones((10, 5))}, jnp.ones((6, 10)))
    assert found.largest >= 40


@pytest.mark.parametrize("method", gradients.METHODS)
def test_what_an_example_takes_is_counted_without_what_all_share(method):
    shared = jnp.ones(1000)

    def loss_fn(params, x):
        return jnp.tanh(jnp.tile(x, 7) @ params["w"]).sum() + jnp.tanh(shared).sum()

    params, batch = {"w": jnp.ones((70, 5))}, jnp.ones((6, 10))
    found = example_bytes(gradients.per_example(loss_fn, method=method), params, batch)
    loss, factors, dense = 4, 4 * (70 + 5), 4 * 70 * 5
    assert found.gradient == loss + (factors if method == "factored" else dense)
    assert found.largest == (4 * 70 if method == "factored" else dense)


def test_updates_keep_the_parameters_type():
    params = {"w": jnp.zeros(5, jnp.bfloat16)}
    transform = privatize(clipping.flat(1.0), 1.0, 2.0)
    updates, _ = transform.update({"w": jnp.ones((2, 5), jnp.bfloat16)}, transform.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16


def test_the_accountant_is_told_what_the_noise_does():
    """At every step: the noise's standard deviation over the true sensitivity is the accounted multiplier."""
    sigma, bound = schedules.exponential(20), schedules.linear(20, start=6.0, end=2.0)
    for name in SCHEDULED:
        clipper = clipping.create(name, bound, layers=2)
        plan = Plan(clipper=clipper, noise_multiplier=sigma, sampler=Sampling(kind="full"), steps=20)
        accounted = plan.noise_multipliers()
        for step in (0, 13):
            std = noise_only(sigma, step, clipper=clipper).std() * 16
            assert std / float(clipper.sensitivity((), step)) == pytest.approx(accounted[step], rel=0.08)


@pytest.mark.parametrize(
    "build, text",
    [
        (lambda: privatize(clipping.flat(1.0), -1.0, 4.0), "noise_multiplier=-1.0"),
        (lambda: privatize(clipping.flat(1.0), float("nan"), 4.0), "noise_multiplier=nan"),
        (lambda: privatize(clipping.flat(1.0), 1.0, 0.0), "expected_batch_size=0.0"),
        (
            lambda: privatize(clipping.flat(1.0), 1.0, 4.0, generator="md5"),
            "generator='md5': choose from chacha12",
        ),
        (
            lambda: clipped_gradients(lambda p, e: 0.0, clipping.flat(1.0), microbatch_size=0),
            "microbatch_size=0",
        ),
    ],
)
def test_refusals(build, text):
    with pytest.raises(ValueError, match=text):
        build()


class Doubling:
    """A noise policy: half the bound at first, twice as much after each step; it remembers what it saw."""

    noise_multipliers = np.array([1.0, 64.0])

    def init(self):
        return jnp.float32(0.5), jnp.int32(-1)

    def charge(self, state, bound, step):
        return (2 * state[0], step), state[0] * bound


def test_a_policy_chooses_the_noise_of_each_step_from_the_bound_and_its_own_state():
    bound = schedules.linear(10, start=4.0, end=2.0)
    transform = privatize(clipping.flat(bound), Doubling(), 16.0, key=jax.random.key(0))
    state = transform.init(PARAMS)
    zeros = jax.tree.map(lambda p: jnp.zeros((3, *p.shape)), PARAMS)
    for step in range(3):
        updates, state = jax.jit(transform.update)(zeros, state)
        draws = np.concatenate([np.asarray(u).ravel() for u in jax.tree.leaves(updates)])
        clip = 4 - 2 * step / 10
        std = (0.5 * 2**step * clip) * clip / 16
        assert is_normal(draws, std) and not is_normal(draws, 1.3 * std)
    assert (float(state.noise[0]), int(state.noise[1])) == (4.0, 2)


@pytest.mark.parametrize("name, text", [("l2_max", "clipping='l2_max'"), ("quantile", "count_noise=2")])
def test_a_policy_needs_a_clipper_that_bears_it(name, text):
    with pytest.raises(ValueError, match=text):
        privatize(clipping.create(name, 1.0, expected_batch_size=40.0), Doubling(), 40.0)
