"""Attacks on many victims through lanes."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attacked_network import (
    PARAMS,
    PUBLIC,
    SHAPE,
    errors,
    images,
    invert,
    leaked,
    loss_fn,
    network,
    setting,
)

from jaxdp import attacks
from jaxdp.attacks import (
    Attack,
    Leak,
    candidates,
    labels,
    leaks,
    objectives,
    portfolio,
    public,
    smoothing,
    starts,
)
from jaxdp.attacks.attack import SOLVERS, Inversion, fitted

pytestmark = pytest.mark.usefixtures("quick_compilation")


# Every objective, solver, start, label rule, prior, clip and leak appears, together with what it can meet.
COMBINATIONS = [
    (Leak(), dict(solver="lbfgs", start="patterned", labels="bias")),
    (Leak(clip="flat"), dict(objective="squared_l2", solver="adam", start="uniform", labels="template")),
    (
        Leak(clip="per_layer"),
        dict(objective="cosine", solver="adam", start="normal", labels="column_norm", tv=1e-3),
    ),
    (
        Leak(clip="per_layer_published", window=2),
        dict(objective="likelihood", start="mean", labels="column_norm", prior="gaussian"),
    ),
    (
        Leak(clip="automatic", batch_size=2),
        dict(objective="likelihood", start="constant", labels="template", prior="gaussian", box=False),
    ),
    (Leak(batch_size=2), dict(labels="bias", start="uniform", restarts=2)),
    (Leak(batch_size=2, local_steps=2), dict(labels="known", clip_aware=False)),
    (Leak(), dict(solver="adam", labels="signal", smoothing=0.5)),
]  # fmt: skip


COMBINATIONS = [(leak, Attack(**choices, iterations=3, memory=3)) for leak, choices in COMBINATIONS]


@pytest.mark.parametrize("leak, attack", COMBINATIONS, ids=[str(i) for i in range(len(COMBINATIONS))])
def test_every_combination_runs_and_lanes_are_independent(leak, attack):
    victims, x, _ = leaked(leak, count=3, noise_std=0.01)
    everyone = invert(leak, attack, victims)
    alone = invert(
        leak, attack, victims._replace(observed=first(victims.observed), labels=victims.labels[:1])
    )
    assert everyone.x.shape == x.shape and np.isfinite(everyone.x).all()
    if attack.box:
        assert everyone.x.min() >= 0 and everyone.x.max() <= 1
    assert everyone.iterations.max() <= attack.iterations
    for field, other in zip(everyone, alone, strict=True):
        np.testing.assert_array_equal(field[:1], other)


def first(tree):
    return jax.tree.map(lambda leaf: leaf[:1], tree)


def test_combinations_cover_every_choice():
    for field, names in (
        ("objective", objectives.NAMES),
        ("start", starts.NAMES),
        ("labels", labels.NAMES),
        ("prior", public.PRIORS),
        ("solver", SOLVERS),
    ):
        assert {getattr(attack, field) for _, attack in COMBINATIONS} == set(names)
    assert {leak.clip for leak, _ in COMBINATIONS} == set(leaks.CLIPS)


def test_one_program_serves_all_victims_bounds_noises_and_keys():
    traced = []

    def counted(params, example):
        traced.append(1)
        return loss_fn(params, example)

    attack = Attack(iterations=3, memory=3, labels="known")
    for count, noise, bound in ((1, 0.0, 1.0), (3, 0.1, 2.0), (5, 0.2, 0.5)):
        victims, _, _ = leaked(Leak(clip="flat"), count, params=network(count), noise_std=noise, bound=bound)
        counting = setting(Leak(clip="flat"), counted, public=None)
        attacks.invert_many(counting, attack, victims, jax.random.key(count), lanes=2)
        if count == 1:
            once = len(traced)
    assert once > 0 and len(traced) == once


def pairwise():
    """Choices such that every pair of values of two fields meets, beyond those that are compiled above."""
    fields = {
        "labels": labels.NAMES,
        "start": starts.NAMES,
        "objective": objectives.NAMES,
        "solver": SOLVERS,
        "prior": public.PRIORS,
    }
    missing = {
        frozenset([(a, i), (b, j)])
        for a, b in itertools.combinations(fields, 2)
        for i in fields[a]
        for j in fields[b]
    }
    while missing:
        chosen = dict(min(missing, key=sorted))
        for field, values in fields.items():
            items = list(chosen.items())
            gains = [sum(frozenset([(field, v), item]) in missing for item in items) for v in values]
            chosen.setdefault(field, values[int(np.argmax(gains))])
        missing -= {frozenset(pair) for pair in itertools.combinations(chosen.items(), 2)}
        yield Attack(**chosen, memory=2)


def test_every_pair_of_choices_traces_mapped_over_lanes():
    victims, _, _ = leaked(Leak(clip="flat"))
    seen = leaks.observations(victims, Leak(clip="flat"), 2)
    covered = list(pairwise())
    assert len(covered) >= len(labels.NAMES) * len(starts.NAMES)
    for attack in covered:
        lane = Inversion(*fitted(setting(Leak(clip="flat")), attack, PARAMS))

        def once(observation, key, lane=lane):
            data, z = lane.load(PARAMS, observation, PUBLIC, key)
            state = lane.solver.tick(lane.problem(PARAMS, data, PUBLIC, 0.5), lane.solver.init(z))
            return lane.decode(data, PUBLIC, state.z)

        x, y = jax.eval_shape(jax.vmap(once), seen, jax.random.split(jax.random.key(0), 2))
        assert x.shape == (2, 1, *SHAPE) and y.shape == (2, 1), attack


UNDEFENDED = Attack(iterations=400)


def relu_loss(params, example):
    """The same network with a ReLU."""
    x, y = example
    hidden = jax.nn.relu(x.reshape(-1) @ params["first"]["kernel"] + params["first"]["bias"])
    return -jax.nn.log_softmax(hidden @ params["second"]["kernel"] + params["second"]["bias"])[y]


def test_smoothing_leads_to_the_network_as_it_is():
    x, y = images(1)
    example = (jnp.asarray(x[0]), y[0])
    sharp = jax.jit(jax.grad(relu_loss))(PARAMS, example)
    slope = jax.jit(lambda width: jax.grad(smoothing.smoothed(relu_loss, width))(PARAMS, example))
    for width, tolerance in ((0.0, 1e-5), (1e-3, 1e-2)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), slope(width), sharp)  # noqa: B023
    wide = jax.jit(smoothing.smoothed(relu_loss, 1.0))(PARAMS, example)
    assert abs(wide - relu_loss(PARAMS, example)) > 1e-3
    assert smoothing.has_relu(relu_loss, PARAMS, example) and not smoothing.has_relu(loss_fn, PARAMS, example)


def test_undefended_gradients_give_the_images_away():
    victims, x, y = leaked(Leak(), count=6)
    result = invert(Leak(), UNDEFENDED, victims)
    np.testing.assert_array_equal(result.labels, y)
    assert (errors(result, x) < 0.03).all()


def test_own_parameters_for_each_victim():
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(network(t) for t in range(3)))
    victims, x, _ = leaked(Leak(), count=3, params=params, own_params=True)
    result = invert(Leak(), UNDEFENDED, victims)
    assert (errors(result, x) < 0.03).all()


def test_modelling_the_clip_recovers_what_it_hides():
    leak = Leak(clip="flat")
    victims, x, _ = leaked(leak, count=4, bound=0.05)
    norms = jax.vmap(leaks.norm)(victims.observed)
    np.testing.assert_allclose(norms, 0.05, rtol=1e-3)
    assert (errors(invert(leak, UNDEFENDED, victims), x) < 0.03).all()
    naive = dataclasses.replace(UNDEFENDED, clip_aware=False)
    assert (errors(invert(leak, naive, victims), x) > 0.1).all()


def test_knowing_the_noise_helps():
    attack = Attack(objective="likelihood", prior="gaussian", start="mean", labels="known", iterations=150)
    victims, x, _ = leaked(Leak(), count=6, noise_std=0.03)
    aware = errors(invert(Leak(), attack, victims), x)
    unaware = errors(invert(Leak(), dataclasses.replace(attack, noise_aware=False), victims), x)
    plain = errors(invert(Leak(), UNDEFENDED, victims), x)
    assert np.median(aware) < 0.7 * np.median(unaware)
    assert np.median(aware) < 0.7 * np.median(plain)


def test_a_window_weighs_each_step_by_its_noise():
    # Step 0 is nearly clean, the others hopeless: the window must be as good as step 0 alone.
    leak, attack = Leak(window=3), Attack(objective="likelihood", labels="known", iterations=400)
    stds = np.array([[1e-5, 3.0, 3.0]] * 4)
    victims, x, _ = leaked(leak, count=4, noise_std=stds)
    assert (errors(invert(leak, attack, victims), x) < 0.03).all()
    equal = dataclasses.replace(attack, objective="squared_l2")
    assert (errors(invert(leak, equal, victims), x) > 0.1).all()


def test_restarts_are_chosen_by_the_objective_alone():
    victims, _, _ = leaked(Leak(), count=3)
    many = invert(Leak(), Attack(iterations=20, restarts=3, start="uniform"), victims)
    one = invert(Leak(), Attack(iterations=20, restarts=1, start="uniform"), victims)
    assert (many.objective <= one.objective).all() and len(set(many.restart)) > 1


def test_float64_computes_in_double_precision():
    victims, x, _ = leaked(Leak(), count=2)
    attack = Attack(iterations=600, tolerance=1e-17)
    single, double = (
        invert(Leak(), dataclasses.replace(attack, float64=wide), victims) for wide in (False, True)
    )
    assert double.x.dtype == np.float64 and single.x.dtype == np.float32
    assert (errors(double, x) < 0.03).all()
    assert jnp.zeros(1).dtype == jnp.float32


def test_portfolio_takes_the_best_explanation_of_each_victim():
    victims, x, _ = leaked(Leak(), count=3)
    useless = Attack(iterations=1)
    result, chosen = portfolio.invert_portfolio(
        setting(Leak()), (useless, UNDEFENDED), victims, jax.random.key(0), lanes=2
    )
    np.testing.assert_array_equal(chosen, 1)
    assert (errors(result, x) < 0.03).all()


def refused():
    victims, pairs = leaked(Leak())[0], leaked(Leak(batch_size=2))[0]
    x, y = images(2)
    return [
        (lambda: Attack(objective="l7"), "objective='l7'"),
        (lambda: Attack(solver="newton"), "solver='newton'"),
        (lambda: Attack(iterations=0), "iterations=0"),
        (lambda: Attack(tv=-1.0), "tv=-1.0"),
        (lambda: Attack(smoothing=1.0), "needs adam"),
        (lambda: invert(Leak(batch_size=2), Attack(labels="signal"), pairs), "labels='signal'"),
        (lambda: Leak(clip="soft"), "clip='soft'"),
        (lambda: Leak(batch_size=0), "batch_size=0"),
        (lambda: invert(Leak(), Attack(prior="gaussian"), victims, public=None), "prior='gaussian'"),
        (lambda: invert(Leak(), Attack(), victims._replace(params={"w": np.ones(3)})), "tree"),
        (lambda: invert(Leak(), Attack(), victims._replace(own_params=True)), "leaf of shape"),
        (lambda: invert(Leak(batch_size=2), Attack(labels="column_norm"), pairs), "column_norm"),
        (lambda: attacks.observe(loss_fn, Leak(), PARAMS, x, y, jax.random.key(0)), "batch_size=1"),
        (lambda: invert(Leak(), Attack(), victims, classes=7), "classes=7: the last layer has 4"),
        (lambda: setting(Leak(), input_shape=(5, 5, 1)), "input_shape=(5, 5, 1)"),
        (lambda: public.gaussian(images(1)[0]), "at least 2"),
        (lambda: candidates.canaries(1), "k=1"),
    ]


def test_wrong_choices_and_shapes_are_refused_in_one_line():
    for call, word in refused():
        with pytest.raises(ValueError, match=re.escape(word)) as caught:
            call()
        assert "\n" not in str(caught.value)
