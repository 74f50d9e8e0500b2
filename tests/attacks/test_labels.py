"""Labels from gradients, and the last layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attacked_network import (
    CLASSES,
    PARAMS,
    PUBLIC,
    SHAPE,
    errors,
    images,
    invert,
    leaked,
    loss_fn,
    setting,
)

from jaxdp import attacks
from jaxdp.attacks import (
    Attack,
    Leak,
    labels,
    leaks,
)
from jaxdp.attacks.attack import fitted

pytestmark = pytest.mark.usefixtures("quick_compilation")


RULES = [rule for rule in labels.NAMES if rule != "known"]


@pytest.mark.parametrize("rule", RULES)
def test_labels_of_one_example_are_exact_without_noise(rule):
    victims, _, y = leaked(Leak(), count=12)
    found = infer(rule, Leak(), victims)
    assert (found == y).mean() == 1 if rule != "template" else (found == y).mean() >= 0.9


def infer(rule, leak, victims):
    seen = leaks.observations(victims, leak, len(victims.labels))
    known, _ = fitted(setting(leak), Attack(labels=rule), PARAMS)

    def one(observation):
        return labels.infer_labels(rule, known, leak, PARAMS, observation, PUBLIC)

    return np.asarray(jax.jit(jax.vmap(one))(jax.tree.map(jnp.asarray, seen)))


def test_column_norm_finds_labels_behind_signed_features():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(CLASSES), 50)
    y = rng.integers(0, CLASSES, 50)
    features = rng.normal(size=(50, 8))
    kernels = np.einsum("nf,nc->nfc", features, p - np.eye(CLASSES)[y])
    assert [int(labels.from_column_norm(jnp.asarray(k))[0]) for k in kernels] == y.tolist()


@pytest.mark.parametrize("rule", ["bias", "template"])
def test_label_counts_of_batches(rule):
    leak = Leak(batch_size=4)
    victims, _, y = leaked(leak, count=8)
    found = infer(rule, leak, victims)
    assert (found == np.sort(y, 1)).all(1).mean() >= 0.75


@pytest.mark.parametrize("clip", ["none", "flat", "automatic"])
def test_the_signal_read_off_the_leak_predicts_it_exactly(clip):
    leak = Leak(clip=clip)
    victims, x, y = leaked(leak, count=2, bound=0.05)
    seen = leaks.observations(victims, leak, 2)
    known, _ = fitted(setting(leak), Attack(labels="signal"), PARAMS)
    for i in range(2):
        observation = jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), seen)  # noqa: B023
        signal = labels.head_signal(known, observation)
        loss = labels.signal_loss(loss_fn, CLASSES)
        predicted = jax.jit(functools.partial(leaks.forward, loss, Leak()))(PARAMS, x[i], signal)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), predicted, observation.observed
        )
        assert int(jnp.argmin(signal[0])) == y[i, 0]


def test_the_signal_inverts_a_confident_network_where_the_loss_does_not():
    # A last layer 40 times as large: p is nearly one-hot, as after training.
    confident = PARAMS | {"second": jax.tree.map(lambda leaf: 40 * leaf, PARAMS["second"])}
    victims, x, _ = leaked(Leak(), count=8, params=confident)
    undefended = Attack(iterations=400)
    plain = errors(invert(Leak(), dataclasses.replace(undefended, labels="column_norm"), victims), x)
    signal = errors(invert(Leak(), dataclasses.replace(undefended, labels="signal"), victims), x)
    assert (signal < 0.03).all() and (plain > 0.1).any()


def head_params(order):
    """A hidden layer as wide as the classes, under names in either order, its kernel square."""
    keys = iter(jax.random.split(jax.random.key(1), 4))
    hidden = {
        "w": jax.random.normal(next(keys), (36, CLASSES)),
        "b": jax.random.normal(next(keys), (CLASSES,)),
    }
    last = {
        "w": jax.random.normal(next(keys), (CLASSES,) * 2),
        "b": jax.random.normal(next(keys), (CLASSES,)),
    }
    return dict(zip(order, (hidden, last), strict=True))


@pytest.mark.parametrize("order", [("a", "z"), ("z", "a")])
@pytest.mark.parametrize("classes_first", [False, True])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_last_layer_is_found_whatever_its_name_shape_and_orientation(order, classes_first, with_bias):
    params = head_params(order)
    if classes_first:
        params = {name: {"w": layer["w"].T, "b": layer["b"]} for name, layer in params.items()}
    if not with_bias:
        del params[order[1]]["b"]

    def loss(params, example):
        x, y = example
        kernel = {name: layer["w"].T if classes_first else layer["w"] for name, layer in params.items()}
        hidden = jnp.tanh(x.ravel() @ kernel[order[0]] + params[order[0]]["b"])
        return -jax.nn.log_softmax(hidden @ kernel[order[1]] + params[order[1]].get("b", 0.0))[y]

    head = labels.find_head(loss, params, SHAPE)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert paths[head.kernel] == f"['{order[1]}']['w']" and head.axis == (-2 if classes_first else -1)
    assert head.classes == CLASSES
    assert head.bias is None if not with_bias else paths[head.bias] == f"['{order[1]}']['b']"


def test_the_last_layer_of_a_confident_network_is_found():
    confident = PARAMS | {"second": jax.tree.map(lambda leaf: 40 * leaf, PARAMS["second"])}
    assert labels.find_head(loss_fn, confident, SHAPE) == labels.find_head(loss_fn, PARAMS, SHAPE)


def test_a_loss_without_a_last_layer_is_refused():
    def squared(params, example):
        x, y = example
        return jnp.square(
            x.ravel() @ params["first"]["kernel"][:, :CLASSES] - jax.nn.one_hot(y, CLASSES)
        ).sum()

    with pytest.raises(ValueError, match="head=None: no layer"):
        labels.find_head(squared, PARAMS, SHAPE)


@pytest.mark.parametrize("rule", ["bias", "signal"])
def test_without_a_bias_the_next_best_rule_reads_the_labels(rule):
    def no_bias(params, example):
        return loss_fn(params | {"second": params["second"] | {"bias": jnp.zeros(CLASSES)}}, example)

    params = PARAMS | {"second": {"kernel": PARAMS["second"]["kernel"]}}
    x, y = images(6, seed=2)
    victims = attacks.observe(no_bias, Leak(), params, x[:, None], y[:, None], jax.random.key(0))
    known, attack = fitted(setting(Leak(), no_bias), Attack(labels=rule, iterations=3), params)
    assert attack.labels == "column_norm" and known.head.bias is None
    found = attacks.invert_many(known, attack, victims, jax.random.key(0), lanes=2)
    np.testing.assert_array_equal(found.labels[:, 0], y)
    assert fitted(setting(Leak(batch_size=2), no_bias), Attack(labels=rule), params)[1].labels == "template"
