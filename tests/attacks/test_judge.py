"""How an attack is judged."""

import jax
import numpy as np
import pytest
from attacked_network import CLASSES, PARAMS, PUBLIC, SHAPE, images, network, setting

from jaxdp import attacks
from jaxdp.attacks import Attack, Conditions, Leak, Reconstruction, evaluate, knowledge, portfolio

pytestmark = pytest.mark.usefixtures("quick_compilation")


def rows_of_features(count, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count).astype(np.int32)
    return (rng.normal(size=(count, 9)) + 0.5 * y[:, None]).astype(np.float32), y


def test_tabular_rows_are_attacked_in_their_own_box_and_judged_by_their_own_thresholds():
    public = attacks.public_knowledge(*rows_of_features(100, 1), classes=CLASSES)
    x, y = rows_of_features(4, 2)
    params = network(0) | {
        "first": {"bias": PARAMS["first"]["bias"], "kernel": PARAMS["first"]["kernel"][:9]}
    }
    attack = Attack(start="mean", labels="column_norm", iterations=150)
    rows = setting(Leak(), public=public, input_shape=(9,))
    row, found = evaluate(rows, attack, params, x[:, None], y[:, None], jax.random.key(0), lanes=2)
    assert row["exact"].estimate == 1 and found.x.min() < 0
    assert (found.x >= np.asarray(public.lower)).all() and (found.x <= np.asarray(public.upper)).all()
    off = found._replace(x=found.x + 0.2)
    judged = attacks.judge(off, x[:, None], y[:, None], public.mean)
    assert judged["exact"].estimate == 0 and judged["recognisable"].estimate == 1 and "ssim" not in judged


def test_evaluation_matches_batches_and_declares_the_knowledge():
    leak = Leak(batch_size=2, clip="flat")
    x, y = images(4, seed=2)
    pairs = x.reshape(2, 2, *SHAPE), y.reshape(2, 2)
    row, _ = evaluate(setting(leak), Attack(iterations=5), PARAMS, *pairs, jax.random.key(0), lanes=2)
    assert row["exact"].low <= row["exact"].estimate <= row["exact"].high and row["rmse_mean_image"] < 0.3
    truth = Reconstruction(
        x.reshape(2, 2, *SHAPE)[:, ::-1],
        y.reshape(2, 2)[:, ::-1],
        np.zeros(2),
        np.zeros(2, int),
        np.zeros(2, int),
    )
    perfect = attacks.judge(truth, x.reshape(2, 2, *SHAPE), y.reshape(2, 2), PUBLIC.mean)
    assert perfect["rmse"] == 0 and perfect["labels"] == 1 and perfect["exact"].estimate == 1
    known = knowledge(leak, portfolio.POSTERIOR, Conditions(noise_std=0.5, bound=2.0))
    assert known["clip"] == "flat, bound 2.0" and known["noise"] == "standard deviation 0.5"
    assert known["batch_size"] == 2 and known["labels"] == "inferred by template"
    assert "Gaussian" in known["prior"]
    assert knowledge(leak, portfolio.POSTERIOR, Conditions(bound=np.inf))["clip"] == "none"
