"""Clippers: one conformance suite, with a NumPy oracle written from the definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import clipping, gradients, schedules

B = 24
BOUND = 1.5
SHAPES = {"a": (7, 5), "b": (5,), "c": {"d": (5, 3), "e": (3,)}}


def per_example_gradients(seed=0, scale=1.0):
    """Gradients whose norms lie around the bound, the first example exactly zero."""
    rng = np.random.default_rng(seed)
    size = scale * rng.lognormal(-1.0, 1.2, B).astype(np.float32)
    size[0] = 0
    return jax.tree.map(
        lambda shape: jnp.asarray(
            rng.normal(size=(B, *shape)).astype(np.float32) * size.reshape(B, *[1] * len(shape))
        ),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def rows(grads):
    """The gradients as float64 rows, one list of flat vectors an example."""
    leaves = [np.asarray(leaf, np.float64).reshape(B, -1) for leaf in jax.tree.leaves(grads)]
    return [[leaf[i] for leaf in leaves] for i in range(B)]


def norm(tensors):
    return np.sqrt(sum(float(t @ t) for t in tensors))


def shrink(tensor, bound):
    length = np.sqrt(tensor @ tensor)
    return tensor * (bound / length) if length > bound else tensor


LAYERS = 4
SHAPES_AS_PARAMS = jax.tree.map(jnp.zeros, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
ORACLES = {
    "flat": lambda ts, c: [t * min(1, c / norm(ts)) if norm(ts) else t for t in ts],
    "automatic": lambda ts, c: [t * c / (norm(ts) + 0.01) for t in ts],
    "per_layer": lambda ts, c: [shrink(t, c / 2) for t in ts],  # sqrt(4) = 2
    "per_layer_published": lambda ts, c: [shrink(t, c) for t in ts],
    "preconditioned": lambda ts, c: [t * min(1, c / norm(ts)) if norm(ts) else t for t in ts],  # at first
    "quantile": lambda ts, c: [t * min(1, c / norm(ts)) if norm(ts) else t for t in ts],
    "quantile_per_layer": lambda ts, c: [shrink(t, c) for t in ts],
    "l2_max": lambda ts, c: [shrink(t, np.clip(max(norm([t]) for t in ts), 0.1, 32)) for t in ts],
}
PRIVATE = [name for name in clipping.NAMES if name != "l2_max"]


SCHEDULED = [name for name in PRIVATE if not name.startswith("quantile")]


def make(name, bound=BOUND, layers=LAYERS):
    return clipping.create(name, bound, layers=layers, expected_batch_size=B)


def clip(clipper, grads, step=0, mask=None):
    mask = jnp.ones(B, bool) if mask is None else mask
    params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), grads, is_leaf=gradients.is_leaf)
    return clipper.clip(grads, clipper.init(params), step, mask)


def total_norm(tree):
    return float(jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))))


@pytest.mark.parametrize("name", clipping.NAMES)
class TestEveryClipper:
    def test_equals_the_definition(self, name):
        grads = per_example_gradients()
        mask = jnp.arange(B) % 5 != 2
        summed = clip(make(name), grads, mask=mask)
        kept = [ORACLES[name](ts, BOUND) for ts, m in zip(rows(grads), np.asarray(mask), strict=True) if m]
        for leaf, *tensors in zip(jax.tree.leaves(summed.gradients), *kept, strict=True):
            np.testing.assert_allclose(np.asarray(leaf).ravel(), np.sum(tensors, 0), rtol=1e-4, atol=1e-5)
        assert summed.examples == mask.sum()

    def test_padding_never_counts(self, name):
        grads = per_example_gradients()
        mask = jnp.arange(B) < 9
        garbage = jax.tree.map(lambda g: jnp.where(mask.reshape(B, *[1] * (g.ndim - 1)), g, jnp.nan), grads)
        clean, dirty = clip(make(name), grads, mask=mask), clip(make(name), garbage, mask=mask)
        jax.tree.map(np.testing.assert_array_equal, clean, dirty)
        assert dirty.nonfinite == 0

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
    def test_an_example_that_is_not_finite_counts_as_zero(self, name, bad):
        """One bad entry (3e38 squares to infinity) removes its example, and only its example."""
        grads = per_example_gradients()
        spoilt = dict(grads, a=grads["a"].at[4, 2, 2].set(bad))
        summed = clip(make(name), spoilt)
        without = clip(make(name), grads, mask=jnp.arange(B) != 4)
        jax.tree.map(np.testing.assert_array_equal, summed.gradients, without.gradients)
        assert summed.nonfinite == 1

    def test_microbatches_add_up(self, name):
        grads, clipper = per_example_gradients(), make(name)
        half = jnp.arange(B) < B // 2
        parts = jax.tree.map(jnp.add, clip(clipper, grads, mask=half), clip(clipper, grads, mask=~half))
        whole = clip(clipper, grads)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            parts._replace(bounds=()), whole._replace(bounds=()),
        )  # fmt: skip
        if clipper.sensitivity is not None:
            assert parts.bounds.parts == 2 and parts.sensitivity == whole.sensitivity

    def test_takes_factored_gradients(self, name):
        keys = jax.random.split(jax.random.key(0), 3)
        left = jax.random.normal(keys[0], (B, 3, 7))
        right = jax.random.normal(keys[1], (B, 3, 5))
        factored = gradients.Factored(left, right, arrange=(("reshape", (7, 5)), ("transpose", (1, 0))))
        rest = jax.random.normal(keys[2], (B, 4))
        clipper = make(name, layers=2)
        as_pairs = clip(clipper, {"k": factored, "b": rest})
        as_arrays = clip(clipper, {"k": factored.dense(), "b": rest})
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), as_pairs, as_arrays)


@pytest.mark.parametrize("name", PRIVATE)
class TestSensitivity:
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, 1e15])
    def test_one_example_moves_the_sum_by_no_more_than_it(self, name, scale):
        clipper = make(name)
        grads = per_example_gradients(scale=scale)
        sensitivity = float(clipper.sensitivity(clipper.init(grads), 0))
        moved = [total_norm(clip(clipper, grads, mask=jnp.arange(B) == i).gradients) for i in range(B)]
        assert max(moved) <= sensitivity * (1 + 1e-5)
        if scale >= 1e6:  # and the bound is reached: it is not merely large
            assert max(moved) >= 0.99 * sensitivity

    @pytest.mark.parametrize("step", [0, 5])
    def test_noise_scales_with_it(self, name, step):
        clipper, state = make(name), make(name).init(SHAPES_AS_PARAMS)
        ratio = clipper.noise_scale(None, state, step) / clipper.sensitivity(state, step)
        assert float(ratio) == pytest.approx(clipper.noise_to_sensitivity)


@pytest.mark.parametrize("name", SCHEDULED)
class TestScheduledBound:
    def test_a_schedule_moves_bound_sensitivity_and_noise_together(self, name):
        bound = schedules.linear(100, start=6.0, end=2.0)
        clipper = clipping.create(name, bound, layers=LAYERS)
        grads = per_example_gradients(scale=1e6)
        for step in (0, 1, 37, 99):
            reached = total_norm(clip(clipper, grads, step, jnp.arange(B) == 3).gradients)
            scale = float(clipper.noise_scale(None, (), step))
            sensitivity = float(clipper.sensitivity((), step))
            assert reached == pytest.approx(sensitivity, rel=1e-3)
            assert scale / sensitivity == pytest.approx(clipper.noise_to_sensitivity)
            assert scale == pytest.approx(6 - 4 * step / 100, rel=1e-6)


def test_published_per_layer_clipping_has_sqrt_layers_the_sensitivity():
    clipper = make("per_layer_published")
    assert float(clipper.sensitivity((), 0)) == pytest.approx(BOUND * 2)
    assert clipper.noise_to_sensitivity == pytest.approx(0.5)
    with pytest.raises(ValueError, match="layers=3: the gradient has 4 tensors"):
        clip(clipping.per_layer_published(BOUND, layers=3), per_example_gradients())


def test_l2_max_claims_nothing():
    clipper = make("l2_max")
    assert not clipper.private and clipper.sensitivity is None and "private gradients" in clipper.reason
    grads = per_example_gradients()
    maxima = [np.clip(max(norm([t]) for t in ts), 0.1, 32) for ts in rows(grads)]
    scale = clipper.noise_scale(clip(clipper, grads), (), 0)
    assert float(scale) == pytest.approx(np.mean(maxima), rel=1e-5)


def test_float16_gradients_do_not_escape_by_underflow():
    """In float16 a squared norm of 1e-5 is 0; the norm is taken in float32."""
    grads = {"a": jnp.full((2, 100), 1e-3, jnp.float16)}
    summed = clipping.flat(1e-3).clip(grads, (), 0, jnp.array([True, False]))
    assert total_norm(summed.gradients) == pytest.approx(1e-3, rel=1e-3)
    assert summed.gradients["a"].dtype == jnp.float32


def test_cancelling_positions_do_not_escape():
    """Where the Gram form loses all its digits, what is claimed stays above the true norm."""
    rng = np.random.default_rng(0)
    x, d = rng.normal(size=(1, 1, 40)), rng.normal(size=(1, 1, 30))
    left = jnp.asarray(np.concatenate([x, x], 1) * 1e3, jnp.float32)
    right = jnp.asarray(np.concatenate([d, -d + 1e-6 * rng.normal(size=d.shape)], 1) * 1e3, jnp.float32)
    leaf = gradients.Factored(left, right, arrange=(("reshape", (40, 30)),))
    true = np.einsum("bpk,bpo->bko", np.asarray(left, np.float64), np.asarray(right, np.float64))
    assert float(leaf.squared_norm()[0]) >= (true**2).sum() * (1 - 1e-6)


@pytest.mark.parametrize(
    "build, text",
    [
        (lambda: clipping.flat(0.0), "l2_norm_clip=0.0"),
        (lambda: clipping.flat(float("inf")), "l2_norm_clip=inf"),
        (lambda: clipping.per_layer(-1.0), "l2_norm_clip=-1.0"),
        (lambda: clipping.automatic(1.0, gamma=0.0), "gamma=0.0"),
        (lambda: clipping.per_layer_published(1.0, layers=0), "layers=0"),
        (lambda: clipping.l2_max(low=2.0, high=1.0), "low=2.0, high=1.0"),
        (lambda: clipping.create("global", 1.0), "clipping='global'"),
        (lambda: dataclasses.replace(clipping.flat(1.0), sensitivity=None), "sensitivity=None: .* 'flat'"),
        (lambda: dataclasses.replace(clipping.flat(1.0), noise_to_sensitivity=0.0), "noise_to_sensitivity"),
    ],
)
def test_refusals(build, text):
    with pytest.raises(ValueError, match=text):
        build()
