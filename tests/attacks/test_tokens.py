"""Tokens from a decoder's gradient: exactly without noise, not at all behind much, and what the spans are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import attacks, decoder
from jaxdp.attacks import Conditions, Leak, tokens
from jaxdp.attacks.tokens import evidence, metrics, ngrams, products, spans
from jaxdp.attacks.tokens.likelihood import example_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCABULARY, WIDTH, LENGTH, SIZE = 60, 32, 6, 3
FREQUENCY = 1 / np.arange(1, VOCABULARY + 1) / np.sum(1 / np.arange(1, VOCABULARY + 1))
QUICK = {"candidates": 20, "beam": 6}
PLAIN, AWARE = tokens.TokenAttack(noise_aware=False, **QUICK), tokens.TokenAttack(**QUICK)


def passages(count, seed):
    drawn = np.random.default_rng(seed).choice(VOCABULARY, (count, LENGTH), p=FREQUENCY)
    return drawn.astype(np.int32)


PRIOR = ngrams.learned(passages(500, seed=1), VOCABULARY)


@functools.cache
def model(tied=False, scanned=False):
    made = decoder.create(
        jax.random.key(0), vocabulary=VOCABULARY, width=WIDTH, layers=2, heads=2, tokens=LENGTH - 1, tied=tied,
        scanned=scanned, remat=scanned,
    )  # fmt: skip
    return decoder.next_token_loss(made), made.params


def leaked(loss_fn, params, truth, leak, std=0.0, seed=0, bound=1.0):
    """What leaks of one batch [B, L]."""
    victims = attacks.observe(
        example_loss(loss_fn), leak, params, truth[None], np.zeros((1, len(truth))), jax.random.key(seed),
        Conditions(std, bound),
    )  # fmt: skip
    return jax.tree.map(lambda leaf: leaf[0], victims.observed)


def recovered(loss_fn, params, truth, leak, attack, std=0.0, seed=0, bound=1.0):
    """The tokens behind it, in the order that fits."""
    found = tokens.recover(
        loss_fn, params, leaked(loss_fn, params, truth, leak, std, seed, bound), length=LENGTH,
        vocabulary=VOCABULARY, leak=leak, conditions=Conditions(std, bound), prior=PRIOR, attack=attack,
    )  # fmt: skip
    return metrics.matched(found.tokens, truth), found


@pytest.mark.parametrize("scanned", [False, True], ids=["written_out", "scanned"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_batch_comes_back_exactly(tied, scanned):
    truth = passages(SIZE, seed=3)
    truth[1, :3] = truth[0, :3]  # a common beginning
    found, rest = recovered(*model(tied, scanned), truth, Leak(batch_size=SIZE), PLAIN)
    np.testing.assert_array_equal(found, truth)
    assert rest.unexplained < 1e-8


@pytest.mark.parametrize("attack", [PLAIN, AWARE], ids=["plain", "noise_aware"])
def test_clipping_hides_nothing_and_a_passage_may_come_twice(attack):
    truth = passages(SIZE, seed=4)
    truth[2] = truth[0]
    leak = Leak(batch_size=SIZE, clip="flat")
    found, rest = recovered(*model(), truth, leak, attack, bound=0.1)
    np.testing.assert_array_equal(found, truth)
    assert rest.unexplained < 1e-8


def test_of_an_own_network_the_matrices_are_found_by_what_goes_into_them():
    def draw(seed, *shape):
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32) / WIDTH**0.5

    params = {"a": draw(0, 3 * WIDTH, WIDTH), "b": draw(1, 2, WIDTH, WIDTH), "c": draw(2, WIDTH, VOCABULARY)}
    params |= {"table": draw(3, VOCABULARY, WIDTH) * WIDTH**0.5}

    @jax.jit
    def mixed(params, x):
        query, key, value = jnp.split(x @ params["a"].T, 3, axis=-1)  # one matrix, stored the other way round
        scores = jnp.where(jnp.tril(jnp.ones((len(x), len(x)), bool)), query @ key.T / WIDTH, -1e9)
        return x + jax.nn.softmax(scores) @ value

    def loss_fn(params, ids):
        x = params["table"][ids[:-1]]
        x = mixed(params, x)
        x = x + jax.nn.relu(x @ params["b"][0]) @ params["b"][1]
        logits = x @ params["c"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[1:, None], axis=1).mean()

    layers = products.find(loss_fn, params, LENGTH, VOCABULARY)
    assert [layer.width for layer in layers.local] == [WIDTH] and len(layers.causal) == 3
    truth = passages(2, seed=5)
    truth[1, 1] = truth[0, 0]  # without positions a token is one direction, wherever it stands
    found, _ = recovered(loss_fn, params, truth, Leak(batch_size=2), PLAIN)
    np.testing.assert_array_equal(found, truth)


def written_out(params, ids):
    """The inputs of the first and the second layer's query, computed by NumPy in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def normalised(x, norm):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]

    layer, heads = p["layers"][0], 2
    x = p["embedding"][ids] + p["positions"][: len(ids)]
    first = normalised(x, layer["before_attention"])
    mixed = []
    for head in range(heads):
        part = slice(head * WIDTH // heads, (head + 1) * WIDTH // heads)
        query, key, value = (first @ layer[name][:, part] for name in ("query", "key", "value"))
        scores = query @ key.T / (WIDTH // heads) ** 0.5
        weights = np.exp(scores) * np.tril(np.ones_like(scores))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ value)
    x = x + np.concatenate(mixed, -1) @ layer["out"]
    h = normalised(x, layer["before_mlp"]) @ layer["up"] + layer["up_bias"]
    h = h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) / 2
    x = x + h @ layer["down"] + layer["down_bias"]
    return first, normalised(x, p["layers"][1]["before_attention"])


def test_shares_outside_of_spans_are_the_residuals_of_least_squares():
    loss_fn, params = model()
    truth = passages(SIZE, seed=6)
    gradient = leaked(loss_fn, params, truth, Leak(batch_size=SIZE))
    layers = products.find(loss_fn, params, LENGTH, VOCABULARY)
    second = tuple(layer for layer in layers.causal if len(layer.products) == 3)
    assert len(layers.local) == len(second) == 1
    count = SIZE * (LENGTH - 1)
    made = functools.partial(
        evidence.tested, loss_fn, params, gradient, length=LENGTH, tokens=count, noise_std=0.0,
        reference=passages(8, seed=7), aware=False,
    )  # fmt: skip
    tried = np.concatenate([truth, passages(9, seed=8)])
    for number, spans_of in enumerate((made(layers=layers.local), made(layers=second))):
        found = np.exp(-spans_of.scores(tried)) - 1e-6
        matrices = [gradient["layers"][number][name] for name in ("query", "key", "value")]
        basis = np.concatenate([np.asarray(m, np.float64) for m in matrices], axis=1)
        inputs = np.stack([written_out(params, ids[:-1])[number] for ids in tried]).reshape(-1, WIDTH)
        cut = np.linalg.lstsq(basis, inputs.T, rcond=1e-6)[0]
        left = np.square(basis @ cut - inputs.T).sum(0) / np.square(inputs).sum(1)
        np.testing.assert_allclose(found.ravel(), left, atol=1e-5)
        assert (found[:SIZE] < 1e-5).all() and np.median(found[SIZE:]) > 0.1


def test_squared_cosines_are_those_of_a_signal_in_noise():
    rng, (n, m), std = np.random.default_rng(0), (200, 500), 0.3
    left, right = (np.linalg.qr(rng.normal(size=(k, 3)))[0] for k in (n, m))
    signal = np.array([40.0, 12.0, 1.0])  # the last lies below what can be seen
    vectors, values, _ = np.linalg.svd((left * signal) @ right.T + std * rng.normal(size=(n, m)))
    seen = np.square((vectors.T @ left)[:3, :3]).max(1)
    found = spans.squared_cosines(values, n, m, std)
    np.testing.assert_allclose(found[:2], seen[:2], atol=0.03)
    assert found[2:].max() < 0.2 and spans.squared_cosines(values[2:] * 0.5, n, m, std).max() == 0


def test_directions_are_counted():
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(WIDTH, 7)) @ rng.normal(size=(7, 50))
    assert spans.span(gradient, tokens=20).share == 7
    assert spans.span(gradient, tokens=5).share == 5
    assert spans.span(gradient + 100 * rng.normal(size=gradient.shape), 20, noise_std=100.0).share < 1


def test_who_knows_the_noise_finds_more():
    """Where it hides most directions of the spans; behind little of it both find nearly all."""
    truth, leak = passages(SIZE, seed=9), Leak(batch_size=SIZE, clip="flat")
    shares = [
        np.mean([(recovered(*model(), truth, leak, a, std, seed)[0] == truth).mean() for seed in range(3)])
        for a in (PLAIN, AWARE)
        for std in (3e-3,)
    ]
    assert shares[1] > shares[0] + 0.1


@pytest.mark.parametrize("attack", [PLAIN, AWARE], ids=["plain", "noise_aware"])
def test_behind_much_noise_nothing_is_found(attack):
    """No more than by the commonest token at every place, which needs no gradient."""
    leak, truths = Leak(clip="flat"), passages(12, seed=10)[:, None]
    right = [
        (recovered(*model(), t, leak, attack, std=100.0, seed=i)[0] == t).mean() for i, t in enumerate(truths)
    ]
    assert np.mean(right) < FREQUENCY[0] + 4 * np.sqrt(FREQUENCY[0] / (12 * LENGTH))


def test_frequencies():
    prior = ngrams.learned(np.array([[0, 1, 2], [0, 1, 1]]), 4)
    np.testing.assert_allclose(np.exp(prior.unigram).sum(), 1)
    np.testing.assert_allclose(np.exp(prior.bigram).sum(1), 1, rtol=1e-5)
    assert prior.bigram[0].argmax() == 1
    by_hand = prior.unigram[0] + prior.bigram[0, 1] + prior.bigram[1, 3]
    np.testing.assert_allclose(prior.log_probability(np.array([[0, 1, 3]])), by_hand, rtol=1e-6)
    assert ngrams.uniform(4).log_probability(np.zeros((1, 3), int)) == pytest.approx(-3 * np.log(4))


def test_rouge_is_that_of_the_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2"])
    rng = np.random.default_rng(0)
    for _ in range(20):
        found, truth = rng.integers(0, 6, 9), rng.integers(0, 6, 7)
        said = scorer.score(*(" ".join(f"w{i}" for i in text) for text in (truth, found)))
        for n in (1, 2):
            assert metrics.rouge(found, truth, n) == pytest.approx(said[f"rouge{n}"].fmeasure)


def test_a_batch_has_no_order():
    truth = passages(4, seed=11)
    assert metrics.judged(truth[None, ::-1], truth[None])["tokens"] == 1


@pytest.mark.parametrize(
    "change, word",
    [
        ({"leak": Leak(window=2)}, "window=2"),
        ({"leak": Leak(local_steps=3)}, "local_steps=3"),
        ({"leak": Leak(batch_size=7)}, "batch_size=7"),
        ({"length": 1}, "length=1"),
        ({"prior": ngrams.uniform(5)}, "vocabulary=60"),
        ({"gradient": {}}, "gradient"),
    ],
)
def test_refusals(change, word):
    loss_fn, params = model()
    given = {"gradient": params, "length": LENGTH, "vocabulary": VOCABULARY} | change
    with pytest.raises(ValueError, match=word):
        tokens.recover(loss_fn, params, **given)


def test_a_network_that_takes_no_tokens_one_by_one_is_refused():
    def loss_fn(params, ids):
        return jnp.square(params["table"][ids].sum(0)[None] @ params["matrix"]).sum()

    params = {"table": np.ones((VOCABULARY, 4), np.float32), "matrix": np.ones((4, 4), np.float32)}
    with pytest.raises(ValueError, match="loss_fn: no product"):
        tokens.recover(loss_fn, params, params, length=LENGTH, vocabulary=VOCABULARY)
