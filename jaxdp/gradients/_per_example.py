"""Per-example gradients, dense or as the products they are.

The gradient of a kernel W used as x @ W is x^T d, with d the cotangent of the product.  For one example it is
a large array made of two small ones.  `per_example` traces the gradient of the loss of one example, looks at
the last equation behind each leaf of the gradient, and where that is a `dot_general` it keeps the two operands
(a `Factored` leaf) instead of their product.  Clipping needs only two things of a leaf, and both are cheap on
the operands: the squared norm of each example's gradient, and the weighted sum over examples, which is one
matrix product x^T (w d).

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
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array, Float, PyTree

from jaxdp.gradients import convolution as convolutions
from jaxdp.gradients import jaxprs
from jaxdp.gradients.factored import Factored

METHODS = ("factored", "dense")

Loss = Callable[[PyTree, PyTree], Float[Array, ""]]


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
    """Where a leaf's gradient ends in a `dot_general`: its operands and how to line them up."""

    operands: tuple[Any, Any]
    contracting: tuple[tuple[int, ...], tuple[int, ...]]
    arrange: tuple[tuple[str, Any], ...]

    def matrices(self, left: Array, right: Array) -> tuple[Array, Array]:
        """The operands as [positions, K] and [positions, O]."""
        first, second = self.contracting
        return _positions_first(left, first), _positions_first(right, second)


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
    equation, arrange = _behind(variable, producers)
    if equation is None or equation.primitive.name != "dot_general":
        return None
    (contracting, batch) = equation.params["dimension_numbers"]
    if batch[0] or any(isinstance(operand, Literal) for operand in equation.invars):
        return None
    shapes = [operand.aval.shape for operand in equation.invars]
    free = [
        tuple(size for axis, size in enumerate(shape) if axis not in axes)
        for shape, axes in zip(shapes, contracting, strict=True)
    ]
    positions = math.prod(shapes[0][axis] for axis in contracting[0])
    rows, columns = math.prod(free[0]), math.prod(free[1])
    if not _factors_are_cheaper(positions, rows, columns):
        return None
    arrange = (("reshape", (*free[0], *free[1])), *arrange)
    return _Product(
        operands=tuple(equation.invars),
        contracting=(tuple(contracting[0]), tuple(contracting[1])),
        arrange=arrange,
    )


def _read_products(closed: ClosedJaxpr) -> list[_Product | None]:
    """For each gradient leaf (every output but the first, the loss) its product, or None."""
    producers = {variable: equation for equation in closed.jaxpr.eqns for variable in equation.outvars}
    return [
        None if isinstance(variable, Literal) else _product(variable, producers)
        for variable in closed.jaxpr.outvars[1:]
    ]


def per_example(
    loss_fn: Loss, *, method: str = "factored", convolution: str = "auto"
) -> Callable[[PyTree, PyTree], tuple[Float[Array, " b"], PyTree]]:
    """The losses and gradients of every example of a batch, by `vmap`.

    Args:
      loss_fn: `(params, example) -> scalar`, the loss of ONE example (no batch axis).  Under `vmap` an example
        cannot see the others, so the gradient of each depends on that example alone.
      method: `factored` (kernels as `Factored` leaves where that is cheaper) or `dense` (every leaf [B, ...]).
      convolution: `auto`, `patches` or `lax`; see `jaxdp.convolution`.

    Returns:
      A function `(params, batch) -> (losses [B], gradients)`; every array in `batch` has a leading axis B; the
      gradients have the structure of `params`.

    Raises:
      ValueError: an unknown method or convolution.

    Formal guarantee: the i-th loss and gradient are functions of `params` and the i-th example only.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose from {', '.join(METHODS)}")
    convolutions.uses_patches(convolution)

    def value_and_grad(params, example):
        swap = method == "factored" and convolutions.uses_patches(convolution)
        return jax.value_and_grad(convolutions.with_patches(loss_fn) if swap else loss_fn)(params, example)

    def dense(params, batch):
        return jax.vmap(value_and_grad, in_axes=(None, 0))(params, batch)

    def factored(params, batch):
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
        closed = jaxprs.flatten_calls(jax.make_jaxpr(value_and_grad)(params, example))
        products = _read_products(closed)
        wanted = [closed.jaxpr.outvars[0]]
        for product, variable in zip(products, closed.jaxpr.outvars[1:], strict=True):
            wanted += [variable] if product is None else product.operands

        def one(batch_leaves):
            arguments = [*jax.tree.leaves(params), *batch_leaves]
            outputs = iter(jaxprs.evaluate(closed.jaxpr, closed.consts, arguments, outputs=wanted))
            loss = next(outputs)
            leaves = [
                next(outputs) if product is None else product.matrices(next(outputs), next(outputs))
                for product in products
            ]
            return loss, leaves

        losses, leaves = jax.vmap(one)(jax.tree.leaves(batch))
        leaves = [
            leaf if product is None else Factored(*leaf, arrange=product.arrange)
            for product, leaf in zip(products, leaves, strict=True)
        ]
        return losses, jax.tree.unflatten(jax.tree.structure(params), leaves)

    return dense if method == "dense" else factored
