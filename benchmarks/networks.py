"""The networks that steps are measured on, written the way a Flax user writes them.

Nothing in them is made for this library: `nnx.Conv`, `nnx.max_pool`, `nnx.MultiHeadAttention`.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxdp.models import Model

CLASSES = 10


class PaperCNN(nnx.Module):
    """Conv32 3x3, max pool, Conv64 3x3, max pool, Dense10; relu, no biases (Wei & Liu): 34,720 parameters."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 32, (3, 3), padding="VALID", use_bias=False, rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), padding="VALID", use_bias=False, rngs=rngs)
        self.dense = nnx.Linear(1600, CLASSES, use_bias=False, rngs=rngs)

    def __call__(self, x):
        for convolution in (self.first, self.second):
            x = nnx.max_pool(nnx.relu(convolution(x)), (2, 2), strides=(2, 2))
        return self.dense(x.reshape(*x.shape[:-3], -1))


class MLP(nnx.Module):
    """784-600-100-10; relu: 532,110 parameters."""

    def __init__(self, rngs):
        self.layers = nnx.List(
            nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise((784, 600, 100, 10))
        )

    def __call__(self, x):
        x = x.reshape(*x.shape[:-3], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class CifarCNN(nnx.Module):
    """Conv 32-32-64-64-128-128 3x3, average pool after each pair, Dense10; tanh: 307,498 parameters."""

    def __init__(self, rngs):
        widths = (3, 32, 32, 64, 64, 128, 128)
        self.convolutions = nnx.List(nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in itertools.pairwise(widths))
        self.dense = nnx.Linear(2048, CLASSES, rngs=rngs)

    def __call__(self, x):
        for number, convolution in enumerate(self.convolutions):
            x = nnx.tanh(convolution(x))
            x = nnx.avg_pool(x, (2, 2), strides=(2, 2)) if number % 2 else x
        return self.dense(x.reshape(*x.shape[:-3], -1))


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, width, heads, rngs):
        self.before_attention = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.before_mlp = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.before_attention(x))
        return x + self.down(nnx.gelu(self.up(self.before_mlp(x))))


class Transformer(nnx.Module):
    """A classifier of token sequences: embeddings, pre-norm blocks, mean over positions, Dense10."""

    def __init__(self, rngs, vocabulary=256, tokens=64, width=128, heads=4, layers=4):
        self.embedding = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(tokens, width, rngs=rngs)
        self.blocks = nnx.List(Block(width, heads, rngs) for _ in range(layers))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dense = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, tokens):
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.dense(self.norm(x).mean(-2))


class Case(NamedTuple):
    """A network, the shape of one example, and the batch sizes it is measured at."""

    network: Callable[[nnx.Rngs], nnx.Module]
    shape: tuple[int, ...]
    batch_sizes: tuple[int, ...]


CASES = {
    "cnn": Case(PaperCNN, (28, 28, 1), (256,)),
    "mlp": Case(MLP, (28, 28, 1), (256,)),
    "cifar": Case(CifarCNN, (32, 32, 3), (64, 256)),
    "transformer": Case(Transformer, (64,), (64,)),
}


def functional(module: nnx.Module) -> Model:
    """An nnx module as a pure function of its parameters."""
    graph, state = nnx.split(module, nnx.Param)
    return Model(lambda params, x: nnx.merge(graph, nnx.State(params))(x), nnx.to_pure_dict(state))


def create(name: str) -> Model:
    """The network of that case, freshly initialised."""
    return functional(CASES[name].network(nnx.Rngs(0)))


def batch(name: str, batch_size: int) -> tuple[Array, Array]:
    """Inputs of the right shape and type, and labels."""
    shape, key = (batch_size, *CASES[name].shape), jax.random.key(1)
    x = jax.random.randint(key, shape, 0, 256) if name == "transformer" else jax.random.uniform(key, shape)
    return x, jnp.arange(batch_size) % CLASSES
