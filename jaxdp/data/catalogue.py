"""The data sets that have to be fetched: what each is, its original files and how they are read."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from jaxdp.data import parsers


@dataclasses.dataclass(frozen=True)
class Original:
    """An original file: its address, length in bytes and SHA-256."""

    url: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A data set of the catalogue; `parse` turns its original files into arrays and class names."""

    summary: str
    parse: Callable[[parsers.Files], parsers.Parsed]
    preprocessing: str
    licence: str
    citation: str


_PIXELS = "pixels divided by 255, the range of the format (public)"
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

CATALOGUE = {
    "mnist": Entry(
        summary="handwritten digits, 28x28 grey: 60,000 + 10,000",
        parse=functools.partial(parsers.mnist, classes=tuple("0123456789")),
        preprocessing=_PIXELS,
        licence="none stated by TensorFlow Datasets",
        citation="LeCun, Cortes & Burges, The MNIST database of handwritten digits, 1998",
    ),
    "fashion_mnist": Entry(
        summary="articles of clothing, 28x28 grey: 60,000 + 10,000",
        parse=functools.partial(parsers.mnist, classes=_CLOTHES),
        preprocessing=_PIXELS,
        licence="MIT, Zalando SE",
        citation="Xiao, Rasul & Vollgraf, Fashion-MNIST, arXiv 1708.07747, 2017",
    ),
    "cifar10": Entry(
        summary="photographs of 10 kinds, 32x32 colour: 50,000 + 10,000",
        parse=parsers.cifar10,
        preprocessing=_PIXELS,
        licence="none stated by its authors",
        citation="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    ),
    "cifar100": Entry(
        summary="photographs of 100 kinds, 32x32 colour: 50,000 + 10,000",
        parse=parsers.cifar100,
        preprocessing=_PIXELS,
        licence="none stated by its authors",
        citation="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    ),
    "lfw": Entry(
        summary="faces of 62 people, 64x64 colour: 2,267 + 756 about",
        parse=parsers.lfw,
        preprocessing=f"{_PIXELS}; the central 128x128 averaged to 64x64; only people with at least "
        f"{parsers.LFW_PICTURES} pictures, a choice that depends on how many pictures each person has; "
        "every fourth picture of a person is for testing",
        licence="none stated by its authors (pictures from news services)",
        citation="Huang, Ramesh, Berg & Learned-Miller, Labeled Faces in the Wild, UMass Amherst 07-49, 2007",
    ),
    "adult": Entry(
        summary="census records, 88 features, income above 50K: 32,561 + 16,281",
        parse=parsers.adult,
        preprocessing=parsers.ADULT_PREPROCESSING,
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
        citation="Becker & Kohavi, Adult, UCI Machine Learning Repository, 1996",
    ),
}

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult"
_ADULT = {
    "adult.data": Original(
        f"{_UCI}/adult.data", 3_974_305, "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d"
    ),
    "adult.test": Original(
        f"{_UCI}/adult.test", 2_003_153, "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05"
    ),
}


def original_files(name: str) -> dict[str, Original]:
    """The original files of a data set by file name; addresses and checksums are TensorFlow Datasets'."""
    if name == "adult":
        return _ADULT
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_cls(name)
    return {
        info.filename: Original(url, int(info.size), info.checksum) for url, info in builder.url_infos.items()
    }
