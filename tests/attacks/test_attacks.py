"""The gradient leakage attacks: a small dense network keeps every program small."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from jaxdp import attacks
from jaxdp.attacks import (
    Attack,
    Leak,
    engine,
    inference,
    labels,
    leaks,
    objectives,
    portfolio,
    priors,
    smoothing,
    starts,
)
from jaxdp.attacks import (
    candidates as hypotheses,
)
from jaxdp.attacks import (
    expected_error as risk,
)
from jaxdp.attacks import (
    first_layer as analytic,
)
from jaxdp.attacks import (
    judge as evaluation,
)
from jaxdp.attacks.solvers import lbfgs
from jaxdp.attacks.solvers.levenberg_marquardt import levenberg_marquardt
from jaxdp.attacks.solvers.problem import Problem

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE, CLASSES = (6, 6, 1), 4


def loss_fn(params, example):
    """A two-layer network with a sigmoid."""
    x, y = example
    hidden = jax.nn.sigmoid(x.reshape(-1) @ params["first"]["kernel"] + params["first"]["bias"])
    logits = hidden @ params["second"]["kernel"] + params["second"]["bias"]
    return -jax.nn.log_softmax(logits)[y]


def network(seed):
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    uniform = lambda *shape: jax.random.uniform(next(keys), shape, minval=-0.5, maxval=0.5)  # noqa: E731
    return {
        "first": {"bias": uniform(24), "kernel": uniform(36, 24)},
        "second": {"bias": uniform(CLASSES), "kernel": uniform(24, CLASSES)},
    }


PARAMS = network(0)


def images(count, seed=0):
    """Smooth images with a label: blobs at places that depend on the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    grid = np.mgrid[:6, :6]
    centre = np.stack([1.5 + 2 * (y // 2), 1.5 + 2 * (y % 2)], 1) + rng.normal(0, 0.3, (count, 2))
    distance = np.square(grid[None] - centre[:, :, None, None]).sum(1)
    x = np.exp(-distance / (2 * rng.uniform(0.8, 1.6, count)[:, None, None] ** 2))
    return x[..., None].astype(np.float32), y.astype(np.int32)


PUBLIC = attacks.public_knowledge(*images(200, seed=1), classes=CLASSES)


def leaked(leak, count=2, params=PARAMS, **options):
    x, y = images(count * leak.batch_size, seed=2)
    x, y = x.reshape(count, leak.batch_size, *SHAPE), y.reshape(count, leak.batch_size)
    if leak.window > 1:
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(network(t) for t in range(leak.window)))
    return attacks.observe(loss_fn, leak, params, x, y, jax.random.key(3), **options), x, y


def invert(leak, attack, victims, **options):
    options = {"lanes": 2, "public": PUBLIC, **options}
    return attacks.invert(
        loss_fn, leak, attack, victims, jax.random.key(0), input_shape=SHAPE, classes=CLASSES, **options
    )


def errors(result, x):
    return np.sqrt(np.square(result.x - x).mean((-1, -2, -3)))


# Every objective, solver, start, label rule, prior, clip and leak appears, together with what it can meet.
COMBINATIONS = [
    (Leak(), dict(solver="lbfgs", start="patterned", labels="bias")),
    (Leak(clip="flat"), dict(objective="per_tensor", solver="adam", start="uniform", labels="template")),
    (
        Leak(clip="per_layer"),
        dict(objective="cosine", solver="signed_adam", start="normal", labels="column_norm", tv=1e-3),
    ),
    (
        Leak(clip="per_layer_published", window=2),
        dict(objective="likelihood", solver="levenberg_marquardt", start="mean", labels="row_sum",
             prior="gaussian"),
    ),
    (
        Leak(clip="automatic", batch_size=2),
        dict(objective="likelihood", start="constant", labels="template", prior="gaussian", box=False),
    ),
    (Leak(batch_size=2), dict(labels="joint", start="uniform", restarts=2)),
    (Leak(batch_size=2, local_steps=2), dict(labels="known", clip_aware=False)),
    (Leak(), dict(solver="adam", labels="signal", smoothing=0.5)),
]  # fmt: skip
COMBINATIONS = [
    (leak, Attack(**choices, iterations=3, conjugate_gradients=2, memory=3)) for leak, choices in COMBINATIONS
]


@pytest.mark.parametrize("leak, attack", COMBINATIONS, ids=[str(i) for i in range(len(COMBINATIONS))])
def test_every_combination_runs_and_lanes_are_independent(leak, attack):
    victims, x, _ = leaked(leak, count=3, noise_std=0.01)
    everyone = invert(leak, attack, victims)
    alone = invert(leak, attack, victims._replace(observed=first(victims.observed), labels=victims.labels[:1],
                                                  noise_std=victims.noise_std[:1]))  # fmt: skip
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
        ("prior", priors.NAMES),
        ("solver", attacks.attack.SOLVERS),
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
        attacks.invert(
            counted, Leak(clip="flat"), attack, victims, jax.random.key(count), input_shape=SHAPE,
            classes=CLASSES, lanes=2,
        )  # fmt: skip
        if count == 1:
            once = len(traced)
    assert once > 0 and len(traced) == once


def pairwise():
    """Choices such that every pair of values of two fields meets, beyond those that are compiled above."""
    fields = {
        "labels": labels.NAMES,
        "start": starts.NAMES,
        "objective": objectives.NAMES,
        "solver": attacks.attack.SOLVERS,
        "prior": priors.NAMES,
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
        yield Attack(**chosen, conjugate_gradients=2, memory=2)


def test_every_pair_of_choices_traces_mapped_over_lanes():
    victims, _, _ = leaked(Leak(clip="flat"))
    seen = engine.observations(victims, Leak(clip="flat"), 2)
    covered = list(pairwise())
    assert len(covered) >= len(labels.NAMES) * len(starts.NAMES)
    for attack in covered:
        lane = attacks.attack.inversion(loss_fn, Leak(clip="flat"), attack, SHAPE, CLASSES)

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


@pytest.mark.parametrize("clip", ["none", "flat", "automatic"])
def test_the_signal_read_off_the_leak_predicts_it_exactly(clip):
    leak = Leak(clip=clip)
    victims, x, y = leaked(leak, count=2, bound=0.05)
    seen = engine.observations(victims, leak, 2)
    for i in range(2):
        observation = jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), seen)  # noqa: B023
        signal = inference.head_signal(leak, observation, CLASSES)
        loss = inference.signal_loss(loss_fn, CLASSES)
        predicted = jax.jit(functools.partial(leaks.forward, loss, Leak()))(PARAMS, x[i], signal)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), predicted, observation.observed
        )
        assert int(jnp.argmin(signal[0])) == y[i, 0]


def test_the_signal_inverts_a_confident_network_where_the_loss_does_not():
    # A last layer 40 times as large: p is nearly one-hot, as after training.
    confident = PARAMS | {"second": jax.tree.map(lambda leaf: 40 * leaf, PARAMS["second"])}
    victims, x, _ = leaked(Leak(), count=8, params=confident)
    plain = errors(invert(Leak(), dataclasses.replace(UNDEFENDED, labels="column_norm"), victims), x)
    signal = errors(invert(Leak(), dataclasses.replace(UNDEFENDED, labels="signal"), victims), x)
    assert (signal < 0.03).all() and (plain > 0.1).any()


def rows_of_features(count, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count).astype(np.int32)
    return (rng.normal(size=(count, 9)) + 0.5 * y[:, None]).astype(np.float32), y


def test_tabular_rows_are_attacked_in_their_own_box_and_judged_by_their_own_thresholds():
    public = attacks.public_knowledge(*rows_of_features(100, 1), classes=CLASSES)
    x, y = rows_of_features(4, 2)
    params = network(0) | {
        "first": {"bias": PARAMS["first"]["bias"], "kernel": PARAMS["first"]["kernel"][:9]}
    }
    attack = Attack(start="mean", labels="column_norm", iterations=150)
    row, found = evaluation.evaluate(
        loss_fn, Leak(), attack, params, x[:, None], y[:, None], jax.random.key(0), public=public,
        classes=CLASSES, lanes=2,
    )  # fmt: skip
    assert row["exact"].estimate == 1 and found.x.min() < 0
    assert (found.x >= np.asarray(public.lower)).all() and (found.x <= np.asarray(public.upper)).all()
    off = found._replace(x=found.x + 0.2)
    judged = evaluation.judge(off, x[:, None], y[:, None], public.mean)
    assert judged["exact"].estimate == 0 and judged["recognisable"].estimate == 1 and "ssim" not in judged


def test_undefended_gradients_give_the_images_away():
    victims, x, y = leaked(Leak(), count=6)
    result = invert(Leak(), UNDEFENDED, victims)
    np.testing.assert_array_equal(result.labels, y)
    assert (errors(result, x) < 0.03).all()


def test_own_parameters_for_each_victim():
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(network(t) for t in range(3)))
    victims, x, _ = leaked(Leak(), count=3, params=params, own_params=True)
    result = invert(Leak(), UNDEFENDED, victims, own_params=True)
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
        loss_fn, Leak(), (useless, UNDEFENDED), victims, jax.random.key(0), input_shape=SHAPE,
        classes=CLASSES, lanes=2, public=PUBLIC,
    )  # fmt: skip
    np.testing.assert_array_equal(chosen, 1)
    assert (errors(result, x) < 0.03).all()


def test_evaluation_matches_batches_and_declares_the_knowledge():
    leak = Leak(batch_size=2, clip="flat")
    x, y = images(4, seed=2)
    row, _ = evaluation.evaluate(
        loss_fn, leak, Attack(iterations=5), PARAMS, x.reshape(2, 2, *SHAPE), y.reshape(2, 2),
        jax.random.key(0), public=PUBLIC, classes=CLASSES, lanes=2,
    )  # fmt: skip
    assert row["exact"].low <= row["exact"].estimate <= row["exact"].high and row["rmse_mean_image"] < 0.3
    truth = engine.Reconstruction(
        x.reshape(2, 2, *SHAPE)[:, ::-1],
        y.reshape(2, 2)[:, ::-1],
        np.zeros(2),
        np.zeros(2, int),
        np.zeros(2, int),
    )
    perfect = evaluation.judge(truth, x.reshape(2, 2, *SHAPE), y.reshape(2, 2), PUBLIC.mean)
    assert perfect["rmse"] == 0 and perfect["labels"] == 1 and perfect["exact"].estimate == 1
    text = str(evaluation.knowledge(leak, portfolio.POSTERIOR, noise_std=0.5, bound=2.0))
    for fact in (
        "flat, bound 2.0",
        "standard deviation 0.5",
        "batch size: 2",
        "inferred by template",
        "Gaussian",
    ):
        assert fact in text


@pytest.mark.parametrize("name", objectives.NAMES)
def test_objective_gradients_agree_with_finite_differences(name):
    with jax.enable_x64(True):
        leak = Leak(clip="flat", window=2)
        params = jax.tree.map(lambda *p: np.stack(p).astype(float), network(0), network(1))
        x, y = images(1)
        forward = jax.jit(lambda x: leaks.forward(loss_fn, leak, params, x, y, 0.5))
        target = objectives.target(name, forward(jnp.asarray(x, float)), jnp.array([0.1, 0.3]), window=2)

        @jax.jit
        def objective(z):
            predicted = leaks.forward(loss_fn, leak, params, z.reshape(1, *SHAPE), y, 0.5)
            return objectives.half_square(objectives.residual(name, predicted, target, window=2))

        assert objective(jnp.asarray(x, float).ravel()) < 1e-12
        z = jax.random.uniform(jax.random.key(0), (36,))
        direction = jax.random.normal(jax.random.key(1), (36,))
        h = 1e-5
        difference = (objective(z + h * direction) - objective(z - h * direction)) / (2 * h)
        np.testing.assert_allclose(jax.jit(jax.grad(objective))(z) @ direction, difference, rtol=1e-5)


def minimise(solver, problem, z, ticks):
    def body(state, _):
        return jax.lax.cond(state.done, lambda s: s, lambda s: solver.tick(problem, s), state), None

    return jax.jit(lambda z: jax.lax.scan(body, solver.init(z), length=ticks)[0])(z)


def rosenbrock(z):
    return (100 * jnp.square(z[1:] - jnp.square(z[:-1])) + jnp.square(1 - z[:-1])).sum()


def test_lbfgs_minimises_rosenbrock_in_a_box_as_scipy_does():
    with jax.enable_x64(True):
        start = np.linspace(-1.5, 1.5, 6)
        for lower, upper in ((-np.inf, np.inf), (-1.8, 0.6)):
            state = minimise(lbfgs.lbfgs(10, stall=0.0), Problem(rosenbrock, None, lower, upper), start, 400)
            scipy = optimize.minimize(
                lambda z: float(rosenbrock(z)), start, jac=jax.grad(rosenbrock), method="L-BFGS-B",
                bounds=[(lower, upper)] * 6, options=dict(ftol=1e-15, gtol=1e-10, maxiter=1000),
            )  # fmt: skip
            np.testing.assert_allclose(state.z, scipy.x, atol=1e-5)


def test_lbfgs_solves_an_ill_conditioned_quadratic_in_few_evaluations():
    scales = jnp.logspace(0, 4, 12)
    problem = Problem(lambda z: 0.5 * (scales * jnp.square(z - 1)).sum())
    state = minimise(lbfgs.lbfgs(20), problem, jnp.zeros(12), 120)
    np.testing.assert_allclose(state.z, 1, atol=1e-2)


def test_lbfgs_steps_back_from_infinity():
    state = minimise(lbfgs.lbfgs(), Problem(lambda z: (z - jnp.log(z)).sum()), jnp.full(3, 20.0), 60)
    np.testing.assert_allclose(state.z, 1, atol=1e-3)


def test_levenberg_marquardt_solves_nonlinear_least_squares():
    residual = lambda z: [10 * (z[1:] - jnp.square(z[:-1])), 1 - z[:-1]]  # noqa: E731
    problem = Problem(lambda z: objectives.half_square(residual(z)), residual)
    state = minimise(levenberg_marquardt(10), problem, jnp.linspace(-1.5, 1.5, 6), 60)
    np.testing.assert_allclose(state.z, 1, atol=1e-3)


def test_forward_is_the_plain_loop():
    (x, y), gradient = images(3), jax.jit(jax.grad(loss_fn))
    for clip in leaks.CLIPS:
        each = [gradient(PARAMS, (x[i], y[i])) for i in range(3)]
        clipped = [clip_by_hand(clip, gradient, 0.2) for gradient in each]
        expected = jax.tree.map(lambda *g: sum(g) / 3, *clipped)
        forward = functools.partial(leaks.forward, loss_fn, Leak(clip=clip, batch_size=3))
        found = jax.jit(forward)(PARAMS, x, y, 0.2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, expected)


def clip_by_hand(clip, gradient, bound):
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(gradient)]
    total = np.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
    if clip == "flat":
        leaves = [leaf * min(1, bound / total) for leaf in leaves]
    elif clip == "automatic":
        leaves = [leaf * bound / (total + 0.01) for leaf in leaves]
    elif clip.startswith("per_layer"):
        bound = bound if clip == "per_layer_published" else bound / 2
        leaves = [leaf * min(1, bound / np.sqrt(np.square(leaf).sum())) for leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(gradient), leaves)


def test_updates_are_the_plain_loop():
    (x, y), gradient = images(2), jax.jit(jax.grad(loss_fn))
    current = PARAMS
    for _ in range(3):
        gradients = [gradient(current, (x[i], y[i])) for i in range(2)]
        current = jax.tree.map(lambda p, a, b: p - 0.5 * (a + b) / 2, current, *gradients)
    expected = jax.tree.map(lambda start, end: (start - end) / (3 * 0.5), PARAMS, current)
    found = leaks.forward(loss_fn, Leak(batch_size=2, local_steps=3), PARAMS, x, y, learning_rate=0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_observation_noise_has_the_stated_deviation():
    std = np.array([0.3, 0.6])
    (noised, _, _), (clean, _, _) = (leaked(Leak(), 2, noise_std=s) for s in (std, 0.0))
    noise = jax.tree.map(jnp.subtract, noised.observed, clean.observed)
    rows = [np.concatenate([leaf[i].ravel() for leaf in jax.tree.leaves(noise)]) for i in range(2)]
    for row, sigma in zip(rows, std, strict=True):
        assert stats.kstest(row, "norm", args=(0, sigma)).pvalue > 1e-3
        for factor in (2 / 3, 3 / 2):
            assert stats.kstest(row, "norm", args=(0, sigma * factor)).pvalue < 1e-3
    assert abs(np.corrcoef(rows)[0, 1]) < 0.2


RULES = [rule for rule in labels.NAMES if rule not in ("known", "joint")]


@pytest.mark.parametrize("rule", RULES)
def test_labels_of_one_example_are_exact_without_noise(rule):
    victims, _, y = leaked(Leak(), count=12)
    found = infer(rule, Leak(), victims)
    assert (found == y).mean() == 1 if rule != "template" else (found == y).mean() >= 0.9


def infer(rule, leak, victims):
    seen = engine.observations(victims, leak, len(victims.labels))

    def one(observation):
        return inference.infer_labels(rule, loss_fn, leak, PARAMS, observation, PUBLIC, CLASSES)

    return np.asarray(jax.jit(jax.vmap(one))(jax.tree.map(jnp.asarray, seen)))


def test_column_norm_finds_labels_behind_signed_features():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(CLASSES), 50)
    y = rng.integers(0, CLASSES, 50)
    features = rng.normal(size=(50, 8))
    kernels = np.einsum("nf,nc->nfc", features, p - np.eye(CLASSES)[y])
    assert [int(labels.from_column_norm(jnp.asarray(k))[0]) for k in kernels] == y.tolist()
    assert [int(labels.from_row_sum(jnp.asarray(k))[0]) for k in kernels] != y.tolist()


@pytest.mark.parametrize("rule", ["bias", "template"])
def test_label_counts_of_batches(rule):
    leak = Leak(batch_size=4)
    victims, _, y = leaked(leak, count=8)
    found = infer(rule, leak, victims)
    assert (found == np.sort(y, 1)).all(1).mean() >= 0.75


def test_first_layer_gives_the_input_exactly():
    victims, x, _ = leaked(Leak(), count=1)
    kernel, bias = analytic.first_layer(PARAMS, SHAPE)
    leaves = [leaf[0] for leaf in jax.tree.leaves(victims.observed)]
    np.testing.assert_allclose(analytic.exact_input(leaves[kernel], leaves[bias]), x.ravel(), atol=1e-5)
    rows = analytic.row_ratios(leaves[kernel], leaves[bias])
    np.testing.assert_allclose(np.median(rows, 0), x.ravel(), atol=1e-4)
    with pytest.raises(ValueError, match="no dense layer"):
        analytic.first_layer(PARAMS, (5, 5, 1))


def test_noisy_first_layer_is_never_worse_than_the_prior_mean():
    kernel, bias = analytic.first_layer(PARAMS, SHAPE)
    means = {}
    for std in (1e-3, 1e-2, 1e-1, 1.0):
        victims, x, _ = leaked(Leak(), count=20, noise_std=std)
        leaves = jax.tree.leaves(victims.observed)
        noisy = functools.partial(analytic.noisy_input, noise_std=std, prior=PUBLIC.prior)
        found = jax.jit(jax.vmap(noisy))(leaves[kernel], leaves[bias])
        plain = jax.jit(jax.vmap(analytic.exact_input))(leaves[kernel], leaves[bias])
        square = lambda guess: float(np.square(guess - x.reshape(20, -1)).mean())  # noqa: B023, E731
        means[std] = square(found), square(plain), square(np.broadcast_to(PUBLIC.mean.ravel(), (20, 36)))
    assert all(found <= 1.1 * prior for found, _, prior in means.values()), means
    assert all(found <= 1.01 * plain for found, plain, _ in means.values()), means


def test_risk_is_the_posterior_of_a_linear_leak():
    # For a linear map the linearisation is exact: compare with the dense formula, and with its limits.
    matrix = np.random.default_rng(0).normal(size=(50, 36)).astype(np.float32)
    prior = PUBLIC.prior
    covariance = np.asarray(prior.factor, float) @ np.asarray(prior.factor, float).T
    for std in (0.1, 1.0):
        posterior = np.linalg.inv(matrix.T @ matrix / std**2 + np.linalg.inv(covariance))
        found = risk.expected_mse(jnp.asarray(matrix.T @ matrix), [std], prior)
        np.testing.assert_allclose(found, np.trace(posterior) / 36, rtol=2e-2)
    limits = risk.expected_mse(jnp.asarray(matrix.T @ matrix), [1e-6, 1e6], prior)
    np.testing.assert_allclose(limits, [0, np.trace(covariance) / 36], atol=1e-6, rtol=1e-3)


def test_information_is_the_jacobians_square():
    x, y = images(1)
    information = functools.partial(risk.information, loss_fn, Leak(clip="flat"))
    found = jax.jit(information)(PARAMS, jnp.asarray(x[0]), jnp.asarray(y[0]), 0.1)
    forward = jax.jit(lambda z: leaks.forward(loss_fn, Leak(clip="flat"), PARAMS, z[None], y, 0.1))
    v = jax.random.normal(jax.random.key(0), SHAPE)
    h = 1e-2
    plus, minus = (forward(jnp.asarray(x[0]) + s * h * v) for s in (1, -1))
    change = jax.tree.map(lambda a, b: (a - b) / (2 * h), plus, minus)
    assert float(v.ravel() @ found @ v.ravel()) == pytest.approx(float(leaks.square_norm(change)), rel=1e-2)


def test_informed_adversary_stays_below_the_bound_and_near_it():
    k, steps, std = 10, 20, 3.0
    hits = hypotheses.informed_adversary(
        jnp.asarray(np.broadcast_to(hypotheses.canaries(k), (steps, k, k)), jnp.float32),
        jnp.full(steps, std), jax.random.key(0), trials=4000,
    )  # fmt: skip
    rate = np.asarray(hits).mean(0)
    mu = np.sqrt(np.arange(1, steps + 1)) / std
    bound = stats.norm.cdf(stats.norm.ppf(1 / k) + mu)
    slack = 4 * np.sqrt(bound * (1 - bound) / 4000)
    assert (rate <= bound + slack).all()
    assert (rate[4:] >= 0.1 + 0.5 * (bound[4:] - 0.1)).all()


def test_informed_adversary_is_the_explicit_likelihood():
    rng = np.random.default_rng(0)
    gradients, steps = rng.normal(size=(3, 5)), 2
    gram = np.broadcast_to(gradients @ gradients.T, (steps, 3, 3))
    cross, grams = jnp.asarray(gram[:, 1], jnp.float32), jnp.asarray(gram, jnp.float32)
    draw = jax.jit(jax.vmap(lambda key: hypotheses.log_likelihoods(cross, grams, jnp.array([1.0, 2.0]), key)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    noise = rng.normal(size=(4000, steps, 5)) * np.array([1.0, 2.0])[:, None]
    observed = gradients[1] + noise
    ratios = (observed @ gradients.T - np.square(gradients).sum(1) / 2) / np.array([1.0, 4.0])[:, None]
    expected = np.cumsum(ratios, axis=1)
    for step, candidate in itertools.product(range(steps), range(3)):
        assert stats.ks_2samp(found[:, step, candidate], expected[:, step, candidate]).pvalue > 1e-4
    np.testing.assert_allclose(np.cov(found[:, -1].T), np.cov(expected[:, -1].T), rtol=0.15, atol=0.1)


def test_labels_leak_more_with_every_look_and_less_with_more_noise():
    x, y = images(60, seed=2)
    public_x, public_y = images(100, seed=1)
    share = {}
    for std in (1.0, 8.0, 1000.0):
        found = hypotheses.label_leakage(
            loss_fn, "flat", [PARAMS] * 30, x, y, public_x, public_y, np.full(30, std, np.float32),
            jax.random.key(0), bound=1.0, classes=CLASSES,
        )  # fmt: skip
        share[std] = (found == y[:, None]).mean(0)
    assert share[1.0][-1] > share[1.0][0] and share[1.0][-1] > 0.9
    assert share[1.0][-1] > share[8.0][-1] > share[1000.0][-1] - 0.05
    assert share[1000.0][-1] < 0.5


def refused():
    victims, pairs = leaked(Leak())[0], leaked(Leak(batch_size=2))[0]
    x, y = images(2)
    return [
        (lambda: Attack(objective="l7"), "objective='l7'"),
        (lambda: Attack(solver="newton"), "solver='newton'"),
        (lambda: Attack(iterations=0), "iterations=0"),
        (lambda: Attack(tv=-1.0), "tv=-1.0"),
        (lambda: Attack(solver="levenberg_marquardt", tv=0.1), "total variation"),
        (lambda: Attack(smoothing=1.0), "needs adam"),
        (lambda: invert(Leak(batch_size=2), Attack(labels="signal"), pairs), "labels='signal'"),
        (lambda: Leak(clip="soft"), "clip='soft'"),
        (lambda: Leak(batch_size=0), "batch_size=0"),
        (lambda: invert(Leak(), Attack(prior="gaussian"), victims, public=None), "prior='gaussian'"),
        (lambda: invert(Leak(), Attack(), victims._replace(params={"w": np.ones(3)})), "tree"),
        (lambda: invert(Leak(), Attack(), victims, own_params=True), "leaf of shape"),
        (lambda: invert(Leak(batch_size=2), Attack(labels="row_sum"), pairs), "row_sum"),
        (lambda: attacks.observe(loss_fn, Leak(), PARAMS, x, y, jax.random.key(0)), "batch_size=1"),
        (lambda: labels.find_head(PARAMS, 7), "classes=7"),
        (lambda: priors.gaussian(images(1)[0]), "at least 2"),
        (lambda: hypotheses.canaries(1), "k=1"),
    ]


def test_wrong_choices_and_shapes_are_refused_in_one_line():
    for call, word in refused():
        with pytest.raises(ValueError, match=word) as caught:
            call()
        assert "\n" not in str(caught.value)
