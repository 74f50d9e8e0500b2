"""Data sets: one structure, fixed splits, original files verified, preparation atomic."""

import dataclasses
import gzip
import hashlib
import io
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tarfile
import time

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdp import cli, data
from jaxdp.data import catalogue, fetching, prepared

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ORIGINALS = pathlib.Path(os.environ.get("JAXDP_ORIGINALS", REPOSITORY.parent / "shared" / "data"))


def _needs_original(name):
    if not (ORIGINALS / name).is_dir():
        pytest.skip(f"no original files of {name} in {ORIGINALS}; set JAXDP_ORIGINALS")
    return ORIGINALS / name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDP_DATA_DIR", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


# Small archives in the formats of the originals.


def _idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def _tar_gz(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _small_mnist(rng):
    x, y = rng.integers(0, 256, (30, 28, 28), np.uint8), rng.integers(0, 10, 30).astype(np.uint8)
    files = {
        "train-images-idx3-ubyte.gz": _idx(x[:20]), "train-labels-idx1-ubyte.gz": _idx(y[:20]),
        "t10k-images-idx3-ubyte.gz": _idx(x[20:]), "t10k-labels-idx1-ubyte.gz": _idx(y[20:]),
    }  # fmt: skip
    return files, (x[:20, ..., None], y[:20], x[20:, ..., None], y[20:])


def _cifar_rows(x, *labels):
    return b"".join(
        bytes(int(label[i]) for label in labels) + x[i].transpose(2, 0, 1).tobytes() for i in range(len(x))
    )


def _small_cifar10(rng):
    x, y = rng.integers(0, 256, (12, 32, 32, 3), np.uint8), rng.integers(0, 10, 12)
    members = {
        f"cifar-10-batches-bin/data_batch_{i + 1}.bin": _cifar_rows(
            x[2 * i : 2 * i + 2], y[2 * i : 2 * i + 2]
        )
        for i in range(5)
    }
    members["cifar-10-batches-bin/test_batch.bin"] = _cifar_rows(x[10:], y[10:])
    members["cifar-10-batches-bin/batches.meta.txt"] = "\n".join(f"kind{i}" for i in range(10)).encode()
    return {"cifar-10-binary.tar.gz": _tar_gz(members)}, (x[:10], y[:10], x[10:], y[10:])


def _small_cifar100(rng):
    x, fine, coarse = rng.integers(0, 256, (7, 32, 32, 3), np.uint8), np.arange(93, 100), np.arange(7)
    members = {
        "cifar-100-binary/train.bin": _cifar_rows(x[:4], coarse[:4], fine[:4]),
        "cifar-100-binary/test.bin": _cifar_rows(x[4:], coarse[4:], fine[4:]),
        "cifar-100-binary/fine_label_names.txt": "\n".join(f"kind{i}" for i in range(100)).encode(),
    }
    return {"cifar-100-binary.tar.gz": _tar_gz(members)}, (x[:4], fine[:4], x[4:], fine[4:])


def _small_lfw(rng):
    def picture(level):
        buffer = io.BytesIO()
        Image.new("RGB", (250, 250), (level, 255 - level, 30)).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    members, faces = {}, {"Ada_B": 20, "Cy_D": 24, "Rare_E": 19}
    for name, count in faces.items():
        for i in range(1, count + 1):
            members[f"lfw/{name}/{name}_{i:04d}.jpg"] = picture(i * 5 + len(name))

    def expected(indices):
        levels = np.array([i * 5 + len(name) for name in ("Ada_B", "Cy_D") for i in indices[name]])
        row = np.stack([levels, 255 - levels, np.full(len(levels), 30)], -1)
        return np.broadcast_to(row[:, None, None, :], (len(levels), 64, 64, 3))

    test = {name: [i for i in range(1, faces[name] + 1) if i % 4 == 0] for name in ("Ada_B", "Cy_D")}
    train = {name: [i for i in range(1, faces[name] + 1) if i % 4] for name in ("Ada_B", "Cy_D")}
    labels = [np.repeat([0, 1], [len(part["Ada_B"]), len(part["Cy_D"])]) for part in (train, test)]
    return {"lfw.tgz": _tar_gz(members)}, (expected(train), labels[0], expected(test), labels[1])


SMALL = {
    "mnist": _small_mnist,
    "fashion_mnist": _small_mnist,
    "cifar10": _small_cifar10,
    "cifar100": _small_cifar100,
    "lfw": _small_lfw,
}


def _write_small(name, where, monkeypatch):
    """Writes a small archive and makes its checksums the expected ones."""
    files, arrays = SMALL[name](np.random.default_rng(0))
    where.mkdir(parents=True, exist_ok=True)
    expected = {}
    for file, content in files.items():
        (where / file).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        expected[file] = catalogue.Original(f"http://127.0.0.1:9/{file}", len(content), digest)
    monkeypatch.setattr(prepared, "original_files", lambda _: expected)
    return expected, arrays


# One structure


@pytest.mark.parametrize("name", data.EMBEDDED)
def test_embedded_sets_have_fixed_stratified_splits(name):
    first, second = data.load(name), data.load(name)
    for array in prepared.ARRAYS:
        np.testing.assert_array_equal(getattr(first, array), getattr(second, array))
    share = np.bincount(first.test_y) / (np.bincount(first.train_y) + np.bincount(first.test_y))
    np.testing.assert_allclose(share, 0.2, atol=0.01)
    assert first.public_preprocessing and first.train_x.dtype == np.float32
    seen = {row.tobytes() for row in first.train_x}
    assert sum(row.tobytes() in seen for row in first.test_x) <= 1  # digits holds one pair of equal images


def test_digits_against_scikit_learn():
    from sklearn.datasets import load_digits

    dataset, bunch = data.load("digits"), load_digits()
    original = {image.tobytes(): label for image, label in zip(bunch.data, bunch.target, strict=True)}
    rows = np.concatenate([dataset.train_x, dataset.test_x]).reshape(-1, 64) * 16.0
    labels = np.concatenate([dataset.train_y, dataset.test_y])
    assert len(rows) == 1797 and dataset.train_x.max() == 1
    assert [original[row.astype(np.float64).tobytes()] for row in rows] == labels.tolist()


@pytest.mark.parametrize("size", [28, 5])
def test_resizing_is_jax_image_resize(size):
    small, large = data.load("digits"), data.load("digits", size=size)
    x = small.test_x[:9]
    np.testing.assert_allclose(large.test_x[:9], jax.image.resize(x, (9, size, size, 1), "linear"), atol=1e-6)
    assert large.input_shape == (size, size, 1) and f"to {size}x{size}" in large.preprocessing


def test_standardised_features_say_that_they_depend_on_private_data():
    dataset = data.load("breast_cancer", scaling="standardized")
    np.testing.assert_allclose(dataset.train_x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(dataset.train_x.std(0), 1, atol=1e-5)
    assert abs(dataset.test_x.mean(0)).max() > 1e-3  # the test split was not used
    assert not dataset.public_preprocessing and "private" in dataset.preprocessing


def test_public_features_lie_in_the_stated_range():
    dataset = data.load("breast_cancer")
    for x in (dataset.train_x, dataset.test_x):
        assert x.min() >= -1 and x.max() <= 3


def test_to_float_is_traced_and_scales_bytes_only():
    dataset = data.load("digits")
    bytes_ = np.array([[0, 51, 255]], np.uint8)
    np.testing.assert_allclose(jax.jit(dataset.to_float)(bytes_), [[0, 0.2, 1]], rtol=1e-6)
    np.testing.assert_array_equal(dataset.to_float(dataset.train_x), dataset.train_x)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nope", {}), ["nope", "digits", "mnist", "npz"]),
        (("digits", {"scaling": "none"}), ["scaling='none'", "public"]),
        (("digits", {"scaling": "standardized"}), ["digits", "images"]),
        (("digits", {"size": 0}), ["size=0"]),
        (("breast_cancer", {"size": 8}), ["size=8", "features"]),
    ],
)
def test_bad_requests_say_what_is_possible(arguments, words):
    name, options = arguments
    with pytest.raises(ValueError) as error:
        data.load(name, **options)
    assert all(word in str(error.value) for word in words)


# Preparation


@pytest.mark.parametrize("name", SMALL)
def test_prepared_arrays_are_those_of_the_archive(name, tmp_path, folder, monkeypatch):
    _, expected = _write_small(name, tmp_path / "originals", monkeypatch)
    data.prepare(name, tmp_path / "originals")
    dataset = data.load(name)
    tolerance = 4 if name == "lfw" else 0  # JPEG
    for array, wanted in zip(prepared.ARRAYS, expected, strict=True):
        found = np.asarray(getattr(dataset, array), np.int64)
        np.testing.assert_allclose(found, wanted, atol=tolerance)
    assert isinstance(dataset.train_x, np.memmap) and dataset.train_x.dtype == np.uint8
    sizes = {"cifar100": 100, "lfw": 2}
    assert len(dataset.classes) == sizes.get(name, 10) and dataset.classes[-1] not in ("", "Rare_E")


def test_resizing_keeps_bytes(tmp_path, folder, monkeypatch):
    _write_small("mnist", tmp_path / "originals", monkeypatch)
    data.prepare("mnist", tmp_path / "originals")
    whole, half = data.load("mnist"), data.load("mnist", size=14)
    assert half.train_x.dtype == np.uint8
    expected = jax.image.resize(np.asarray(whole.test_x, np.float32), (10, 14, 14, 1), "linear")
    np.testing.assert_allclose(half.test_x, expected, atol=0.51)


def test_catalogue_names_and_checksums():
    assert tuple(catalogue.CATALOGUE) == data.FETCHED
    for name in data.FETCHED:
        for original in catalogue.original_files(name).values():
            assert len(original.sha256) == 64 and original.size > 1000 and original.url.startswith("http")


def _damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["missing", "truncated", "altered"])
def test_a_damaged_original_is_named_with_its_checksum(kind, tmp_path, folder, monkeypatch, capsys):
    expected, _ = _write_small("mnist", tmp_path / "originals", monkeypatch)
    file = "t10k-images-idx3-ubyte.gz"
    _damage(tmp_path / "originals" / file, kind)
    assert cli.main(["data", "prepare", "mnist", "--from", str(tmp_path / "originals")]) == 2
    message = capsys.readouterr().err
    assert file in message and kind in message and expected[file].sha256 in message
    assert message.count("\n") == 1 and not (folder / "mnist").exists()


@pytest.mark.parametrize("kind", ["missing", "truncated", "altered"])
def test_a_damaged_prepared_file_is_noticed_and_repaired(kind, tmp_path, folder, monkeypatch):
    _write_small("mnist", tmp_path / "originals", monkeypatch)
    data.prepare("mnist", tmp_path / "originals")
    _damage(folder / "mnist" / "train_x.npy", kind)
    with pytest.raises(ValueError, match=r"train_x\.npy.*expected sha256.*jaxdp data prepare mnist"):
        data.load("mnist")
    data.prepare("mnist", tmp_path / "originals")
    data.load("mnist")


def test_a_damaged_description_is_noticed(tmp_path, folder, monkeypatch):
    _write_small("mnist", tmp_path / "originals", monkeypatch)
    data.prepare("mnist", tmp_path / "originals")
    for content in ("{", "[]", "{}", '{"layout": 0, "classes": [], "sha256": {}}'):
        (folder / "mnist" / "about.json").write_text(content)
        with pytest.raises(ValueError, match="jaxdp data prepare mnist"):
            data.load("mnist")


def test_files_of_another_set_are_refused(tmp_path, folder, monkeypatch):
    _write_small("mnist", tmp_path / "mnist", monkeypatch)
    content = _idx(np.zeros((20, 28, 28), np.uint8))
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match="expected sha256"):
        data.prepare("mnist", tmp_path / "mnist")


_KILLED = """
import pathlib, sys, time
import numpy as np
from jaxdp.data import catalogue, fetching, prepared
folder = pathlib.Path(sys.argv[1])
prepared.original_files = lambda name: {
    p.name: catalogue.Original("", p.stat().st_size, fetching.sha256(p)) for p in folder.iterdir()
}
save = np.save
def slow_save(path, array):
    save(path, array)
    if path.name == "test_x.npy":
        print("half way", flush=True)
        time.sleep(600)
np.save = slow_save
prepared.prepare("mnist", folder)
"""


def test_killed_half_way_the_next_run_starts_clean(tmp_path, folder, monkeypatch):
    _, expected = _write_small("mnist", tmp_path / "originals", monkeypatch)
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path / "originals")], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    with process:
        reached = process.stdout.readline()
        partial = (folder / ".mnist.partial" / "train_x.npy").exists()
        process.kill()
    assert reached == b"half way\n" and partial
    assert process.returncode == -signal.SIGKILL and not (folder / "mnist").exists()
    with pytest.raises(ValueError, match="not prepared"):
        data.load("mnist")
    data.prepare("mnist", tmp_path / "originals")
    np.testing.assert_array_equal(data.load("mnist").train_x, expected[0])
    assert sorted(path.name for path in folder.iterdir()) == [".mnist.lock", "mnist"]


class _Downloads:
    """Stands in for the downloader: copies from a folder and counts."""

    def __init__(self, source, monkeypatch):
        self.source, self.count = source, 0
        monkeypatch.setattr(fetching, "_reach", lambda *_: None)
        import tensorflow_datasets as tfds

        outer = self

        class Manager:
            def __init__(self, download_dir):
                self.folder = pathlib.Path(download_dir)

            def download(self, url):
                outer.count += 1
                name = url.rsplit("/", 1)[-1]
                (self.folder / name).write_bytes((outer.source / name).read_bytes())
                return self.folder / name

        monkeypatch.setattr(tfds.download, "DownloadManager", Manager)


def test_downloads_are_kept_and_hashed_again(tmp_path, folder, monkeypatch):
    _write_small("mnist", tmp_path / "originals", monkeypatch)
    downloads = _Downloads(tmp_path / "originals", monkeypatch)
    data.prepare("mnist")
    assert downloads.count == 4
    kept = folder / "downloads" / "mnist"
    _damage(kept / "train-labels-idx1-ubyte.gz", "altered")
    (folder / "mnist" / "about.json").unlink()
    data.prepare("mnist")
    assert downloads.count == 5
    assert sorted(path.name for path in kept.iterdir()) == sorted(_small_mnist(np.random.default_rng(0))[0])


def test_a_wrong_download_is_refused(tmp_path, folder, monkeypatch):
    _write_small("mnist", tmp_path / "originals", monkeypatch)
    _Downloads(tmp_path / "originals", monkeypatch)
    _damage(tmp_path / "originals" / "t10k-labels-idx1-ubyte.gz", "altered")
    with pytest.raises(ValueError, match=r"t10k-labels.*altered.*expected sha256"):
        data.prepare("mnist")
    assert not (folder / "mnist").exists()


def test_without_a_network_it_fails_within_seconds(tmp_path, folder, monkeypatch, capsys):
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    expected, _ = _write_small("mnist", tmp_path / "originals", monkeypatch)  # addresses that nobody serves
    start = time.monotonic()
    assert cli.main(["data", "prepare", "mnist"]) == 2
    assert time.monotonic() - start < 60  # the downloader alone would retry for minutes
    message = capsys.readouterr().err
    assert "cannot be reached" in message and next(iter(expected)) in message and "--from" in message


# The original files themselves

REAL = {
    "mnist": ((60000, 28, 28, 1), (10000, 28, 28, 1), [5, 0, 4, 1, 9], 33.3184),
    "fashion_mnist": ((60000, 28, 28, 1), (10000, 28, 28, 1), [9, 0, 0, 3, 0], 72.9404),
    "adult": ((32561, 88), (16281, 88), [0, 0, 0, 0, 0], None),
}


@pytest.mark.parametrize("name", REAL)
def test_original_files(name, folder):
    data.prepare(name, _needs_original(name))
    dataset = data.load(name)
    train, test, labels, mean = REAL[name]
    assert dataset.train_x.shape == train and dataset.test_x.shape == test
    assert dataset.train_y[:5].tolist() == labels
    if mean is not None:  # the well-known mean grey level of the training images
        assert dataset.train_x.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-3)
        assert np.bincount(dataset.test_y).min() >= 892
    else:
        assert dataset.train_y.mean() == pytest.approx(0.2408, abs=1e-4)
        assert dataset.train_x.min() == 0 and dataset.train_x.max() <= 1
        # The first record: 39 years, State-gov, 13 years of education, gain 2174, 40 hours, male, US.
        np.testing.assert_allclose(
            dataset.train_x[0, :5], [0.39, 13 / 16, 0.4, np.log1p(2174) / np.log(1e5), 0], rtol=1e-6
        )
        assert np.flatnonzero(dataset.train_x[0, 5:]).tolist() == [5, 10, 23, 32, 35, 41, 42]


def test_the_command_lists_and_describes(tmp_path, folder, monkeypatch, capsys):
    _write_small("fashion_mnist", tmp_path / "originals", monkeypatch)
    data.prepare("fashion_mnist", tmp_path / "originals")
    assert cli.main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in data.NAMES)
    states = {line.split()[0]: line.split()[1] for line in listed.splitlines() if line and line[0] != " "}
    assert (states["fashion_mnist"], states["mnist"], states["digits"]) == ("ready", "not", "ready")
    assert cli.main(["data", "info", "fashion_mnist"]) == 0
    assert "Zalando" in capsys.readouterr().out
    assert cli.main(["data", "info", "adult"]) == 0
    assert "5b00264637dbfec3" in capsys.readouterr().out
    assert cli.main(["data", "info", "nope"]) == 2
    assert cli.main(["data", "prepare", "digits"]) == 2


def test_a_data_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXDP_DATA_DIR", str(tmp_path / "file"))
    assert cli.main(["data", "prepare", "adult"]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_dataset_cannot_be_built_from_contradictory_arrays():
    dataset = data.load("breast_cancer")
    with pytest.raises(ValueError, match=r"float64"):
        dataclasses.replace(dataset, train_x=dataset.train_x.astype(np.float64))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
        dataclasses.replace(dataset, train_y=dataset.train_y + np.int32(1))
