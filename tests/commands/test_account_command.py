"""`jaxdp account`: what it prints, and what it refuses in one line."""

import dataclasses
import json
import subprocess
import sys

import pytest

from jaxdp import cli
from jaxdp.commands import account

FEW = ["--steps", "100", "--schedule", "staircase"]


def call(capsys, *options):
    code = cli.main(["account", *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_prints_both_bounds_the_matched_constant_and_the_statement(capsys):
    code, out, _ = call(capsys, *FEW, "--sampling-rate", "0.01", "--delta", "1e-5")
    assert code == 0
    for part in (
        "RDP, add_or_remove_one",
        "PLD, add_or_remove_one",
        "not below",
        "matched constant",
        "Not covered",
    ):
        assert part in out


def test_json_is_json_even_where_epsilon_is_infinite(capsys):
    code, out, _ = call(
        capsys,
        "--steps",
        "3",
        "--sampling",
        "full",
        "--noise-multiplier",
        "0.001",
        "--json",
    )
    record = json.loads(out)
    assert code == 0 and {"epsilons", "statement", "matched_constant"} <= set(record)


def test_calibrates(capsys):
    code, out, _ = call(capsys, *FEW, "--target-epsilon", "0.5", "--json", "--accountant", "rdp")
    record = json.loads(out)
    assert code == 0 and record["epsilons"][0]["value"] == pytest.approx(0.5, rel=1e-4)
    assert record["scale"] != 1


def test_published_per_layer_clipping_costs_more(capsys):
    flat, published = (
        json.loads(call(capsys, *FEW, "--accountant", "rdp", "--json", *more)[1])["epsilons"][0]["value"]
        for more in ((), ("--clipping", "per_layer_published", "--layers", "10"))
    )
    assert published > 2 * flat


def test_reconstruction_bounds_early_late_and_whole(capsys):
    options = (*FEW, "--accountant", "rdp", "--reconstruction", "--prior", "0.2", "--window", "5")
    code, out, _ = call(capsys, *options)
    assert code == 0 and "with probability 0.2 beforehand" in out
    record = json.loads(call(capsys, *options, "--json")[1])
    rows = {row["name"]: row["released"] for row in record["reconstruction"]}
    assert all(f"{name}" in out and f"{value:.4f}" in out for name, value in rows.items())
    assert 0.2 <= rows["first 5 steps"] < rows["last 5 steps"] < rows["whole run, 100 steps"] < 1
    code, _, err = call(capsys, *options, "--clipping", "l2_max", "--nominal")
    assert code == 2 and "no bound holds" in err


def test_l2_max_has_only_a_nominal_number(capsys):
    code, out, err = call(capsys, *FEW, "--clipping", "l2_max")
    assert code == 2 and "private=False" in err and not out
    code, out, _ = call(capsys, *FEW, "--clipping", "l2_max", "--nominal")
    assert code == 0 and "NOMINAL" in out and "NOT PRIVATE" in out


def test_quantile_clipping_costs_what_flat_costs_and_says_how_noise_is_shared(capsys):
    flat = call(capsys, *FEW, "--accountant", "rdp")[1]
    options = ("--accountant", "rdp", "--clipping", "quantile", "--count-noise", "10")
    out = call(capsys, *FEW, *options)[1]
    assert out.splitlines()[0] == flat.splitlines()[0]
    assert "count noise 10: the gradient's own noise multiplier is 6.135 to 22.68" in out
    assert "charged for the gradient and the noised count" in out
    code, _, err = call(capsys, *FEW, "--clipping", "quantile_per_layer", "--count-noise", "7.5")
    assert code == 2 and "noise_multiplier=15, count_noise=7.5" in err and err.count("\n") == 1


def test_shuffled_batches_are_not_given_the_poisson_epsilon(capsys):
    code, _, err = call(capsys, *FEW, "--sampling", "shuffled")
    assert code == 2 and "add_or_remove_one" in err
    code, out, _ = call(capsys, *FEW, "--sampling", "shuffled", "--adjacency", "zero_out")
    assert code == 0 and "no amplification" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--noise-multiplier", "-1"), "value=-1.0"),
        (("--delta", "0"), "delta=0.0"),
        (("--sampling-rate", "1.5"), "sampling_rate=1.5"),
        (("--steps", "0"), "steps=0"),
        (("--tolerance", "0"), "tolerance=0.0"),
        (("--layers", "3"), "layers=3"),
        (("--clipping", "per_layer_published"), "layers=None"),
        (("--schedule", "linear", "--noise-multiplier", "3"), "noise_multiplier=3.0"),
        (("--schedule", "quarter_cosine", "--end", "20"), "end=20.0"),
        (("--end", "3"), "end=3.0"),
        (("--nominal",), "nominal=True"),
        (("--window", "5"), "window=5"),
        (("--reconstruction", "--prior", "1"), "prior=1.0"),
        (("--count-noise", "3"), "count_noise=3.0"),
        (("--target-epsilon", "-1"), "target_epsilon=-1.0"),
        (("--parameters", "0"), "parameters=0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, options, message):
    code, out, err = call(capsys, *options)
    assert code == 2 and message in err and err.count("\n") == 1 and not out


def test_starts_without_what_it_does_not_need():
    code = (
        "import sys; from jaxdp import cli; cli.main(['account', '--steps', '10']);"
        "print([m for m in ('flax', 'orbax', 'matplotlib', 'pandas') if m in "
        "sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]")


def test_a_target_is_met_by_pld_and_shown_by_both(capsys):
    record = json.loads(call(capsys, *FEW, "--target-epsilon", "0.5", "--json")[1])
    spent = {epsilon["accountant"]: epsilon["value"] for epsilon in record["epsilons"]}
    assert 0.495 < spent["pld"] <= 0.5 < spent["rdp"]
    out = call(capsys, *FEW, "--target-epsilon", "0.5", "--accountant", "rdp")[1]
    assert "for epsilon = 0.5 by RDP" in out and "PLD, add_or_remove_one" in out


def test_hardly_any_noise_has_an_epsilon(capsys):
    code, out, _ = call(capsys, "--noise-multiplier", "0.03", "--steps", "10")
    assert code == 0 and "the value is by RDP" in out


@pytest.mark.parametrize(("delta", "code"), [("0.5", 2), ("0.4", 0)])
def test_a_delta_of_one_half_is_refused(capsys, delta, code):
    assert call(capsys, *FEW, "--delta", delta)[0] == code


def test_a_delta_that_gives_examples_away_is_warned_of(capsys):
    for examples, warned in (("1000", True), ("100", False)):
        out = call(capsys, *FEW, "--delta", "1e-3", "--examples", examples)[1]
        assert ("not below one over the number of examples" in out) == warned


def test_no_group_of_options_is_long():
    config = account.Config()
    groups = [getattr(config, field.name) for field in dataclasses.fields(config)]
    assert len(groups) > 1 and all(len(dataclasses.fields(group)) <= 15 for group in groups)


def test_the_generator_s_error_is_shown_for_so_many_parameters(capsys):
    alone, beside = (
        json.loads(call(capsys, *FEW, *more, "--json")[1])["epsilons"][0]
        for more in ((), ("--parameters", "34720"))
    )
    assert alone["generator"] is None and beside["value"] == alone["value"]
    added = beside["generator"]
    assert added["numbers"] == 34_720 * int(FEW[FEW.index("--steps") + 1])
    assert 0 < added["epsilon"] < 1e-5 and 0 < added["delta"] < 1e-9
