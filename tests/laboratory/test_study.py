"""The study: what it trains, that it goes on where it was killed, and what it makes of its records."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxdp import accounting, clipping, schedules
from jaxdp.accounting.ledger import Sampling
from jaxdp.intervals import median_interval, t_interval
from jaxdp.laboratory.study import attacks, page, page_parts, published, trials
from jaxdp.laboratory.study import claims as findings
from jaxdp.laboratory.study import collected as records
from jaxdp.laboratory.study.setups import SELECTION_SEED, StudyConfig
from jaxdp.plan import Plan
from jaxdp.training import configured
from jaxdp.training.config import TrainConfig

TINY = StudyConfig(
    data=("breast_cancer",), variants=("non_private", "fixed", "linear"), epsilons=(1.0, 4.0),
    learning_rates=(0.125, 0.5), seeds=2, steps=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    lines = []
    trials.train(TINY, folder, lines.append)
    return folder, lines


def test_each_cell_has_as_many_runs(trained):
    folder, lines = trained
    files = [path.name for path in (folder / "breast_cancer").glob("*.json")]
    cells = 1 + 2 * len(TINY.epsilons)
    assert len(files) == cells * (3 * len(TINY.learning_rates) + TINY.seeds)
    assert len(lines) == cells


def test_a_finished_study_trains_nothing(trained):
    lines = []
    trials.train(TINY, trained[0], lines.append)
    assert all("; 0 runs in" in line for line in lines)


def test_a_record_of_another_configuration_is_replaced(trained, tmp_path):
    only = dataclasses.replace(TINY, variants=("fixed",), epsilons=(4.0,), learning_rates=(0.5,))
    trials.train(only, tmp_path, lambda line: None)
    lines = []
    trials.train(dataclasses.replace(only, steps=21), tmp_path, lines.append)
    assert "; 5 runs in" in lines[0]


def test_runs_that_share_a_program_are_compiled_once_and_are_the_same_as_alone(trained):
    (workshop,) = trials.workshops(TINY, trained[0])
    pair = [
        trials.Trial(variant="linear", epsilon=epsilon, learning_rate=rate, seed=seed)
        for epsilon, rate, seed in ((1.0, 0.5, 0), (4.0, 0.125, 3))
    ]
    (first_run, first), (second_run, second) = (workshop.train(trial) for trial in pair)
    assert second_run.program is first_run.program and len(first_run.program.traces) == 1
    alone = configured.build(second_run.config, dataset=workshop.dataset).train()
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert first.epsilon.value <= 1 and 3.99 < second.epsilon.value <= 4
    assert second_run.plan.schedule(0) < first_run.plan.schedule(0)


def test_a_run_is_not_adjusted_to_what_needs_another_program():
    run = configured.build(TrainConfig.of(data="breast_cancer", model="logistic", steps=20, noise_seed=0))
    for name, value in {"l2_norm_clip": 0.5, "steps": 30, "schedule": "linear"}.items():
        with pytest.raises(ValueError, match=f"^{name}="):
            run.adjusted(run.config.replace(**{name: value}))


def test_validation_examples_are_not_trained_on_nor_tested(trained):
    (workshop,) = trials.workshops(TINY, trained[0])
    smaller, held = workshop._splits
    rows = {array.tobytes() for array in np.asarray(held.test_x)}
    assert not rows & {array.tobytes() for array in np.asarray(smaller.train_x)}
    assert not rows & {array.tobytes() for array in np.asarray(smaller.test_x)}


def test_a_record_from_before_an_option_existed_is_kept(trained, monkeypatch):
    folder, _ = trained
    workshop = next(iter(trials.workshops(TINY, folder)))
    path = next(iter(sorted(workshop.folder.glob("train-fixed-*"))))
    record = json.loads(path.read_text())
    trial = trials.Trial(
        variant="fixed", epsilon=record["settings"]["target_epsilon"],
        learning_rate=record["settings"]["learning_rate"], seed=record["seed"],
    )  # fmt: skip
    monkeypatch.setattr(workshop, "train", lambda trial: pytest.fail("trained again"))
    del record["settings"]["ema_decay"]
    monkeypatch.setattr(trials.records, "read", lambda path: record)
    assert workshop.record(trial) is record
    record["settings"]["steps"] += 1
    with pytest.raises(pytest.fail.Exception):
        workshop.record(trial)


def test_killed_it_goes_on(tmp_path):
    command = [
        *(sys.executable, "-m", "jaxdp.cli", "study", "run", "--data", "breast_cancer", "--steps", "20"),
        *("--variants", "fixed", "--epsilons", "1", "2", "4", "--seeds", "20", "--learning-rates", "0.5"),
        *("--output", str(tmp_path)),
    ]
    folder, whole = tmp_path / "breast_cancer", 3 * (3 + 20)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list(folder.glob("*.json"))) < 3 and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.read_bytes() for path in folder.glob("*.json")}
    assert 3 <= len(before) < whole
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    trained = sum(int(line.split("; ")[1].split()[0]) for line in done.stdout.splitlines())
    assert trained == whole - len(before)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_one_seed_makes_a_page_without_intervals(tmp_path):
    one = dataclasses.replace(TINY, epsilons=(4.0,), learning_rates=(0.5,), seeds=1)
    trials.train(one, tmp_path, lambda line: None)
    records.collect(tmp_path, tmp_path / "collected")
    page.write(tmp_path / "collected", tmp_path, tmp_path / "STUDY.md")
    text = (tmp_path / "STUDY.md").read_text()
    assert "nan" not in text and re.search(r"\| fixed \| \d\d\.\d \|", text)


def test_records_are_collected_and_make_a_page(trained, tmp_path):
    records.collect(trained[0], tmp_path / "experiments")
    head, rows = records.read(tmp_path / "experiments" / "breast_cancer" / records.RUNS)
    assert head["settings"]["steps"] == 20 and "private examples" in head["not_covered"]
    assert len(rows) == 5 * 8
    page.write(tmp_path / "experiments", tmp_path, tmp_path / "STUDY.md")
    text = (tmp_path / "STUDY.md").read_text()
    assert "do not cover it" in text and "mnist: no run" in text
    assert "](experiments/accuracy.svg)" in text
    assert "<svg" in (tmp_path / "experiments" / "accuracy.svg").read_text()


def _row(variant, seed, accuracy, rate=0.5, validation=0.9, target=1.0):
    return {
        "variant": variant, "target": target, "seed": seed, "learning_rate": rate,
        "test_accuracy": accuracy, "validation_accuracy": validation, "epsilon": target,
    }  # fmt: skip


def test_only_runs_at_the_chosen_learning_rate_are_reported():
    rows = [
        _row("fixed", SELECTION_SEED, 0.1, rate=0.5, validation=0.8),
        _row("fixed", SELECTION_SEED, 0.9, rate=2.0, validation=0.7),
        _row("fixed", 0, 0.6, rate=0.5),
        _row("fixed", 1, 0.95, rate=2.0),
    ]
    assert [row["test_accuracy"] for row in findings.reported(rows)] == [0.6]


def test_of_the_learning_rates_the_best_are_judged_again(trained, monkeypatch):
    setup = dataclasses.replace(trials.SETUPS["digits"], learning_rates=(0.1, 0.2, 0.4), finalists=2)
    workshop = trials.Workshop("digits", setup, trained[0])
    judged = {0.1: (0.5, 0.99, 0.99), 0.2: (0.8, 0.8, 0.8), 0.4: (0.9, 0.1, 0.95)}
    rows = []

    def record(trial):
        accuracy = judged[trial.learning_rate][trial.seed - SELECTION_SEED]
        rows.append(_row("fixed", trial.seed, 0.0, trial.learning_rate, accuracy))
        return {"metrics": {"validation_accuracy": accuracy}}

    monkeypatch.setattr(workshop, "record", record)
    assert trials.choose(workshop, "fixed", 1.0) == 0.2
    assert len(rows) == 3 + 2 * 2
    assert findings.chosen_rates(rows) == {("fixed", 1.0): 0.2}
    under_way = [_row("linear", SELECTION_SEED, 0.0, rate) for rate in judged]
    assert page_parts._finalists(under_way + rows) == "2" and page_parts._finalists(under_way) == "all"
    assert page_parts._finalists([_row("fixed", 0, 0.9)]) == "–"


def test_differences_are_paired_by_seed():
    selection = [_row(variant, SELECTION_SEED, 0.0) for variant in ("fixed", "linear")]
    fixed = [_row("fixed", seed, 0.5 + 0.1 * seed) for seed in range(4)]
    linear = [_row("linear", seed, 0.52 + 0.1 * seed + 1e-3 * (-1) ** seed) for seed in range(4)]
    found = findings.gain([*selection, *fixed, *linear], ["linear"])
    np.testing.assert_allclose(found.gain.estimate, 0.02, atol=1e-9)
    assert 0.015 < found.gain.low < found.gain.high < 0.025 and found.units == 4 and found.p < 1e-3
    alone = t_interval([row["test_accuracy"] for row in linear])
    assert alone.high - alone.low > 0.2


def test_the_student_interval_covers():
    rng = np.random.default_rng(0)
    found = [t_interval(rng.normal(3, 2, 5)) for _ in range(2000)]
    assert abs(np.mean([low <= 3 <= high for _, low, high in found]) - 0.95) < 0.02


def test_windows_of_an_attack():
    found = attacks.spans(100)
    assert found == {"early": (0, 10), "middle": (50, 60), "late": (90, 100), None: (0, 100)}


@pytest.mark.parametrize(
    "wrong",
    [dict(data=("nothing",)), dict(variants=("best",)), dict(epsilons=()), dict(seeds=0), dict(steps=3)],
)
def test_refuses(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}="):
        StudyConfig(**wrong)


def test_the_matched_constant_spends_what_the_published_schedule_spends():
    trial = trials.Trial(variant="matched_linear", epsilon=None, learning_rate=0.5, seed=0)
    config = trials.settings("mnist", trials.SETUPS["mnist"], trial)
    assert config.schedule == "fixed"

    def spent(sigma):
        sampling = Sampling(kind="poisson", rate=config.sampling_rate)
        plan = Plan(clipper=clipping.flat(1.0), noise_multiplier=sigma, sampler=sampling, steps=config.steps)
        claim = accounting.Claim(delta=1e-5, adjacency="add_or_remove_one", accountant=config.accountant)
        return accounting.epsilon(plan.ledger(), claim).value

    constant = schedules.constant(config.noise_multiplier)
    np.testing.assert_allclose(spent(constant), spent(schedules.linear(config.steps)), rtol=5e-3)


def test_images_are_attacked_behind_noise_of_one_common_factor(tmp_path):
    config = StudyConfig(
        data=("digits",),
        variants=("fixed", "linear"),
        epsilons=(2.0,),
        learning_rates=(0.5,),
        seeds=2,
        steps=20,
    )
    settings = attacks.AttackConfig(
        victims=4, batch_size=2, levels=(0.3,), iterations=4, exact_variants=("fixed",), exact_victims=2
    )
    (workshop,) = trials.workshops(config, tmp_path)
    attacks.attack_images(workshop, config, settings)
    trials.train(config, tmp_path, lambda line: None)
    records.collect(tmp_path, tmp_path / "collected")
    _, rows = records.read(tmp_path / "collected" / "digits" / records.ATTACKS)
    noised = {(row["variant"], row["stage"]): row for row in rows if row["leak_point"] == "noised"}
    assert len(rows) == 3 * 2 + 2 * 3 * 2 and len(noised) == 6
    for variant in config.variants:
        path = attacks.walk(workshop, variant, 2.0)
        dimension = sum(leaf.size for leaf in jax.tree.leaves(path.snapshots[0]))
        for stage, step in (("early", 0), ("middle", 10), ("late", 19)):
            if (variant, stage) == ("fixed", "early"):
                factor = 0.3 / dimension**0.5 / path.noise[0]
            np.testing.assert_allclose(
                noised[variant, stage]["noise_std"], factor * path.noise[step], rtol=1e-5
            )
            assert len(noised[variant, stage]["rmse_of_each"]) == 4
    page.write(tmp_path / "collected", tmp_path, tmp_path / "STUDY.md")
    text = (tmp_path / "STUDY.md").read_text()
    assert "| digits | noised batch | 0.3 C |" in text and "| digits | raw | none |" in text
    assert re.search(r"\| digits \| noised \| [+-]0\.\d{3} \[.*, 4 gradients", text)


def test_corrections_for_many_comparisons():
    ps = [0.01, 0.02, 0.03, 0.9]
    np.testing.assert_allclose(findings.holm(ps), [0.04, 0.06, 0.06, 0.9])
    assert findings.discoveries(ps) == 3 and findings.discoveries([0.2, 0.06]) == 0
    rng = np.random.default_rng(0)
    families = rng.uniform(size=(4000, 5)).tolist()
    assert abs(np.mean([min(findings.holm(row)) < 0.05 for row in families]) - 0.05) < 0.01


def test_a_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    found = [findings.compared(rng.normal(0, 1, 5)) for _ in range(1500)]
    assert abs(np.mean([one.p < 0.05 for one in found]) - 0.05) < 0.015
    size = np.mean([one.detectable for one in found])
    assert 0.7 < np.mean([findings.compared(rng.normal(size, 1, 5)).p < 0.05 for _ in range(1500)]) < 0.88
    assert findings.compared([0.1, 0.1]).p == 0 and findings.compared([0.0, 0.0]).p == 1
    assert findings.compared([0.1]) is None


def test_reconstructions_are_compared_by_gradient_and_failed_attacks_decide_nothing():
    def row(variant, errors, level=0.3):
        return {
            "variant": variant, "target": 2.0, "leak_point": "noised", "level": level, "stage": "early",
            "attack": "lbfgs", "noise_std": 0.1, "rmse_of_each": errors, "batch_size": 1,
            "rmse": float(np.median(errors)), "rmse_mean_image": 0.4,
        }  # fmt: skip

    truth = np.linspace(0.01, 0.3, 16)
    rows = [row("fixed", truth), row("linear", truth + 0.002), row("staircase", truth + 0.004)]
    one, out, of = findings.reconstructions(rows, "early", "noised")
    np.testing.assert_allclose(one.gain, 0.003, atol=1e-9)
    assert (one.units, out, of) == (16, 0, 2)
    failing = [row("fixed", truth, 3.0), row("linear", truth + 0.3, 3.0)]
    assert [findings.failed(one) for one in failing] == [False, True]
    again, out, of = findings.reconstructions([*rows, *failing], "early", "noised")
    assert (again, out, of) == (one, 1, 3)
    assert findings.reconstructions(failing, "early", "noised") == (None, 1, 1)


def test_sets_of_candidates_are_the_units_of_an_informed_adversary(tmp_path):
    one = dataclasses.replace(TINY, variants=("fixed", "linear"), epsilons=(4.0,), learning_rates=(0.5,))
    config = attacks.AttackConfig(candidate_sets=3, trials=8)
    (workshop,) = trials.workshops(one, tmp_path)
    attacks.attack(workshop, one, config, lambda line: None)
    trials.train(one, tmp_path, lambda line: None)
    records.collect(tmp_path, tmp_path / "collected")
    found = {"breast_cancer": records.read(tmp_path / "collected" / "breast_cancer" / records.ATTACKS)}
    (pair,) = findings.informed(found, "early")["breast_cancer"]
    linear, fixed = (np.array(row["success_of_each_set"]) for row in pair)
    np.testing.assert_allclose(linear.mean(), pair[0]["success"][0])
    by_set = findings.by_set([pair])
    assert by_set.units == 3
    np.testing.assert_allclose(by_set.gain, t_interval(linear - fixed))
    page.write(tmp_path / "collected", tmp_path, tmp_path / "STUDY.md")
    assert "they are the sets of candidates" in (tmp_path / "STUDY.md").read_text()


def test_images_of_one_gradient_are_one_observation():
    row = {"rmse_of_each": [0.1, 0.3, 0.2, 0.6], "batch_size": 2}
    np.testing.assert_allclose(findings.errors(row), [0.2, 0.4])


def test_runs_of_two_grids_are_not_collected_together(tmp_path):
    one = dataclasses.replace(
        TINY, variants=("fixed", "linear"), epsilons=(4.0,), learning_rates=(0.5,), seeds=1
    )
    trials.train(one, tmp_path, lambda line: None)
    other = dataclasses.replace(one, variants=("linear",), learning_rates=(0.25,))
    trials.train(other, tmp_path, lambda line: None)
    records.collect(tmp_path, tmp_path / "collected")  # fixed may be under way
    trials.train(
        dataclasses.replace(one, variants=("fixed",), learning_rates=(2.0,)), tmp_path, lambda line: None
    )
    with pytest.raises(ValueError, match=r"linear at epsilon=.* was judged by other"):
        records.collect(tmp_path, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_rdp_is_no_even_judge_of_short_runs(monkeypatch):
    monkeypatch.setattr(published, "SETUPS", {"mnist": trials.SETUPS["mnist"]})
    monkeypatch.setattr(published, "EPSILONS", (2.0,))
    rows = [row for row in published.equal_by_rdp() if row["steps"] < 1000]
    spent = {row["schedule"]: row["by_pld"] for row in rows}
    assert max(spent.values()) < 2 and spent["linear"] < 0.8 * spent["fixed"]
    ((*_, by_rdp, fixed, linear, _, _, _),) = published.accountants_table(rows)
    assert by_rdp == "2" and float(linear) < float(fixed)


def test_the_committed_page_has_its_figures():
    page_path = pathlib.Path(__file__).parents[2] / "benchmarks" / "STUDY.md"
    text = page_path.read_text()
    figures = set(re.findall(r"\]\((experiments/[^)]*\.svg)\)", text))
    assert figures == {f"experiments/{path.name}" for path in page_path.parent.glob("experiments/*.svg")}
    assert 0 < len(figures) <= 3 and len(text.splitlines()) < 400


def test_the_median_interval_covers():
    rng = np.random.default_rng(0)
    for size in (6, 16, 33):
        found = [median_interval(rng.exponential(1.0, size)) for _ in range(2000)]
        assert np.mean([low <= np.log(2) <= high for _, low, high in found]) > 0.945
    assert np.mean([high - low for _, low, high in found]) < 1.2
