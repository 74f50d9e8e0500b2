"""Language models of each framework against a loop over `jax.grad`, and the program that a GPU would get."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradient_oracle import B, check

from jaxdp import clipped_gradients, clipping, decoder, gradients
from jaxdp.gradients import microbatches

pytestmark = pytest.mark.usefixtures("quick_compilation")

V, D, T = 40, 8, 4


def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T + 1)))


def next_token(apply):
    def loss_fn(params, x):
        logits = apply(params, x[:-1]).astype(jnp.result_type(float))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), x[1:, None], axis=-1).mean()

    return loss_fn


def small(**options):
    options = dict(vocabulary=V, width=D, layers=2, heads=2, tokens=T) | options
    return decoder.create(jax.random.key(0), **options)


@pytest.mark.parametrize(
    "options", [{}, dict(tied=True, scanned=True, remat=True), dict(tied=True, remat=True)], ids=str
)
@pytest.mark.parametrize("double", [False, True])
def test_decoder(options, double):
    with jax.enable_x64(double):
        model = small(**options, dtype="float64" if double else "float32")
        params = jax.tree.map(lambda p: p.astype(jnp.result_type(float)), model.params)
        kernels = (6 if options.get("scanned") else 12) + (1 if options.get("tied") else 2)
        check(
            decoder.next_token_loss(model),
            params,
            tokens(),
            rtol=1e-10 if double else 2e-5,
            expect_factored=kernels,
        )


def test_decoder_computed_in_bfloat16():
    """Parameters in float32, factors in bfloat16, norms and sums in float32."""
    model = small(dtype="bfloat16", tied=True, scanned=True, remat=True)
    loss_fn = decoder.next_token_loss(model)
    grads = check(loss_fn, model.params, tokens(), rtol=6e-2, expect_factored=7)
    assert grads["layers"]["up"].left.dtype == jnp.bfloat16
    clipped = jax.jit(clipped_gradients(loss_fn, clipping.flat(0.01), microbatch_size=None))
    _, summed = clipped(model.params, tokens()[:1], None, (), 0)
    norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(summed.gradients)))
    assert 0.0099 < norm <= 0.01 * (1 + 1e-5)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embedding = nnx.Embed(V, D, rngs=rngs)
        create = nnx.vmap(lambda r: nnx.Linear(D, D, rngs=r), in_axes=0, out_axes=0)
        self.layers = create(rngs.split(3))

    def __call__(self, x):
        step = nnx.scan(lambda x, layer: nnx.tanh(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.embedding.attend(step(self.embedding(x), self.layers))


def test_nnx_scan_and_tied_embedding():
    graph, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)
    loss_fn = next_token(lambda params, x: nnx.merge(graph, params, rest)(x))
    grads = check(loss_fn, params, tokens(), rtol=2e-5, expect_factored=2)
    assert len(jax.tree.leaves(grads, is_leaf=gradients.is_leaf)) == 3


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(D)(nn.gelu(nn.Dense(3 * D)(x))), None


class Linen(nn.Module):
    remat: bool

    @nn.compact
    def __call__(self, x):
        embedding = nn.Embed(V, D)
        layer = nn.remat(LinenLayer, prevent_cse=False) if self.remat else LinenLayer
        scanned = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scanned()(embedding(x), None)
        return embedding.attend(x)


@pytest.mark.parametrize("remat", [False, True])
def test_linen_scan_and_tied_embedding(remat):
    module = Linen(remat)
    params = module.init(jax.random.key(0), tokens()[0, :-1])["params"]
    check(
        next_token(lambda p, x: module.apply({"params": p}, x)),
        params,
        tokens(),
        rtol=2e-5,
        expect_factored=3,
    )


def test_equinox_embedding():
    keys = jax.random.split(jax.random.key(0))
    module = eqx.nn.Embedding(V, D, key=keys[0]), eqx.nn.Linear(D, V, key=keys[1])
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def apply(params, x):
        embedding, head = eqx.combine(params, static)
        return jax.vmap(head)(jnp.tanh(jax.vmap(embedding)(x)))

    check(next_token(apply), params, tokens(), expect_factored=2)


def test_pieces_are_sized_by_the_forms():
    """A table of which few rows are read takes its rows, and more examples fit."""
    model = small(vocabulary=100_000, tied=True)
    sizes = {
        method: microbatches.example_bytes(
            gradients.per_example(decoder.next_token_loss(model), method=method), model.params, tokens()
        ).gradient
        for method in gradients.METHODS
    }
    assert sizes["dense"] > 3e6 and sizes["factored"] < 1.8e6


@pytest.mark.parametrize("options", [dict(tied=True), dict(scanned=True, dtype="bfloat16")], ids=str)
def test_the_program_for_a_gpu(options):
    """No choice that the host would make, no convolution, no gradient of a whole table for each example."""
    model = small(**options, vocabulary=3000)
    step = clipped_gradients(
        decoder.next_token_loss(model), clipping.flat(1.0), platform="cuda", microbatch_size=None
    )
    traced = jax.jit(lambda p, x: step(p, x, None, (), 0)).trace(model.params, tokens())
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.case" not in text and "stablehlo.convolution" not in text
    assert not re.search(rf"tensor<{B}x(3000x{D}|{D}x3000)x", text)
