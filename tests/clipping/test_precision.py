"""The bound against float64: factors of every size, and devices that multiply with few digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import clipping, gradients
from jaxdp.gradients import jaxprs

pytestmark = pytest.mark.default_precision

NAMES = [name for name in clipping.NAMES if name != "l2_max"]


def true_norm(tree):
    return np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree)))


def random_factors(rng, positions):
    """Rows of sizes 1e-25 to 1e13, with products from far below the bound to far above."""
    size = rng.uniform(-25, 13, (1, positions, 1))
    product = rng.uniform(-9, 4, (1, positions, 1))
    left = rng.normal(size=(1, positions, 30)) * 10**size
    right = rng.normal(size=(1, positions, 20)) * 10 ** (product - size)
    return jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)


@pytest.mark.parametrize("positions", [1, 2, 5])
@pytest.mark.parametrize("bound", [1e-6, 1.0])
def test_factors_of_any_size_stay_within_the_bound(positions, bound):
    rng = np.random.default_rng(positions)
    clip = jax.jit(lambda grads: clipping.flat(bound).clip(grads, (), 0))
    reached = []
    for _ in range(60):
        left, right = random_factors(rng, positions)
        leaf = gradients.Factored(left, right, arrange=(("reshape", (30, 20)),))
        true = true_norm(np.einsum("bpk,bpo->bko", np.asarray(left, float), np.asarray(right, float)))
        summed = clip({"w": leaf})
        assert summed.nonfinite == 0
        found = true_norm(summed.gradients)
        assert found <= bound * (1 + 1e-5)
        assert found == pytest.approx(min(true, bound), rel=1e-2)  # and nothing is lost
        reached.append(true > bound)
    assert sum(reached) > 10


def test_large_kernels_of_tiny_and_huge_factors_stay_within_the_smallest_bound():
    """Squares of 1e-19 underflow, those of 1e12 do not make up for it."""
    for small, large in ((1e-19, 1e12), (1e-25, 1e18), (1e-30, 1e23)):
        left, right = jnp.full((1, 1, 784), small), jnp.full((1, 1, 600), large)
        grads = {"k": gradients.Factored(left, right, arrange=(("reshape", (784, 600)),))}
        found = true_norm(clipping.flat(1e-6).clip(grads, (), 0).gradients)
        assert found == pytest.approx(min(small * large * np.sqrt(784 * 600), 1e-6), rel=1e-4)


def test_a_falling_bound_is_held_above_what_float32_can_square():
    clipper = clipping.flat(lambda step: jnp.float32(1e-30) / (1 + step))
    assert float(clipper.sensitivity((), 3)) == pytest.approx(1e-6)
    summed = clipper.clip({"w": jnp.full((2, 3), 1e-4)}, (), 3)
    assert true_norm(summed.gradients) == pytest.approx(2e-6, rel=1e-4)
    with pytest.raises(ValueError, match="l2_norm_clip=1e-07: must be >= 1e-06"):
        clipping.flat(1e-7)


def some_gradients():
    rng = np.random.default_rng(0)
    factors = [jnp.asarray(rng.normal(size=(4, 3, n)), jnp.float32) for n in (20, 30)]
    return {
        "conv": gradients.Factored(*factors, arrange=(("reshape", (20, 30)),)),
        "row": gradients.Factored(*[f[:, :1] for f in factors], arrange=(("reshape", (20, 30)),)),
        "bias": jnp.asarray(rng.normal(size=(4, 50)), jnp.float32),
    }


def as_params(grads):
    return jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), grads, is_leaf=gradients.is_leaf)


@pytest.mark.parametrize("name", NAMES)
def test_no_part_passes_the_bound_where_a_device_multiplies_in_bfloat16(name):
    """Each product whose precision is left to the device is computed from factors of 8 bits."""
    clipper = clipping.create(name, 0.5, layers=3, expected_batch_size=4.0)
    grads = some_gradients()
    state = clipper.init(as_params(grads))

    def rounded(equation, inputs):
        if equation.primitive.name != "dot_general" or _is_highest(equation):
            return None
        return jaxprs.bind(equation, [jax.lax.reduce_precision(x, 8, 7) for x in inputs])

    def of_one(i):
        summed = clipper.clip(grads, state, 0, jnp.arange(4) == i)
        return summed.gradients, clipper.sensitivity(state, 0)

    closed = jax.make_jaxpr(of_one)(0)
    for i in range(4):
        *leaves, sensitivity = jaxprs.evaluate(closed.jaxpr, closed.consts, [jnp.int32(i)], rounded)
        assert true_norm(leaves) <= float(sensitivity) * (1 + 1e-5)


def _is_highest(equation):
    precision = equation.params["precision"]
    return precision is not None and set(precision) == {jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize("name", NAMES)
def test_every_product_behind_a_bound_asks_for_the_highest_precision(name):
    clipper = clipping.create(name, 0.5, layers=3, expected_batch_size=4.0)

    def everything(grads, state):
        summed = clipper.clip(grads, state, 0)
        return (
            summed,
            clipper.noise_scale(summed, state, 0),
            clipper.update(state, summed, 0, lambda sums, std: sums),
        )

    closed = jax.make_jaxpr(everything)(some_gradients(), clipper.init(as_params(some_gradients())))
    products = [e for e in jaxprs.equations(closed.jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) >= 9 and all(map(_is_highest, products))
