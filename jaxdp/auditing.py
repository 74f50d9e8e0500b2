"""What guesses prove: lower bounds on epsilon that hold with a stated confidence, whatever the mechanism.

An auditor who tells from the output alone whether an example was in the data has shown how much the output
reveals.  Two counts are turned into bounds here, neither of which assumes anything about the noise:

* many runs and one example: of independent outputs with and without it, the shares that a fixed rule takes
  for `with`.  (epsilon, delta) privacy allows hits <= e^epsilon false alarms + delta.
* one run and many examples: each was included by the toss of a coin, and so many of the guesses are right.
  Of an (epsilon, 0) mechanism each guess is right with probability e^epsilon / (1 + e^epsilon) at the most,
  whatever the others are (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846).

A rule is chosen on one half of the outputs and judged on the other, so that choosing costs no confidence.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from jaxdp import _validate

Scores = Mapping[str, Float[np.ndarray, " n"]]
_LARGEST = 60.0  # no count that fits in memory proves more
_SHARES = (1.0, 0.2)  # of the canaries to guess on, half from each end


class Rule(NamedTuple):
    """A decision from one output: `sign * score >= threshold`.

    Attributes:
      statistic: the name of the score.
      sign: 1 or -1.
      threshold: of `sign * score`.
      says_absent: whether meeting the threshold means that the example was NOT there.
    """

    statistic: str
    sign: int
    threshold: float
    says_absent: bool


class Rates(NamedTuple):
    """What a rule did on outputs that it was not chosen on.

    Attributes:
      rule: the rule.
      hits: how often it spoke where it should.
      false_alarms: how often it spoke where it should not.
      trials: outputs of each kind.
      least_hit_rate: lower confidence limit (Clopper-Pearson).
      most_false_alarm_rate: upper confidence limit.
    """

    rule: Rule
    hits: int
    false_alarms: int
    trials: int
    least_hit_rate: float
    most_false_alarm_rate: float


class Correct(NamedTuple):
    """Of one run: how many of so many guesses were right, and the epsilon that this refutes."""

    statistic: str
    correct: int
    guesses: int
    epsilon: float


def at_least(count, trials: int, alpha: float):
    """The lower Clopper-Pearson limit of a share: wrong with probability at most `alpha`.

    >>> bool(at_least(0, 100, 0.05) == 0), round(float(at_least(100, 100, 0.05)), 4)
    (True, 0.9705)
    """
    count = np.asarray(count)
    return np.where(
        count > 0, stats.beta.ppf(alpha, np.maximum(count, 1), trials - np.maximum(count, 1) + 1), 0.0
    )


def at_most(count, trials: int, alpha: float):
    """The upper Clopper-Pearson limit of a share: wrong with probability at most `alpha`."""
    return 1 - at_least(trials - np.asarray(count), trials, alpha)


def epsilon_of_rates(hit_rate, false_alarm_rate, delta: float):
    """The smallest epsilon that allows these rates: ln((hits - delta) / false alarms), at least 0."""
    excess = np.maximum(np.asarray(hit_rate, float) - delta, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(excess) - np.log(np.asarray(false_alarm_rate, float))
    return np.where(excess > 0, np.maximum(value, 0), 0.0)


def distance_of_rates(hit_rate, false_alarm_rate):
    """How far apart two unit normals must be for these rates: the mu of Gaussian differential privacy."""
    with np.errstate(invalid="ignore"):
        value = special.ndtri(hit_rate) - special.ndtri(false_alarm_rate)
    return np.where(np.isnan(value), 0.0, np.maximum(value, 0))


def _clean(scores: Float[np.ndarray, " n"]) -> np.ndarray:
    """An output that is not a number is an observation too, and not like any other."""
    scores = np.asarray(scores, np.float64)
    return np.where(np.isnan(scores), np.inf, scores)


def _thresholds(values: np.ndarray) -> np.ndarray:
    """Candidates among sorted values: dense at the ends, and one above all of them."""
    ranks = np.unique(np.geomspace(1, len(values), 120).astype(int)) - 1
    above = np.nextafter(values[-1], np.inf)
    return np.concatenate([values[ranks], values[len(values) - 1 - ranks], [above]])


def choose(
    present: Scores, absent: Scores, objective: Callable[[np.ndarray, np.ndarray], np.ndarray], alpha: float
) -> Rule:
    """The rule with the largest objective, over statistics, signs, thresholds and what it says.

    Args:
      present: scores of outputs with the example, [n] for each statistic.
      absent: the same without it.
      objective: of a hit rate and a false alarm rate, both as confidence limits at `alpha`.
      alpha: probability of error of each limit.
    """
    best, value = Rule(next(iter(present)), 1, math.inf, False), -math.inf
    for statistic in present:
        for sign in (1, -1):
            pair = [np.sort(sign * _clean(scores[statistic])) for scores in (present, absent)]
            candidates = np.concatenate([_thresholds(values) for values in pair])
            spoke = [len(values) - np.searchsorted(values, candidates) for values in pair]
            trials = len(pair[0])
            for says_absent, (hits, alarms) in ((False, spoke), (True, spoke[::-1])):
                values = objective(at_least(hits, trials, alpha), at_most(alarms, trials, alpha))
                k = int(np.argmax(values))
                if values[k] > value:
                    best, value = Rule(statistic, sign, float(candidates[k]), says_absent), values[k]
    return best


def judge(rule: Rule, present: Scores, absent: Scores, alpha: float) -> Rates:
    """What a rule does on outputs it was not chosen on; each limit is wrong with probability `alpha`."""
    spoke = [
        int(np.sum(rule.sign * _clean(scores[rule.statistic]) >= rule.threshold))
        for scores in (present, absent)
    ]
    hits, alarms = spoke[::-1] if rule.says_absent else spoke
    trials = len(present[rule.statistic])
    least, most = float(at_least(hits, trials, alpha)), float(at_most(alarms, trials, alpha))
    return Rates(rule, hits, alarms, trials, least_hit_rate=least, most_false_alarm_rate=most)


def distinguished(
    present: Scores, absent: Scores, objective: Callable[[np.ndarray, np.ndarray], np.ndarray], alpha: float
) -> Rates:
    """Chooses a rule on the first half of the outputs and judges it on the second.

    Formal guarantee: with probability at least 1 - alpha over the outputs, if they are independent, the rates
    of the chosen rule lie within both limits.
    """
    half = len(next(iter(present.values()))) // 2

    def part(scores, which):
        return {name: values[which] for name, values in scores.items()}

    first, second = slice(0, half), slice(half, None)
    rule = choose(part(present, first), part(absent, first), objective, alpha / 2)
    return judge(rule, part(present, second), part(absent, second), alpha / 2)


def discriminant(
    present: Float[np.ndarray, "n features"], absent: Float[np.ndarray, "n features"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Scores by the linear discriminant of the first half of the outputs, the one that chooses the rule.

    A direction in which outputs do not vary at all is the best there is, if the two kinds differ along it: its
    variance is taken as 1e-9 of an ordinary one.
    """
    half = len(present) // 2
    both = [np.nan_to_num(np.asarray(x, np.float64), posinf=0, neginf=0) for x in (present, absent)]
    means = [x[:half].mean(axis=0) for x in both]
    centred = np.concatenate([x[:half] - mean for x, mean in zip(both, means, strict=True)])
    scale = centred.std(axis=0)
    scale[scale == 0] = 1
    correlation = (centred / scale).T @ (centred / scale) / len(centred)
    weights = np.linalg.solve(correlation + 1e-9 * np.eye(len(scale)), (means[0] - means[1]) / scale) / scale
    return both[0] @ weights, both[1] @ weights


def one_run_p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are, at the most, if the mechanism is (epsilon, delta) private.

    Theorem 5.2 of arXiv 2305.08846: with f(v) the probability that a binomial of `guesses` trials and success
    probability e^epsilon / (1 + e^epsilon) is at least v, it is
    f(v) + 2 m delta max_i (f(v - i) - f(v)) / i, for m canaries each included with probability 1/2.
    """
    if not 0 <= correct <= guesses <= canaries:
        given = f"correct={correct}, guesses={guesses}, canaries={canaries}"
        raise ValueError(f"{given}: need correct <= guesses <= canaries")
    tail = stats.binom.sf(np.arange(correct, -1, -1) - 1, guesses, special.expit(epsilon))
    excess = (tail[1:] - tail[0]) / np.arange(1, correct + 1) if correct else np.zeros(1)
    return min(1.0, float(tail[0] + 2 * canaries * delta * excess.max()))


def one_run_epsilon(correct: int, guesses: int, canaries: int, delta: float, alpha: float) -> float:
    """The smallest epsilon that so many right guesses do not refute: wrong with probability `alpha`.

    >>> round(one_run_epsilon(100, 100, 1000, delta=0.0, alpha=0.05), 2)
    3.49
    """
    _validate.between(0, 1, alpha=alpha)

    def refuted(epsilon):
        return one_run_p_value(correct, guesses, canaries, epsilon, delta) < alpha

    low, high, step = 0.0, 0.0, 0.125
    while refuted(high):  # in steps, so that the first epsilon that stands is found even if a later one falls
        low, high = high, high + step
        if high > _LARGEST:
            return _LARGEST
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def guessed(scores: Scores, included: np.ndarray, delta: float, alpha: float) -> Correct:
    """The best of a few ways to guess in one run: the highest scores as included, the lowest as not.

    Args:
      scores: of every canary [m], for each statistic; a higher one speaks for inclusion.
      included: [m], the coins.
      delta: of the bound.
      alpha: probability that the bound is wrong.

    Formal guarantee: the mechanism is not (epsilon', delta) private for any epsilon' < epsilon, except with
    probability alpha; alpha is divided by the number of ways tried (Bonferroni).
    """
    included = np.asarray(included, bool)
    each, found = alpha / (len(scores) * len(_SHARES)), []
    for statistic, values in scores.items():
        order = np.argsort(_clean(values), kind="stable")
        for share in _SHARES:
            k = max(1, int(len(order) * share / 2))
            correct = int(included[order[-k:]].sum() + (~included[order[:k]]).sum())
            epsilon = one_run_epsilon(correct, 2 * k, len(order), delta, each)
            found.append(Correct(statistic, correct, 2 * k, epsilon))
    return max(found, key=lambda one: one.epsilon)
