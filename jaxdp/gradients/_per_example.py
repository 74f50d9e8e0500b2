"""Per-example gradients, dense or as the products they are.

The gradient of a kernel W used as x @ W is x^T d, with d the cotangent of the product.  For one example it is
a large array made of two small ones.  `per_example` traces the gradient of the loss of one example, reads the
last equations behind each leaf of the gradient, and where they are products, convolutions or rows added to a
table it keeps the operands (a `Leaf`) instead of what they make.  Clipping needs only two things of a leaf, and
both are cheap on the operands: the squared norm of each example's gradient, and the weighted sum over examples.

Since the gradient's own program is read, not the model's, it does not matter how the model was written (Flax
nnx or linen, Equinox, plain JAX), nor what nested jit, custom derivative rules or checkpoints lie in between.
A leaf whose gradient ends in anything else (biases, norms), or is no larger than its operands, is a plain array
[B, ...], from the same pass; `explain` says which and why.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from jaxdp import _validate
from jaxdp.gradients import convolution as convolutions
from jaxdp.gradients import correlation, costs, forms, independence, inputs, jaxprs, loops, terms
from jaxdp.gradients.factored import is_leaf

METHODS = ("factored", "dense")

Loss = Callable[..., Any]  # (params, example, *shared) -> scalar, or (scalar, aux)


def per_example(
    loss_fn: Loss,
    *,
    has_aux: bool = False,
    method: str = "factored",
    convolution: str = "auto",
    platform: str = "auto",
) -> Callable[..., tuple[Any, PyTree]]:
    """The losses and gradients of every example of a batch, by `vmap`.

    Args:
      loss_fn: `(params, example, *shared) -> scalar`, the loss of ONE example (no batch axis).  Under `vmap` an
        example cannot see the others, so the gradient of each depends on that example alone.  For dropout and
        augmentation give each example its key, as a part of it.
      has_aux: whether `loss_fn` returns `(loss, aux)`, as in `jax.value_and_grad`.
      method: `factored` (kernels and tables as `Leaf`s where that is cheaper) or `dense` (every leaf [B, ...]).
      convolution: `auto`, `patches` or `lax`; see `gradients.convolution`.
      platform: what the program will run on, for which its form is chosen; see `platforms.resolved`.

    Returns:
      A function `(params, batch, *shared) -> (losses [B], gradients)`, with `has_aux`
      `((losses, aux), gradients)`; every array in `batch` and `aux` has a leading axis B, those in `shared`
      (frozen weights, a table) are the same for all examples; the gradients have the structure of `params`.

    Raises:
      ValueError: an unknown method, convolution or platform; when called, parameters that are not real floats
        or no parameters (running statistics), a batch leaf without rows, a loss whose operations see others.

    Formal guarantee: the i-th loss and gradient are functions of `params`, `shared` and the i-th example only.
    """
    mapped = _mapped(loss_fn, has_aux, method, convolution, platform)

    def gradients_of(params, batch, *shared):
        value, grads, _ = mapped(params, batch, *shared)
        return value, grads

    return gradients_of


def _mapped(loss_fn: Loss, has_aux: bool, method: str, convolution: str, platform: str):
    """`per_example`, whose function also returns the `Form` of each parameter's gradient."""
    _validate.one_of(METHODS, method=method)
    swap = convolutions.uses_patches(convolution, platform) and method == "factored"

    def value_and_grad(params, example, *shared):
        loss = convolutions.with_patches(loss_fn) if swap else loss_fn
        return jax.value_and_grad(loss, has_aux=has_aux)(params, example, *shared)

    def gradients_of(params, batch, *shared):
        inputs.check_parameters(params)
        inputs.batch_size(batch)
        params = independence.vary_as(params, batch)
        found: list[forms.Form] = []

        def one(example):
            arguments = (params, example, *shared)
            leaves = jax.tree.leaves(arguments)
            closed, (shape, _) = jax.make_jaxpr(value_and_grad, return_shape=True)(*arguments)
            closed = (
                loops.flat(closed, leaves, platform)
                if method == "factored"
                else jaxprs.flatten_calls(closed, leaves)
            )
            independence.check(closed)
            independence.warn_of_shared_randomness(closed, params, example)
            shapes, structure = jax.tree.flatten(shape)
            values, of_gradients = closed.jaxpr.outvars[: len(shapes)], closed.jaxpr.outvars[len(shapes) :]
            producers = terms.producers_of(closed.jaxpr)
            found[:] = [
                forms.of_gradient(variable, producers, platform) if method == "factored"
                else forms.dense(variable, "asked for")
                for variable in of_gradients
            ]  # fmt: skip
            wanted = [*values, *(operand for form in found for operand in form.operands)]
            rule = correlation.of_an_example if method == "factored" else jaxprs.as_it_is
            outputs = iter(jaxprs.evaluate(closed.jaxpr, closed.consts, leaves, rule, outputs=wanted))
            value = jax.tree.unflatten(structure, [next(outputs) for _ in shapes])
            return value, [form.leaf(*(next(outputs) for _ in form.operands)) for form in found]

        value, leaves = jax.vmap(one)(batch)
        return value, jax.tree.unflatten(jax.tree.structure(params), leaves), found

    return gradients_of


class Explanation(list[tuple[str, str, int, str]]):
    """Rows (name of a leaf, form, bytes an example, why); as text a table, with the sum at its end."""

    def __str__(self) -> str:
        total = sum(size for _, _, size, _ in self)
        rows = [("leaf", "form", "an example", "why")]
        rows += [(name, form, costs.readable(size), why) for name, form, size, why in self]
        rows += [("all", "", costs.readable(total), "")]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows
        )


def explain(
    loss_fn: Loss,
    params: PyTree,
    batch: PyTree,
    *shared: PyTree,
    has_aux: bool = False,
    convolution: str = "auto",
    platform: str = "auto",
) -> Explanation:
    """How the gradient of each parameter is kept, and why; nothing is computed.

    Args:
      loss_fn, has_aux, convolution, platform: see `per_example`.
      params: parameters, or their shapes.
      batch: arrays [B, ...], or their shapes.
      *shared: see `per_example`.

    Returns:
      Rows (leaf, form, bytes an example, why) that print as a table.  Forms are `dense` (an array), `gram` and
      `built` (factors; the norm from inner products, or from a product that is dropped again), `rows` (of a
      table) and `tied` (rows and factors).

    Raises:
      ValueError: see `per_example`.
    """
    found: list[forms.Form] = []
    mapped = _mapped(loss_fn, has_aux, "factored", convolution, platform)

    def gradients_of(params, batch, *shared):
        _, grads, found[:] = mapped(params, batch, *shared)
        return grads

    grads = jax.eval_shape(gradients_of, params, batch, *shared)
    size = inputs.batch_size(batch)
    named = jax.tree_util.tree_leaves_with_path(grads, is_leaf=is_leaf)
    return Explanation(
        (
            jax.tree_util.keystr(path),
            form.name,
            sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(leaf)) // size,
            form.why,
        )
        for (path, leaf), form in zip(named, found, strict=True)
    )
