"""Forms of gradients against a loop over `jax.grad`: embeddings, tied tables, loops, groups; their norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_oracle import B, check, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp import decoder, gradients
from jaxdp.gradients import costs, terms

pytestmark = pytest.mark.usefixtures("quick_compilation")


def forms_of(loss_fn, params, batch):
    return {
        name.replace("'", "").strip("[].") or "w": form
        for name, form, _, _ in gradients.explain(loss_fn, params, batch)
    }


def some_ids(*shape, below=40, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, below, shape))


# --- tables read by rows ----------------------------------------------------------------------------------


READ = {
    "take": lambda table, ids: jnp.take(table, ids, axis=0),
    "index": lambda table, ids: table[ids],
    "clip": lambda table, ids: table.at[ids].get(mode="clip"),
    "fill": lambda table, ids: table.at[ids].get(mode="fill", fill_value=0),
    "one_hot": lambda table, ids: jax.nn.one_hot(ids, table.shape[0]) @ table,
    "columns": lambda table, ids: table.T[:, ids].T,
    "slice": lambda table, ids: table[3:10] * jnp.sin(ids.astype(table.dtype))[:, None],
    "dynamic_slice": lambda table, ids: jax.lax.dynamic_slice_in_dim(table, ids[0] + 20, 7),
    "map": lambda table, ids: jax.vmap(lambda i: table[i])(ids),
}


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("read", READ)
def test_embeddings(read, double):
    with jax.enable_x64(double):
        table, ids = normal(40, 3), some_ids(B, 7)
        ids = ids.at[0, 1].set(ids[0, 0]).at[1, :3].set(5)
        if read in ("clip", "fill", "one_hot", "take"):
            ids = ids.at[0, 3].set(43)
        if read == "take":  # what lies outside is NaN
            ids = ids.at[0, 3].set(-1)

        def loss_fn(table, ids):
            return jnp.sum(jnp.sin(READ[read](table, ids) * (1 + jnp.arange(7.0))[:, None]))

        grads = check(loss_fn, table, ids, rtol=1e-10 if double else 1e-5, expect_factored=1)
        assert isinstance(grads, gradients.Scattered) and grads.shape == (B, 40, 3)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.uint8])
def test_one_hot_rows_of_ids_that_are_no_number_of_one_row(kind):
    """One between two rows is none of them, and one byte stands for several of 300."""
    ids = some_ids(B, 4, below=250).astype(kind)
    ids = ids.at[:, 1].add(0.5) if kind == jnp.float32 else ids

    def loss_fn(table, ids):
        chosen = (ids[:, None] == jax.lax.broadcasted_iota(kind, (1, 300), 1)).astype(table.dtype)
        return jnp.sum(jnp.sin(1 + chosen @ table) * (1 + jnp.arange(4.0))[:, None])

    check(loss_fn, normal(300, 3), ids)


def test_a_table_with_fewer_rows_than_tokens_stays_an_array():
    grads = check(
        lambda t, ids: jnp.sum(jnp.sin(t[ids])), normal(5, 3), some_ids(B, 7, below=5), expect_factored=0
    )
    assert grads.shape == (B, 5, 3)


# --- used twice -------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    size=st.integers(5, 30), width=st.integers(1, 5), tokens=st.integers(1, 6), double=st.booleans(),
    read=st.sampled_from(["take", "one_hot"]), turned=st.booleans(), built=st.booleans(),
)  # fmt: skip
def test_tied_tables(size, width, tokens, double, read, turned, built):
    """GPT-2's embedding that is the output too, however the table lies."""
    with jax.enable_x64(double), pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "cheapest", lambda *_: "built" if built else "gram")
        params = {"table": normal(size, width)}
        params = jax.tree.map(jnp.transpose, params) if turned else params

        def loss_fn(params, ids):
            table = params["table"].T if turned else params["table"]
            return -jnp.mean(jax.nn.log_softmax(jnp.tanh(READ[read](table, ids)) @ table.T)[:, 0])

        ids = some_ids(B, tokens, below=size)
        grads = check(loss_fn, params, ids, rtol=1e-10 if double else 1e-5, expect_factored=1)
        assert isinstance(grads["table"], gradients.Tied)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 6), positions=st.integers(1, 4), double=st.booleans(),
    built=st.booleans(),
)  # fmt: skip
def test_a_kernel_used_forwards_and_turned(rows, columns, positions, double, built):
    with jax.enable_x64(double), pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "cheapest", lambda *_: "built" if built else "gram")

        def loss_fn(w, x):
            h = jnp.tanh(x @ w)
            return jnp.sum(jnp.sin(h @ w.T + x @ w @ w.T))

        w, x = normal(rows, columns), normal(B, positions, rows)
        grads = check(loss_fn, w, x, rtol=1e-10 if double else 2e-5, expect_factored=1)
        assert isinstance(grads, gradients.Factored) and grads.left.shape[1] == 4 * positions


# --- loops ------------------------------------------------------------------------------------------------


def layers_loss(params, x, *, remat, unroll=1, reverse=False):
    def layer(x, p):
        heads = jnp.einsum("pk,hko->hpo", x, p["heads"])
        return jnp.tanh(x @ p["w"] + jnp.broadcast_to(p["b"], x.shape) + heads.mean(0)), None

    layer = jax.checkpoint(layer, prevent_cse=remat == "barrier") if remat else layer
    x, _ = jax.lax.scan(layer, x, params, unroll=unroll, reverse=reverse)
    return jnp.sum(x**2)


@pytest.mark.parametrize("remat", ["", "plain", "barrier"])
@pytest.mark.parametrize("double", [False, True])
def test_scanned_layers(remat, double):
    with jax.enable_x64(double):
        params = {"w": normal(3, 8, 8), "b": normal(3, 8), "heads": normal(3, 2, 8, 8)}

        def loss_fn(params, x):
            return layers_loss(params, x, remat=remat, reverse=bool(remat), unroll=1 + double)

        grads = check(loss_fn, params, normal(B, 2, 8), rtol=1e-10 if double else 2e-5, expect_factored=2)
        assert grads["w"].left.shape == (B, 3, 2, 8)


def test_no_layers():
    """A loop over none, and heads of which there are none."""
    params = {"w": normal(0, 8, 8), "b": normal(0, 8), "heads": normal(0, 2, 8, 8)}
    loss_fn = lambda params, x: layers_loss(params, x, remat="")  # noqa: E731
    _, grads = gradients.per_example(loss_fn)(params, normal(B, 2, 8))
    assert {name: leaf.shape for name, leaf in grads.items()} == {k: (B, *p.shape) for k, p in params.items()}


@pytest.mark.parametrize("double", [False, True])
def test_a_kernel_and_a_table_that_every_step_uses(double):
    """A recurrent network: what the carry adds up is one product, and one scatter."""
    with jax.enable_x64(double):
        params = {"w": normal(9, 9) / 3, "table": normal(40, 9), "b": normal(9)}

        def loss_fn(params, ids, decay=0.0):
            def step(h, i):
                return jnp.tanh(h @ params["w"] + params["table"][i] + params["b"]), h

            h, _ = jax.lax.scan(step, jnp.zeros(9), ids)
            return jnp.sum(h**2) + (decay * jnp.sum(params["w"] ** 2) if decay else 0)

        def decayed(params, ids):
            return loss_fn(params, ids, 0.1)

        ids = some_ids(B, 5)
        assert forms_of(decayed, params, ids)["w"] == "dense"  # the penalty's gradient is no product
        grads = check(loss_fn, params, ids, rtol=1e-10 if double else 1e-5, expect_factored=2)
        assert grads["w"].left.shape == (B, 5, 9) and isinstance(grads["table"], gradients.Scattered)


def test_loops_in_loops():
    params = normal(2, 3, 8, 8) / 3

    def loss_fn(params, x):
        def outer(x, p):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p)[0], None

        return jnp.sum(jax.lax.scan(outer, x, params)[0] ** 2)

    check(loss_fn, params, normal(B, 8), rtol=2e-5, expect_factored=1)


# --- groups -----------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 3), rows=st.integers(1, 5), columns=st.integers(1, 5), positions=st.integers(1, 4),
    form=st.sampled_from(["pk,hko->hpo", "hpk,hko->pho", "pk,kho->hpo", "hpk,hok->hpo"]), double=st.booleans(),
)  # fmt: skip
def test_heads(heads, rows, columns, positions, form, double):
    sizes = dict(h=heads, k=rows, o=columns, p=positions)
    left, right = (tuple(sizes[a] for a in part) for part in form.split("->")[0].split(","))
    with jax.enable_x64(double):

        def loss_fn(w, x):
            return jnp.sum(jnp.sin(jnp.einsum(form, x, w)))

        found = forms_of(loss_fn, normal(*right), normal(B, *left))
        check(loss_fn, normal(*right), normal(B, *left), rtol=1e-10 if double else 2e-5)
        assert positions > 1 or found == {"w": "gram"}


# --- norms ------------------------------------------------------------------------------------------------


SCALES = [1e-18, 1e-6, 1.0, 1e6, 1e15]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["gram", "built", "rows", "tied gram", "tied built", "groups gram", "groups built"]),
    seed=st.integers(0, 10**6), cancel=st.booleans(), equal=st.booleans(),
    of_left=st.sampled_from(SCALES), of_right=st.sampled_from(SCALES), spread=st.booleans(),
)  # fmt: skip
def test_no_norm_is_below_that_of_what_is_summed(kind, seed, cancel, equal, of_left, of_right, spread):
    """Positions that cancel, huge and tiny rows, equal ids: against the sum in float64 of what is kept."""
    rng = np.random.default_rng(seed)
    size, width, count = 1500 if seed % 4 == 0 else 40, 6, 5
    groups = (3,) if "groups" in kind else ()
    left, right, rows = (rng.normal(size=(1, *groups, count, n)) for n in (size, width, width))
    if spread:
        left, right, rows = (
            x * 10.0 ** rng.integers(-12, 12, (*x.shape[:-1], 1)) for x in (left, right, rows)
        )
    ids = rng.integers(-2, 3 if equal else size + 2, (1, count))
    if cancel:
        almost = 1 + 1e-6 * rng.normal(size=right[..., 1, :].shape)
        left[..., 0, :], right[..., 0, :] = left[..., 1, :], -right[..., 1, :] * almost
        ids[:, 0], rows[..., 0, :] = ids[:, 1], -rows[..., 1, :] * almost
    left, right, rows = (
        np.float32(of * x) for of, x in ((of_left, left), (of_right, right), (of_right, rows))
    )
    if "tied" in kind and cancel:  # the product takes away what is read
        ids[:] = ids[:, 2:3] % size
        left[:] = 0
        left[0, np.arange(count), ids[0]] = of_left
        rows = np.float32(-of_left * right * (1 + 1e-6 * rng.normal(size=right.shape)))
    norm = kind.split()[-1]
    read = gradients.Scattered(jnp.asarray(ids), jnp.asarray(rows), size, ())
    product = gradients.Factored(
        jnp.asarray(left), jnp.asarray(right), (), "built" if norm == "built" else "gram"
    )
    leaf = read if kind == "rows" else gradients.Tied(read, product) if "tied" in kind else product
    true = np.zeros((*groups, size, width))
    if kind != "rows":
        true += np.einsum("...pk,...po->...ko", left[0].astype(np.float64), right[0].astype(np.float64))
    if kind == "rows" or "tied" in kind:
        for i, row in zip(ids[0], rows[0], strict=True):
            if 0 <= i < size:
                true[i] += row
    true = (true**2).sum()
    found = float(leaf.squared_norm()[0])
    assert found >= true * (1 - 2e-6) or true < 1e-37 or (not np.isfinite(found) and true > 1e36)
    if 1e-30 < true < 1e36 and not cancel and not spread and not (equal and kind != "gram"):
        assert found <= true * 1.05


@pytest.mark.parametrize("width", [1500, 1024])
def test_inner_products_in_pieces_are_those_of_the_whole(width):
    left, right = np.random.default_rng(0).normal(size=(2, B, 3, width)).astype(np.float32)
    leaf = gradients.Factored(jnp.asarray(left), jnp.asarray(right[..., :4]), ())
    true = np.square(np.einsum("bpk,bpo->bko", left.astype(float), right[..., :4].astype(float))).sum((1, 2))
    np.testing.assert_allclose(leaf.squared_norm(), true, rtol=2e-3)
    assert (leaf.squared_norm() >= true).all()


def test_an_example_that_is_not_kept_adds_nothing():
    ids, rows = some_ids(2, 3), normal(2, 3, 4).at[1].set(jnp.nan)
    product = gradients.Factored(normal(2, 3, 40).at[1].set(jnp.inf), normal(2, 3, 4), ())
    for leaf in (
        gradients.Scattered(ids, rows, 40, ()),
        gradients.Tied(gradients.Scattered(ids, rows, 40, ()), product),
    ):
        total = gradients.weighted_sum(leaf, jnp.ones(2), jnp.asarray([True, False]))
        np.testing.assert_allclose(total, leaf.dense()[0], rtol=1e-5, atol=1e-6)
        assert not np.isfinite(gradients.squared_norm(leaf)[1])


# --- which form -------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 3), positions=st.integers(1, 300), rows=st.integers(1, 3000),
    columns=st.integers(1, 3000), platform=st.sampled_from(["cpu", "cuda"]),
)  # fmt: skip
def test_the_cheapest_form_that_memory_allows(groups, positions, rows, columns, platform):
    """Against all forms tried one by one, their costs counted anew."""
    sizes = costs.Sizes(groups, positions, rows, columns)
    kept, entry = rows * columns, 16
    all_forms = {
        "gram": positions**2 * (rows + columns),
        "built": kept * positions + entry / 2 * kept,
        "kept": entry * kept,
    }
    if kept > positions * (rows + columns) and 4 * kept > 768 * 1024:
        del all_forms["kept"]
    chosen = costs.cheapest(sizes, 4, platform)
    assert all_forms[chosen] == min(all_forms.values()) or positions == 1 == (chosen == "gram")


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_what_a_language_model_keeps(tied, scanned):
    """V = 32,768, d = 256, T = 128, four layers: 76 MiB of gradient an example, or 44 where it is tied."""
    model = jax.eval_shape(
        lambda: decoder.create(jax.random.key(0), vocabulary=32768, tied=tied, scanned=scanned).params
    )
    apply = decoder.create(
        jax.random.key(0), vocabulary=1, layers=1, width=256, tied=tied, scanned=scanned
    ).apply
    loss_fn = decoder.next_token_loss(decoder.Model(apply, model))
    table = gradients.explain(loss_fn, model, jax.ShapeDtypeStruct((2, 129), jnp.int32), platform="cpu")
    sizes = {name: size for name, _, size, _ in table}
    assert sum(sizes.values()) <= 28 * 2**20
    assert tied or sizes["['embedding']"] <= 0.3 * 2**20
    text = str(table)
    assert "['embedding']" in text and ("tied" if tied else "rows") in text and "25.4 MiB" in text


def test_layout_changes_in_as_few_steps():
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, steps = np.arange(24).reshape(2, 3, 4), []
        y = x
        for _ in range(rng.integers(0, 5)):
            if rng.integers(2):
                argument = tuple(int(n) for n in rng.permutation([2, 3, 4] if rng.integers(2) else [6, 4]))
                steps.append(("reshape", argument))
                y = y.reshape(argument)
            else:
                argument = tuple(int(n) for n in rng.permutation(y.ndim))
                steps.append(("transpose", argument))
                y = y.transpose(argument)
        few = terms.simplified(x.shape, tuple(steps))
        z = x
        for name, argument in few:
            z = z.reshape(argument) if name == "reshape" else z.transpose(argument)
        np.testing.assert_array_equal(z, y)
        assert len(few) <= len(steps)
