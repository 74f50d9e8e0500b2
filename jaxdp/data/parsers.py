"""Parsers of the original image archives, each a few lines of NumPy, rows in the order of the files.

A parser takes {file name: path} and returns the four arrays and the class names.
"""

import collections
import gzip
import io
import math
import pathlib
import struct
import tarfile
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxdp.data.dataset import stratified_split

Files = dict[str, pathlib.Path]


class Parsed(NamedTuple):
    """What a parser returns: arrays as `Dataset` holds them, and a name for each label."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: tuple[str, ...]


def _idx(path: pathlib.Path) -> np.ndarray:
    """An array of unsigned bytes in the idx format of MNIST, compressed."""
    with gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name}: not an idx file of unsigned bytes")
    rank = content[3]
    shape = struct.unpack_from(f">{rank}I", content, 4)
    start = 4 + 4 * rank
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{path.name}: holds {len(content) - start} bytes; its header says {list(shape)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def mnist(files: Files, classes: tuple[str, ...]) -> Parsed:
    """MNIST and Fashion-MNIST: four idx files."""

    def images(split):
        return _idx(files[f"{split}-images-idx3-ubyte.gz"])[..., None]

    def labels(split):
        return _idx(files[f"{split}-labels-idx1-ubyte.gz"]).astype(np.int32)

    return Parsed(images("train"), labels("train"), images("t10k"), labels("t10k"), classes)


def _cifar_rows(name: str, content: bytes, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `labels` label bytes (the last is the class) and 3 x 32 x 32 pixel bytes, channels first."""
    row = labels + 3 * 32 * 32
    if not content or len(content) % row:
        raise ValueError(f"{name}: {len(content)} bytes is no whole number of {row} byte rows")
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    images = rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, labels - 1].astype(np.int32)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # it is None for folders and links only
    return file.read()


def _cifar(path: pathlib.Path, train: tuple[str, ...], test: str, names: str, labels: int) -> Parsed:
    members = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                members[pathlib.PurePath(member.name).name] = _content(archive, member)
    for wanted in (*train, test, names):
        if wanted not in members:
            raise ValueError(f"{path.name}: holds no {wanted}")
    parts = [_cifar_rows(name, members[name], labels) for name in train]
    test_x, test_y = _cifar_rows(test, members[test], labels)
    classes = tuple(members[names].decode().split())
    return Parsed(
        np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), test_x, test_y, classes
    )


def cifar10(files: Files) -> Parsed:
    """CIFAR-10, binary version: five training files and one test file."""
    train = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    return _cifar(files["cifar-10-binary.tar.gz"], train, "test_batch.bin", "batches.meta.txt", labels=1)


def cifar100(files: Files) -> Parsed:
    """CIFAR-100, binary version, with its 100 fine labels."""
    path = files["cifar-100-binary.tar.gz"]
    return _cifar(path, ("train.bin",), "test.bin", "fine_label_names.txt", labels=2)


LFW_PICTURES = 20  # people with fewer pictures are left out: 62 remain
LFW_SIZE = 64


def lfw(files: Files) -> Parsed:
    """Labelled Faces in the Wild: who is it, of the people with at least `LFW_PICTURES` pictures."""
    with tarfile.open(files["lfw.tgz"]) as archive:
        pictures = [member for member in archive if member.isfile() and member.name.endswith(".jpg")]
        people = collections.Counter(pathlib.PurePath(member.name).parent.name for member in pictures)
        classes = tuple(sorted(name for name, count in people.items() if count >= LFW_PICTURES))
        label = {name: index for index, name in enumerate(classes)}
        kept = [member for member in pictures if pathlib.PurePath(member.name).parent.name in label]
        faces = {member.name: _face(member.name, _content(archive, member)) for member in kept}
    if not faces:
        raise ValueError(f"lfw.tgz: nobody in it has {LFW_PICTURES} pictures")
    names = sorted(faces)
    x = np.stack([faces[name] for name in names])
    y = np.array([label[pathlib.PurePath(name).parent.name] for name in names], np.int32)
    train, test = stratified_split(y, every=4)
    return Parsed(x[train], y[train], x[test], y[test], classes)


def _face(name: str, content: bytes) -> np.ndarray:
    """The central 128 x 128 pixels, each 2 x 2 of them averaged."""
    with Image.open(io.BytesIO(content)) as image:
        if image.size != (250, 250):
            raise ValueError(f"{name}: {image.size[0]}x{image.size[1]} pixels; 250x250 was expected")
        face = image.convert("RGB").crop((61, 61, 189, 189)).reduce(128 // LFW_SIZE)
    return np.asarray(face)
