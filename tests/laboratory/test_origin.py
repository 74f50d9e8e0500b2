"""An attack on a checkpoint stands beside its run in a report, if the noise it met is the run's."""

import pytest
import synthetic_records as synthetic

from jaxdp.laboratory.leakage import origin
from jaxdp.laboratory.report import tables
from jaxdp.training.config import TrainConfig

RUN = TrainConfig.of(data="digits", model="mlp", schedule="linear", start=12.0, end=4.0, steps=80)


def test_the_stage_is_that_of_the_step():
    stages = [origin.fields(RUN, step, 0.0)["stage"] for step in (0, 20, 40, 79, 80)]
    assert stages == ["early", "early", "middle", "late", "late"]


def test_noise_that_is_not_the_runs_own_belongs_to_no_variant():
    assert origin.own_noise(RUN, 40) == pytest.approx(8.0)  # half way from 12 to 4
    assert origin.fields(RUN, 40, 8.0)["variant"] == "linear"
    assert origin.fields(RUN, 40, 1.0) == {
        "variant": "undefended", "stage": None, "config": {"data": "digits", "model": "mlp"},
    }  # fmt: skip
    assert origin.own_noise(TrainConfig.of(schedule="none"), 5) is None


def test_the_attack_joins_the_run_in_the_table():
    """The column of the run's variant holds the attack behind its own noise, and not the weaker noise tried."""
    made = [synthetic.train("linear")]
    for sigma, hits in ((8.0, 2), (1.0, 16)):
        attack = synthetic.attack(hits=hits, noise_std=sigma)
        tied = origin.fields(RUN, 40, sigma)
        made.append(attack | tied | {"config": attack["config"] | tied["config"]})
    (row,) = tables.summary(made).to_dict("records")
    assert row["success"] == pytest.approx(2 / 16)
    assert list(tables.by_subject(made)) == ["digits, mlp"]
