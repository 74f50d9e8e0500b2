"""Truncated Poisson batches: the charge against the mechanism itself, summed up batch by batch."""

import dataclasses
import math

import dp_accounting as dp
import numpy as np
import pytest
from scipy import stats
from written_ledgers import written

import jaxdp
from jaxdp import accounting, calibration, clipping, sampling
from jaxdp.accounting import events, ledger, pld, reconstruction
from jaxdp.accounting import sampling as draws
from jaxdp.accounting.ledger import Sampling
from jaxdp.accounting.statement import privacy_statement

RELATIONS = {
    "add_or_remove_one": dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "zero_out": dp.NeighboringRelation.REPLACE_SPECIAL,
    "replace_one": dp.NeighboringRelation.REPLACE_ONE,
}


def truncated(n, q, limit):
    return Sampling(kind="truncated_poisson", rate=q, examples=n, batch_size_limit=limit)


def spent(sampling, sigma=1.0, steps=1):
    return written(parameters={"value": sigma}, steps=steps, sampling=sampling)


def claim(adjacency="add_or_remove_one", accountant="pld", delta=1e-5):
    return jaxdp.Claim(delta=delta, adjacency=adjacency, accountant=accountant)


def law(others, q, limit, value, own):
    """Probability of each sum of a step: `others` examples of one value, and one of its own (None: without)."""
    sums: dict[float, float] = {}

    def add(at, probability):
        sums[at] = sums.get(at, 0.0) + probability

    for m in range(others + 1):
        p = stats.binom.pmf(m, others, q)
        drawn = q if own is not None else 0.0
        add(min(m, limit) * value, p * (1 - drawn))
        if own is not None:
            kept = min(1.0, limit / (m + 1))
            add(min(m, limit - 1) * value + own, p * q * kept)
            add(min(m, limit) * value, p * q * (1 - kept))
    return sums


def hockey_stick(p, q, sigma, epsilons):
    """By the rectangle rule over outputs; both are mixtures of Gaussians."""
    centres = [*p, *q]
    grid = np.linspace(min(centres) - 12 * sigma, max(centres) + 12 * sigma, 60_001)
    density = lambda sums: sum(w * stats.norm.pdf(grid, at, sigma) for at, w in sums.items())  # noqa: E731
    over, under, width = density(p), density(q), grid[1] - grid[0]
    return np.array([np.maximum(over - math.exp(e) * under, 0).sum() * width for e in epsilons])


def renyi(p, q, sigma, order):
    centres = [*p, *q]
    grid = np.linspace(min(centres) - 30 * sigma, max(centres) + 30 * sigma, 60_001)
    density = lambda sums: np.logaddexp.reduce(  # noqa: E731
        [math.log(w) + stats.norm.logpdf(grid, at, sigma) for at, w in sums.items() if w > 0]
    )
    total = np.logaddexp.reduce(order * density(p) + (1 - order) * density(q)) + math.log(grid[1] - grid[0])
    return total / (order - 1)


def neighbours(adjacency, n, q, limit, value):
    """Pairs of laws that the claim for n examples is about."""
    for own in (1.0, -1.0):
        if adjacency == "add_or_remove_one":
            for larger in (n, n + 1):
                yield law(larger - 1, q, limit, value, own), law(larger - 1, q, limit, value, None)
        else:
            other = 0.0 if adjacency == "zero_out" else -own
            yield law(n - 1, q, limit, value, own), law(n - 1, q, limit, value, other)


@pytest.mark.parametrize("adjacency", RELATIONS)
@pytest.mark.parametrize(
    ("n", "q", "limit"), [(12, 0.3, 4), (12, 0.3, 8), (6, 0.9, 2), (20, 1.0, 5), (8, 0.5, 8)]
)
def test_no_mechanism_that_was_tried_passes_the_bound(adjacency, n, q, limit):
    """Who is displaced is one of others that stand against the example, beside it, or add nothing."""
    epsilons, sigma, order = np.linspace(0, 3, 13), 0.9, 4.0
    (steps,) = accounting.runs(spent(truncated(n, q, limit), sigma), adjacency)
    bound = pld.divergence([steps], replace=adjacency == "replace_one", tolerance=1e-3)
    allowed = np.array([bound.delta(epsilon) for epsilon in epsilons])
    most = accounting.divergences(
        q,
        np.array([sigma]),
        adjacency,
        np.array([order]),
        parts=draws.parts(truncated(n, q, limit), adjacency),
    )
    for value in (-1.0, 0.0, 1.0):
        for one, other in neighbours(adjacency, n, q, limit, value):
            for p, r in ((one, other), (other, one)):
                assert (hockey_stick(p, r, sigma, epsilons) <= allowed + 1e-7).all()
                assert renyi(p, r, sigma, order) <= most[0, 0] * (1 + 1e-6)


def test_the_charge_of_plain_poisson_batches_would_be_false():
    n, q, limit, sigma, epsilon = 40, 0.9, 4, 0.5, 8.0
    (plain,) = accounting.runs(spent(Sampling(rate=q), sigma), "add_or_remove_one")
    allowed = pld.divergence([plain], replace=False, tolerance=1e-3).delta(epsilon)
    p, r = next(neighbours("add_or_remove_one", n, q, limit, -1.0))
    assert hockey_stick(p, r, sigma, [epsilon])[0] > 5 * allowed


@pytest.mark.parametrize(("n", "q", "limit"), [(12, 0.3, 4), (50, 0.1, 9), (6, 1.0, 2)])
def test_parts_are_sums_over_how_many_others_were_drawn(n, q, limit):
    chance = [math.comb(n - 1, m) * q**m * (1 - q) ** (n - 1 - m) for m in range(n)]
    binds = sum(chance[limit:])
    rate = sum(p * q * limit / (m + 1) for m, p in enumerate(chance) if m >= limit) / binds
    for adjacency, count in (("add_or_remove_one", 3), ("zero_out", 2), ("replace_one", 2)):
        found = draws.parts(truncated(n, q, limit), adjacency)
        assert len(found) == count and sum(part.weight for part in found) == pytest.approx(1, abs=1e-12)
        assert found[1].weight == pytest.approx(binds) and found[1].rate == pytest.approx(rate)
    assert draws.parts(Sampling(rate=q), "zero_out") == ()


@pytest.mark.parametrize("adjacency", RELATIONS)
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_limit_that_never_binds_costs_nothing(adjacency, accountant):
    plain, limited = (
        accounting.epsilon(spent(s, 2.0, 50), claim(adjacency, accountant)).value
        for s in (Sampling(rate=0.1), truncated(200, 0.1, 200))
    )
    assert limited == pytest.approx(plain, rel=1e-5)  # n + 1 examples, of which 200 are kept


@pytest.mark.parametrize("adjacency", ["add_or_remove_one", "zero_out"])
@pytest.mark.parametrize(
    ("n", "q", "limit", "sigma", "steps"), [(1_000, 0.1, 150, 2.0, 300), (1_000, 0.1, 120, 2.0, 50)]
)
def test_dp_accounting_bounds_the_same_from_above(adjacency, n, q, limit, sigma, steps):
    """It takes who displaces another for one that is exchanged, which costs more where the limit binds."""
    run = spent(truncated(n, q, limit), sigma, steps)
    accountant = dp.pld.PLDAccountant(RELATIONS[adjacency], value_discretization_interval=2e-3)
    theirs = accountant.compose(events.to_event(run)).get_epsilon(1e-5)
    ours = accounting.epsilon(run, claim(adjacency))
    assert ours.lower <= ours.value <= theirs * 1.002
    assert ours.value >= theirs * (0.99 if limit == 150 else 0.85)
    plain = accounting.epsilon(spent(Sampling(rate=q), sigma, steps), claim(adjacency)).value
    assert plain * 0.999 < ours.value


@pytest.mark.parametrize(
    ("n", "batch", "sigma", "steps"), [(60_000, 256, 0.8, 10_000), (1_442, 72, 3.0, 500)]
)
def test_at_the_default_limit_sigma_is_at_most_one_percent_higher(n, batch, sigma, steps):
    q = batch / n
    limit = sampling.default_limit(n, q)
    assert limit < sampling.physical_size(n, q, steps) and stats.binom.sf(limit, n, q) <= 1e-6
    target = accounting.epsilon(spent(Sampling(rate=q), sigma, steps), claim()).value
    assert accounting.epsilon(spent(truncated(n, q, limit), 1.01 * sigma, steps), claim()).value <= target


def test_ledger_statement_trajectory_and_calibration_know_the_limit():
    run = spent(truncated(1_000, 0.1, 120), 3.0, 40)
    assert ledger.from_json(run.to_json()) == run and '"batch_size_limit": 120' in run.to_json()
    assert "batch_size_limit" not in spent(Sampling(rate=0.1)).to_json()  # older ledgers keep their checksum
    by_rdp = claim(accountant="rdp")
    found = accounting.epsilon(run, by_rdp)
    assert accounting.epsilon_trajectory(run, by_rdp)[-1] == pytest.approx(found.value, rel=1e-9)
    assert accounting.steps_within(run, found.value, by_rdp) == 40
    said = str(privacy_statement(run, found))
    assert "Poisson, rate 0.1, of 1000, at most 120 kept" in said and "uniformly random part" in said
    assert reconstruction.bound(run, 0.1, adjacency="zero_out") < 1
    seen = [
        reconstruction.bound(spent(s, 3.0), 0.1, adjacency="zero_out", amplified=False)
        for s in (truncated(1_000, 0.1, 120), Sampling(rate=0.1))
    ]
    assert seen[0] > seen[1]  # who is known to take part may have taken another's place


@pytest.mark.parametrize("what", ["scale", "steps", "sampling_rate"])
def test_calibration_meets_the_target_and_draws_what_it_charges(what):
    sampler = sampling.truncated_poisson(500, 0.1, 40, batch_size_limit=72)
    plan = jaxdp.Plan(clipper=clipping.flat(1.0), noise_multiplier=2.0, sampler=sampler, steps=40)
    found = calibration.calibrate(plan, 2.0, claim(accountant="rdp"), what)
    value = accounting.epsilon(found.ledger(), claim(accountant="rdp")).value
    assert value <= 2.0 and value > 1.9
    assert found.batches.accounted == found.sampling and found.sampling.batch_size_limit == 72


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: Sampling(kind="truncated_poisson", rate=0.1, examples=10), "batch_size_limit=None"),
        (lambda: Sampling(rate=0.1, batch_size_limit=5), "batch_size_limit=5"),
        (lambda: sampling.truncated_poisson(10, 0.5, 5, 11), "batch_size_limit=11"),
        (lambda: sampling.truncated_poisson(10, 0.5, 5, 0), "batch_size_limit=0"),
        (lambda: sampling.create("poisson", 10, 0.5, 5, 4), "batch_size_limit=4: only truncated_poisson"),
    ],
)
def test_refusals(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_limit_changes_the_entry():
    one = spent(truncated(100, 0.1, 20), 2.0, 5)
    other = dataclasses.replace(one.entries[0], start=5, stop=10, sampling=truncated(100, 0.1, 24))
    both = one.append(other)
    assert len(both.entries) == 2 and len(accounting.runs(both, "zero_out")) == 2
