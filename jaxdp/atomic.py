"""Files that are written whole or not at all, and folders that one process at a time writes in."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Generator


def write_text(path: pathlib.Path, content: str) -> None:
    """Writes a text file, whole or not at all."""
    write_bytes(path, content.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        pathlib.Path(partial).unlink(missing_ok=True)
        raise


def to_disk(path: pathlib.Path) -> None:
    """Returns when a file, or the list of names that a folder is, would outlast a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(path: pathlib.Path, *, wait: bool = True) -> Generator[None]:
    """Held by one process at a time; the system lets go of it when that process ends in any way.

    Args:
      path: of the lock, a file that is made and stays.
      wait: for whoever holds it.

    Raises:
      BlockingIOError: held by another, and not waited for.
    """
    import fcntl  # not everywhere

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
