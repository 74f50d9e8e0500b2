"""Products on devices that keep few digits of each factor: exact, or the norm is not that of what is summed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import clipping, gradients
from jaxdp.gradients import jaxprs, per_example
from jaxdp.gradients.precision import DIGITS

pytestmark = pytest.mark.default_precision

BOUND = 0.5
KINDS = ("plain", "cancelling", "huge", "tiny", "mixed")


def is_left_to_the_device(equation):
    if equation.primitive.name != "dot_general":
        return False
    precision = equation.params["precision"]
    return precision is None or set(precision) != {jax.lax.Precision.HIGHEST}


def on_device(function, digits, *arguments):
    """The result where each product that is left to the device keeps so many digits of its factors."""

    def rule(equation, inputs):
        if equation.primitive.name == "dot_general" and is_left_to_the_device(equation):
            exact = {**equation.params, "precision": (jax.lax.Precision.HIGHEST,) * 2}  # on any device
            rounded = [jax.lax.reduce_precision(x, 8, digits) for x in inputs]
            return jaxprs.bind(equation.replace(params=exact), rounded)
        if equation.primitive.name in ("scan", "while", "cond"):
            return jaxprs.bind_rewritten(equation, inputs, rule)
        return None

    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    flat = jaxprs.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), rule)
    return jax.tree.unflatten(jax.tree.structure(shape), flat)


def factors(kind, positions, seed):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(1, positions, 24)), rng.normal(size=(1, positions, 18))
    if kind == "cancelling" and positions > 1:
        right[:, 1] = -right[:, 0] + 1e-4 * right[:, 1]
        left[:, 1] = left[:, 0]
    size = {"huge": 1e15, "tiny": 1e-16}.get(kind, 1.0)
    if kind == "mixed":
        size = 10 ** rng.uniform(-12, 12, (1, positions, 1))
        right = right * 10 ** rng.uniform(-3, 3, (1, positions, 1)) / size
    return jnp.asarray(left * size, jnp.float32), jnp.asarray(right, jnp.float32)


def leaf(left, right, norm, digits):
    rounded = (jax.lax.reduce_precision(x, 8, digits) for x in (left, right))
    return gradients.Factored(*rounded, arrange=(), norm=norm, digits=digits)


def length(tree):
    return np.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize("digits", sorted(set(DIGITS.values())))
@pytest.mark.parametrize("norm", ["gram", "built"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_part_passes_the_bound(kind, norm, digits):
    reached = 0
    for seed in range(20):
        for positions in (1, 2, 9):
            left, right = factors(kind, positions, seed)

            def clipped(left, right):
                grads = {"w": leaf(left, right, norm, digits)}
                return clipping.flat(BOUND).clip(grads, (), 0).gradients

            found = length(on_device(clipped, digits, left, right))
            exact = length(np.einsum("bpk,bpo->ko", np.float64(left), np.float64(right)))
            assert found <= BOUND * (1 + 1e-5)
            if kind != "cancelling":  # and nothing is lost but the digits
                assert found == pytest.approx(min(exact, BOUND), rel=20 * 2.0**-digits)
            reached += found > 0.9 * BOUND
    assert reached >= 20 or kind in ("tiny", "cancelling")


@pytest.mark.parametrize("digits", sorted(set(DIGITS.values())))
def test_products_of_rounded_factors_lose_nothing_and_of_others_would(digits):
    left, right = factors("plain", 9, 0)

    def squares(left, right):
        return leaf(left, right, "gram", digits).squared_norm()

    def unrounded(left, right):
        return gradients.Factored(left, right, arrange=(), digits=digits).squared_norm()

    for function, same in ((squares, True), (unrounded, False)):
        alone = on_device(function, 23, left, right)  # all digits of float32, whatever this device keeps
        assert bool(jnp.allclose(on_device(function, digits, left, right), alone, rtol=1e-6)) == same


@pytest.mark.parametrize("digits", sorted(set(DIGITS.values())))
def test_a_sum_that_rounds_what_was_weighted_passes_the_bound(digits):
    """What the two parts are for: one product of the weighted factor is caught by the same measure."""
    passed = 0
    for seed in range(40):
        left, right = factors("plain", 1, seed)
        rounded = [jax.lax.reduce_precision(x, 8, digits)[0, 0] for x in (left, right)]
        weight = BOUND / (length(rounded[0]) * length(rounded[1]))
        once = jax.lax.reduce_precision(rounded[1] * np.float32(weight), 8, digits)
        passed += length(np.outer(rounded[0], once)) > BOUND * (1 + 1e-5)
    assert passed >= 5


def network(params, example):
    x, y = example
    h = jnp.tanh(jnp.einsum("td,dk->tk", x, params["in"]))
    logits = h @ params["out"]
    return jax.nn.logsumexp(logits, axis=-1).sum() - logits[:, y].sum() + (h @ params["table"][y]).sum()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_network_keeps_its_factors_as_the_platform_multiplies_them(platform):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {"in": draw(300, 200), "out": draw(200, 400), "table": draw(50, 200)}
    batch = draw(3, 2, 300), jnp.asarray([1, 2, 3])
    _, grads = per_example(network, platform=platform)(params, batch)
    kept = [g for g in jax.tree.leaves(grads, is_leaf=gradients.is_leaf) if isinstance(g, gradients.Factored)]
    digits = DIGITS.get(platform)
    assert len(kept) == 2 and all(g.digits == digits for g in kept)
    if digits is None:
        return
    for g in kept:
        for x in (g.left, g.right):
            np.testing.assert_array_equal(x, jax.lax.reduce_precision(x, 8, digits))

    def clipped(params, batch):
        _, grads = per_example(network, platform=platform)(params, batch)
        return clipping.flat(BOUND).clip(grads, (), 0, jnp.arange(3) == 1).gradients

    clipping_only = jax.make_jaxpr(lambda g: clipping.flat(BOUND).clip(g, (), 0))(grads)
    assert any(map(is_left_to_the_device, jaxprs.equations(clipping_only.jaxpr)))
    assert length(on_device(clipped, digits, params, batch)) <= BOUND * (1 + 1e-5)
