"""Which of k hypotheses made these noised gradients: the informed adversary, and label leakage.

The adversary knows the parameters of every step and everything in the batch except one record; it holds k
candidates for it (or k labels), and with each the gradient it would have given.  For Gaussian noise the
log-likelihood of candidate j after steps 1 .. t is, up to a constant,

    sum_t log(1 - q + q exp((<o_t, g_tj> - |g_tj|^2 / 2) / s_t^2))

with s_t the noise on the SUM of clipped gradients and q the rate at which the record is sampled.  The noise
enters only through its inner products with the candidates' gradients, which are Gaussian with their Gram
matrix as covariance: so trials are drawn there, exactly, at no cost in the model's size.  To be held against
the reconstruction bound of the accounting (Hayes et al. 2023).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdp.attacks import leaks
from jaxdp.attacks.leaks import Leak, Loss, precise


@functools.lru_cache(maxsize=32)
def _clipped(loss_fn, clip):
    leak = Leak(clip=clip)

    def one(params, x, y, bound):
        gradient = leaks.forward(loss_fn, leak, params, x[None], y[None], bound)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    return jax.vmap(one, in_axes=(None, 0, 0, None))


@functools.lru_cache(maxsize=32)
def _gram_program(loss_fn, clip):
    def gram(params, x, y, bound):
        rows = _clipped(loss_fn, clip)(params, x, y, bound)
        return rows @ rows.T

    return jax.jit(precise(gram))


def gram(
    loss_fn: Loss, clip: str, params: PyTree, x: Array | np.ndarray, y: Array | np.ndarray, bound: float
) -> Float[Array, "k k"]:
    """Inner products of the candidates' clipped gradients at one step.

    Args:
      loss_fn: `(params, (x, y)) -> scalar`.
      clip: one of `leaks.CLIPS`.
      params: parameters at the step.
      x: candidates [k, *input_shape].
      y: their labels [k].
      bound: the clip bound C.
    """
    return _gram_program(loss_fn, clip)(params, jnp.asarray(x), jnp.asarray(y), bound)


def canaries(k: int, norm: float = 1.0) -> Float[np.ndarray, "k k"]:
    """The Gram matrix of worst-case records: k gradients of the given norm, as far apart as can be.

    The corners of a regular simplex: inner products -norm^2 / (k - 1).
    """
    if k < 2:
        raise ValueError(f"k={k}: needs at least 2 candidates")
    return norm**2 * (np.eye(k) * k - 1) / (k - 1)


def _root(matrix):
    """A factor of a positive semidefinite matrix, [..., k, k]."""
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors * jnp.sqrt(jnp.maximum(values, 0))[..., None, :]


def log_likelihoods(
    cross: Float[Array, "t k"],
    gram: Float[Array, "t k k"],
    noise_std: Float[Array, " t"],
    key: Array,
    sampling_rate: float = 1.0,
) -> Float[Array, "t k"]:
    """One trial: the candidates' log-likelihoods after each step.

    Args:
      cross: <true clipped gradient, candidate's gradient> at each step.
      gram: inner products of the candidates' gradients at each step.
      noise_std: standard deviation of the noise on the sum, sigma_t C_t.
      key: of the noise and of the sampling.
      sampling_rate: q; the adversary does not see who was sampled.
    """
    noise_key, sample_key = jax.random.split(key)
    std = noise_std[:, None]
    noise = jnp.einsum("tij,tj->ti", _root(gram), jax.random.normal(noise_key, cross.shape))
    present = jax.random.bernoulli(sample_key, sampling_rate, (cross.shape[0], 1))
    squares = jnp.diagonal(gram, axis1=1, axis2=2)
    ratios = (present * cross + std * noise - squares / 2) / jnp.square(std)
    if sampling_rate < 1:
        ratios = jnp.logaddexp(jnp.log1p(-sampling_rate), jnp.log(sampling_rate) + ratios)
    return jnp.cumsum(ratios, axis=0)


@functools.partial(jax.jit, static_argnames=("trials", "sampling_rate"))
@precise
def informed_adversary(
    gram: Float[Array, "t k k"],
    noise_std: Float[Array, " t"],
    key: Array,
    *,
    trials: int = 1000,
    sampling_rate: float = 1.0,
) -> Bool[Array, "trials t"]:
    """Whether the adversary names the right candidate, after each step, in each trial.

    Each trial draws the true candidate uniformly: chance is 1 / k.

    Args:
      gram: the candidates' inner products at each step (`gram`, or `canaries`).
      noise_std: sigma_t C_t.
      key: of the trials.
      trials: how many.
      sampling_rate: q.
    """
    k = gram.shape[-1]
    root_free = jnp.asarray(gram)

    def trial(key):
        truth_key, key = jax.random.split(key)
        truth = jax.random.randint(truth_key, (), 0, k)
        scores = log_likelihoods(root_free[:, truth], root_free, noise_std, key, sampling_rate)
        return jnp.argmax(scores, axis=1) == truth

    return jax.lax.map(trial, jax.random.split(key, trials), batch_size=min(trials, 256))


@functools.lru_cache(maxsize=32)
def _label_products(loss_fn, clip, classes):
    gradients = _clipped(loss_fn, clip)

    def templates(params, x, y, bound):
        def of_class(label):
            weights = (y == label).astype(jnp.float32)
            rows = gradients(params, x, jnp.full(len(x), label), bound)
            return weights @ rows / jnp.maximum(weights.sum(), 1)

        return jax.lax.map(of_class, jnp.arange(classes))

    def products(params, x, y, public_x, public_y, bound):
        expected = templates(params, public_x, public_y, bound)
        rows = gradients(params, x, y, bound)
        return rows @ expected.T, expected @ expected.T

    return jax.jit(precise(products))


def label_leakage(
    loss_fn: Loss,
    clip: str,
    trajectory: list[PyTree],
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    public_x: Array | np.ndarray,
    public_y: Array | np.ndarray,
    noise_std: Array | np.ndarray,
    key: Array,
    *,
    bound: float = 1.0,
    classes: int = 10,
) -> Int[np.ndarray, "n t"]:
    """The label that fits best after each step, for each victim, from noised gradients it took part in.

    The hypotheses are the mean clipped gradients of each class over public examples.

    Args:
      loss_fn: `(params, (x, y)) -> scalar`.
      clip: one of `leaks.CLIPS`.
      trajectory: parameters at each step; the same object again is computed once.
      x: victims [n, *input_shape].
      y: their labels [n].
      public_x: public examples, disjoint from the victims.
      public_y: their labels.
      noise_std: sigma_t C_t at each step.
      key: of the noise.
      bound: clip bound C.
      classes: number of labels.
    """
    program, seen = _label_products(loss_fn, clip, classes), {}
    for params in trajectory:
        if id(params) not in seen:
            arrays = (jnp.asarray(a) for a in (x, y, public_x, public_y))
            seen[id(params)] = program(params, *arrays, bound)
    cross, grams = (jnp.stack(column) for column in zip(*(seen[id(p)] for p in trajectory), strict=True))
    keys = jax.random.split(key, len(x))
    scores = jax.jit(jax.vmap(precise(log_likelihoods), in_axes=(1, None, None, 0)))(
        cross, grams, jnp.asarray(noise_std), keys
    )
    return np.asarray(jnp.argmax(scores, axis=-1))
