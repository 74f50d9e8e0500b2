"""Convolutions in the form that the machine runs fast.

XLA's CPU convolution is slow backwards and some thirty times slower inside a `lax.scan` body than outside.
Written as patches @ kernel the same sum is fast in both, and the kernel's gradient becomes one
`dot_general`, which `per_example` then keeps as a product.  The pooling between convolutions is swapped
with them (see `pooling`).  All is done in the jaxpr of the loss: the user's model stays as it is.

Other devices have convolutions that are fast; there only the gradient of a kernel is another (`correlation`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal

from jaxdp import _validate, platforms
from jaxdp.gradients import correlation, jaxprs, pooling

FORMS = ("auto", "patches", "lax")


def _is_plain(equation: JaxprEqn) -> bool:
    """An ordinary convolution: no groups, no dilation, real numbers."""
    p = equation.params
    outputs: Sequence[Any] = equation.outvars
    return (
        equation.primitive.name == "conv_general_dilated"
        and p["feature_group_count"] == 1
        and p["batch_group_count"] == 1
        and all(d == 1 for d in p["lhs_dilation"])
        and all(d == 1 for d in p["rhs_dilation"])
        and jnp.issubdtype(outputs[0].aval.dtype, jnp.floating)
    )


def patches(x, window, strides, padding):
    """Every window of `x` as one row.

    Args:
      x: [batch, *space, channels].
      window: size of the window along each spatial axis.
      strides: step of the window along each spatial axis.
      padding: (low, high) for each spatial axis; negative values crop.

    Returns:
      [batch, *positions, prod(window) * channels], the last axis ordered as (*window, channels).
    """
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)])
    lengths = zip(x.shape[1:-1], window, strides, strict=True)
    counts = [(length - size) // stride + 1 for length, size, stride in lengths]
    return correlation.shifted(x, window, counts, strides, [1] * len(window))


def _as_matrix_product(equation: JaxprEqn, inputs):
    """The outputs of a plain convolution as patches @ kernel; None for any other equation."""
    if not _is_plain(equation):
        return None
    x, kernel = inputs
    p = equation.params
    numbers = p["dimension_numbers"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    x = x.transpose(lhs[0], *lhs[2:], lhs[1])
    kernel = kernel.transpose(*rhs[2:], rhs[1], rhs[0])
    window = kernel.shape[:-2]
    rows = patches(x, window, p["window_strides"], p["padding"])
    # One axis of positions: over several, XLA would lay the cotangent out anew for the kernel's gradient.
    y = jax.lax.dot_general(
        rows.reshape(-1, rows.shape[-1]),
        kernel.reshape(-1, kernel.shape[-1]),
        (((1,), (0,)), ((), ())),
        precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
    ).reshape(*rows.shape[:-1], kernel.shape[-1])
    # y is [batch, *positions, features]; send each axis to its place in the output's layout.
    places = (out[0], *out[2:], out[1])
    return [y.transpose(*(places.index(axis) for axis in range(y.ndim)))]


_LAYOUT = {
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "slice",
    "concatenate",
    "pad",
}


def _never_rounds(equation: JaxprEqn) -> bool:
    """Whether an operation only moves numbers or compares them with constants, as relu does."""
    if equation.primitive.name == "custom_jvp_call":
        return all(_never_rounds(inner) for inner in equation.params["call_jaxpr"].jaxpr.eqns)
    if equation.primitive.name in ("jit", "pjit"):
        return all(_never_rounds(inner) for inner in equation.params["jaxpr"].jaxpr.eqns)
    constants = sum(isinstance(operand, Literal) for operand in equation.invars)
    return equation.primitive.name in _LAYOUT or (
        equation.primitive.name in ("max", "min") and constants == 1
    )


def _rewriting():
    """The rule that swaps plain convolutions (in the body of a scan too) and pooling, and makes maxima safe."""
    # Values that come from a matrix product without another rounding: computed again they are the same.  Held
    # here, so that no other value takes their identity.
    products: dict[int, object] = {}

    def known(outputs):
        products.update((id(output), output) for output in outputs)
        return outputs

    def rule(equation: JaxprEqn, inputs):
        name = equation.primitive.name
        if name == "scan" and _contains_plain(equation.params["jaxpr"].jaxpr):
            return jaxprs.bind_rewritten(equation, inputs, rule)
        if name in ("dot_general", "conv_general_dilated"):
            swapped = _as_matrix_product(equation, inputs)
            return known(jaxprs.bind(equation, inputs) if swapped is None else swapped)
        exact = all(id(value) in products for value in inputs if getattr(value, "ndim", 0))
        if name == "reduce_max" and not exact and jnp.issubdtype(inputs[0].dtype, jnp.floating):
            return [pooling.maximum_by_place(inputs[0], equation.params["axes"])]
        if name in pooling.WINDOWED:
            return pooling.over_windows(equation, inputs)
        if exact and name not in ("jit", "pjit") and _never_rounds(equation):
            return known(jaxprs.bind(equation, inputs))
        return None

    return rule


def _contains_plain(jaxpr) -> bool:
    """Whether a plain convolution stands in the jaxpr or in any call or loop inside it."""
    return any(map(_is_plain, jaxprs.equations(jaxpr)))


def uses_patches(form: str, platform: str = "auto") -> bool:
    """Whether `form` means patches there: `auto` is patches on a CPU, XLA's own elsewhere.

    Raises:
      ValueError: an unknown form or platform.
    """
    _validate.one_of(FORMS, convolution=form)
    on_cpu = platforms.resolved(platform) == "cpu"
    return form == "patches" or (form == "auto" and on_cpu)


def with_patches(function):
    """`function` with every plain convolution computed as patches @ kernel, and the pooling swapped.

    Grouped, dilated and complex convolutions, and those inside functions with derivative rules of their
    own, stay as they are.  The result has the same derivatives of every order, except that where several
    entries of a maximum over axes are equal the first may take the whole derivative.
    """

    def rewritten(*arguments):
        closed, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not _contains_plain(closed.jaxpr):
            return function(*arguments)
        outputs = jaxprs.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), _rewriting())
        return jax.tree.unflatten(jax.tree.structure(out), outputs)

    return rewritten
