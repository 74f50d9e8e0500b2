"""Checkpoints: the whole state of a run, with the privacy spent, or nothing.

A checkpoint is written by orbax into a temporary folder and renamed when complete, so a process killed at any
moment leaves the one before.  It holds the state's arrays and a JSON document (configuration, ledger); a
digest over both is verified on the way back: a checkpoint that was altered is refused, since its epsilon
could not be trusted.

It also holds the keys of sampling and noise, which are as secret as the data: the folder is readable by its
owner only.
"""

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

KEPT = 2  # the newest, and one before it


class Checkpoint(NamedTuple):
    """What was saved: the step, the state, and the document."""

    step: int
    state: PyTree
    document: dict[str, Any]


def _is_key(x) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.dtype(np.float32)), jax.dtypes.prng_key)


def _storable(state: PyTree) -> dict[str, np.ndarray]:
    """The leaves as plain arrays by their place; keys as their data."""
    leaves = jax.tree.leaves(state)
    plain = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
    return {f"{place:05d}": np.asarray(leaf) for place, leaf in enumerate(plain)}


def _digest(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _manager(folder: pathlib.Path):
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.resolve(), options=options), ocp.args


class Writer:
    """Saves the checkpoints of one run.

    Args:
      folder: where; made if absent, with access for its owner only.

    Raises:
      OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | pathlib.Path):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._manager, self._args = _manager(folder)

    def save(self, step: int, state: PyTree, document: dict[str, Any]) -> None:
        """Writes a checkpoint; returns when it is complete on disk.

        Args:
          step: its number; a checkpoint of the same number is kept, not written again.
          state: arrays and keys.
          document: what JSON can hold.
        """
        arrays = _storable(state)
        document = {**document, "sha256": _digest(arrays, document)}
        self._manager.save(
            step,
            args=self._args.Composite(
                state=self._args.StandardSave(arrays), document=self._args.JsonSave(document)
            ),
        )

    def close(self) -> None:
        self._manager.close()


def latest_step(folder: str | pathlib.Path) -> int | None:
    """The number of the newest complete checkpoint in a folder; None where there is none."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        return None
    return max((int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit()), default=None)


def restore(folder: str | pathlib.Path, like: PyTree | None = None) -> Checkpoint:
    """The newest checkpoint of a folder.

    Args:
      folder: as given to `Writer`.
      like: a state of the same structure; None leaves the state as a list of its leaves.

    Raises:
      FileNotFoundError: the folder holds no complete checkpoint.
      ValueError: the checkpoint is damaged, altered, or of another structure.
    """
    step = latest_step(folder)
    if step is None:
        raise FileNotFoundError(f"checkpoint={str(folder)!r}: holds no complete checkpoint")
    where = f"checkpoint={str(pathlib.Path(folder) / str(step))!r}"
    manager, args = _manager(pathlib.Path(folder))
    try:
        found = manager.restore(
            step, args=args.Composite(state=args.StandardRestore(), document=args.JsonRestore())
        )
        arrays = {name: np.asarray(array) for name, array in found.state.items()}
        document = dict(found.document)
        digest = document.pop("sha256")
    except Exception as error:  # orbax and tensorstore raise many types for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{where}: damaged, cannot be read ({reason})") from error
    finally:
        manager.close()
    if digest != _digest(arrays, document):
        raise ValueError(f"{where}: its contents do not match their digest; not resumed")
    leaves = [arrays[name] for name in sorted(arrays)]
    return Checkpoint(step, leaves if like is None else _restored(leaves, like, where), document)


def _restored(leaves: list[np.ndarray], like: PyTree, where: str) -> PyTree:
    """The leaves in the structure of `like`, keys as keys."""
    expected, structure = jax.tree.flatten(like)
    plain = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in expected]
    if [(x.shape, x.dtype) for x in leaves] != [(np.shape(x), x.dtype) for x in plain]:
        raise ValueError(f"{where}: holds the state of another model or optimizer")
    values = [
        jax.random.wrap_key_data(jnp.asarray(x), impl=jax.random.key_impl(old))
        if _is_key(old)
        else jnp.asarray(x)
        for x, old in zip(leaves, expected, strict=True)
    ]
    return jax.tree.unflatten(structure, values)
