"""Per-example gradients, dense or as the products they are.

The gradient of a kernel W used as x @ W is x^T d, with d the cotangent of the product.  For one example it is
a large array made of two small ones.  `per_example` traces the gradient of the loss of one example, looks at
the last equation behind each leaf of the gradient, and where that is a `dot_general` or a convolution it keeps
the two operands (a `Factored` leaf) instead of their product.  Clipping needs only two things of a leaf, and
both are cheap on the operands: the squared norm of each example's gradient, and the weighted sum over
examples, which is one matrix product x^T (w d).

Since the gradient's own program is read, not the model's, it does not matter how the model was written (Flax
nnx or linen, Equinox, plain JAX), nor what nested jit, custom derivative rules or checkpoints lie in between.
A leaf whose gradient ends in anything else (biases, norms, embeddings, a kernel used twice or in a scan) is a
plain array [B, ...], from the same pass.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Literal
from jaxtyping import Array, PyTree

from jaxdp import _validate
from jaxdp.gradients import convolution as convolutions
from jaxdp.gradients import correlation, independence, inputs, jaxprs
from jaxdp.gradients.factored import Factored

METHODS = ("factored", "dense")

Loss = Callable[..., Any]  # (params, example, *shared) -> scalar, or (scalar, aux)


def _behind(variable, producers, arrange=()):
    """The equation that makes `variable`, and the layout changes after it."""
    equation = producers.get(variable)
    if equation is None:
        return None, arrange
    name = equation.primitive.name
    if name == "transpose":
        step = ("transpose", tuple(equation.params["permutation"]))
    elif name in ("reshape", "squeeze", "expand_dims"):
        step = ("reshape", tuple(equation.outvars[0].aval.shape))
    elif name == "convert_element_type":
        source = equation.invars[0]
        return _behind(source, producers, arrange) if not isinstance(source, Literal) else (None, arrange)
    else:
        return equation, arrange
    if isinstance(equation.invars[0], Literal):
        return None, arrange
    return _behind(equation.invars[0], producers, (step, *arrange))


@dataclasses.dataclass(frozen=True)
class _Product:
    """Where a leaf's gradient ends in a product: its operands and how to line them up."""

    operands: tuple[Any, Any]
    matrices: Callable[..., tuple[Array, ...]]  # as [positions, K] and [positions, O]
    arrange: tuple[tuple[str, Any], ...]


def _positions_first(x: Array, contracting: tuple[int, ...]) -> Array:
    free = [axis for axis in range(x.ndim) if axis not in contracting]
    positions = math.prod(x.shape[axis] for axis in contracting)
    return x.transpose(*contracting, *free).reshape(positions, -1)


# Writing an entry of a gradient, squaring it and summing it over examples costs about as much time as this many
# multiplications inside a matrix product.
_ENTRY_COST = 16


def _factors_are_cheaper(positions: int, rows: int, columns: int) -> bool:
    """Whether the product of [P, K] and [P, O] is kept as factors, or built and kept, per example.

    Either way P K O multiplications make the sum over examples or the gradient itself.  On top of that the
    factors need the Gram form of the norm, P^2 (K + O) multiplications, and the built gradient K O entries.
    """
    return positions == 1 or positions**2 * (rows + columns) <= _ENTRY_COST * rows * columns


def _product(variable, producers) -> _Product | None:
    """The product behind a gradient leaf, where keeping its factors is cheaper than building it."""
    equation, arrange = _behind(variable, producers) if not isinstance(variable, Literal) else (None, ())
    if equation is None or any(isinstance(operand, Literal) for operand in equation.invars):
        return None
    of = {"dot_general": _of_dot, correlation.NAME: _of_convolution}.get(equation.primitive.name)
    found = None if of is None else of(equation)
    if found is None:
        return None
    (positions, rows, columns), matrices, first = found
    if not _factors_are_cheaper(positions, rows, columns):
        return None
    return _Product(tuple(equation.invars), matrices, (*first, *arrange))


def _of_dot(equation):
    """Sizes P, K and O of a `dot_general`, how to line its operands up, and how the product is laid out."""
    contracting, batch = equation.params["dimension_numbers"]
    if batch[0]:
        return None
    shapes = [operand.aval.shape for operand in equation.invars]
    free = [
        tuple(size for axis, size in enumerate(shape) if axis not in axes)
        for shape, axes in zip(shapes, contracting, strict=True)
    ]
    sizes = (math.prod(shapes[0][axis] for axis in contracting[0]), *map(math.prod, free))

    def matrices(left, right):
        return _positions_first(left, contracting[0]), _positions_first(right, contracting[1])

    return sizes, matrices, (("reshape", (*free[0], *free[1])),)


def _of_convolution(equation):
    """The same of a convolution, as its windows times the other operand."""
    form = correlation.Form(equation)
    if form.groups > 1 or form.empty:
        return None

    def matrices(left, right):
        left, right = form.matrices(left, right)
        return left[0], right[0]

    return (form.positions, form.rows, form.columns), matrices, form.arrange


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
      method: `factored` (kernels as `Factored` leaves where that is cheaper) or `dense` (every leaf [B, ...]).
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
    _validate.one_of(METHODS, method=method)
    swap = convolutions.uses_patches(convolution, platform) and method == "factored"

    def value_and_grad(params, example, *shared):
        loss = convolutions.with_patches(loss_fn) if swap else loss_fn
        return jax.value_and_grad(loss, has_aux=has_aux)(params, example, *shared)

    def gradients_of(params, batch, *shared):
        inputs.check_parameters(params)
        inputs.batch_size(batch)
        params = independence.vary_as(params, batch)
        products: list[_Product | None] = []

        def one(example):
            arguments = (params, example, *shared)
            leaves = jax.tree.leaves(arguments)
            closed, (shape, _) = jax.make_jaxpr(value_and_grad, return_shape=True)(*arguments)
            closed = jaxprs.flatten_calls(closed, leaves)
            independence.check(closed)
            independence.warn_of_shared_randomness(closed, params, example)
            shapes, structure = jax.tree.flatten(shape)
            values, of_gradients = closed.jaxpr.outvars[: len(shapes)], closed.jaxpr.outvars[len(shapes) :]
            producers = {
                variable: equation for equation in closed.jaxpr.eqns for variable in equation.outvars
            }
            keep = method == "factored"
            products[:] = [_product(variable, producers) if keep else None for variable in of_gradients]
            wanted = [
                part
                for product, variable in zip(products, of_gradients, strict=True)
                for part in ([variable] if product is None else product.operands)
            ]
            rule = correlation.of_an_example if keep else lambda equation, inputs: None
            outputs = jaxprs.evaluate(closed.jaxpr, closed.consts, leaves, rule, outputs=[*values, *wanted])
            parts = iter(outputs[len(shapes) :])
            return jax.tree.unflatten(structure, outputs[: len(shapes)]), [
                next(parts) if product is None else product.matrices(next(parts), next(parts))
                for product in products
            ]

        value, leaves = jax.vmap(one)(batch)
        leaves = [
            leaf if product is None else Factored(*leaf, arrange=product.arrange)
            for product, leaf in zip(products, leaves, strict=True)
        ]
        return value, jax.tree.unflatten(jax.tree.structure(params), leaves)

    return gradients_of
