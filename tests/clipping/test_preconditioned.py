"""Scale, then privatize: what is scaled, clipped, noised and scaled back, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from noise_oracle import is_normal

import jaxdp
from jaxdp import accounting, clipping, sampling

DECAY, FLOOR, C, B = 0.9, 0.2, 0.7, 8


def some(seed, shift=1.0):
    rng = np.random.default_rng(seed)
    sizes = {"a": np.geomspace(1e-4, 1e2, 12).reshape(3, 4), "b": np.full(5, 0.01)}
    return {
        name: jnp.asarray(size * rng.normal(shift, 1, (B, *size.shape)), jnp.float32)
        for name, size in sizes.items()
    }


def flat(tree, rows=False):
    shape = (B, -1) if rows else (-1,)
    return np.concatenate([np.asarray(x, np.float64).reshape(shape) for x in jax.tree.leaves(tree)], axis=-1)


def by_hand(steps):
    """The same over several steps, on one flat vector, in float64."""
    v, found = np.zeros(17), []
    for step in range(steps):
        root = np.sqrt(v)
        typical = np.sqrt(np.mean(root**2)) or 1.0
        s = 1 / (root / typical + FLOOR)
        s /= np.sqrt(np.mean(s**2))
        rows = flat(some(step), rows=True) * s
        rows *= np.minimum(1, C / np.linalg.norm(rows, axis=1))[:, None]
        g = rows.sum(0) / B / s
        v = DECAY * v + (1 - DECAY) * g**2
        found.append(g)
    return found


def test_without_noise_every_step_is_that_of_the_definition():
    clipper = clipping.preconditioned(C, DECAY, FLOOR)
    optimizer = jaxdp.privatize(clipper, 0.0, expected_batch_size=B, key=0)
    params = jax.tree.map(lambda g: g[0], some(0))
    state = optimizer.init(params)
    for step, expected in enumerate(by_hand(5)):
        update, state = optimizer.update(some(step), state, params)
        np.testing.assert_allclose(flat(update), expected, rtol=2e-5)
    assert int(state.clip.count) == 5


def test_noise_is_of_one_size_where_it_is_scaled_and_of_the_gradients_sizes_where_it_is_used():
    clipper = clipping.preconditioned(C, 1e-6, FLOOR)
    sizes = np.repeat([1e-3, 1.0], 20_000)
    params = jnp.zeros(sizes.size)
    optimizer = jaxdp.privatize(clipper, 2.0, expected_batch_size=1, key=1)
    state = optimizer.init(params)
    state = state._replace(clip=state.clip._replace(squares=jnp.asarray(sizes**2, jnp.float32)))
    noise = np.asarray(optimizer.update(jnp.zeros((1, sizes.size)), state, params)[0])
    s = 1 / (sizes / np.sqrt(np.mean(sizes**2)) + FLOOR)
    scaled = noise * s / np.sqrt(np.mean(s**2))
    for half in np.split(scaled, 2):
        assert (
            is_normal(half, 2.0 * C)
            and not is_normal(half, 1.5 * 2.0 * C)
            and not is_normal(half, 2.0 * C / 1.5)
        )
    assert np.std(noise[20_000:]) > 2.5 * np.std(noise[:20_000])


@pytest.mark.parametrize("seed", range(5))
def test_no_example_moves_the_scaled_sum_by_more_than_the_bound(seed):
    """Whatever the scales are, of huge, tiny and equal squares."""
    clipper = clipping.preconditioned(C, DECAY, FLOOR)
    rng = np.random.default_rng(seed)
    squares = {"a": 10.0 ** rng.uniform(-30, 30, (3, 4)), "b": rng.choice([0.0, 1.0], 5)}
    state = clipper.init(squares)._replace(
        squares=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), squares)
    )
    grads = some(seed)
    sums = [clipper.clip(grads, state, 0, jnp.arange(B) != i).gradients for i in range(B)]
    whole = clipper.clip(grads, state, 0).gradients
    moved = [np.linalg.norm(flat(whole) - flat(part)) for part in sums]
    assert max(moved) <= C * (1 + 1e-5) and max(moved) > 0.99 * C


def test_it_trains_with_any_loss_in_microbatches_and_states_its_epsilon():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32) * np.geomspace(1e-2, 10, 6, dtype=np.float32)
    y = (x @ np.geomspace(100, 0.1, 6) > 0).astype(np.float32)
    plan = jaxdp.Plan(
        clipper=clipping.preconditioned(1.0), noise_multiplier=1.0, seed=3, steps=40,
        sampler=sampling.poisson(400, 0.2, steps=40),
    )  # fmt: skip

    def loss_fn(params, example):
        logit = example[0] @ params["w"] + params["b"]
        return optax.sigmoid_binary_cross_entropy(logit, example[1])

    params = {"w": jnp.zeros(6), "b": jnp.zeros(())}
    claim = accounting.Claim(delta=1e-4, adjacency="add_or_remove_one", accountant="rdp")
    runs = [
        jaxdp.train(loss_fn, params, (x, y), plan, optax.adam(0.05), claim, microbatch_size=size)
        for size in (None, 16)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *[run.params for run in runs]
    )
    assert float(np.mean(((x @ runs[0].params["w"]) > 0) == y)) > 0.6


def test_what_is_refused():
    for given in ({"decay": 1.0}, {"decay": -0.1}, {"floor": 0.0}):
        with pytest.raises(ValueError, match=next(iter(given))):
            clipping.preconditioned(1.0, **given)
