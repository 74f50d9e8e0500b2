"""A small causal decoder, the network of language models: pre-norm attention and a gelu MLP.

Plain JAX, so that every choice on which the form of a gradient depends is in sight: the output tied to the
embedding or a matrix of its own, layers written out or scanned, recomputed or not, the type computed in.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxdp import _validate
from jaxdp.models import Model


def create(
    key: Array,
    *,
    vocabulary: int = 8192,
    width: int = 256,
    layers: int = 4,
    heads: int = 4,
    tokens: int = 128,
    tied: bool = False,
    scanned: bool = False,
    remat: bool = False,
    dtype: str = "float32",
) -> Model:
    """A freshly initialised decoder: `apply(params, ids [..., T]) -> logits [..., T, vocabulary]`.

    Args:
      key: key of the initial weights (they are public: no privacy hangs on it).
      vocabulary, width, layers, heads, tokens: sizes; heads divide the width, the MLP is four times as wide,
        and T is at most `tokens`.
      tied: whether the embedding is the output matrix too.
      scanned: whether the layers are one `lax.scan` over stacked parameters.
      remat: whether a layer's activations are computed again backwards (`jax.checkpoint`).
      dtype: what is computed in; parameters, norms and logits are float32 at least.

    Raises:
      ValueError: a size that is not positive, heads that do not divide the width.
    """
    _validate.whole(vocabulary=vocabulary, width=width, layers=layers, heads=heads, tokens=tokens)
    if width % heads:
        raise ValueError(f"heads={heads}: must divide width={width}")
    keys = iter(jax.random.split(key, 4))

    def drawn(key, *shape, scale):
        return scale * jax.random.normal(key, shape)

    params = {
        "embedding": drawn(next(keys), vocabulary, width, scale=width**-0.5),
        "positions": drawn(next(keys), tokens, width, scale=0.1),
        "norm": _norm(width),
    }
    each = [_layer(k, width) for k in jax.random.split(next(keys), layers)]
    params["layers"] = jax.tree.map(lambda *x: jnp.stack(x), *each) if scanned else each
    if not tied:
        params["output"] = drawn(next(keys), width, vocabulary, scale=width**-0.5)

    def layer(x, p):
        x = x + _attention(p, _normalised(x, p["before_attention"]).astype(dtype), heads)
        h = _normalised(x, p["before_mlp"]).astype(dtype)
        h = h @ p["up"].astype(dtype)
        h = jax.nn.gelu(h + _as(p["up_bias"], h))
        return x + h @ p["down"].astype(dtype) + _as(p["down_bias"], x)

    layer = jax.checkpoint(layer, prevent_cse=not scanned) if remat else layer

    def apply(params: PyTree, x: Array) -> Array:
        length = x.shape[-1]
        places = jnp.broadcast_to(params["positions"][:length], (*x.shape, width))
        x = (params["embedding"][x] + places).astype(dtype)
        if scanned:
            x, _ = jax.lax.scan(lambda x, p: (layer(x, p), None), x, params["layers"])
        else:
            for p in params["layers"]:
                x = layer(x, p)
        output = params["embedding"].T if tied else params["output"]
        wide = jnp.promote_types(dtype, jnp.float32)
        return jnp.matmul(
            _normalised(x, params["norm"]).astype(dtype), output.astype(dtype), preferred_element_type=wide
        )

    return Model(apply, params)


def next_token_loss(model: Model):
    """The per-example loss `(params, tokens [T + 1]) -> scalar`: the mean cross-entropy of each next token."""

    def loss_fn(params, tokens):
        logits = model.apply(params, tokens[:-1])
        chosen = jnp.take_along_axis(logits, tokens[1:, None], axis=-1)[..., 0]
        return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean()

    return loss_fn


def _norm(width):
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _layer(key, width):
    sizes = {"query": 1, "key": 1, "value": 1, "out": 1, "up": 4}
    keys = iter(jax.random.split(key, len(sizes) + 1))
    kernels = {
        name: width**-0.5 * jax.random.normal(next(keys), (width, size * width))
        for name, size in sizes.items()
    }
    down = (4 * width) ** -0.5 * jax.random.normal(next(keys), (4 * width, width))
    biases = {"up_bias": jnp.zeros(4 * width), "down_bias": jnp.zeros(width)}
    return kernels | biases | {"down": down, "before_attention": _norm(width), "before_mlp": _norm(width)}


def _as(bias, x):
    return jnp.broadcast_to(bias.astype(x.dtype), x.shape)


def _normalised(x, p):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
    return x * _as(p["scale"], x) + _as(p["bias"], x)


def _attention(p, x, heads: int):
    """Causal attention of every position to those before it and itself."""
    length, width = x.shape[-2:]

    def split(name):
        return (x @ p[name].astype(x.dtype)).reshape(*x.shape[:-1], heads, width // heads)

    query, key, value = map(split, ("query", "key", "value"))
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key) * (width // heads) ** -0.5
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), scores.shape)
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9).astype(jnp.float32), axis=-1).astype(x.dtype)
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value).reshape(x.shape)
    return mixed @ p["out"].astype(x.dtype)
