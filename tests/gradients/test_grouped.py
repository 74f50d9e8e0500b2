"""Users as the unit: their examples clipped together, drawn together, and said to be what is protected."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import synthetic_records

import jaxdp
from jaxdp import accounting, cli, clipping, data, gradients, records, sampling
from jaxdp.accounting import ledger
from jaxdp.accounting.statement import privacy_statement
from jaxdp.data import Source, Stream

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), "b": jnp.zeros(3)}
CLAIM = jaxdp.Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="rdp")
X, Y = RNG.normal(size=(30, 4)).astype(np.float32), RNG.integers(0, 3, 30)
IDS = [f"user {i}" for i in RNG.integers(0, 9, 30)]


def loss_fn(params, example):
    logits = jnp.tanh(example["x"] @ params["w"] + params["b"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, example["y"])


def clipped(loss, batch, bound=0.05):
    return jaxdp.clipped_gradients(loss, clipping.flat(bound))(PARAMS, batch, None, (), 0)[1].gradients


def close(one, other, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), one, other)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_sum_is_that_of_a_python_loop_over_users(reduction):
    """Their examples one by one, then their gradient clipped."""
    examples, present = data.grouped({"x": X, "y": Y}, IDS, size=4).arrays
    bound, total = 0.05, jax.tree.map(jnp.zeros_like, PARAMS)
    for name in dict.fromkeys(IDS):
        rows = [i for i, owner in enumerate(IDS) if owner == name][:4]
        grads = [jax.grad(loss_fn)(PARAMS, {"x": X[i], "y": Y[i]}) for i in rows]
        grad = jax.tree.map(lambda *g: sum(g) / (len(g) if reduction == "mean" else 1), *grads)
        norm = float(optax.tree.norm(grad))
        assert norm > bound
        total = jax.tree.map(lambda t, g: t + g * bound / norm, total, grad)  # noqa: B023
    close(clipped(gradients.grouped(loss_fn, reduction), (examples, present)), total, rtol=1e-4)


def test_copies_of_one_example_are_one_example():
    alone = clipped(loss_fn, {"x": X, "y": Y})
    for copies in (1, 5):
        examples = {"x": np.repeat(X[:, None], copies, 1), "y": np.repeat(Y[:, None], copies, 1)}
        batch = (examples, np.ones((30, copies), bool))
        close(clipped(gradients.grouped(loss_fn), batch), alone)
    unbounded = clipped(gradients.grouped(loss_fn, "sum"), batch, bound=100.0)
    close(unbounded, jax.tree.map(lambda leaf: 5 * leaf, clipped(loss_fn, {"x": X, "y": Y}, 100.0)))


def test_no_user_moves_the_sum_by_more_than_the_bound_however_many_examples_it_has():
    examples, present = data.grouped({"x": 3 * X, "y": Y}, IDS, size=30).arrays
    loss = gradients.grouped(loss_fn, "sum")
    whole = clipped(loss, (examples, present))
    for user in range(len(present)):
        others = jax.tree.map(lambda leaf: np.delete(leaf, user, axis=0), (examples, present))  # noqa: B023
        moved = jax.tree.map(jnp.subtract, whole, clipped(loss, others))
        assert float(optax.tree.norm(moved)) <= 0.05 * (1 + 1e-5)


def test_what_stands_in_an_empty_place_does_not_matter():
    """Not even where it is not finite, or a gradient at it."""
    examples, present = data.grouped({"x": X, "y": Y}, IDS, size=6).arrays
    poisoned = {**examples, "x": np.where(present[..., None], examples["x"], np.nan)}
    expected = clipped(gradients.grouped(loss_fn), (examples, present))
    close(clipped(gradients.grouped(loss_fn), (poisoned, present)), expected)
    nobody = clipped(gradients.grouped(loss_fn), (examples, np.zeros_like(present)))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(nobody))


def test_kernels_stay_products_of_all_examples_of_a_user():
    examples, present = data.grouped({"x": X, "y": Y}, IDS, size=2).arrays
    wide = {"w": jnp.zeros((4, 300)), "b": jnp.zeros(300)}
    _, grads = gradients.per_example(gradients.grouped(loss_fn))(wide, (examples, present))
    assert gradients.is_leaf(grads["w"])


def test_rows_are_users_in_order_of_appearance_with_their_first_examples():
    source = data.grouped({"x": X, "y": Y}, IDS, size=3)
    examples, present = source.arrays
    names = list(dict.fromkeys(IDS))
    assert source.unit == "user" and source.examples == len(names)
    for row, name in enumerate(names):
        rows = [i for i, owner in enumerate(IDS) if owner == name][:3]
        np.testing.assert_array_equal(examples["x"][row][: len(rows)], X[rows])
        np.testing.assert_array_equal(present[row], np.arange(3) < len(rows))


def planned(users, **changes):
    sampler = sampling.poisson(users, 0.5, steps=6)
    parts = dict(
        clipper=clipping.flat(1.0), noise_multiplier=2.0, sampler=sampler, steps=6, unit="user", seed=1
    )
    return jaxdp.Plan(**{**parts, **changes})


def trained(source, plan, **options):
    return jaxdp.train(gradients.grouped(loss_fn), PARAMS, source, plan, optax.sgd(0.1), CLAIM, **options)


def test_a_run_says_what_it_protects_and_another_unit_is_not_gone_on_with(tmp_path):
    source = data.grouped({"x": X, "y": Y}, IDS, size=4)
    result = trained(source, planned(source.examples), folder=tmp_path / "run")
    assert result.ledger.unit == result.epsilon.unit == "user" and "for one user" in str(result.epsilon)
    said = str(result.statement)
    for part in (
        "For one user, epsilon", "differ in one user more or less", "per-user gradients",
        "each user was drawn", "A user whose examples stand in several rows",
    ):  # fmt: skip
        assert part in said
    assert "one example" not in said and result.statement.unit == "one user"
    assert ledger.from_json(result.ledger.to_json()) == result.ledger
    streamed = Stream(rows=source.arrays, unit="user")
    again = trained(streamed, planned(source.examples))
    assert np.array_equal(again.params["w"], result.params["w"])
    with pytest.raises(ValueError, match="unit=example and user: a run protects one kind of unit"):
        longer = sampling.poisson(source.examples, 0.5, steps=9)
        plain = planned(source.examples, unit="example", sampler=longer, steps=9)
        trained(source.arrays, plain, folder=tmp_path / "run", resume=True)


def test_the_ledger_of_an_example_says_what_it_said_before():
    plan = planned(10, unit="example")
    assert "unit" not in plan.ledger().to_json() and '"unit": "user"' in planned(10).ledger().to_json()
    claim = accounting.epsilon(plan.ledger(), CLAIM)
    assert "for one" not in str(claim)
    assert "People who contributed several examples" in str(privacy_statement(plan.ledger(), claim))


def test_a_record_claims_for_the_unit_of_its_ledger():
    spent = planned(10).ledger()
    written = synthetic_records.train()
    written["ledger"], written["metrics"]["steps"] = spent.to_json(), 6
    written["privacy"] |= {"unit": "user", "epsilon": accounting.epsilon(spent, CLAIM).value}
    records.check_claim(records.validate(written))
    written["privacy"]["unit"] = "example"
    with pytest.raises(ValueError, match="unit='example': the ledger protects one user"):
        records.check_claim(records.validate(written))


def test_the_command_line_says_it(capsys):
    assert cli.main(["account", "--steps", "100", "--unit", "user", "--accountant", "rdp", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["statement"]["unit"] == "one user" and shown["epsilons"][0]["unit"] == "user"


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: gradients.grouped(loss_fn, "max"), "reduction='max'"),
        (lambda: data.grouped({"x": X}, IDS[:5], 2), r"ids=\[5\]: needs one for each of 30"),
        (lambda: data.grouped({"x": X}, [None, *IDS[1:]], 2), "ids: one is missing"),
        (lambda: data.grouped({"x": X}, IDS, 0), "size=0"),
        (lambda: Source(arrays=X, unit="user", ids=IDS), r"ids: user .* has the rows \d+ and \d+; one user"),
        (lambda: Stream(rows=X, unit="user", ids=[*range(29), 3]), "has the rows 3 and 29"),
        (lambda: planned(10, unit="two words"), "unit='two words'"),
        (lambda: trained(data.grouped({"x": X}, IDS, 2), planned(9, unit="example")), "the data is one user"),
    ],
)  # fmt: skip
def test_refusals(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_unique_ids_are_taken():
    assert Source(arrays=X, unit="user", ids=range(30)).examples == 30
    assert dataclasses.replace(planned(10), unit="site").ledger().unit == "site"
