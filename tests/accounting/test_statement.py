"""The privacy statement: every limit is a sentence, every false claim an error."""

import dataclasses
import json

import pytest
from written_ledgers import written

from jaxdp import accounting
from jaxdp.accounting import statement
from jaxdp.accounting.ledger import Sampling
from jaxdp.accounting.statement import privacy_statement

CLAIM = accounting.Claim(delta=1e-5, adjacency="zero_out", accountant="rdp")


def stated(adjacency="zero_out", nominal=False, disclosed=(), **changes):
    run = written(**{**dict(steps=20, sampling=Sampling(rate=0.1)), **changes})
    spent = accounting.epsilon(run, dataclasses.replace(CLAIM, adjacency=adjacency), nominal=nominal)
    return privacy_statement(run, spent, disclosed=disclosed), spent


def test_names_all_that_an_epsilon_needs():
    said, spent = stated()
    text = str(said)
    for part in (
        "one example",
        f"{spent.value:.4f}",
        "1e-05",
        "RDP",
        "zero_out",
        "Poisson, rate 0.1",
        "flat",
    ):
        assert part in text
    assert "replaced by zero" in text and "noise multiplier 6" in text
    assert said.private and not said.warnings
    record = json.loads(json.dumps(said.to_dict(), allow_nan=False))
    assert record["epsilon"]["value"] == spent.value and record["epsilon"]["adjacency"] == "zero_out"
    assert {"mechanism", "unit", "sampling", "assumptions", "not_covered"} <= set(record)


@pytest.mark.parametrize(
    "words",
    [
        "Floating-point",
        "Hyper-parameters",
        "Evaluation data",
        "no amplification",
        "before the noise",
        "several",
    ],
)
def test_says_what_is_not_covered(words):
    said, _ = stated()
    assert sum(words in sentence for sentence in said.not_covered) == 1 and words in str(said)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(seed="given"), "given seed"),
        (dict(sampling=Sampling(kind="shuffled", rate=0.1, steps_per_epoch=10)), "not Poisson"),
        (dict(disclosed=("loss_logged",)), "training loss was logged"),
        (dict(disclosed=("clipping_logged",)), "share of clipped examples"),
    ],
)
def test_what_weakens_a_private_run_is_a_warning(changes, words):
    said, _ = stated(**changes)
    assert said.private and said.epsilon is not None
    assert len(said.warnings) == 1 and words in said.warnings[0] and words in str(said)


def test_decisions_on_private_data_leave_no_epsilon():
    said, _ = stated(disclosed=("chosen_on_private_data",))
    assert not said.private and said.epsilon is None
    assert str(said).count("epsilon = ") == 0 and "validation" in str(said)


def test_a_run_that_is_not_private_is_never_given_a_guarantee():
    said, spent = stated(nominal=True, private=False, reasons=("Norms leak.",))
    assert not said.private and "NOT PRIVATE" in str(said) and "NOMINAL" in str(said)
    assert said.warnings == ("Not private: Norms leak.",)
    run = written(steps=20, sampling=Sampling(rate=0.1), private=False, reasons=("Norms leak.",))
    silent = privacy_statement(run)
    assert silent.epsilon is None and "no epsilon holds" in str(silent)
    with pytest.raises(ValueError, match="nominal=False"):
        privacy_statement(run, dataclasses.replace(spent, nominal=False))


def test_an_epsilon_of_another_ledger_is_not_stated():
    short, long = (written(steps=n, sampling=Sampling(rate=0.1)) for n in (10, 10_000))
    with pytest.raises(ValueError, match="another ledger"):
        privacy_statement(long, accounting.epsilon(short, CLAIM))


def test_a_private_run_needs_its_epsilon_and_known_disclosures():
    run = written(steps=20, sampling=Sampling(rate=0.1))
    with pytest.raises(ValueError, match="epsilon=None"):
        privacy_statement(run)
    with pytest.raises(ValueError, match="disclosed='gossip'"):
        stated(disclosed=("gossip",))


def test_every_adjacency_and_sampling_has_words():
    assert set(statement.ADJACENCY_IN_WORDS) == set(accounting.ADJACENCIES)
    for kind in ("poisson", "full"):
        assert stated(sampling=Sampling(kind=kind))[0].assumptions[-1] == statement._SAMPLING_ASSUMED[kind]


def test_warns_of_a_large_delta_and_of_the_last_order():
    run = written(steps=10, parameters={"value": 300.0})
    spent = accounting.epsilon(run, CLAIM)
    assert "best order is the grid's last" in str(privacy_statement(run, spent))
    said = [
        any("delta = 1e-05" in w for w in privacy_statement(run, spent, examples=n).warnings)
        for n in (10, 10**6)
    ]
    assert said == [False, True]
