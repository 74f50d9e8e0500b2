"""A user's own arrays: read, split, and refused where nothing could be learned from them."""

import io
import zipfile

import numpy as np
import pytest

from jaxdp import data


def _user(**changes):
    x = np.arange(60, dtype=np.float64).reshape(20, 3)
    return {"x": x, "y": np.arange(20) % 2, **changes}


def _whole():
    """As `_user`, split already."""
    x, y = _user()["x"], _user()["y"]
    return {"train_x": x, "train_y": y, "test_x": x, "test_y": y}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (_user(x=np.full((20, 3), np.nan)), ["NaN", "example 0"]),
        (_user(x=np.full((20, 3), 1e39)), ["infinite"]),
        (_user(x=np.zeros((19, 3))), ["19", "20"]),
        (_user(x=np.zeros(20)), ["shape [16]", "features"]),
        (_user(x=np.array(["a"] * 20)), ["numbers"]),
        (_user(y=np.arange(20) - 1), ["-1"]),
        (_user(y=np.linspace(0, 1, 20)), ["y is float64[20]", "integers"]),
        (_user(y=np.arange(20) % 3, classes=np.array(["a", "b"])), ["=2", "0..1"]),
        (_user(y=np.zeros(20, int), classes=np.array(["a"])), ["two classes"]),
        ({"x": np.zeros((20, 3))}, ["holds x", "train_x"]),
        (_user(y=np.arange(20)), ["test_x", "holds nothing"]),
        (
            {"train_x": np.zeros((4, 3)), "train_y": np.arange(4) % 2, "test_x": np.zeros((4, 2)),
             "test_y": np.arange(4) % 2},
            ["different kinds"],
        ),
    ],
)  # fmt: skip
def test_user_arrays_are_refused_with_a_reason(tmp_path, arrays, words):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError) as error:
        data.load(path)
    assert all(word in str(error.value) for word in ["mine.npz", *words])


def test_user_arrays_load(tmp_path):
    np.savez(tmp_path / "a.npz", **_user(classes=np.array(["no", "yes"])))
    dataset = data.load(tmp_path / "a.npz")
    assert dataset.public_preprocessing
    assert dataset.classes == ("no", "yes") and dataset.input_shape == (3,)
    np.testing.assert_array_equal(dataset.test_x, _user()["x"][[8, 9, 18, 19]])
    images = np.zeros((20, 4, 4), np.uint8)
    np.savez(tmp_path / "b.npz", **_user(x=images))
    counted = data.load(tmp_path / "b.npz")
    assert counted.input_shape == (4, 4, 1)
    assert (
        not counted.public_preprocessing and "number of classes read from the labels" in counted.preprocessing
    )


IMAGES = np.random.default_rng(0).uniform(size=(20, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (_user(x=np.float32(3)), ["x has no axis of examples", "20"]),
        ({**_whole(), "train_x": np.float32(3)}, ["train_x has shape []"]),
        (_user(x=IMAGES.transpose(0, 3, 1, 2)), ["[16, 3, 8, 8]", "transpose(0, 2, 3, 1)"]),
        (_user(x=IMAGES[..., :1].transpose(0, 3, 1, 2)), ["[16, 1, 8, 8]", "transpose(0, 2, 3, 1)"]),
        (_user(x=np.rint(255 * IMAGES)), ["whole numbers", "uint8"]),
        (_user(x=np.rint(255 * IMAGES[..., 0]).astype(np.int64)), ["whole numbers", "uint8"]),
        (_user(y=np.arange(20) % 2 + 1), ["labels count from 0", "classes"]),
        (_user(y=np.zeros(20, int)), ["train_y is 0 throughout", "two classes"]),
        (_user(y=np.full(20, 1), classes=np.array(["a", "b"])), ["train_y is 1 throughout", "two classes"]),
    ],
)
def test_what_would_spend_the_privacy_on_nothing_is_refused(tmp_path, arrays, words):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError) as error:
        data.load(path)
    assert all(word in str(error.value) for word in ["mine.npz", *words])


@pytest.mark.parametrize(
    "images", [IMAGES, np.rint(IMAGES), 255 * IMAGES / 100 - 1, (255 * IMAGES).astype(np.uint8)]
)
def test_pixels_that_are_scaled_or_bytes_are_taken(tmp_path, images):
    np.savez(tmp_path / "a.npz", **_user(x=images))
    np.testing.assert_array_equal(data.load(tmp_path / "a.npz").train_x[:8], images[:8])


@pytest.mark.parametrize("x", [_user()["x"] * 1e4, 255 * IMAGES])
def test_large_inputs_are_warned_of(tmp_path, x):
    np.savez(tmp_path / "a.npz", **_user(x=x))
    with pytest.warns(UserWarning, match=r"a\.npz: train_x goes up to .*scale features by public constants"):
        dataset = data.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(dataset.train_x[:8], x[:8].astype(np.float32))


def test_labels_that_begin_above_0_are_taken_where_the_classes_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", **_user(y=np.arange(20) % 2 + 1, classes=np.array(["none", "no", "yes"])))
    assert data.load(tmp_path / "a.npz").train_y.min() == 1


@pytest.mark.parametrize("shape", [(2**40, 2, 1), (2**70,), (2**62, 8), (-1, 3)])
def test_a_header_of_more_than_there_is(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"bad\.npz: not a readable \.npz"):
        data.load(tmp_path / "bad.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_whatever_byte_of_an_archive_is_damaged(tmp_path, save):
    save(tmp_path / "a.npz", **_user())
    whole, rng = (tmp_path / "a.npz").read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in rng.integers(len(whole), size=200):
        content = bytearray(whole)
        content[place] ^= rng.integers(1, 256)
        (tmp_path / "a.npz").write_bytes(content)
        try:
            data.load(tmp_path / "a.npz")
        except ValueError as error:
            assert "a.npz" in str(error)
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz"):
        data.load(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
        data.load(tmp_path / "gone.npz")
