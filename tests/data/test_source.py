"""Sources: what counts as examples, what identifies them, what a model sees of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import data
from jaxdp.data import leaves


def tree(n=6):
    return {"x": np.arange(4.0 * n, dtype=np.float32).reshape(n, 4), "y": (np.arange(n), jnp.ones((n, 2)))}


def test_a_tree_of_arrays_is_a_source_and_stays_as_it_is():
    source = data.as_source(tree())
    assert source.examples == 6 and data.as_source(source) is source
    assert jax.tree.structure(source.arrays) == jax.tree.structure(tree())
    for found, given in zip(jax.tree.leaves(source.arrays), jax.tree.leaves(tree()), strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, given)
    assert source.decode(source.arrays) is source.arrays


def test_a_data_set_gives_its_training_split_as_a_model_sees_it():
    digits = data.load("digits")
    source = data.as_source(digits)
    assert source.examples == len(digits.train_x) and source.preprocessing == digits.preprocessing
    x, y = source.arrays
    assert x is digits.train_x and y is digits.train_y
    bytes_ = np.array([[0, 51, 255]], np.uint8)
    shown, label = jax.jit(source.decode)((bytes_, y[:1]))
    np.testing.assert_allclose(shown, [[0, 0.2, 1]], rtol=1e-6)
    np.testing.assert_array_equal(label, y[:1])
    private = data.as_source(data.load("breast_cancer", scaling="standardized"))
    assert source.public_preprocessing and not private.public_preprocessing


def test_memory_mapped_arrays_are_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.uint8).reshape(4, 3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(data.Source(arrays=[mapped]).arrays[0], mapped)


def test_the_fingerprint_tells_examples_apart(monkeypatch):
    """By value, order, type, shape, place and name of a leaf; and in whatever pieces it is computed."""
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    other = x.copy()
    other[5, 3] = np.nextafter(other[5, 3], np.float32(0))
    trees = [
        x, other, x[::-1], x.astype(np.float64), x.view(np.int32), x.reshape(6, 2, 2), {"x": x}, {"y": x},
        (x, other), (other, x), (x[:, :2], x[:, 2:]), (x[:, :1], x[:, 1:]), {"x": (x,), "y": (other,)},
    ]  # fmt: skip
    prints = [data.as_source(tree).fingerprint for tree in trees]
    assert len(set(prints)) == len(trees)
    monkeypatch.setattr(leaves, "_HASHED_AT_ONCE", 20)
    assert [data.as_source(jax.tree.map(np.asfortranarray, tree)).fingerprint for tree in trees] == prints


def test_examples_of_every_kind_of_number_have_a_fingerprint():
    kinds = [np.bool_, np.uint8, np.int64, np.float16, np.complex64, jnp.bfloat16]
    prints = [data.as_source(np.ones(3, kind)).fingerprint for kind in kinds]
    assert all(a != b for a, b in itertools.combinations(prints, 2))


def test_foreign_byte_order_is_turned():
    """JAX takes none of it, and the numbers stay."""
    array = data.as_source(np.array([1.5, -2.0], ">f4")).arrays
    np.testing.assert_array_equal(jnp.asarray(array), [1.5, -2.0])


@pytest.mark.parametrize(
    "tree, text",
    [
        ({"x": np.ones((6, 2)), "y": np.ones(5)}, r"data\['y'\] has 5 examples, data\['x'\] has 6"),
        ({"x": np.ones((6, 2)), "n": np.float32(3)}, r"data\['n'\] is one number"),
        ([1, 2, 3], r"data\[0\] is one number"),
        ((np.ones(2), np.array(["a", "b"])), r"data\[1\] is <U1: leaves are arrays of numbers"),
        ("mnist", r"data is <U5: leaves are arrays of numbers"),
        (np.array([None, {}]), r"data is object: leaves are arrays of numbers"),
        (jax.random.split(jax.random.key(0), 3), r"data is key<fry>: leaves are arrays of numbers"),
        ((np.ones((0, 3)), np.ones(0)), r"data\[0\] has 0 examples: needs at least one example"),
        ({}, r"data: holds no arrays"),
        (None, r"data: holds no arrays"),
        ({"id": np.array([1, 2**40])}, r"data\['id'\] has values 1\.\.1099511627776: JAX holds -2147483648"),
    ],
)
def test_what_is_no_examples_is_refused_by_name(tree, text):
    with pytest.raises(ValueError, match=text):
        data.as_source(tree)
