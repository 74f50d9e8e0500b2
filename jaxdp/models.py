"""The networks of this line of work, in Flax, behind one `create`.

| name         | network                                                                                   |
|--------------|-------------------------------------------------------------------------------------------|
| `cnn`        | Wei & Liu: Conv32 3x3, max pool, Conv64 3x3, max pool, Dense; relu, no biases             |
| `lenet`      | Wei et al. (CPL): four Conv12 5x5 (strides 2, 2, 1, 1), Dense; sigmoid                    |
| `mlp`        | Dense 600, 100; relu                                                                      |
| `cifar_cnn`  | pairs of Conv32, Conv64, Conv128 3x3, average pool after each, Dense; tanh                |
| `tanh_cnn`   | Papernot et al. 2021: Conv16 8x8, Conv32 4x4 (strides 2), 2x2 max pool of stride 1 after  |
|              | each, Dense 32, Dense; tanh                                                               |
| `logistic`   | one Dense layer                                                                           |

Every network takes one example or a batch: the leading axes are free.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxdp import _validate
from jaxdp.gradients import pooling

_ACTIVATIONS = {"relu": nnx.relu, "tanh": jnp.tanh, "sigmoid": nnx.sigmoid}


class Model(NamedTuple):
    """A pure network.

    Attributes:
      apply: `(params, x [..., *input_shape]) -> logits [..., classes]`.
      params: nested dict of arrays.
    """

    apply: Callable[[PyTree, Float[Array, "..."]], Float[Array, "... classes"]]
    params: PyTree


def max_pool_2x2(x: Float[Array, "... h w c"]) -> Float[Array, "... h2 w2 c"]:
    """2x2 max pooling, an odd last row or column dropped.

    A reshape and a maximum: on a CPU its backward pass takes a fraction of `reduce_window`'s time.
    """
    *batch, h, w, c = x.shape
    x = x[..., : h // 2 * 2, : w // 2 * 2, :]
    return x.reshape(*batch, h // 2, 2, w // 2, 2, c).max(axis=(-4, -2))


def _average_pool_2x2(x):
    *batch, h, w, c = x.shape
    x = x[..., : h // 2 * 2, : w // 2 * 2, :]
    return x.reshape(*batch, h // 2, 2, w // 2, 2, c).mean(axis=(-4, -2))


def max_pool_2x2_stride_1(x: Float[Array, "... h w c"]) -> Float[Array, "... h1 w1 c"]:
    """2x2 max pooling at every place, one row and column fewer than `x`.

    Chosen by comparison: an entry that wins takes the whole derivative, the first of equal ones, and no
    rounding of a value computed twice (see `jaxdp.gradients.convolution`) can lose it.
    """
    x = pooling.first_larger(x[..., :-1, :, :], x[..., 1:, :, :])
    return pooling.first_larger(x[..., :-1, :], x[..., 1:, :])


def _flatten(x, image_rank: int = 3):
    return x.reshape(*x.shape[:-image_rank], math.prod(x.shape[-image_rank:]))


class _Convolutional(nnx.Module):
    """Convolutions, each with its activation and pooling, then dense layers, the last one linear."""

    def __init__(self, input_shape, classes, layers, activation, pool, use_bias, *, hidden=(), rngs):
        self.activation, self.pool = activation, pool
        self.pooled = tuple(layer["pool"] for layer in layers)
        channels = input_shape[-1]
        convolutions = []
        for layer in layers:
            convolutions.append(
                nnx.Conv(
                    channels, layer["features"], layer["kernel"], strides=layer["stride"],
                    padding=layer["padding"], use_bias=use_bias, rngs=rngs,
                )
            )  # fmt: skip
            channels = layer["features"]
        self.convolutions = nnx.List(convolutions)
        features = jax.eval_shape(self._features, jax.ShapeDtypeStruct(input_shape, jnp.float32)).shape[-1]
        if not features:
            raise ValueError(f"input_shape={input_shape}: too small, nothing is left after the convolutions")
        sizes = (features, *hidden)
        self.hidden = nnx.List(
            nnx.Linear(a, b, use_bias=use_bias, rngs=rngs) for a, b in itertools.pairwise(sizes)
        )
        self.dense = nnx.Linear(sizes[-1], classes, use_bias=use_bias, rngs=rngs)

    def _features(self, x):
        for convolution, pooled in zip(self.convolutions, self.pooled, strict=True):
            if not math.prod(x.shape[-3:]):
                break  # the input is too small, which `__init__` refuses
            x = self.activation(convolution(x))
            x = self.pool(x) if pooled else x
        return _flatten(x)

    def __call__(self, x):
        x = self._features(x)
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.dense(x)


class _Dense(nnx.Module):
    """Fully connected layers on the flattened input."""

    def __init__(self, input_shape, classes, hidden, activation, *, rngs):
        self.activation, self.input_rank = activation, len(input_shape)
        sizes = (math.prod(input_shape), *hidden, classes)
        self.layers = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes))

    def __call__(self, x):
        x = _flatten(x, self.input_rank)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def _layer(features, kernel, stride=1, pool=False, padding="VALID"):
    return dict(
        features=features, kernel=(kernel, kernel), stride=(stride, stride), pool=pool, padding=padding
    )


def _cnn(input_shape, classes, activation, use_bias, rngs):
    layers = [_layer(32, 3, pool=True), _layer(64, 3, pool=True)]
    return _Convolutional(input_shape, classes, layers, activation, max_pool_2x2, use_bias, rngs=rngs)


def _lenet(input_shape, classes, activation, use_bias, rngs):
    layers = [_layer(12, 5, stride=stride, padding=2) for stride in (2, 2, 1, 1)]
    return _Convolutional(input_shape, classes, layers, activation, None, use_bias, rngs=rngs)


def _cifar_cnn(input_shape, classes, activation, use_bias, rngs):
    layers = [_layer(f, 3, pool=p, padding="SAME") for f in (32, 64, 128) for p in (False, True)]
    return _Convolutional(input_shape, classes, layers, activation, _average_pool_2x2, use_bias, rngs=rngs)


def _tanh_cnn(input_shape, classes, activation, use_bias, rngs):
    layers = [_layer(16, 8, stride=2, pool=True, padding="SAME"), _layer(32, 4, stride=2, pool=True)]
    return _Convolutional(
        input_shape, classes, layers, activation, max_pool_2x2_stride_1, use_bias, hidden=(32,), rngs=rngs
    )


def _mlp(input_shape, classes, activation, use_bias, rngs):
    return _Dense(input_shape, classes, (600, 100), activation, rngs=rngs)


def _logistic(input_shape, classes, activation, use_bias, rngs):
    return _Dense(input_shape, classes, (), activation, rngs=rngs)


# name -> (constructor, default activation, biases by default, rank of the input it needs or None)
_BY_NAME = {
    "cnn": (_cnn, "relu", False, 3),
    "lenet": (_lenet, "sigmoid", True, 3),
    "mlp": (_mlp, "relu", True, None),
    "cifar_cnn": (_cifar_cnn, "tanh", True, 3),
    "tanh_cnn": (_tanh_cnn, "tanh", True, 3),
    "logistic": (_logistic, "relu", True, None),
}
NAMES = tuple(_BY_NAME)


def create(
    name: str,
    key: Array,
    *,
    input_shape: tuple[int, ...] = (28, 28, 1),
    classes: int = 10,
    activation: str | None = None,
    use_bias: bool | None = None,
    initialization: str = "fan_in",
) -> Model:
    """A freshly initialised network.

    Args:
      name: one of `NAMES`.
      key: key of the initial weights (they are public: no privacy hangs on it).
      input_shape: shape of one example, `(height, width, channels)` for the convolutional ones.
      classes: number of logits.
      activation: `relu`, `tanh` or `sigmoid`; None for the network's own.
      use_bias: None for the network's own; only the convolutional networks can go without.
      initialization: `fan_in` (Flax's default) or `uniform`, weights and biases U(-.5, .5), which the
        published attacks start from.

    Raises:
      ValueError: an unknown name or option, or an input of the wrong rank or too small.
    """
    _validate.one_of(NAMES, model=name)
    _validate.whole(classes=classes)
    for size in input_shape or (0,):
        if size < 1:
            raise ValueError(f"input_shape={input_shape}: needs axes of at least one place each")
    constructor, default_activation, default_bias, rank = _BY_NAME[name]
    activation = activation or default_activation
    _validate.one_of(_ACTIVATIONS, activation=activation)
    _validate.one_of(("fan_in", "uniform"), initialization=initialization)
    if rank is not None and len(input_shape) != rank:
        raise ValueError(f"input_shape={input_shape}: model {name!r} needs (height, width, channels)")
    if rank is None and use_bias is False:
        raise ValueError(f"use_bias=False: model {name!r} always has biases")
    use_bias = default_bias if use_bias is None else use_bias
    module = constructor(tuple(input_shape), classes, _ACTIVATIONS[activation], use_bias, nnx.Rngs(key))
    made = of_module(module)
    if initialization == "uniform":
        leaves, tree = jax.tree.flatten(made.params)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            jax.random.uniform(k, leaf.shape, leaf.dtype, -0.5, 0.5)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return made._replace(params=jax.tree.unflatten(tree, drawn))
    return made


def of_module(module: nnx.Module) -> Model:
    """A Flax nnx module as a pure network: its parameters, and the function that they make of it."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(params, x):
        return nnx.merge(graph, nnx.State(params), rest)(x)

    return Model(apply, nnx.to_pure_dict(params))


def cross_entropy(model: Model) -> Callable[[PyTree, tuple[Array, Array]], Float[Array, ""]]:
    """The per-example loss `(params, (x, y)) -> scalar` of a classifier; y is an integer label."""

    def loss_fn(params, example):
        x, y = example
        log_probabilities = jax.nn.log_softmax(model.apply(params, x))
        return -jnp.take(log_probabilities, y, axis=-1, mode="clip")

    return loss_fn
