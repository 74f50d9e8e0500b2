"""The attack command around the attack itself: settings, table, break-down, figure, records, checkpoints."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxdp import atomic, cli, records
from jaxdp.attacks import Leak, Reconstruction, evaluate
from jaxdp.intervals import wilson
from jaxdp.laboratory import records as results
from jaxdp.laboratory.leakage import command as attack
from jaxdp.laboratory.leakage import picture, sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = attack.Config(
    target=attack.Target(data="digits", image_size=8, activation="relu"),
    settings=attack.Settings(victims=4, sigmas=(0.01, 0.1)),
)


@pytest.fixture(scope="module")
def model():
    return attack.load(CONFIG.target, CONFIG.settings)[0]


def table_rows(model):
    """Rows as the sweep makes them, success falling with the noise."""
    rows = []
    for point in sweep.points(model, CONFIG.settings):
        hits = 8 if point.sigma == 0 else (6 if point.attack == "posterior" and point.sigma < 0.1 else 1)
        shares = {"exact": wilson(hits, 8), "recognisable": wilson(hits, 8), "victims": 8}
        numbers = dict(rmse=0.1, gain=0.5, labels=1.0, iterations=10.0, seconds=1.0, ssim=0.5)
        numbers |= dict(rmse_mean_image=0.2, noise_std=point.sigma, knowledge="all")
        rows.append(dict(leak=point.name, attack=point.attack, sigma=point.sigma) | shares | numbers)
    return rows


def test_every_leak_point_is_tried_at_every_sigma(model):
    points = [(p.name, p.sigma, p.attack) for p in sweep.points(model, CONFIG.settings)]
    assert len(points) == len(set(points))
    for sigma in CONFIG.settings.sigmas:
        assert ("noised", sigma, "published") in points
        assert {("noised", sigma), ("noised batch", sigma), ("window", sigma)} <= {
            (name, s) for name, s, method in points if method == "posterior"
        }
    for name in ("raw", "clipped"):
        assert {m for n, _, m in points if n == name} == {"published", "signal", "relu"}
    assert ("update", 0.0, "published") in points


def test_every_attack_is_explained(model):
    assert {"analytic", *sweep.attacks(model)} == set(sweep.MEANING)


def test_images_of_a_batch_stand_in_the_order_of_the_originals(model, monkeypatch):
    def reversed_batches(setting, method, params, x, y, key, conditions, progress):
        empty = np.zeros(len(x))
        return {}, Reconstruction(x[:, ::-1], y[:, ::-1], empty, empty, empty)

    monkeypatch.setattr(sweep, "evaluate", reversed_batches)
    for _, found in sweep.sweep(model, CONFIG.settings):
        np.testing.assert_array_equal(found, model.x[:4])


@pytest.mark.parametrize("name", ["published", "signal"])
def test_a_network_without_biases_is_attacked_by_another_label_rule(name):
    target = attack.Target(image_size=12, model="cnn")
    network = attack.load(target, CONFIG.settings)[0]
    method = dataclasses.replace(sweep.attacks(network)[name], iterations=2)
    x, y = network.x[:3, None], network.y[:3, None]
    row, found = evaluate(
        network.setting(Leak(clip="flat")), method, network.params, x, y, jax.random.key(0), lanes=3
    )
    np.testing.assert_array_equal(found.labels, y)
    assert row["knowledge"]["labels"] == "inferred by column_norm"


def test_break_down_is_the_first_sigma_below_half(model):
    rows = table_rows(model)
    assert sweep.break_down(rows, "published") == 0.01
    assert sweep.break_down(rows, "posterior") == 0.1
    assert sweep.break_down([row for row in rows if row["sigma"] == 0], "published") is None


def test_table_record_and_figure_hold_every_row(model):
    rows = table_rows(model)
    assert len(attack.table(rows).splitlines()) == len(rows) + 1
    assert len({len(line) for line in attack.table(rows).splitlines()}) == 1
    found = np.zeros((4, 8, 8, 1))
    for row in rows:
        records.validate(attack.record(CONFIG, row, np.ones((4, 8, 8, 1)), found))
    looks = [{"sigma": s, "looks": 10, "right": wilson(1, 4), "chance": 0.1} for s in (1.0, 6.0)]
    pairs = [row | {"bound": 0.9, "worst case": wilson(3, 4), "real": wilson(2, 4)} for row in looks]
    assert len(attack.looks_table(looks, pairs).splitlines()) == 3
    drawn = picture.figure(
        rows, [found] * len(rows), np.ones((4, 8, 8, 1)), looks, pairs, [{"sigma": 0.01, "rmse": 0.1}]
    )
    assert drawn.startswith(b"\x89PNG")
    assert picture.figure(rows, [np.zeros((4, 5))] * len(rows), np.ones((4, 5))).startswith(b"\x89PNG")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "attack.png"
    atomic.write_bytes(path, b"{}")
    with pytest.raises(TypeError):
        atomic.write_bytes(path, "not bytes")
    assert path.read_bytes() == b"{}" and [p.name for p in path.parent.iterdir()] == ["attack.png"]


def test_a_trained_checkpoint_of_tabular_data_is_attacked_from_end_to_end(tmp_path, capsys):
    folder, output = tmp_path / "run", tmp_path / "out"
    train = [
        "train",
        "--data",
        "breast_cancer",
        "--model",
        "logistic",
        "--steps",
        "4",
        "--output",
        str(folder),
    ]
    assert cli.main([*train, "--evaluate-every", "4", "--noise-seed", "0"]) == 0
    options = [
        "--victims",
        "4",
        "--batch-size",
        "1",
        "--local-steps",
        "1",
        "--window",
        "1",
        "--sigmas",
        "0.1",
    ]
    options += ["--label-sigmas", "5", "--iterations", "20", "--no-progress", "--output", str(output)]
    assert cli.main(["attack", "--checkpoint", str(folder), *options]) == 0
    text = capsys.readouterr().out
    assert "logistic after 4 steps" in text and "posterior: " in text
    document = json.loads((output / "attack.json").read_text())
    analytic = [row for row in document["rows"] if row["attack"] == "analytic"]
    assert analytic and all(row["exact"][0] == 1 for row in analytic)
    assert len(document["labels"]) == len(document["candidates"]) == 3
    records = results.read_folder(output / "records")
    assert len(records) == len(document["rows"]) and {record["step"] for record in records} == {4}
    assert {record["metrics"]["threshold"] for record in records} == {0.3}
    assert (output / "attack.png").exists()


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--victims", "0"], "victims=0"),
        (["--sigmas", "-1"], "sigmas=(-1.0,)"),
        (["--l2-norm-clip", "0"], "l2_norm_clip=0.0"),
        (["--public", "1"], "public=1"),
        (["--model", "vgg"], "model='vgg'"),
        (["--data", "nothing"], "data='nothing'"),
        (["--checkpoint", "nowhere"], "checkpoint='nowhere'"),
    ],
)
def test_bad_settings_leave_one_line_and_nothing_written(arguments, word, tmp_path, capsys):
    output = tmp_path / "out"
    assert cli.main(["attack", *arguments, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1 and not output.exists()
