"""Per-example gradients: factored and dense against a Python loop over the examples."""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradient_oracle import B, check, factored_count, leaves_of, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp import clipped_gradients, clipping, gradients, models
from jaxdp.gradients import jaxprs

QUICK = pytest.mark.usefixtures("quick_compilation")


def dense_params(*sizes):
    return [
        {"w": normal(a, b, seed=i) / np.sqrt(a), "b": normal(b, seed=9 + i)}
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    ]


def dense_loss(params, example):
    x, y = example
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return jnp.sum((x @ params[-1]["w"] + params[-1]["b"] - y) ** 2)


# --- plain JAX: what wraps a product must not hide it, what is not a lone product must stay dense ---------


@jax.custom_vjp
def doubled_backwards(x):
    return x


doubled_backwards.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))


@jax.custom_jvp
def soft(x):
    return jnp.log1p(jnp.exp(x))


soft.defjvp(lambda primals, tangents: (soft(*primals), jax.nn.sigmoid(primals[0]) * tangents[0]))


def nested_jit(params, example):
    return jax.jit(lambda p: jax.jit(dense_loss)(p, example))(params)


def rematerialised(params, example):
    return jax.checkpoint(dense_loss)(params, example)


def custom_rules(params, example):
    x, y = example
    x = soft(doubled_backwards(x @ params[0]["w"] + params[0]["b"]))
    return jnp.sum((x @ params[1]["w"] + params[1]["b"] - y) ** 2)


def tied(params, example):
    x, y = example
    w = params[0]["w"]
    return jnp.sum((jnp.tanh(x @ w) @ w.T - x) ** 2) + dense_loss(params, (x, y))


def scanned(params, example):
    x, y = example
    h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(x @ params[0]["w"] + 0.5 * h), None), params[0]["b"], None, 3)
    return jnp.sum((h @ params[1]["w"] + params[1]["b"] - y) ** 2)


def transposed_kernel(params, example):
    x, y = example
    h = jnp.einsum("ok,k->o", params[0]["w"].T, x) + params[0]["b"]
    return dense_loss(params[1:], (jnp.tanh(h), y))


@pytest.mark.parametrize(
    "loss_fn, factored",
    [
        (dense_loss, 2), (nested_jit, 2), (rematerialised, 2), (custom_rules, 2), (transposed_kernel, 2),
        (tied, 2), (scanned, 2),
    ],
)  # fmt: skip
def test_plain_jax(loss_fn, factored):
    check(loss_fn, dense_params(9, 7, 4), (normal(B, 9), normal(B, 4)), expect_factored=factored)


def test_float64_agrees_to_1e10():
    with jax.enable_x64(True):
        check(dense_loss, dense_params(9, 7, 4), (normal(B, 9), normal(B, 4)), rtol=1e-10, expect_factored=2)


def test_bfloat16_parameters():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), dense_params(9, 7, 4))
    batch = (normal(B, 9).astype(jnp.bfloat16), normal(B, 4).astype(jnp.bfloat16))
    grads = check(dense_loss, params, batch, rtol=2e-2, expect_factored=2)
    assert all(gradients.squared_norm(leaf).dtype == jnp.float32 for leaf in leaves_of(grads))


# --- convolutions, by property ---------------------------------------------------------------------------


@QUICK
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    height=st.integers(4, 7), width=st.integers(4, 7), channels=st.integers(1, 3), features=st.integers(1, 3),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(
        st.sampled_from(["SAME", "VALID"]),
        st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    ),
    layout=st.sampled_from([("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NCHW")]),
)  # fmt: skip
def test_convolutions(height, width, channels, features, window, strides, padding, layout):
    lhs, rhs, _ = layout
    params = {"k": normal(*window, channels, features), "b": normal(features)}
    if rhs == "OIHW":
        params["k"] = params["k"].transpose(3, 2, 0, 1)

    def loss_fn(params, x):
        x = x[None] if lhs == "NHWC" else x.transpose(2, 0, 1)[None]
        y = jax.lax.conv_general_dilated(x, params["k"], strides, padding, dimension_numbers=layout)
        bias = params["b"] if layout[2] == "NHWC" else params["b"][:, None, None]
        return jnp.sum(jnp.sin(y[0] + jnp.broadcast_to(bias, y.shape[1:])))

    check(loss_fn, params, normal(B, height, width, channels), rtol=2e-5)


@pytest.mark.parametrize(
    "kwargs", [dict(feature_group_count=2), dict(rhs_dilation=(2, 2)), dict(lhs_dilation=(2, 2))]
)
def test_grouped_and_dilated_convolutions_stay_as_they_are(kwargs):
    groups = kwargs.get("feature_group_count", 1)
    params = {"k": normal(3, 3, 4 // groups, 4)}

    def loss_fn(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x[None], params["k"], (1, 1), [(1, 1), (1, 1)], dimension_numbers=numbers, **kwargs
        )
        return jnp.sum(jnp.sin(y))

    check(loss_fn, params, normal(B, 6, 6, 4), expect_factored=0)


def test_convolutions_in_a_scan():
    params = {"k": normal(3, 3, 2, 2) / 3}

    def loss_fn(params, x):
        def layer(x, _):
            y = jax.lax.conv_general_dilated(
                x[None], params["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return jnp.tanh(y[0]), None

        return jnp.sum(jax.lax.scan(layer, x, None, 3)[0] ** 2)

    check(loss_fn, params, normal(B, 5, 5, 2), expect_factored=0)
    jaxpr = str(
        jax.make_jaxpr(gradients.per_example(loss_fn, convolution="patches"))(params, normal(B, 5, 5, 2))
    )
    assert "conv_general_dilated" not in jaxpr


# --- the frameworks --------------------------------------------------------------------------------------


class LinenBlock(nn.Module):
    """A transformer block on token numbers, with an embedding, norms and attention."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 12)(tokens)
        x = x + nn.MultiHeadDotProductAttention(num_heads=3)(nn.LayerNorm()(x))
        x = x + nn.Dense(12)(nn.gelu(nn.Dense(20)(nn.LayerNorm()(x))))
        return nn.Dense(5)(x.mean(-2))


@QUICK
def test_linen_transformer():
    module, tokens = LinenBlock(), jnp.asarray(np.random.default_rng(0).integers(0, 11, (B, 4)))
    params = module.init(jax.random.key(0), tokens[0])["params"]

    def loss_fn(params, example):
        tokens, label = example
        return -jax.nn.log_softmax(module.apply({"params": params}, tokens))[label]

    # the embedding, query, key, value, output, two of the block's MLP and the head
    check(loss_fn, params, (tokens, jnp.arange(B)), rtol=3e-5, expect_factored=8)


# A block maximum after a norm: XLA rounds the norm differently where the derivative compares with the maximum.
@pytest.mark.parametrize(
    "pool", [lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)), models.max_pool_2x2], ids=["window", "block"]
)
def test_nnx_network_with_norm_and_pooling(pool):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.convolution = nnx.Conv(1, 4, (3, 3), rngs=rngs)
            self.norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
            self.dense = nnx.Linear(36, 5, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.convolution(x)))
            return self.dense(pool(x).reshape(-1))

    graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, example):
        x, label = example
        return -jax.nn.log_softmax(nnx.merge(graph, params, rest)(x))[label]

    check(loss_fn, params, (normal(B, 6, 6, 1), jnp.arange(B)), rtol=2e-5, expect_factored=1)


def test_equinox_network():
    network = eqx.nn.MLP(6, 3, 8, 2, key=jax.random.key(0))
    params, static = eqx.partition(network, eqx.is_inexact_array)

    def loss_fn(params, example):
        x, label = example
        return -jax.nn.log_softmax(eqx.combine(params, static)(x))[label]

    check(loss_fn, params, (normal(B, 6), jnp.arange(B)), expect_factored=3)


@pytest.mark.parametrize("name", ["cnn", "cifar_cnn", "tanh_cnn"])
def test_own_models(name):
    shape = {"cnn": (12, 12, 1), "cifar_cnn": (8, 8, 3), "tanh_cnn": (14, 14, 1)}[name]
    model = models.create(name, jax.random.key(1), input_shape=shape, classes=4)
    # A ReLU or a maximum may fall on the other side by rounding: a few entries, hence the wider bound.
    check(models.cross_entropy(model), model.params, (normal(B, *shape), jnp.arange(B)), rtol=5e-5)


# --- what is evaluated ---------------------------------------------------------------------------------------


def test_what_no_output_needs_is_left_out_but_effects_stay():
    seen = []

    def function(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x)
        return jnp.sin(x), jnp.cos(x)

    closed = jax.make_jaxpr(function)(1.0)
    rules = []
    (cosine,) = jaxprs.evaluate(
        closed.jaxpr, closed.consts, [jnp.float32(2.0)],
        lambda equation, inputs: rules.append(equation.primitive.name), outputs=closed.jaxpr.outvars[1:],
    )  # fmt: skip
    jax.effects_barrier()
    np.testing.assert_allclose(cosine, np.cos(2.0), rtol=1e-6)
    assert seen == [2.0] and "cos" in rules and "sin" not in rules


# --- what an example can see -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", gradients.METHODS)
def test_an_example_does_not_see_the_others(method):
    params, x, y = dense_params(9, 7, 4), normal(B, 9), normal(B, 4)
    run = jax.jit(gradients.per_example(dense_loss, method=method))
    _, before = run(params, (x, y))
    _, after = run(params, (x.at[0].set(1e6), y))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:], b[1:]), before, after)


def test_gram_and_product_forms_are_chosen_by_cost():
    """Many positions make building the gradient cheaper; few make the Gram form cheaper."""
    params = {"w": normal(8, 8)}
    for positions, factored in ((2, 1), (8, 1), (9, 0), (64, 0)):
        grads = check(
            lambda p, x: jnp.sum(jnp.sin(x @ p["w"])),
            params,
            normal(B, positions, 8),
            expect_factored=factored,
        )
    assert factored_count(grads) == 0


@pytest.mark.parametrize("rows", [64, 4096])
def test_no_part_passes_the_bound_where_positions_cancel(rows):
    """Two positions of opposite sign and almost equal length: all of |g| is what rounding may lose."""
    bound, rng = 1.0, np.random.default_rng(0)

    def loss_fn(params, x):
        return jnp.sum((x @ params["w"]) * jnp.asarray([[1.0], [-1.0]]))

    clipped = jax.jit(clipped_gradients(loss_fn, clipping.flat(bound), microbatch_size=None))
    for _ in range(20):
        first = np.float32(rng.uniform(5, 10))
        second = np.float32(first + 10 ** rng.uniform(0, 1.5) * bound / np.sqrt(rows * 8))
        x = np.stack([np.full(rows, first), np.full(rows, second)])[None]
        _, summed = clipped({"w": jnp.zeros((rows, 8))}, x, np.ones(1, bool), (), 0)
        assert np.linalg.norm(np.asarray(summed.gradients["w"], np.float64)) <= bound * (1 + 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("bound", [1.0, 1e-3])
def test_low_precision_inside_the_loss_does_not_pass_the_bound(dtype, bound):
    """Parameters in float32, computed with in less: the factors are of that type, their products are not."""

    def loss_fn(params, x):
        return jnp.sum((x.astype(dtype) @ params["w"].astype(dtype)) ** 2).astype(jnp.float32)

    clipped = clipped_gradients(loss_fn, clipping.flat(bound), microbatch_size=None)
    _, summed = jax.jit(clipped)({"w": normal(16, 8)}, 3 * normal(1, 16), np.ones(1, bool), (), 0)
    length = np.linalg.norm(np.asarray(summed.gradients["w"], np.float64))
    assert 0.99 * bound < length <= bound * (1 + 1e-5)


@pytest.mark.parametrize(
    "kwargs, text", [(dict(method="fast"), "method='fast'"), (dict(convolution="fft"), "convolution='fft'")]
)
def test_refusals(kwargs, text):
    with pytest.raises(ValueError, match=text):
        gradients.per_example(dense_loss, **kwargs)
