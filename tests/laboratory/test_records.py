"""Records: whole or absent, refused when corrupt or foreign; tables made from them alone."""

import copy
import itertools
import json
import math
import pathlib

import numpy as np
import pytest
import synthetic_records as synthetic
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant

from jaxdp import atomic, cli, records
from jaxdp.accounting.ledger import Entry, Ledger, Sampling
from jaxdp.laboratory import records as results
from jaxdp.laboratory.report import findings, page, tables


@pytest.fixture(scope="module")
def record():
    return synthetic.train()


def test_a_record_comes_back_as_it_was_written(tmp_path, record):
    attack = synthetic.attack()
    paths = [records.write(each, tmp_path / "new" / "folder") for each in (record, attack)]
    assert [records.read(path) for path in paths] == [record, attack]
    assert records.write(record, tmp_path / "new" / "folder") == paths[0]
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
        records.write(broken, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "bad.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=rf"bad\.json.*{words}"):
        results.read_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"schema": 1', b"[]", b"\xff\xfe"])
def test_corrupt_files(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json"):
        records.read(tmp_path / "bad.json")


def test_empty_and_missing_folders(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match=str(folder)):
            results.read_folder(folder)


def test_attacks_that_contradict_themselves():
    with pytest.raises(ValueError, match="stage='noon'"):
        synthetic_attack = copy.deepcopy(synthetic.attack())
        synthetic_attack["stage"] = "noon"
        records.validate(synthetic_attack)
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
    made = [synthetic.train("fixed", seed, accuracy) for seed, accuracy in enumerate((0.8, 0.84, 0.91))]
    made += [synthetic.train("non_private", 0, 0.95)]
    made += [
        synthetic.attack("fixed", "early", hits=1, victims=4),
        synthetic.attack("fixed", "late", hits=9),
    ]
    made += [
        synthetic.attack("fixed", "late", "raw", 0.0, hits=16)
    ]  # before noise: not pooled with the others
    rows = {row["variant"]: row for row in tables.summary(made).to_dict("records")}
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


# --- claims and their ledgers ---------------------------------------------------------------------------


def ledger(reasons=(), sigma=6.0):
    steps = Entry(
        start=0, stop=500, noise_multipliers=((sigma, 500),), sampling=Sampling(kind="poisson", rate=0.05),
        private=not reasons, reasons=reasons,
    )  # fmt: skip
    return Ledger((steps,)).to_json()


def spent(sigma=6.0):
    """What the steps of `ledger` spend by RDP, by the peer's accountant."""
    accountant = RdpAccountant()
    accountant.compose(PoissonSampledDpEvent(0.05, GaussianDpEvent(sigma)), 500)
    return float(accountant.get_epsilon(1e-5))


def with_ledger(variant="fixed", epsilon=None, **ledger_of):
    record = synthetic.train(variant)
    record["ledger"] = ledger(**ledger_of)
    record["privacy"]["epsilon"] = spent() if epsilon is None else epsilon
    return record


def written(record, folder):
    path = folder / "edited.json"
    path.write_text(json.dumps(record))
    return path


def test_an_epsilon_that_its_ledger_gives_is_read(tmp_path):
    record = with_ledger()
    assert records.read(written(record, tmp_path)) == record
    assert "not checked" not in tables.table([record]) and "not checked" not in page.page([record])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (lambda: with_ledger(epsilon=0.9 * spent()), "privacy.epsilon=.*ledger spends"),
        (lambda: with_ledger(sigma=5.0), "privacy.epsilon=.*ledger spends"),
        (
            lambda: with_ledger(reasons=("The noise depends on the data.",)),
            "private=True.*depends on the data",
        ),
        (lambda: with_ledger() | {"ledger": ledger().replace("6.0", "7.0")}, "sha256"),
        (lambda: with_ledger() | {"ledger": "none"}, "ledger: corrupt"),
    ],
)
def test_a_claim_that_is_not_the_ledgers_is_refused(tmp_path, record, words):
    with pytest.raises(ValueError, match=rf"edited\.json: .*{words}"):
        records.read(written(record(), tmp_path))


def test_the_ledger_and_the_record_cover_the_same_steps(tmp_path):
    record = with_ledger()
    record["metrics"]["steps"] = 400
    with pytest.raises(ValueError, match=r"metrics\.steps=400: the ledger has 500"):
        records.read(written(record, tmp_path))


def test_without_a_ledger_a_claim_is_called_not_checked(tmp_path):
    record = synthetic.train()
    assert records.read(written(record, tmp_path)) == record
    assert "not checked, for want of a ledger: fixed" in tables.table([record])
    assert "private, not checked" in page.page([record])


@pytest.mark.parametrize(
    ("variant", "change", "words"),
    [
        ("fixed", {"epsilon": -3.0}, "privacy.epsilon=-3.0: must be >= 0"),
        ("fixed", {"epsilon": None}, "privacy.epsilon=None"),
        ("fixed", {"private": "no"}, "privacy.private='no': must be true or false"),
        ("fixed", {"delta": 1.0}, "privacy.delta=1.0"),
        ("fixed", {"adjacency": "any"}, "privacy.adjacency='any'"),
        ("fixed", {"sampling": None}, "privacy.*sampling=None"),
        ("l2_max", {"private": True}, "private and cannot be nominal"),
        ("l2_max", {"private": True, "nominal": False}, "config.clipping='l2_max'"),
        ("non_private", {"private": True, "epsilon": 1.0, "delta": 1e-5}, "adjacency=None"),
    ],
)
def test_no_badge_for_what_is_no_guarantee(tmp_path, capsys, variant, change, words):
    record = synthetic.train(variant)
    record["config"]["clipping"] = "l2_max" if variant == "l2_max" else "flat"
    record["privacy"] |= change
    path = written(record, tmp_path)
    with pytest.raises(ValueError, match=rf"edited\.json: .*{words}"):
        records.read(path)
    assert cli.main(["report", "--records", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    said = capsys.readouterr().err
    assert "edited.json" in said and said.count("\n") == 1 and not (tmp_path / "page.html").exists()


def leaves(document, path=()):
    """Every field of a document, and every field within it."""
    for key, value in document.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def changed(document, path, value):
    copied = copy.deepcopy(document)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copied


def audit():
    finding = {
        "mechanism": "flat",
        "method": "direct",
        "claim": {"value": 4.0},
        "epsilon": 2.0,
        "violated": False,
    }
    return results.audit_record(seed=1, config={}, confidence=0.95, findings=[finding], seconds=1.0)


def test_any_field_of_another_type_is_refused_by_name_or_read_without_harm(tmp_path):
    """Each field in turn becomes each kind of wrong: what is read, tables, sentences and the page take."""
    made = [synthetic.train(), synthetic.attack(), audit()]
    refused = set()
    for record, value in itertools.product(made, ("no", -3, 10**400, math.nan, None, [], {"x": []})):
        for path in leaves(record):
            try:
                read = records.read(written(changed(record, path, value), tmp_path))
            except ValueError as error:
                assert str(error).startswith(f"record {tmp_path}") and "\n" not in str(error)
                assert path[-1] in str(error) or path[0] in str(error) or path == ("environment", "versions")
                refused.add((record["kind"], *path))
                continue
            together = [read, *(other for other in made if other["kind"] != read["kind"])]
            together += [] if results.of_kind(together, "train") else [synthetic.train()]
            tables.table(together)
            findings.shown(together)
            page._header(together), page._statements(together), page._footer(together)
    assert {
        ("train", "metrics", "ms_per_step"),
        ("attack", "metrics", "victims"),
        ("audit", "findings"),
    } <= refused
    assert len(refused) > 50


def test_pictures_that_are_none_are_refused(tmp_path):
    attack = synthetic.attack()
    for broken in ({"shape": [2, 2], "zlib": "!"}, attack["images"]["originals"] | {"shape": [10**9, 10**9]}):
        record = changed(attack, ("images", "originals"), broken)
        with pytest.raises(ValueError, match=r"edited\.json: images\.originals\."):
            records.read(written(record, tmp_path))


# --- which records belong together ----------------------------------------------------------------------


def test_a_run_that_was_resumed_counts_once(tmp_path):
    first, resumed, other = (synthetic.train("fixed", 0, accuracy) for accuracy in (0.7, 0.8, 0.9))
    first["metrics"]["steps"], first["run"], resumed["run"], other["run"] = 200, "a", "a", "b"
    old = synthetic.train("fixed", 1, 0.6)
    attack = synthetic.attack() | {"run": "a"}
    for record in (resumed, first, other, old, attack):
        records.write(record, tmp_path)
    read = results.read_folder(tmp_path)
    assert first not in read and all(record in read for record in (resumed, other, old, attack))
    (row,) = tables.summary(read).to_dict("records")
    assert row["seeds"] == 3 and row["accuracy"] == pytest.approx((0.8 + 0.9 + 0.6) / 3)


def test_each_data_set_and_model_has_its_own_table():
    other = [synthetic.train(variant) for variant in ("fixed", "linear")]
    for record in other:
        record["config"] = {"data": "mnist", "model": "cnn"}
    made = [synthetic.train("fixed"), synthetic.attack(), *other]
    assert {name: len(own) for name, own in tables.by_subject(made).items()} == {
        "digits, mlp": 2,  # the attack, which names no model, is one on the only model with its data
        "mnist, cnn": 2,
    }
    text = tables.table(made)
    assert text.count("accuracy %") == 2 and text.index("digits, mlp") < text.index("mnist, cnn")
    shown = page.page(made)
    assert shown.count("<h2>Four metrics</h2>") == 2 and "1 private variant has" in shown


def test_folders_of_a_run_and_of_its_attacks_are_read_together(tmp_path):
    records.write(synthetic.train(), tmp_path / "run")
    records.write(synthetic.attack(), tmp_path / "attack" / "records")
    (tmp_path / "attack" / "attack.json").write_text("{}")  # the summary that stands beside the records
    read = results.read_folder(tmp_path / "run", tmp_path / "attack")
    assert sorted(record["kind"] for record in read) == ["attack", "train"]


def test_the_committed_records_still_read():
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / "records" / "audit.json"
    assert len(records.read(path)["findings"]) > 10
