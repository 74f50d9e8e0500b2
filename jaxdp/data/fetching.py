"""Original files from the network or from a folder, each held against its known checksum."""

import hashlib
import os
import pathlib
import shutil
import tempfile
import urllib.request

from jaxdp.data.catalogue import Original

_TIMEOUT = 10  # seconds until an unreachable server is reported; the downloader's own retries take minutes


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: pathlib.Path, original: Original) -> None:
    """Refuses a file that is not the original, byte for byte.

    Raises:
      ValueError: another length or checksum, naming the file and the checksum that was expected.
    """
    size = path.stat().st_size
    if size != original.size:
        kind = "truncated" if size < original.size else "not the original"
        found = f"{kind}: {size:,} bytes, not {original.size:,}"
    elif (digest := sha256(path)) != original.sha256:
        found = f"altered: sha256 {digest}"
    else:
        return
    raise ValueError(f"{path}: {found}; expected sha256 {original.sha256}")


def from_folder(folder: pathlib.Path, files: dict[str, Original]) -> dict[str, pathlib.Path]:
    """The original files in a folder, all verified.

    Raises:
      FileNotFoundError: no such folder, or a file that is missing.
      ValueError: a file that is not the original.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder}: not found")
    for name, original in files.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: missing; expected {original.size:,} bytes, sha256 {original.sha256}"
            )
        verify(folder / name, original)
    return {name: folder / name for name in files}


def from_network(folder: pathlib.Path, files: dict[str, Original]) -> dict[str, pathlib.Path]:
    """The original files, downloaded into `folder` by TensorFlow Datasets and verified.

    A file that is there already is verified again, and fetched anew if it is damaged.

    Raises:
      ConnectionError: a server cannot be reached, or breaks off.
      ValueError: what came is not the original.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob("fetching-*"):  # of a process that was killed
        shutil.rmtree(unfinished)
    for name, original in files.items():
        path = folder / name
        if path.is_file():
            try:
                verify(path, original)
                continue
            except ValueError:
                path.unlink()
        _download(path, original)
        verify(path, original)
    return {name: folder / name for name in files}


def _download(path: pathlib.Path, original: Original) -> None:
    _reach(original.url, path, original)
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory(prefix="fetching-", dir=path.parent) as folder:
        try:
            fetched = tfds.download.DownloadManager(download_dir=folder).download(original.url)
        except Exception as error:  # the downloader's own types are not public
            raise ConnectionError(
                f"{path.name}: download of {original.url} failed ({error}); expected sha256 {original.sha256}"
            ) from error
        os.replace(fetched, path)


def _reach(url: str, path: pathlib.Path, original: Original) -> None:
    """Fails within seconds where the downloader would retry for minutes."""
    try:
        urllib.request.urlopen(url, timeout=_TIMEOUT).close()
    except OSError as error:
        raise ConnectionError(
            f"{path.name}: {url} cannot be reached ({error}); fetch it elsewhere and prepare with --from "
            f"FOLDER; expected {original.size:,} bytes, sha256 {original.sha256}"
        ) from None
