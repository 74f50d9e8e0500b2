"""What the README and the first page of the study say, computed once more from the records, by NumPy alone."""

import collections
import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "experiments"
README = " ".join((ROOT / "README.md").read_text().split())
STUDY = (ROOT / "benchmarks" / "STUDY.md").read_text()
SETS = {
    "MNIST": "mnist", "Fashion-MNIST": "fashion_mnist", "digits": "digits",
    "breast_cancer": "breast_cancer", "adult": "adult",
}  # fmt: skip
DYNAMIC = ("linear", "staircase", "exponential", "quarter_cosine")
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
T_975 = 2.7764451  # Student's quantile of four degrees of freedom
STAGES = ("early", "middle", "late", None)


def rows(*path):
    return [json.loads(line) for line in RECORDS.joinpath(*path).read_text().splitlines()[1:]]


def accuracies(name):
    """[variant, epsilon, seed], in points: fixed first, at the rates of the best mean validation accuracy."""
    judged, tested = collections.defaultdict(lambda: collections.defaultdict(list)), {}
    for row in rows(name, "runs.jsonl"):
        key = row["variant"], row["target"]
        if row["seed"] >= 1000:
            judged[key][row["learning_rate"]].append(row["validation_accuracy"])
        else:
            tested[*key, row["learning_rate"], row["seed"]] = 100 * row["test_accuracy"]

    def rate(key):
        most = max(map(len, judged[key].values()))
        means = {r: round(float(np.mean(v)), 7) for r, v in judged[key].items() if len(v) == most}
        return min(r for r in means if means[r] == max(means.values()))

    def seeds(variant, epsilon):
        return [tested[variant, epsilon, rate((variant, epsilon)), seed] for seed in range(5)]

    return np.array([[seeds(v, e) for e in EPSILONS] for v in ("fixed", *DYNAMIC)])


def student(values):
    """Mean, its interval over five values, and p of Student's test, whose distribution is elementary here."""
    mean, error = np.mean(values, axis=-1), np.std(values, axis=-1, ddof=1) / 5**0.5
    part = mean**2 / np.where(mean == 0, 1.0, mean**2 + 4 * error**2)  # t^2 / (t^2 + 4)
    p = 1 - np.sqrt(part) * (3 - part) / 2
    return mean, mean - T_975 * error, mean + T_975 * error, p


def informed(stage, measure):
    """[data set, variant, epsilon], in percent, fixed first."""
    found = {
        (name, row["variant"], row["target"]): 100 * np.ravel(row[measure])[0]
        for name in SETS.values()
        for row in rows(name, "attacks.jsonl")
        if row["attack"] == "informed adversary" and row["stage"] == stage and row["variant"] != "l2_max"
    }
    names = ("fixed", *DYNAMIC)
    return np.array([[[found[n, v, e] for e in EPSILONS] for v in names] for n in SETS.values()])


@pytest.fixture(scope="module")
def gains():
    """Data set -> [schedule, epsilon, seed], dynamic minus fixed, in points."""
    found = {name: accuracies(folder) for name, folder in SETS.items()}
    return {name: own[1:] - own[0] for name, own in found.items()}


def signed(mean, low, high):
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def test_accuracies_by_seed(gains):
    for name, own in gains.items():
        mean, low, high, _ = student(own.mean(axis=(0, 1)))
        assert f"{name} {signed(mean, low, high)}" in README
        assert f"| {SETS[name]} | {signed(mean, low, high)} |" in STUDY


def test_one_data_set_survives_holm(gains):
    ps = {name: student(own.mean(axis=(0, 1)))[3] for name, own in gains.items()}
    first, second, *_ = sorted(ps, key=ps.__getitem__)
    assert first == "MNIST" and 5 * ps[first] < 0.05 < 4 * ps[second]


def test_no_single_comparison_survives(gains):
    _, low, high, p = student(np.concatenate([own.reshape(-1, 5) for own in gains.values()]))
    ranked = np.sort(p)
    assert len(p) == 100 and 100 * ranked[0] > 0.05  # Holm stops at once
    assert (ranked > 0.05 * np.arange(1, 101) / 100).all()  # so do Benjamini and Hochberg
    undecided = (low <= 0) & (high >= 0)
    within = undecided & (low > -1) & (high < 1)
    sentence = f"{(low > 0).sum()} are better, {(high < 0).sum()} worse and {undecided.sum()} undecided"
    assert sentence in STUDY and f"Of the undecided {within.sum()} have" in STUDY
    assert "nor does any of the 100 comparisons alone" in README


def test_the_informed_adversary():
    said = {}
    for stage in STAGES:
        success = informed(stage, "success")
        said[stage] = success[:, 1:].mean(), success[:, 0].mean()
        assert "{:.1f} % against {:.1f} %".format(*said[stage]) in STUDY
    assert "less early in the run ({:.1f} % against {:.1f} %)".format(*said["early"]) in README
    assert "more late ({:.1f} against {:.1f})".format(*said["late"]) in README
    assert "over the whole run in {:.1f} % against {:.1f} %, which is not".format(*said[None]) in README
    # By Holm early and late pass, the whole run does not pass even the third step.
    for stage, low, high in (("early", 0, 0.0125), ("late", 0, 0.0125), (None, 0.025, 1)):
        success = informed(stage, "success")
        p = student((success[:, 1:] - success[:, :1]).mean(axis=(1, 2)))[3]
        assert low < p < high


def test_the_bound_of_the_whole_run():
    bound = informed(None, "bound")
    mean, last = (bound[:, 1:].mean(), bound[:, 0].mean()), (bound[:, 1:, -1].mean(), bound[:, 0, -1].mean())
    words = "{:.1f} % against {:.1f} % on average, {:.1f} against {:.1f} at epsilon 8".format(*mean, *last)
    assert words in README
    equal = {f"{100 * row['bound']:.1f}" for row in rows("published.jsonl") if row["at"] == "equal epsilon"}
    assert len(equal) == 1 and f"over the published 10,000 steps {equal.pop()} % for all" in README


def test_equal_by_which_accountant():
    spent = {
        row["schedule"]: f"{row['by_pld']:.2f}"[1:]
        for row in rows("accountants.jsonl")
        if (row["sampling_rate"], row["steps"], row["by_rdp"]) == (0.01, 100, 0.5)
    }
    assert f"epsilon = .5 spend {spent['fixed']} (fixed sigma) and {spent['linear']} (linear)" in README
    published = {r["schedule"]: r["epsilon"] for r in rows("published.jsonl") if r["at"] == "as published"}
    least, most = min(published[v] for v in DYNAMIC), max(published[v] for v in DYNAMIC)
    words = (f"{value:.2f}"[1:] for value in (least, most, published["fixed"]))
    assert "({} to {} against {} by RDP".format(*words) in README


def test_mu_at_one_epsilon():
    step = np.arange(100) / 100
    falling = {"linear": 15 - 10.15 * step, "quarter_cosine": 15 * np.cos(1.24 * step)}
    scales = {r["variant"]: r["scale"] for r in rows("mnist", "runs.jsonl") if r["target"] == 2.0}
    for name, shape in {"fixed": np.full(100, 6.0), **falling}.items():
        mu = 0.01 * np.sqrt(np.expm1((scales[name] * shape) ** -2).sum())
        (row,) = (line for line in STUDY.splitlines() if line.startswith(f"| {name} |") and "e-0" in line)
        assert row.split(" | ")[-2] == f"{mu:.3f}"


def errors(row):
    return np.median(np.reshape(row["rmse_of_each"], (-1, row["batch_size"])).mean(axis=1))


def test_images():
    found = [row for row in rows("digits", "attacks.jsonl") if row.get("level") == 10.0]

    def median(stage, point):
        own = {r["variant"]: errors(r) for r in found if (r["stage"], r["leak_point"]) == (stage, point)}
        dynamic = [own[name] for name in DYNAMIC]
        return tuple(f"{value:.2f}"[1:] for value in (min(dynamic), max(dynamic), own["fixed"]))

    early, late = median("early", "noised"), median("late", "noised")
    assert "early (RMSE {} to {} against {}), late ({} to {} against {})".format(*early, *late) in README
    assert median("late", "noised batch")[0] >= median("late", "noised batch")[2]
    noised = [r for r in rows("mnist", "attacks.jsonl") if r["noise_std"] > 0 and r.get("level")]
    failed = [r["rmse"] >= r["rmse_mean_image"] for r in noised if r["stage"] != "early"]
    assert (sum(failed), len(failed)) == (80, 84)
