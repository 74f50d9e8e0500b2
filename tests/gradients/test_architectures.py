"""Factored against the loop over examples, on whole networks: transformers, tied, scanned, rematerialised."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradient_oracle import B, check, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import networks

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOKENS, WIDTH = 5, 12


def transformer(dtype=jnp.float32, **sizes):
    """The benchmarks' transformer, unmodified, made small; its loss of one example, and parameters."""
    sizes = dict(vocabulary=7, tokens=TOKENS, width=WIDTH, heads=2, layers=2) | sizes
    model = networks.functional(networks.Transformer(nnx.Rngs(0), **sizes))

    def loss_fn(params, example):
        tokens, label = example
        return -jax.nn.log_softmax(model.apply(params, tokens).astype(jnp.result_type(float)))[label]

    return loss_fn, jax.tree.map(lambda p: p.astype(dtype), model.params)


def tokens(length=TOKENS):
    return jnp.asarray(np.random.default_rng(3).integers(0, 7, (B, length))), jnp.arange(B)


# Four kernels of the attention (P = 5 positions, 12 x 12: Gram costs less than the product up to P = 6), two of
# the MLP, in each of two blocks, the head and the embedding; positions, norms and biases are dense.
KERNELS = 2 * 6 + 2


def test_transformer_in_float32():
    loss_fn, params = transformer()
    check(loss_fn, params, tokens(), rtol=1e-5, expect_factored=KERNELS)


def test_transformer_in_float64():
    with jax.enable_x64(True):
        loss_fn, params = transformer(jnp.float64)
        check(loss_fn, params, tokens(), rtol=1e-10, expect_factored=KERNELS)


def test_transformer_with_long_sequences_builds_its_products():
    """With more positions than the Gram form is good for, the attention's kernels are multiplied out."""
    loss_fn, params = transformer(tokens=16, layers=1)
    check(loss_fn, params, tokens(16), rtol=1e-5, expect_factored=1)


def test_transformer_with_bfloat16_parameters():
    loss_fn, params = transformer(jnp.bfloat16, layers=1)
    check(loss_fn, params, tokens(), rtol=6e-2, expect_factored=8)


# --- layers that share, repeat or recompute ---------------------------------------------------------------


class Stack(nnx.Module):
    """Token embedding, `repeats` times one linear layer, and the embedding again as the output."""

    def __init__(self, rngs, *, remat=False, tied=False):
        self.embedding = nnx.Embed(7, WIDTH, rngs=rngs)
        self.layers = nnx.List(nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2))
        self.head = None if tied else nnx.Linear(WIDTH, 7, rngs=rngs)
        self.remat, self.tied = remat, tied

    def __call__(self, tokens):
        def layer(module, x):
            return nnx.tanh(module(x))

        layer = nnx.remat(layer) if self.remat else layer
        x = self.embedding(tokens)
        for module in self.layers:
            x = layer(module, x)
        return (self.embedding.attend(x) if self.tied else self.head(x)).mean(-2)


@pytest.mark.parametrize("options, factored", [({}, 4), (dict(remat=True), 4), (dict(tied=True), 3)])
def test_shared_and_rematerialised_layers(options, factored):
    model = networks.functional(Stack(nnx.Rngs(0), **options))

    def loss_fn(params, example):
        tokens, label = example
        return -jax.nn.log_softmax(model.apply(params, tokens))[label]

    x, y = tokens(3)
    check(loss_fn, model.params, (x, y), expect_factored=factored)


def test_scanned_layers():
    """`nnx.scan` stacks the layers' parameters: their gradients come out of a loop, as factors."""

    class Scanned(nnx.Module):
        def __init__(self, rngs):
            create = nnx.vmap(lambda r: nnx.Linear(WIDTH, WIDTH, rngs=r), in_axes=0, out_axes=0)
            self.layers = create(rngs.split(3))
            self.head = nnx.Linear(WIDTH, 4, rngs=rngs)

        def __call__(self, x):
            step = nnx.scan(lambda x, layer: nnx.tanh(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.head(step(x, self.layers))

    model = networks.functional(Scanned(nnx.Rngs(0)))

    def loss_fn(params, example):
        x, label = example
        return -jax.nn.log_softmax(model.apply(params, x))[label]

    check(loss_fn, model.params, (normal(B, WIDTH), jnp.arange(B)), expect_factored=2)


# --- by property ------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    positions=st.integers(0, 4),
    bias=st.booleans(),
    tied=st.booleans(),
    double=st.booleans(),
)
def test_dense_layers(sizes, positions, bias, tied, double):
    """Any widths, with a sequence axis or without, with biases or not, the first kernel used again or not."""
    with jax.enable_x64(double):
        params = [
            {"w": normal(a, b, seed=i)} | ({"b": normal(b, seed=9 + i)} if bias else {})
            for i, (a, b) in enumerate(itertools.pairwise(sizes))
        ]

        def loss_fn(params, x):
            first = x
            for layer in params:
                x = x @ layer["w"]
                x = jnp.tanh(x + jnp.broadcast_to(layer["b"], x.shape) if bias else x)
            again = jnp.sum((first @ params[0]["w"]) ** 2) if tied else 0
            return jnp.sum(x**2) + again

        shape = (B, positions, sizes[0]) if positions else (B, sizes[0])
        check(loss_fn, params, normal(*shape), rtol=1e-10 if double else 1e-5)
