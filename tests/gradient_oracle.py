"""The slow oracle of per-example gradients: a Python loop over the examples, and the comparison with it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp import gradients

B = 2


def by_loop(loss_fn, params, batch):
    """One example after the other, without vmap, without any rewriting."""
    gradient = jax.jit(jax.grad(loss_fn))
    grads = [gradient(params, jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(B)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)


def leaves_of(grads):
    return jax.tree.leaves(grads, is_leaf=gradients.is_leaf)


def factored_count(grads):
    return sum(map(gradients.is_leaf, leaves_of(grads)))


def check(loss_fn, params, batch, *, rtol=1e-5, expect_factored=None, platform="cpu"):
    """Values, squared norms and weighted sums agree with the loop; returns the factored gradients."""
    weights = jnp.linspace(0.5, 2.0, B, dtype=jnp.result_type(float))

    @jax.jit
    def everything(params, batch):
        found = {
            method: gradients.per_example(loss_fn, method=method, platform=platform)(params, batch)
            for method in gradients.METHODS
        }
        reduced = {
            method: [
                (
                    leaf.dense() if gradients.is_leaf(leaf) else leaf,
                    gradients.squared_norm(leaf),
                    gradients.weighted_sum(leaf, weights, jnp.ones(B, bool)),
                )
                for leaf in leaves_of(grads)
            ]
            for method, (_, grads) in found.items()
        }
        return found, reduced

    oracle = by_loop(loss_fn, params, batch)
    found, reduced = everything(params, batch)
    largest = max(np.abs(np.asarray(leaf, np.float64)).max() for leaf in jax.tree.leaves(oracle))
    for method, (losses, grads) in found.items():
        assert losses.shape == (B,)
        assert jax.tree.structure(grads, is_leaf=gradients.is_leaf) == jax.tree.structure(params)
        for leaf, (full, squared, total), true in zip(
            leaves_of(grads), reduced[method], jax.tree.leaves(oracle), strict=True
        ):
            true = np.asarray(true, np.float64)
            size = max(np.abs(true).max(), 1e-2 * largest)  # a gradient that vanishes is all rounding
            np.testing.assert_allclose(np.asarray(full, np.float64) / size, true / size, atol=rtol, rtol=0)
            flat = true.reshape(B, -1)
            tolerance = 4 * rtol * ((flat**2).sum(1) + size**2)
            assert (squared >= (flat**2).sum(1) - tolerance).all()
            assert (squared <= (flat**2).sum(1) + tolerance + allowance(leaf)).all()
            expected = (np.asarray(weights, np.float64) @ flat).reshape(total.shape)
            np.testing.assert_allclose(total / size, expected / size, atol=4 * rtol, rtol=0)
    assert factored_count(found["dense"][1]) == 0
    if expect_factored is not None:
        assert factored_count(found["factored"][1]) == expect_factored
    return found["factored"][1]


def allowance(leaf):
    """What the forms add for their own rounding, at most: twice the worst that so many roundings can do."""
    if not gradients.is_leaf(leaf):
        return 0
    squared = np.asarray(gradients.squared_norm(leaf))
    lengths, terms = 0, 16
    product = leaf.product if isinstance(leaf, gradients.Tied) else leaf
    if isinstance(product, gradients.Factored):
        left, right = (np.asarray(f, np.float64) for f in (product.left, product.right))
        if left.shape[-2] == 1:
            return 0
        each = (np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)).sum(-1)
        lengths = np.sqrt((each**2).reshape(B, -1).sum(1))
        terms += left.shape[-1] + right.shape[-1] + 2 * left.shape[-2]
    if not isinstance(leaf, gradients.Factored):
        rows = (leaf.read if isinstance(leaf, gradients.Tied) else leaf).rows
        lengths = lengths + np.linalg.norm(np.asarray(rows, np.float64), axis=-1).sum(-1)
        terms += 2 * rows.shape[-2]
    return 2 * terms * np.finfo(squared.dtype).eps * lengths**2


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.result_type(float))
