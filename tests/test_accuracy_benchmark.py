"""The accuracy benchmark on a handful of steps: what it records, and what validation holds out."""

import dataclasses

import numpy as np
import pytest

from benchmarks import __main__, accuracy, table, timing
from jaxdp import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", size=14)


def test_every_recipe_aims_at_the_same_epsilon():
    for (name, _), recipe in accuracy.RECIPES.items():
        config = recipe.config(name, 60_000, 0)
        assert (config.target_epsilon, config.delta, config.sampling) == (3.0, 1e-5, "poisson")
        assert config.adjacency == "add_or_remove_one" and config.accountant in ("rdp", "pld")
        assert config.steps * config.sampling_rate == pytest.approx(recipe.epochs, rel=0.01)


def test_validation_holds_out_training_examples(digits):
    held = accuracy.held_out(digits, 100)
    rows = [
        np.c_[x.reshape(len(x), -1), y] for x, y in ((held.train_x, held.train_y), (held.test_x, held.test_y))
    ]
    assert (len(rows[0]), len(rows[1])) == (digits.train_size - 100, 100)
    np.testing.assert_array_equal(held.test_x, accuracy.held_out(digits, 100).test_x)
    assert not np.array_equal(held.test_y, digits.train_y[-100:])  # they are in an order of their own
    whole = np.c_[digits.train_x.reshape(digits.train_size, -1), digits.train_y]
    assert sorted(map(bytes, np.concatenate(rows))) == sorted(map(bytes, whole))
    with pytest.raises(ValueError, match="validation=0: must lie in"):
        accuracy.held_out(digits, 0)


def test_a_record_tells_every_seed_and_both_accountants(digits, tmp_path, monkeypatch):
    recipe = dataclasses.replace(accuracy.RECIPES["mnist", "best"], batch_size=128, epochs=0.3)
    monkeypatch.setitem(accuracy.RECIPES, ("mnist", "best"), recipe)
    monkeypatch.setattr(accuracy.data, "load", lambda name: digits)
    monkeypatch.setattr(timing, "RECORDS", tmp_path)
    __main__.main(["accuracy", "--seeds", "2"])
    page = table.render(tmp_path)
    (document,) = (table.json.loads(path.read_text()) for path in tmp_path.glob("accuracy_mnist_best.json"))
    assert [row["seed"] for row in document["records"]] == [0, 1]
    assert 2.98 < document["epsilon"]["pld"] <= 3.0 < document["epsilon"]["rdp"]
    scores = ", ".join(f"{row['test_accuracy']:.4f}" for row in document["records"])
    assert (
        f"| mnist | best | tanh_cnn | 128 | 0.3 | momentum {document['config']['learning_rate']:g} " in page
    )
    assert f"| {scores} |" in page


def test_it_is_not_among_those_that_run_unasked(monkeypatch):
    ran = []

    class Module:
        def __init__(self, name):
            self.main = lambda: ran.append(name.removeprefix("benchmarks."))

    monkeypatch.setattr(__main__.importlib, "import_module", Module)
    monkeypatch.setattr(
        __main__.malloc, "setting", lambda: "tuned"
    )  # else they run in processes of their own
    __main__.main([])
    assert {"accuracy", "device", "streaming"} <= set(__main__.ON_REQUEST)
    unasked = set(__main__.NAMES) - set(__main__.ON_REQUEST)
    assert ran[-1] == "table" and len(ran) == len(unasked) and set(ran) == unasked
