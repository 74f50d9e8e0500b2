"""Convolutions of two arrays of an example, and the program that a GPU gets of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradient_oracle import B, check, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import networks
from jaxdp import clipped_gradients, clipping, gradients, models
from jaxdp.gradients import correlation

pytestmark = pytest.mark.usefixtures("quick_compilation")

NHWC = ("NHWC", "HWIO", "NHWC")
LAYOUTS = (NHWC, ("NCHW", "OIHW", "NCHW"), ("CHWN", "IHWO", "HWNC"))


def placed(x, spec, order):
    """`x`, whose axes are named by `order`, laid out as `spec`."""
    return x.transpose([order.index(name) for name in spec])


# Windows larger than the output too, as in the gradient of a kernel.
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 3))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    window=SIZES, strides=SIZES, dilation=SIZES, interior=st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 2)]),
    low=st.tuples(st.integers(-1, 2), st.integers(-1, 2)), high=st.integers(0, 3),
    groups=st.sampled_from([(1, 1), (2, 1), (1, 2)]), layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_convolution_is_the_product(window, strides, dilation, interior, low, high, groups, layout):
    of_features, of_batch = groups
    x = placed(normal(2 * of_batch, 6, 5, 3 * of_features), layout[0], "NHWC")
    kernel = placed(normal(*window, 3, 2 * of_features * of_batch, seed=1), layout[1], "HWIO")

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, [(edge, high) for edge in low], interior, dilation, layout,
            of_features, of_batch,
        )  # fmt: skip

    try:
        (equation,) = jax.make_jaxpr(convolve)(x, kernel).eqns
    except ValueError:  # a window that does not fit
        return
    form = correlation.Form(equation)
    if not form.empty:
        both = jax.jit(lambda x, kernel: (form.product(x, kernel), convolve(x, kernel)))
        np.testing.assert_allclose(*both(x, kernel), rtol=1e-4, atol=1e-4)


OPTIONS = {
    "plain": {},
    "strided": dict(window_strides=(2, 3)),
    "depthwise": dict(feature_group_count=4),
    "grouped": dict(feature_group_count=2, window_strides=(1, 2)),
    "batch groups": dict(batch_group_count=2),
    "dilated": dict(rhs_dilation=(2, 1)),
    "transposed": dict(lhs_dilation=(2, 2)),
    "cropped": dict(padding=[(-1, 0), (0, 2)]),
}


def convolved(x, kernel, window_strides=(1, 1), padding=((1, 1), (1, 1)), **options):
    return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, dimension_numbers=NHWC, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_on_a_gpu_every_convolution_has_the_gradients_of_the_loop(options):
    groups, batch = options.get("feature_group_count", 1), options.get("batch_group_count", 1)
    params = {"k": normal(3, 2, 4 // groups, 4), "last": normal(2, 2, 4, 8, seed=1)}

    def loss_fn(params, x):
        y = jnp.tanh(convolved(x.reshape(batch, *x.shape[1:]) if batch > 1 else x, params["k"], **options))
        return jnp.sum(jnp.sin(convolved(y, params["last"], (3, 3))))

    check(loss_fn, params, normal(B, batch, 6, 6, 4), rtol=2e-5, platform="cuda")


def test_few_positions_keep_the_factors_of_a_kernel():
    params = {"k": normal(3, 3, 4, 8)}
    check(
        lambda params, x: jnp.sum(jnp.sin(convolved(x[None], params["k"], (2, 2)))), params,
        normal(B, 4, 4, 4), rtol=2e-5, expect_factored=1, platform="cuda",
    )  # fmt: skip


# --- the program for CUDA, read on this machine -----------------------------------------------------------


class Residual(nnx.Module):
    """A block of a residual network, with strides and GroupNorm."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.second = nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs)
        self.short = nnx.Conv(3, 8, (1, 1), strides=2, use_bias=False, rngs=rngs)
        self.norms = nnx.List(nnx.GroupNorm(8, num_groups=4, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        y = nnx.relu(self.norms[0](self.first(x)))
        return nnx.relu(self.norms[1](self.second(y)) + self.short(x)).mean((-3, -2))


class Separable(nnx.Module):
    """A depthwise convolution, a dilated one, a transposed one, and the last once more."""

    def __init__(self, rngs):
        self.depthwise = nnx.Conv(3, 6, (3, 3), feature_group_count=3, rngs=rngs)
        self.dilated = nnx.Conv(6, 8, (3, 3), kernel_dilation=2, rngs=rngs)
        self.transposed = nnx.ConvTranspose(8, 8, (3, 3), strides=2, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.dilated(nnx.tanh(self.depthwise(x))))
        return self.transposed(self.transposed(x)).mean((-3, -2))


class Looped(nnx.Module):
    """One kernel several times in a loop, and in a branch."""

    def __init__(self, rngs):
        self.convolution = nnx.Conv(3, 3, (3, 3), rngs=rngs)

    def __call__(self, x):
        graph, state = nnx.split(self.convolution)
        layer = lambda x, _: (nnx.tanh(nnx.merge(graph, state)(x)), None)  # noqa: E731
        x = jax.lax.scan(layer, x, None, 2)[0]
        return jax.lax.cond(x.sum() > 0, lambda x: layer(x, None)[0], lambda x: x, x).mean((-3, -2))


NETWORKS = {
    "cnn": (networks.PaperCNN, (28, 28, 1), 1), "cifar": (networks.CifarCNN, (32, 32, 3), 1),
    "residual": (Residual, (8, 8, 3), 1), "separable": (Separable, (8, 8, 3), 3),
    "looped": (Looped, (8, 8, 3), 1),
}  # fmt: skip
COUNTS = re.compile(r"(?:feature|batch)_group_count = (\d+)")


def for_cuda(function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("microbatch_size", [None, "auto"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_convolution_for_cuda_has_more_groups_than_the_models_own(name, microbatch_size):
    network, shape, groups = NETWORKS[name]
    model = networks.functional(network(nnx.Rngs(0)))
    loss_fn, batch = models.cross_entropy(model), (normal(16, *shape), jnp.arange(16) % 3)
    clipped = clipped_gradients(loss_fn, clipping.flat(1.0), microbatch_size=microbatch_size, platform="cuda")
    text = for_cuda(lambda params: clipped(params, batch, None, (), 0), model.params)
    found = [int(count) for count in COUNTS.findall(text)]
    assert found and max(found) == groups and "stablehlo.case" not in text
    # What `vmap` makes by itself, so that the pattern is known to find it.
    naive = gradients.per_example(loss_fn, method="dense", platform="cuda")
    text = for_cuda(lambda params: naive(params, batch)[1], model.params)
    assert max(int(count) for count in COUNTS.findall(text)) >= 16


@pytest.mark.parametrize("name", ["separable", "looped"])
def test_layers_used_again_and_in_loops_have_the_gradients_of_the_loop(name):
    network, shape, _ = NETWORKS[name]
    model = networks.functional(network(nnx.Rngs(0)))
    batch = (normal(B, *shape), jnp.arange(B))
    check(models.cross_entropy(model), model.params, batch, rtol=3e-5, platform="cuda")


def test_forward_and_input_gradient_stay_convolutions_on_a_gpu():
    """As many convolutions as layers, and the gradient of the input of each but the first."""
    model = networks.create("cifar")
    batch = networks.batch("cifar", 4)
    clipped = clipped_gradients(models.cross_entropy(model), clipping.flat(1.0), platform="cuda")
    text = for_cuda(lambda params: clipped(params, batch, None, (), 0), model.params)
    assert text.count("stablehlo.convolution") == 6 + 5


@pytest.mark.parametrize("platform", ["cpu", "auto"])
def test_on_a_cpu_no_plain_convolution_is_left(platform):
    model, batch = networks.create("cnn"), networks.batch("cnn", 4)
    clipped = clipped_gradients(models.cross_entropy(model), clipping.flat(1.0), platform=platform)
    jaxpr = str(jax.make_jaxpr(lambda params: clipped(params, batch, None, (), 0))(model.params))
    assert "conv_general_dilated" not in jaxpr


def test_an_unknown_platform_is_refused():
    with pytest.raises(ValueError, match="platform='gpus'"):
        gradients.per_example(lambda params, x: 0.0, platform="gpus")
