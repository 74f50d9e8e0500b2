"""Which devices of a mesh hold which examples of a batch, so that each computes on those that it holds.

Where the axes of the mesh are `Explicit`, the type of an array says along which it is split.  Where they are
`Auto` it does not, and by convention a batch is split along the first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree


class Shards(NamedTuple):
    """The mesh, and its axes along which the rows of a batch are split."""

    mesh: AbstractMesh
    axes: tuple[str, ...]


def _mesh_of(tree: PyTree) -> AbstractMesh | None:
    """The mesh on which the arrays of a tree are; None on one device."""
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree))
    return next((mesh for mesh in meshes if mesh.size > 1), None)


def _axes(found: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if found is None else (found,) if isinstance(found, str) else tuple(found)


def of(batch: PyTree, batch_axes: str | Sequence[str] | None = None) -> Shards | None:
    """How a batch is split; None where nothing can be said: on one device, inside a `shard_map` of the
    caller's, or where its rows cannot lie evenly.

    Args:
      batch: arrays [B, ...].
      batch_axes: the mesh's axes along which its rows are split, in their order; None for those of its type,
        or the first one.  () for none: XLA then decides what is computed where.

    Raises:
      ValueError: an axis that the mesh has not.
    """
    mesh, leaves = _mesh_of(batch), jax.tree.leaves(batch)
    if mesh is None or mesh.manual_axes:
        return None
    axes = _axes(batch_axes)
    for axis in axes:
        if axis not in mesh.axis_names:
            raise ValueError(f"batch_axes={axes}: the mesh has {', '.join(map(str, mesh.axis_names))}")
    if batch_axes is None:
        said = (_axes((*jax.typeof(leaf).sharding.spec, None)[0]) for leaf in leaves)
        first = mesh.axis_names[:1] if mesh.axis_types[0] == AxisType.Auto else ()
        axes = next(filter(None, said), tuple(first))
    parts = 1
    for axis in axes:
        parts *= mesh.shape[axis]
    return Shards(mesh, axes) if parts > 1 and leaves[0].shape[0] % parts == 0 else None


def partitioned_by_xla(tree: PyTree) -> bool:
    """Whether XLA may spread arrays of these over devices by itself, at this place of the program."""
    mesh = _mesh_of(tree)
    return mesh is not None and any(
        mesh.shape[axis] > 1 for axis in mesh.axis_names if axis not in mesh.manual_axes
    )


def on_each(shards: Shards, function: Callable[..., Any], split: PyTree, whole: PyTree, out_specs: Any):
    """`function(split, whole)` on every device of `shards`, with its own rows of `split` and all of `whole`.

    Args:
      shards: of the batch.
      function: may `psum` over `shards.axes`.
      split: arrays [B, ...], of which each device has some rows.
      whole: what is the same for all; gathered where it is split along the axes of the batch.
      out_specs: of the results, see `jax.shard_map`.
    """
    rows, mesh = PartitionSpec(shards.axes), shards.mesh
    if any(mesh.axis_types[mesh.axis_names.index(axis)] == AxisType.Explicit for axis in shards.axes):
        # Between explicit axes nothing moves unless it is told to.
        split = jax.sharding.reshard(split, NamedSharding(mesh, rows))
        whole = jax.sharding.reshard(whole, NamedSharding(mesh, PartitionSpec()))
    in_specs = (rows, PartitionSpec())
    mapped = jax.shard_map(
        function, mesh=mesh, axis_names=set(shards.axes), in_specs=in_specs, out_specs=out_specs
    )
    return mapped(split, whole)
