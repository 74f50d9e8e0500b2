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
from jaxtyping import Array, Float

from jaxdp.attacks import engine, priors
from jaxdp.attacks.attack import Attack, inversion
from jaxdp.attacks.engine import Reconstruction, Victims, invert
from jaxdp.attacks.given import Public
from jaxdp.attacks.leaks import Leak, Loss
from jaxdp.gradients import convolution

# Strongest first choices where public inputs are at hand, and without.
PLAIN = Attack(objective="squared_l2", solver="lbfgs", start="patterned")
COSINE = Attack(
    objective="cosine", solver="adam", start="normal", labels="column_norm", tv=1e-3, iterations=1000
)
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


@functools.lru_cache(maxsize=32)
def _judge(loss_fn, leak, judge, input_shape, classes, own_params):
    """The judge's objective at given inputs and labels, for lanes of victims."""
    if convolution.uses_patches("auto"):
        loss_fn = convolution.with_patches(loss_fn)
    lane = inversion(loss_fn, leak, judge, input_shape, classes)
    whitened = judge.prior == "gaussian"

    def one(params, observation, public, key, x, y):
        data, _ = lane.load(params, observation._replace(labels=y), public, key)
        data = data._replace(labels=y)
        flat = x.reshape(leak.batch_size, -1)
        z = priors.encode(public.prior if whitened else None, flat, y).ravel()
        return lane.problem(params, data, public).objective(z)

    return jax.jit(jax.vmap(one, in_axes=(0 if own_params else None, 0, None, None, 0, 0)))


def score(
    loss_fn: Loss,
    leak: Leak,
    judge: Attack,
    victims: Victims,
    x: Float[np.ndarray, "n b ..."],
    labels: np.ndarray,
    *,
    classes: int = 10,
    public: Public | None = None,
    own_params: bool = False,
    lanes: int | None = None,
) -> Float[np.ndarray, " n"]:
    """The objective of `judge` at given reconstructions: how well they explain what leaked.

    Args:
      loss_fn: as for `invert`.
      leak: what leaked.
      judge: the attack whose objective decides.
      victims: the observations.
      x: reconstructions [N, B, *input_shape].
      labels: theirs, [N, B].
      classes: number of labels.
      public: the attacker's public data.
      own_params: whether each victim has parameters of its own.
      lanes: victims at once.
    """
    input_shape = tuple(x.shape[2:])
    public = engine.grey(input_shape) if public is None else public
    rule = judge.labels if judge.labels == "signal" else "known"
    program = _judge(loss_fn, leak, replace(judge, labels=rule), input_shape, classes, own_params)
    observations = engine.observations(victims, leak, len(x))
    lanes, values = lanes or engine.default_lanes(), []
    for begin in range(0, len(x), lanes):
        rows = np.minimum(np.arange(begin, begin + lanes), len(x) - 1)
        params = engine.rows(jax.tree.map(np.asarray, victims.params), rows) if own_params else victims.params
        values.append(
            program(params, engine.rows(observations, rows), public, jax.random.key(0), x[rows], labels[rows])
        )
    return np.asarray(jnp.concatenate(values))[: len(x)]


def invert_portfolio(
    loss_fn: Loss,
    leak: Leak,
    attacks: Sequence[Attack],
    victims: Victims,
    key: Array,
    *,
    judge: Attack | None = None,
    public: Public | None = None,
    input_shape: tuple[int, ...],
    classes: int = 10,
    own_params: bool = False,
    lanes: int | None = None,
    progress: bool = False,
) -> tuple[Reconstruction, np.ndarray]:
    """The best of several attacks for each victim, by the judge's objective.

    Args:
      loss_fn: as for `invert`.
      leak: what leaked.
      attacks: the candidates.
      victims: the observations.
      key: randomness; candidate i uses fold_in(key, i).
      judge: whose objective decides; None for the likelihood, with the Gaussian prior where public inputs
        are known.
      public: the attacker's public data.
      input_shape: shape of one input.
      classes: number of labels.
      own_params: whether each victim has parameters of its own.
      lanes: minimisations at once.
      progress: show a progress bar for each attack.

    Returns:
      The reconstructions, their `objective` now the judge's, and which attack gave each, [N].

    Raises:
      ValueError: no attacks, or what `invert` refuses.
    """
    if not attacks:
        raise ValueError("attacks=(): a portfolio needs at least one")
    known = public is not None and public.prior is not None
    judge = judge or Attack(objective="likelihood", prior="gaussian" if known else "none")
    found, scores = [], []
    for i, attack in enumerate(attacks):
        result = invert(
            loss_fn, leak, attack, victims, jax.random.fold_in(key, i), input_shape=input_shape,
            classes=classes, public=public, own_params=own_params, lanes=lanes, progress=progress,
        )  # fmt: skip
        found.append(result)
        judged = score(
            loss_fn, leak, judge, victims, result.x, result.labels,
            classes=classes, public=public, own_params=own_params, lanes=lanes,
        )  # fmt: skip
        scores.append(judged)
    values = np.stack(scores)
    best = np.argmin(np.where(np.isfinite(values), values, np.inf), axis=0)
    rows = np.arange(values.shape[1])
    chosen = [np.stack(field)[best, rows] for field in zip(*found, strict=True)]
    return Reconstruction(*chosen)._replace(objective=values[best, rows]), best
