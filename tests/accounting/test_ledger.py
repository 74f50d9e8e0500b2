"""The ledger: what it keeps, what it appends, and everything it refuses."""

import dataclasses
import json

import dp_accounting as dp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp.accounting import events, ledger
from jaxdp.accounting.ledger import Entry, Ledger, Sampling, from_json, run_lengths

POISSON = Sampling(kind="poisson", rate=0.01)


def entry(start, stop, sigma=6.0, **changes):
    settings = dict(sampling=POISSON, noise_multipliers=((sigma, stop - start),))
    return Entry(start=start, stop=stop, **{**settings, **changes})


SHUFFLED = Sampling(kind="shuffled", rate=0.25, steps_per_epoch=4)
THREE = Ledger((
    entry(0, 10),
    entry(10, 14, noise_multipliers=((5.5, 1), (5.25, 3)), seed="given"),
    entry(14, 20, sampling=SHUFFLED, private=False, reasons=("why",)),
))  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(0, 40))
def test_text_keeps_every_bit_and_prefixes_keep_their_steps(sigmas, cut):
    whole = Ledger((entry(0, len(sigmas), noise_multipliers=run_lengths(sigmas)),))
    assert from_json(whole.to_json()) == whole
    np.testing.assert_array_equal(whole.sigmas(), sigmas)
    cut = min(cut, len(sigmas))
    np.testing.assert_array_equal(whole.until(cut).sigmas(), sigmas[:cut])


def test_several_entries_survive_and_say_what_they_are():
    assert from_json(THREE.to_json()) == THREE
    assert THREE.steps == 20 and not THREE.private and THREE.reasons == ("why",)
    assert THREE.until(14).private and THREE.until(12).entries[1].noise_multipliers == ((5.5, 1), (5.25, 1))
    assert THREE.until(0) == Ledger()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["entries"][0]["noise_multipliers"][0].__setitem__(0, 60.0),
        lambda c: c["entries"][2].update(private=True),
        lambda c: c["entries"].pop(),
        lambda c: c.update(schema=2),
        lambda c: c.pop("sha256"),
        lambda c: c.update(sha256="0" * 64),
    ],
)
def test_any_alteration_is_refused(change):
    content = json.loads(THREE.to_json())
    change(content)
    with pytest.raises(ValueError, match="corrupt"):
        from_json(json.dumps(content))


@pytest.mark.parametrize("text", [None, ""])
def test_a_missing_ledger_is_refused(text):
    with pytest.raises(ValueError, match="missing"):
        from_json(text)


@pytest.mark.parametrize("cut", [1, 100, -2])
def test_cut_text_is_refused(cut):
    with pytest.raises(ValueError, match="corrupt"):
        from_json(THREE.to_json()[:cut])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda c: c["entries"].pop(1), "gap"),
        (lambda c: c["entries"].insert(1, c["entries"][0]), "overlap"),
        (lambda c: c["entries"][0].update(stop=11), "10 steps: entry has 11"),
        (lambda c: c["entries"][0].update(start=1), "gap|9 steps"),
        (lambda c: c["entries"][0].update(extra=1), "extra"),
    ],
)
def test_wrong_content_is_refused_even_with_a_right_checksum(bad, message):
    content = json.loads(THREE.to_json())
    del content["sha256"]
    bad(content)
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps({**content, "sha256": ledger._checksum(content)}))


def test_appending_joins_what_is_the_same_and_keeps_what_changed():
    first = Ledger().append(entry(0, 10))
    assert first.append(entry(10, 15)) == Ledger((entry(0, 15),))
    slower = first.append(entry(10, 15, sigma=5.0))
    assert slower.entries[0].noise_multipliers == ((6.0, 10), (5.0, 5))
    other = slower.append(entry(15, 16, sampling=Sampling(kind="poisson", rate=0.02)))
    assert other.entries[0] == slower.entries[0] and len(other.entries) == 2
    assert first == Ledger((entry(0, 10),))
    for start, word in ((9, "overlap"), (11, "gap")):
        with pytest.raises(ValueError, match=word):
            first.append(entry(start, 20))
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.entries = ()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(noise_multipliers=((-1.0, 5),)), "noise_multiplier=-1.0"),
        (dict(noise_multipliers=((float("inf"), 5),)), "noise_multiplier=inf"),
        (dict(noise_multipliers=((True, 5),)), "noise_multiplier=True"),
        (dict(noise_multipliers=((6.0, 0), (6.0, 5))), "steps=0"),
        (dict(seed="42"), "seed='42'"),
        (dict(private=False), "say why"),
        (dict(reasons=("but",)), "say why"),
    ],
)
def test_bad_entries_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        entry(0, 5, **bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(kind="sorted"), "sampling='sorted'"),
        (dict(rate=1.5), "sampling_rate=1.5"),
        (dict(kind="full", rate=0.5), "rate 1"),
        (dict(kind="shuffled", rate=0.5), "steps_per_epoch=None"),
        (dict(kind="poisson", steps_per_epoch=3), "only shuffled"),
    ],
)
def test_bad_sampling_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**bad)


def test_event_is_what_dp_accounting_composes():
    run = Ledger(
        (
            entry(0, 100, noise_multipliers=((4.0, 60), (2.0, 40))),
            entry(100, 102, sampling=Sampling(kind="full")),
        )
    )
    by_hand = dp.rdp.RdpAccountant()
    for sigma, count in ((2.0, 40), (4.0, 60)):
        by_hand.compose(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(sigma)), count)
    by_hand.compose(dp.GaussianDpEvent(6.0), 2)
    found = dp.rdp.RdpAccountant().compose(events.to_event(run)).get_epsilon(1e-5)
    assert found == pytest.approx(by_hand.get_epsilon(1e-5), rel=1e-12)
    with pytest.raises(ValueError, match="why"):
        events.to_event(THREE)


def test_shuffled_epochs_are_counted_from_step_zero():
    shuffled = Sampling(kind="shuffled", rate=0.25, steps_per_epoch=4)
    part = entry(2, 11, sampling=shuffled, noise_multipliers=run_lengths([9, 8, 7, 6, 5, 4, 3, 2, 1.0]))
    np.testing.assert_array_equal(ledger.epoch_minima(part), [8, 4, 1])
