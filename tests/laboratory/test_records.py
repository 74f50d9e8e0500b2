"""Records: whole or absent, refused when corrupt or foreign; tables made from them alone."""

import copy
import json

import numpy as np
import pytest
import synthetic_records as synthetic

from jaxdp import atomic
from jaxdp.laboratory import records as results
from jaxdp.laboratory.report import tables


@pytest.fixture(scope="module")
def record():
    return synthetic.train()


def test_a_record_comes_back_as_it_was_written(tmp_path, record):
    attack = synthetic.attack()
    paths = [results.write(each, tmp_path / "new" / "folder") for each in (record, attack)]
    assert [results.read(path) for path in paths] == [record, attack]
    assert results.write(record, tmp_path / "new" / "folder") == paths[0]
    assert sorted(results.read_folder(tmp_path / "new" / "folder"), key=str) == sorted(
        [record, attack], key=str
    )
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2  # nothing partial is left


def test_the_environment_says_what_ran(record):
    environment = record["environment"]
    assert environment["versions"]["jax"] and environment["device"].startswith("cpu")
    assert environment["git"] is None or len(environment["git"].removesuffix("-dirty")) >= 40


def test_numbers_that_json_cannot_hold(record):
    changed = synthetic.attack()
    metrics = {**changed["metrics"], "psnr": np.float32("inf"), "rmse": float("nan"), "labels": np.int64(3)}
    made = results.attack_record(
        variant="fixed", seed=0, config={"path": synthetic.STEPS[0]}, stage=None, step=np.int32(1),
        leak_point="raw", attack="plain", noise_std=np.float32(0.5), knowledge="all", metrics=metrics,
    )  # fmt: skip
    assert made["metrics"]["psnr"] is None and made["metrics"]["rmse"] is None
    assert json.loads(json.dumps(made, allow_nan=False)) == made and made["images"] is None


def test_images_come_back_to_half_a_grey_level():
    x = np.random.default_rng(0).random((3, 5, 4, 3))
    back = results.unpack_images(results.pack_images(x))
    assert back.dtype == np.uint8
    np.testing.assert_allclose(back / 255, x, atol=0.5001 / 255)
    wild = results.unpack_images(results.pack_images(np.array([np.nan, -1, 2.0]).reshape(1, 3, 1, 1)))
    assert wild.ravel().tolist() == [0, 0, 255]
    for shape in ((3, 5, 4), (3, 5, 4, 2)):
        with pytest.raises(ValueError, match="images of shape"):
            results.pack_images(np.zeros(shape))
    for packed in ({}, {"shape": [1], "zlib": "!"}, {**results.pack_images(x), "shape": [2, 2]}):
        with pytest.raises(ValueError, match="cannot be read"):
            results.unpack_images(packed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.clear(), "schema"),
        (lambda r: r.update(schema=99), "schema=99"),
        (lambda r: r.update(kind="poem"), "kind='poem'.*train, attack"),
        (lambda r: r.pop("environment"), "environment is missing"),
        (lambda r: r["metrics"].pop("ms_per_step"), "metrics.ms_per_step is missing"),
        (lambda r: r.update(metrics=None), "metrics=None: must be"),
        (lambda r: r["curves"]["step"].pop(), "different lengths"),
        (lambda r: r["privacy"].update(private=False), "epsilon=2.0.*not private"),
    ],
)
def test_what_is_no_record_is_refused_by_name(tmp_path, record, change, words):
    broken = copy.deepcopy(record)
    change(broken)
    with pytest.raises(ValueError, match=words):
        results.write(broken, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "bad.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=rf"bad\.json.*{words}"):
        results.read_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"schema": 1', b"[]", b"\xff\xfe"])
def test_corrupt_files(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json"):
        results.read(tmp_path / "bad.json")


def test_empty_and_missing_folders(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match=str(folder)):
            results.read_folder(folder)


def test_attacks_that_contradict_themselves():
    with pytest.raises(ValueError, match="stage='noon'"):
        synthetic_attack = copy.deepcopy(synthetic.attack())
        synthetic_attack["stage"] = "noon"
        results.validate(synthetic_attack)
    arguments = dict(
        variant="fixed", seed=0, config={}, stage="early", step=1, leak_point="raw", attack="plain",
        noise_std=0.0, knowledge="all", metrics=synthetic.attack()["metrics"],
    )  # fmt: skip
    with pytest.raises(ValueError, match="give both or neither"):
        results.attack_record(**arguments, originals=np.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 1\)"):
        results.attack_record(
            **arguments, originals=np.zeros((1, 2, 2, 1)), reconstructions=np.zeros((2, 2, 2, 1))
        )


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    atomic.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "new \udcff")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_summary_is_mean_and_spread_over_seeds():
    records = [synthetic.train("fixed", seed, accuracy) for seed, accuracy in enumerate((0.8, 0.84, 0.91))]
    records += [synthetic.train("non_private", 0, 0.95)]
    records += [
        synthetic.attack("fixed", "early", hits=1, victims=4),
        synthetic.attack("fixed", "late", hits=9),
    ]
    records += [
        synthetic.attack("fixed", "late", "raw", 0.0, hits=16)
    ]  # before noise: not pooled with the others
    rows = {row["variant"]: row for row in tables.summary(records).to_dict("records")}
    fixed = rows["fixed"]
    assert list(rows) == ["non_private", "fixed"] and fixed["seeds"] == 3
    assert fixed["accuracy"] == pytest.approx(0.85)
    assert fixed["accuracy_spread"] == pytest.approx(np.std([0.8, 0.84, 0.91], ddof=1))
    assert fixed["success"] == pytest.approx(10 / 20)
    assert np.isnan(rows["non_private"]["accuracy_spread"]) and np.isnan(rows["non_private"]["success"])


def test_resilience_is_against_the_strongest_attack_on_each_leak():
    weak, strong = synthetic.attack(hits=1), synthetic.attack(hits=12)
    weak["attack"] = "plain"
    for order in ([weak, strong], [strong, weak]):
        assert tables.strongest(order) == [strong]
        assert tables.resilience(order)["success"] == pytest.approx(12 / 16)
    late = synthetic.attack(stage="late", hits=0)
    assert tables.resilience([weak, strong, late])["success"] == pytest.approx(12 / 32)


def test_the_table_never_states_a_bare_epsilon_for_what_is_not_private():
    lines = {line.split()[0]: line for line in tables.table(synthetic.everything(seeds=2)).splitlines()}
    assert "nominal 0.610" in lines["l2_max"] and " none " in lines["non_private"]
    assert " 2.000 " in lines["linear"] and "nominal" not in lines["linear"]
    assert "±" in lines["linear"]
    assert all(word in lines["epsilon"] for word in ("delta = 1e-05", "rdp", "add_or_remove_one", "Poisson"))
