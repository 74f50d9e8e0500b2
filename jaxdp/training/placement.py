"""Where the parts of a run lie on a mesh of devices.

The examples are split along the mesh's first axis, each device clips those that it holds, and the clipped sums
are added up once a step.  Parameters lie as they are given, on every device or split along any axes, and the
optimizer's state lies as they do; so does the sum, and the noise is drawn where its shard lives.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jaxdp.clipping import ClippedSum
from jaxdp.gradients import shards
from jaxdp.sampling import Batch, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """A mesh, and how parameters lie on it.

    Attributes:
      mesh: of devices, its axes `AxisType.Auto`; the first is the one along which examples are split.
      specs: for each leaf of the parameters, in their order, how it is split.
      shapes: their shapes.

    Raises:
      ValueError: a mesh with explicit or manual axes.
    """

    mesh: Mesh
    specs: tuple[PartitionSpec, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        if any(kind != AxisType.Auto for kind in self.mesh.axis_types):
            raise ValueError(
                f"mesh={self.mesh.axis_types}: a run's axes are Auto, jax.make_mesh(..., axis_types=...)"
            )

    @property
    def axis(self) -> str:
        """Along which the examples are split."""
        return self.mesh.axis_names[0]

    @property
    def parts(self) -> int:
        """In how many parts they lie."""
        return self.mesh.shape[self.axis]

    def __str__(self) -> str:
        kind = self.mesh.devices.flat[0].device_kind
        split = f"the examples in {self.parts} parts"
        hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        return f"{self.mesh.size} devices ({kind}){hosts}, {split}"

    def _on(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    @functools.cached_property
    def everywhere(self) -> NamedSharding:
        """The same on every device."""
        return self._on(PartitionSpec())

    def shardings(self, tree: PyTree, params: PyTree) -> PyTree:
        """For each leaf of a tree how it lies: parts of the parameters' structure and shapes as these do, all
        else on every device.
        """
        structure = jax.tree.structure(params)

        def are_like_params(part):
            same = jax.tree.structure(part) == structure
            return same and tuple(np.shape(leaf) for leaf in jax.tree.leaves(part)) == self.shapes

        split = jax.tree.unflatten(structure, [self._on(spec) for spec in self.specs])
        return jax.tree.map(
            lambda part: split if are_like_params(part) else self.everywhere, tree, is_leaf=are_like_params
        )

    def placed(self, tree: PyTree, params: PyTree) -> PyTree:
        """The tree on the mesh, see `shardings`; on several processes, what process 0 has."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.shardings(tree, params))

        def place(leaf, sharding):
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return jax.device_put(leaf, sharding)  # lies on the mesh of all already
            held = np.asarray(leaf)
            return jax.make_array_from_callback(held.shape, sharding, lambda index: held[index])

        return jax.tree.map(place, tree, self.shardings(tree, params))

    def constrained(self, tree: PyTree, params: PyTree) -> PyTree:
        """The traced tree, told where it lies."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree, params))

    def rows(self, arrays: PyTree, sampler: Sampler) -> PyTree:
        """The examples, each device's own; a process reads its devices' alone.

        Args:
          arrays: a tree of arrays [n, ...] on the host, perhaps memory-mapped.
          sampler: of the batches, which says how many rows a device holds.
        """
        each, _ = sampler.on_shards(self.parts)

        def split(held):
            def of_device(index):
                part = np.asarray(held[index[0]])
                start, stop, _ = index[0].indices(each * self.parts)
                missing = [(0, stop - start - len(part)), *[(0, 0)] * (part.ndim - 1)]
                return np.pad(part, missing)[(slice(None), *index[1:])]

            shape = (each * self.parts, *held.shape[1:])
            return jax.make_array_from_callback(shape, self._on(PartitionSpec(self.axis)), of_device)

        return jax.tree.map(split, arrays)

    def on_each(
        self, sampler: Sampler, function: Callable[..., tuple], arrays: PyTree, state: Any
    ) -> tuple[Array, PyTree, Array, Array]:
        """Losses, gradient, mask and overflow of a step's batch, each device's examples clipped where they lie.

        Args:
          sampler: of the batch.
          function: `(state, arrays, Batch) -> (losses, gradient)`, of a part of the batch.
          arrays: see `rows`.
          state: of the run.
        """
        axis, (_, draw) = self.axis, sampler.on_shards(self.parts)

        def on_device(arrays, state):
            drawn: Batch = draw(state.sample_key, state.step, jax.lax.axis_index(axis))
            losses, gradient = function(state, arrays, drawn)
            overflow = jax.lax.psum(drawn.overflow.astype(np.int32), axis) > 0
            return losses, self._added_up(gradient), drawn.mask, overflow

        along = PartitionSpec(axis)
        out = (along, self._gradient_specs(state), along, PartitionSpec())
        on = shards.Shards(self.mesh.abstract_mesh, (axis,))
        return shards.on_each(on, on_device, arrays, state, out)

    def _scattered(self, spec: PartitionSpec) -> int | None:
        """The axis of an array that is split along the examples' axis of the mesh, and no other."""
        return next((place for place, name in enumerate(spec) if name in (self.axis, (self.axis,))), None)

    def _added_up(self, gradient: Any) -> Any:
        """The sum over devices; of a sharded parameter on each the part that it holds."""
        if not isinstance(gradient, ClippedSum):
            return gradient  # a mean over all of them already
        leaves, structure = jax.tree.flatten(gradient.gradients)
        sums = [
            jax.lax.psum(leaf, self.axis)
            if place is None
            else jax.lax.psum_scatter(leaf, self.axis, scatter_dimension=place, tiled=True)
            for leaf, place in zip(leaves, map(self._scattered, self.specs), strict=True)
        ]
        rest = jax.lax.psum(gradient._replace(gradients=()), self.axis)
        return rest._replace(gradients=jax.tree.unflatten(structure, sums))

    def _gradient_specs(self, state: Any) -> Any:
        """How `_added_up` leaves a gradient, of the axis of the examples."""
        if state.private is None:
            return PartitionSpec()
        places = map(self._scattered, self.specs)
        specs = [
            PartitionSpec() if place is None else PartitionSpec(*[None] * place, self.axis)
            for place in places
        ]
        gradients = jax.tree.unflatten(jax.tree.structure(state.params), specs)
        rest: list[Any] = [PartitionSpec()] * (len(ClippedSum._fields) - 1)
        return ClippedSum(gradients, *rest)


def of(mesh: Mesh | str | None, params: PyTree) -> Placement | None:
    """How a run with these parameters lies on a mesh; None for one device.

    Args:
      mesh: `auto` for that of the parameters, or all devices of all processes in one row unless JAX was told
        which device to use; None for one device.
      params: sharded over that mesh, or not at all.

    Raises:
      ValueError: another word; parameters on another mesh; several processes and one device.
    """
    leaves = jax.tree.leaves(params)
    own = [leaf.sharding for leaf in leaves if isinstance(getattr(leaf, "sharding", None), NamedSharding)]
    if isinstance(mesh, str):
        if mesh != "auto":
            raise ValueError(f"mesh={mesh!r}: must be 'auto', None or a jax.sharding.Mesh")
        mesh = next((sharding.mesh for sharding in own if sharding.mesh.size > 1), None)
        config: Any = jax.config
        if mesh is None and config.jax_default_device is None and jax.device_count() > 1:
            mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    if mesh is None or mesh.size == 1:
        if jax.process_count() > 1:
            raise ValueError(
                f"mesh={mesh}: {jax.process_count()} processes make one run on all their devices"
            )
        return None
    for sharding in own:
        if sharding.mesh.size > 1 and sharding.mesh != mesh:
            raise ValueError(f"mesh={mesh.shape}: the parameters lie on another, {sharding.mesh.shape}")
    specs = tuple(
        leaf.sharding.spec
        if isinstance(getattr(leaf, "sharding", None), NamedSharding) and leaf.sharding.mesh == mesh
        else PartitionSpec()
        for leaf in leaves
    )
    return Placement(mesh=mesh, specs=specs, shapes=tuple(np.shape(leaf) for leaf in leaves))


def on_one_device(tree: PyTree) -> PyTree:
    """What is the same on all devices, from one of this process: for what only one need compute."""
    one = lambda x: x.addressable_data(0) if len(x.sharding.device_set) > 1 else x  # noqa: E731
    same = all(x.sharding.is_fully_replicated for x in jax.tree.leaves(tree))
    return jax.tree.map(one, tree) if same else tree
