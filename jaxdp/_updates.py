"""What `privatize` takes: gradients of single examples or their clipped sum, whole, and nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from jaxdp import gradients
from jaxdp.clipping import ClippedSum, Clipper
from jaxdp.clipping.clipper import Bounds
from jaxdp.gradients import independence, inputs


def check_parameters(params: PyTree) -> None:
    """Refuses parameters that are none, and those of which a wrapper hides a part."""
    hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    if any(map(hidden, jax.tree.leaves(params, is_leaf=hidden))):
        raise ValueError(
            "params: a part is hidden by optax.masked or partition, and its gradients would stay without clip "
            "and noise; put privatize before them in the chain, and wrap what follows it"
        )
    inputs.check_parameters(params)


def check(updates: PyTree, params: PyTree | None) -> None:
    """Refuses updates that are neither per-example gradients of the parameters nor their clipped sum.

    Raises:
      ValueError: another shape or number of leaves, where the parameters are given; a sum that was scaled; sums
        or parameters that are parts of what is spread over devices.
    """
    summed = isinstance(updates, ClippedSum)
    _check_devices((updates, params))
    if summed and not jnp.issubdtype(updates.examples.dtype, jnp.integer):
        raise ValueError("updates: a ClippedSum that was scaled; privatize comes first in a chain")
    if params is not None:
        _check_shapes(updates.gradients if summed else updates, params, 0 if summed else 1)


def _check_shapes(updates: PyTree, params: PyTree, batch_axes: int) -> None:
    found = jax.tree.leaves(updates, is_leaf=gradients.is_leaf)
    expected = jax.tree_util.tree_leaves_with_path(params)
    if len(found) != len(expected):
        raise ValueError(f"updates: has {len(found)} leaves for {len(expected)} parameters")
    for leaf, (path, param) in zip(found, expected, strict=True):
        if len(leaf.shape) != param.ndim + batch_axes or leaf.shape[batch_axes:] != param.shape:
            wanted = ", ".join(["B"] * batch_axes + [str(size) for size in param.shape])
            raise ValueError(
                f"updates{jax.tree_util.keystr(path)}: has shape {leaf.shape}, must be [{wanted}]; privatize "
                "takes gradients of jaxdp.per_example or a whole ClippedSum of jaxdp.clipped_gradients, not an "
                "ordinary gradient, comes first in a chain, and inside no optax.MultiSteps"
            )


def _check_devices(trees: PyTree) -> None:
    """Refuses, inside `shard_map` and `pmap`, what is not known to be the same on every device."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if not manual:
        return
    unchecked = not independence.varying(jax.lax.axis_index(manual[0]))
    axes = frozenset().union(*map(independence.varying, jax.tree.leaves(trees)))
    if unchecked or axes:
        what = "check_vma=False" if unchecked else f"values that differ over {', '.join(sorted(axes))}"
        raise ValueError(
            f"shard_map: {what}: each device would clip by its own part and draw the same noise; keep "
            "parameters whole on every device, psum the ClippedSum, and update with the check on, or outside"
        )


def are_noised_for(clipper: Clipper, summed: ClippedSum, state: Any) -> Bool[Array, ""] | bool:
    """Whether all parts of a sum have the sensitivity that the noise is made for, at the scale that is charged.

    Raises:
      ValueError: they have not, where that is known; or the sum does not say what it was clipped to.
    """
    if clipper.sensitivity is None:
        return True
    if not isinstance(summed.bounds, Bounds):
        raise ValueError(
            "updates: a ClippedSum without bounds; take it from Clipper.clip or clipped_gradients"
        )
    sensitivity = clipper.sensitivity(state.clip, state.step)
    agree = summed.bounds.all_are(sensitivity)
    if not isinstance(agree, jax.core.Tracer) and not agree:
        raise ValueError(
            f"sensitivity={float(summed.sensitivity):g}: parts of the sum were clipped to another bound than "
            f"{float(sensitivity):g}, for which the noise is made; take one clipper, at the step of the state"
        )
    return agree & _scale_is_charged(clipper, summed, state, sensitivity) if clipper.private else agree


def _scale_is_charged(clipper: Clipper, summed: ClippedSum, state: Any, sensitivity: Any) -> Any:
    """Whether the noise scale is the multiple of the sensitivity that the accountant charges for."""
    share = clipper.noise_scale(summed, state.clip, state.step) / sensitivity
    holds = jnp.abs(share / clipper.noise_to_sensitivity - 1) <= 1e-5
    if not isinstance(holds, jax.core.Tracer) and not holds:
        raise ValueError(
            f"noise_scale={float(share):g} of the sensitivity: clipper {clipper.name!r} is charged for "
            f"noise_to_sensitivity={clipper.noise_to_sensitivity:g}"
        )
    return holds
