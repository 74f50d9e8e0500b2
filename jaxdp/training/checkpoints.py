"""Checkpoints: the whole state of a run, with the privacy spent, or nothing.

A checkpoint is written by orbax into a temporary folder and renamed when complete; then a manifest with the
SHA-256 of each of its files is put beside them.  Without its manifest a checkpoint does not count, so a
process killed at any moment leaves the one before.  Files that do not match the manifest are refused: neither
the state nor the privacy spent could be trusted.

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

from jaxdp import atomic

KEPT = 2  # the newest, and one before it
MANIFEST = "MANIFEST.json"


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


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of every file of a checkpoint, by its path in it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


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
        self._folder = folder
        self._manager, self._args = _manager(folder)

    def save(self, step: int, state: PyTree, document: dict[str, Any]) -> None:
        """Writes a checkpoint; returns when it is complete on disk.

        Args:
          step: its number; a checkpoint of the same number is kept, not written again.
          state: arrays and keys.
          document: what JSON can hold.
        """
        arrays = _storable(state)
        self._manager.save(
            step,
            args=self._args.Composite(
                state=self._args.StandardSave(arrays), document=self._args.JsonSave(document)
            ),
        )
        self._manager.wait_until_finished()
        checkpoint = self._folder / str(step)
        atomic.write_text(checkpoint / MANIFEST, json.dumps(_digests(checkpoint), indent=1))

    def close(self) -> None:
        self._manager.close()


def latest_step(folder: str | pathlib.Path) -> int | None:
    """The number of the newest complete checkpoint in a folder; None where there is none."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        return None
    steps = (int(p.parent.name) for p in folder.glob(f"*/{MANIFEST}") if p.parent.name.isdigit())
    return max(steps, default=None)


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
    checkpoint = pathlib.Path(folder) / str(step)
    where = f"checkpoint={str(checkpoint)!r}"
    _verify(checkpoint, where)
    manager, args = _manager(pathlib.Path(folder))
    try:
        found: Any = manager.restore(
            step, args=args.Composite(state=args.StandardRestore(), document=args.JsonRestore())
        )
    except Exception as error:  # orbax raises many types
        raise ValueError(f"{where}: cannot be read ({type(error).__name__})") from error
    finally:
        manager.close()
    leaves = [np.asarray(found.state[name]) for name in sorted(found.state)]
    return Checkpoint(step, leaves if like is None else _restored(leaves, like, where), dict(found.document))


def _verify(checkpoint: pathlib.Path, where: str) -> None:
    """Refuses a checkpoint whose files are not those that were written."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text())
        found = _digests(checkpoint)
        changed = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: its {MANIFEST} is damaged; not resumed") from error
    if changed:
        raise ValueError(f"{where}: {changed[0]} is missing, damaged or altered; not resumed")


def _restored(leaves: list[np.ndarray], like: PyTree, where: str) -> PyTree:
    """The leaves in the structure of `like`, keys as keys."""
    expected, structure = jax.tree.flatten(like)
    plain = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in expected]
    if [(x.shape, x.dtype) for x in leaves] != [(np.shape(x), x.dtype) for x in plain]:
        raise ValueError(f"{where}: holds the state of another model, optimizer, average or clipping")
    values = [
        jax.random.wrap_key_data(jnp.asarray(x), impl=jax.random.key_impl(old))
        if _is_key(old)
        else jnp.asarray(x)
        for x, old in zip(leaves, expected, strict=True)
    ]
    return jax.tree.unflatten(structure, values)
