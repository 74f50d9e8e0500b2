"""Files that are written whole or not at all."""

import os
import pathlib
import tempfile


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
