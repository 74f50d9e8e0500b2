"""Parsers of the original files, each a few lines of NumPy, rows in the order of the files.

A parser takes {file name: path} and returns the four arrays and the class names.
"""

import collections
import csv
import gzip
import io
import math
import pathlib
import struct
import tarfile
from typing import NamedTuple

import numpy as np

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
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.size != (250, 250):
            raise ValueError(f"{name}: {image.size[0]}x{image.size[1]} pixels; 250x250 was expected")
        face = image.convert("RGB").crop((61, 61, 189, 189)).reduce(128 // LFW_SIZE)
    return np.asarray(face)


_ADULT_COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation",
    "relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country",
    "income",
)  # fmt: skip

# The values that the data set's documentation (adult.names) lists; an unknown value ("?") is all zeros.
_ADULT_CATEGORIES = {
    "workclass": "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay "
    "Never-worked",
    "marital-status": "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent "
    "Married-AF-spouse",
    "occupation": "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
    "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving Priv-house-serv "
    "Protective-serv Armed-Forces",
    "relationship": "Wife Own-child Husband Not-in-family Other-relative Unmarried",
    "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black",
    "sex": "Female Male",
    "native-country": "United-States Cambodia England Puerto-Rico Canada Germany Outlying-US(Guam-USVI-etc) "
    "India Japan Greece South China Cuba Iran Honduras Philippines Italy Poland Jamaica Vietnam Mexico "
    "Portugal Ireland France Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala "
    "Nicaragua Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago Peru Hong Holand-Netherlands",
}

ADULT_PREPROCESSING = (
    "age / 100, years of education / 16, hours a week / 100, log(1 + capital gain) and log(1 + capital loss) "
    "/ log(100,000); categories as 0/1 columns of the documented values, unknown ones all 0; sampling weight "
    "and the name of the education left out; every constant is public"
)


def adult(files: Files) -> Parsed:
    """Turns the census files of UCI Adult, with the split that they come in, into features by public constants.

    Does a person earn more than 50,000 dollars a year?
    """
    train_x, train_y = _census(files["adult.data"])
    test_x, test_y = _census(files["adult.test"])
    return Parsed(train_x, train_y, test_x, test_y, ("<=50K", ">50K"))


def _census(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    with open(path, encoding="ascii", newline="") as file:
        # The test file opens with a comment, and its labels end with a full stop.
        rows = [row for row in csv.reader(file, skipinitialspace=True) if row and not row[0].startswith("|")]
    for number, row in enumerate(rows, 1):
        if len(row) != len(_ADULT_COLUMNS):
            raise ValueError(f"{path.name}: record {number} has {len(row)} fields, not {len(_ADULT_COLUMNS)}")
    columns = dict(zip(_ADULT_COLUMNS, np.array(rows).T, strict=True))
    income = np.char.rstrip(columns["income"], ".")
    if not np.isin(income, ("<=50K", ">50K")).all():
        raise ValueError(f"{path.name}: an income is neither <=50K nor >50K")
    numbers = {name: columns[name].astype(np.float64) for name in _ADULT_COLUMNS if _is_adult_number(name)}
    features = [
        numbers["age"] / 100,
        numbers["education-num"] / 16,
        numbers["hours-per-week"] / 100,
        np.log1p(numbers["capital-gain"]) / np.log(100_000),
        np.log1p(numbers["capital-loss"]) / np.log(100_000),
    ]
    for name, values in _ADULT_CATEGORIES.items():
        if not np.isin(columns[name], [*values.split(), "?"]).all():
            raise ValueError(f"{path.name}: column {name} holds a value that the documentation does not list")
        features += [columns[name] == value for value in values.split()]
    return np.stack(features, 1).astype(np.float32), (income == ">50K").astype(np.int32)


def _is_adult_number(column: str) -> bool:
    return column not in _ADULT_CATEGORIES and column not in ("fnlwgt", "education", "income")
