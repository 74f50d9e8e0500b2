"""Several attacks on the same victims; for each victim the one that explains its observation best.

No solver wins everywhere: L-BFGS reaches the last digit on smooth networks, Adam with cosine distance still
moves on ReLU and trained ones, the posterior survives noise.  They are compared on one scale, the judge's
objective at what each returned, which is a quantity the attacker has; the truth is never looked at.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxdp.attacks import lanes as engine
from jaxdp.attacks.attack import Attack, fitted
from jaxdp.attacks.labels import usable
from jaxdp.attacks.lanes import Reconstruction, first_network, invert_many
from jaxdp.attacks.leaks import Victims, observations, precise
from jaxdp.attacks.public import Setting
from jaxdp.attacks.smoothing import has_relu
from jaxdp.gradients import squared_norm

# Strongest first choices where public inputs are at hand, and without.
PLAIN = Attack(objective="squared_l2", solver="lbfgs", start="patterned")
# Without any public inputs: one example's gradient, raw or clipped; ReLU networks; noise.
SIGNAL = Attack(objective="squared_l2", solver="lbfgs", start="constant", labels="signal", iterations=600)
RELU = Attack(
    objective="cosine", solver="adam", start="constant", labels="column_norm", tv=1e-3, learning_rate=0.05,
    smoothing=1.5, iterations=1000,
)  # fmt: skip
SMOOTH = Attack(
    objective="likelihood", solver="lbfgs", start="constant", labels="template", tv=10.0, iterations=400
)
POSTERIOR = Attack(
    objective="likelihood", solver="lbfgs", start="mean", labels="template", prior="gaussian", iterations=400
)


def bounded_by_themselves(victims: Victims) -> Victims:
    """Exact gradients as clipped to their own norms.

    Late in training a wrong guess has a gradient hundreds of times as long as the truth's; bounded there, it
    is compared by its direction, and the attack finds its way.
    """
    squares = sum(squared_norm(jnp.asarray(leaf)) for leaf in jax.tree.leaves(victims.observed))
    return victims._replace(conditions=victims.conditions._replace(bound=np.sqrt(np.asarray(squares))))


def takes_relu(setting: Setting, params: PyTree) -> bool:
    """Whether the network has a ReLU anywhere."""
    example = np.zeros(setting.input_shape, np.float32), np.zeros((), np.int32)
    return has_relu(setting.loss_fn, params, example)


def label_rule(rule: str, setting: Setting, given: bool) -> str:
    """The label rule `rule`, or what takes its place: given labels, and templates where no last layer is."""
    if rule == "signal" and setting.head is not None and setting.head.bias is not None:
        return rule
    if given:
        return "known"
    return "template" if setting.head is None else usable(rule, setting.head, setting.leak)


def for_rows(attack: Attack, input_shape: tuple[int, ...]) -> Attack:
    """The attack on inputs of a shape: without total variation, and from the mean, where they are no images."""
    if len(input_shape) == 3:
        return attack
    return replace(attack, tv=0.0, start="mean" if attack.start == "constant" else attack.start)


def suited(setting: Setting, *, noisy: bool, relu: bool, given: bool) -> list[Attack]:
    """The attacks that may win.

    Args:
      setting: what is attacked, its head found if it has one.
      noisy: whether noise was added.
      relu: whether the network has a ReLU.
      given: whether the labels are given.
    """
    informed = setting.known.prior is not None
    if noisy:
        chosen = [POSTERIOR if informed else SMOOTH]
    else:
        one = [SIGNAL, replace(RELU, restarts=4) if relu else replace(SMOOTH, labels="column_norm")]
        chosen = one if setting.leak.single else [replace(PLAIN, start="uniform", iterations=1200)]
        chosen += [replace(POSTERIOR, labels="bias")] if informed else []
    starts = {"constant": "mean"}  # the middle of the box
    return [
        replace(
            for_rows(attack, setting.input_shape),
            labels=label_rule(attack.labels, setting, given),
            start=starts.get(attack.start, attack.start),
        )
        for attack in chosen
    ]


@functools.lru_cache(maxsize=32)
def _judging(setting: Setting, judge: Attack, own_params: bool):
    """The judge's objective at given inputs and labels, for lanes of victims."""
    lane = engine.inversion(setting, judge)

    def one(params, observation, public, key, x, y):
        data, _ = lane.load(params, observation._replace(labels=y), public, key)
        data = data._replace(labels=y)
        return lane.problem(params, data, public).objective(lane.encoded(x, y, public))

    return jax.jit(precise(jax.vmap(one, in_axes=(0 if own_params else None, 0, None, None, 0, 0))))


def score(
    setting: Setting,
    judge: Attack,
    victims: Victims,
    x: Float[np.ndarray, "n b ..."],
    labels: np.ndarray,
    *,
    lanes: int | None = None,
) -> Float[np.ndarray, " n"]:
    """The objective of `judge` at given reconstructions: how well they explain what leaked.

    Args:
      setting: what is attacked.
      judge: the attack whose objective decides.
      victims: the observations.
      x: reconstructions [N, B, *input_shape].
      labels: theirs, [N, B].
      lanes: victims at once.
    """
    judge = judge if judge.labels == "signal" else replace(judge, labels="known")
    setting, judge = fitted(setting, judge, first_network(victims, setting.leak))
    program, own_params = _judging(setting.static, judge, victims.own_params), victims.own_params
    observed = observations(victims, setting.leak, len(x))
    lanes, values = lanes or engine.default_lanes(len(x)), []
    for begin in range(0, len(x), lanes):
        rows = np.minimum(np.arange(begin, begin + lanes), len(x) - 1)
        params = engine.rows(jax.tree.map(np.asarray, victims.params), rows) if own_params else victims.params
        chosen = engine.rows(observed, rows)
        values.append(program(params, chosen, setting.known, jax.random.key(0), x[rows], labels[rows]))
    return np.asarray(jnp.concatenate(values))[: len(x)]


def invert_portfolio(
    setting: Setting,
    attacks: Sequence[Attack],
    victims: Victims,
    key: Array,
    *,
    judge: Attack | None = None,
    enough: float = 0.0,
    lanes: int | None = None,
    progress: bool = False,
) -> tuple[Reconstruction, np.ndarray]:
    """The best of several attacks for each victim, by the judge's objective.

    Args:
      setting: what is attacked.
      attacks: the candidates.
      victims: the observations.
      key: randomness; candidate i uses fold_in(key, i).
      judge: whose objective decides; None for the likelihood, with the Gaussian prior where public inputs
        are known.
      enough: the later attacks are left out once every victim's objective is below.
      lanes: minimisations at once.
      progress: show a progress bar for each attack.

    Returns:
      The reconstructions, their `objective` now the judge's, and which attack gave each, [N].

    Raises:
      ValueError: no attacks, or what `invert_many` refuses.
    """
    if not attacks:
        raise ValueError("attacks=(): a portfolio needs at least one")
    prior = "none" if setting.known.prior is None else "gaussian"
    judge = judge or Attack(objective="likelihood", prior=prior)
    found, scores = [], []
    for i, attack in enumerate(attacks):
        once = jax.random.fold_in(key, i)
        found.append(invert_many(setting, attack, victims, once, lanes=lanes, progress=progress))
        scores.append(score(setting, judge, victims, found[-1].x, found[-1].labels, lanes=lanes))
        if (scores[-1] < enough).all():
            break
    values = np.stack(scores)
    best = np.argmin(np.where(np.isfinite(values), values, np.inf), axis=0)
    rows = np.arange(values.shape[1])
    chosen = [np.stack(field)[best, rows] for field in zip(*found, strict=True)]
    return Reconstruction(*chosen)._replace(objective=values[best, rows]), best
