"""Checkpoints: the whole state of a run, with the privacy spent, or nothing.

A checkpoint is written into a folder of another name, with the SHA-256 of each of its files in a manifest
beside them, brought to disk and then renamed.  So a process killed at any moment leaves the one before, and a
checkpoint that is there is whole.  Files that do not match the manifest are refused: neither the state nor the
privacy spent could be trusted.

It also holds the keys of sampling and noise, which are as secret as the data: the folder is readable by its
owner only.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import signal
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdp import atomic

KEPT = 2  # the newest, and one before it
MANIFEST = "MANIFEST.json"
_PARTIAL = ".partial"  # begins the names of what is being written, or being deleted


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
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with open(path, "rb") as file:
            digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _orbax():
    """A checkpointer of this process alone, whatever others there are, and the types of its arguments."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        document=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone), ocp.args


class Writer:
    """Saves the checkpoints of one run, as the only one to write in its folder; a context manager.

    What a process left unfinished there when it was killed is deleted.

    Args:
      folder: where; made if absent, with access for its owner only.

    Raises:
      ValueError: another run is writing there.
      OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | pathlib.Path):
        self._folder = pathlib.Path(folder).resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._lock = contextlib.ExitStack()
        try:
            self._lock.enter_context(atomic.alone(self._folder / ".lock", wait=False))
        except BlockingIOError:
            raise ValueError(
                f"folder={str(folder)!r}: another run is writing its checkpoints there"
            ) from None
        for unfinished in _unfinished(self._folder):
            shutil.rmtree(unfinished)

    def save(self, step: int, state: PyTree, document: dict[str, Any]) -> None:
        """Writes a checkpoint; returns when it would outlast a power failure.  Ctrl-C waits for that.

        Args:
          step: its number, larger than that of every checkpoint in the folder.
          state: arrays and keys.
          document: what JSON can hold.

        Raises:
          ValueError: a number that is not larger.
          OSError: the folder cannot be written.
        """
        latest = latest_step(self._folder)
        if latest is not None and step <= latest:
            raise ValueError(f"step={step}: the folder holds a checkpoint of step {latest}; must be larger")
        partial, checkpoint = self._folder / f"{_PARTIAL}-{step}", self._folder / str(step)
        arrays = _storable(state)
        with _uninterrupted():
            checkpointer, args = _orbax()
            with checkpointer:
                checkpointer.save(
                    partial,
                    args=args.Composite(state=args.StandardSave(arrays), document=args.JsonSave(document)),
                    force=True,  # over what a failure, as of a full disk, left
                )
            (partial / MANIFEST).write_text(json.dumps(_digests(partial), indent=1))
            for path in (*partial.rglob("*"), partial):
                atomic.to_disk(path)
            partial.rename(checkpoint)
            atomic.to_disk(self._folder)
            for old in _steps(self._folder)[:-KEPT]:
                self._delete(old)

    def _delete(self, step: int) -> None:
        """Takes a checkpoint away whole, so that killed amidst it no part of one is left under its name."""
        doomed = (self._folder / str(step)).rename(self._folder / f"{_PARTIAL}-{step}")
        shutil.rmtree(doomed)

    def close(self) -> None:
        """Lets another run write in the folder."""
        self._lock.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@contextlib.contextmanager
def _uninterrupted() -> Generator[None]:
    """Holds Ctrl-C back until the end, where orbax would answer it with the tracebacks of its threads."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python interrupts the main thread alone
        return
    received: list[FrameType | None] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received and callable(before):
        before(signal.SIGINT, received[0])


def _unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
    """What killed processes left: folders under another name, and numbered ones that are no checkpoint.

    What orbax never wrote in is not touched, whatever its name.
    """
    found = []
    for path in (p for p in folder.iterdir() if p.is_dir()):
        names = {inside.name for inside in path.iterdir()}
        bare = MANIFEST not in names and "_CHECKPOINT_METADATA" in names
        numbered = path.name.isdecimal() and (bare or names == {MANIFEST})
        if numbered or path.name.startswith(_PARTIAL) or ".orbax-checkpoint-tmp" in path.name:
            found.append(path)
    return found


def _steps(folder: pathlib.Path) -> list[int]:
    """The numbers of the complete checkpoints in a folder, ascending."""
    found = (manifest.parent for manifest in folder.glob(f"*/{MANIFEST}"))
    return sorted(int(p.name) for p in found if p.name.isdecimal() and len(list(p.iterdir())) > 1)


def latest_step(folder: str | pathlib.Path) -> int | None:
    """The number of the newest complete checkpoint in a folder; None where there is none."""
    return max(_steps(pathlib.Path(folder)), default=None)


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
    checkpointer, args = _orbax()
    try:
        with checkpointer:
            found: Any = checkpointer.restore(
                checkpoint.resolve(),
                args=args.Composite(state=args.StandardRestore(), document=args.JsonRestore()),
            )
    except Exception as error:  # orbax raises many types
        raise ValueError(f"{where}: cannot be read ({type(error).__name__})") from error
    if not isinstance(found.document, dict):
        raise ValueError(f"{where}: its document is no JSON object; not resumed")
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


def _is_short(found: np.ndarray, expected: Any) -> bool:
    """Whether a secret is of the two words that earlier versions had for one."""
    secret = (np.shape(expected), expected.dtype) == ((8,), np.uint32)
    return secret and (found.shape, found.dtype) == ((2,), np.uint32)


def _restored(leaves: list[np.ndarray], like: PyTree, where: str) -> PyTree:
    """The leaves in the structure of `like`, keys as keys; secrets of earlier versions stay short."""
    expected, structure = jax.tree.flatten(like)
    plain = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in expected]
    same = len(leaves) == len(plain) and all(
        (x.shape, x.dtype) == (np.shape(y), y.dtype) or _is_short(x, y)
        for x, y in zip(leaves, plain, strict=True)
    )
    if not same:
        raise ValueError(f"{where}: holds the state of another model, optimizer, average or clipping")
    values = [
        jax.random.wrap_key_data(jnp.asarray(x), impl=jax.random.key_impl(old))
        if _is_key(old)
        else jnp.asarray(x)
        for x, old in zip(leaves, expected, strict=True)
    ]
    return jax.tree.unflatten(structure, values)
