"""What a run's privacy is, in words that can be held against it, and as data."""

import dataclasses

from jaxdp import _validate
from jaxdp.accounting._epsilon import Claim, Epsilon, rounded
from jaxdp.accounting.gdp import FALSE_POSITIVE_RATES, Gdp, gdp
from jaxdp.accounting.ledger import Filter, Ledger

ADJACENCY_IN_WORDS = {
    "add_or_remove_one": "data sets that differ in one example more or less",
    "replace_one": "data sets of the same size that differ in one example, exchanged for any other",
    "zero_out": "data sets that differ in one example, whose part in every sum (the gradient, and a count "
    "where there is one) is replaced by zero",
}
_SAMPLING_ASSUMED = {
    "poisson": "each example was drawn for each step on its own, with the stated probability, and the "
    "draws are secret; no batch outgrew its places, which one does with probability below 1e-9 a run",
    "truncated_poisson": "each example was drawn for each step on its own, with the stated probability, and of "
    "more than the limit a uniformly random part of that size was kept; both draws are secret",
    "without_replacement": "each batch was drawn uniformly without replacement, afresh and in secret",
    "shuffled": "an example takes part in at most one step of an epoch; the order may be known",
    "full": "every example takes part in every step",
}
DISCLOSURES = {
    "loss_logged": "The exact training loss was logged: it is computed from the examples without noise, "
    "and whoever sees it has more than epsilon covers.",
    "clipping_logged": "Exact norms or the share of clipped examples were logged: they are computed "
    "from the examples without noise, and whoever sees them has more than epsilon covers.",
    "preprocessed_on_private_data": "The data were prepared with numbers computed exactly from the training "
    "data (see Data): no epsilon covers what they tell.",
    "chosen_on_private_data": "Decisions during the run (a schedule driven by validation, early "
    "stopping, model choice) used private data without noise: the run as a whole is not private.",
}
# What the mechanism's own name does not say, and a reader may take for granted.
_OF_MECHANISM = {
    "per_layer_published": "Every tensor was clipped to the full C: the sensitivity of the whole gradient is C "
    "sqrt(layers), and epsilon is for the effective noise multiplier sigma / sqrt(layers), not for sigma.",
}
_NOT_COVERED = (
    "Hyper-parameters, schedules and the number of steps chosen by looking at results on the same data.",
    "Evaluation data: examples used to report accuracy are not protected by this epsilon.",
    "Observers of a single batch who know that an example is in it: they get no amplification by sampling.",
    "A leak before the noise is added (per-example or unnoised gradients): no parameter of the "
    "mechanism protects it.",
    "{people}",
    "Exact counts that the program shows its operator (gradients that were not finite, examples in a batch): "
    "keep them as private as the data.",
    "Which examples were set aside for testing: neighbours are training splits, whatever split them.",
    "The number of examples: it is taken as public, since sums are divided by a number made from it.",
)  # fmt: skip

_TOLERANCE = 0.02  # of what a test can reach, which is printed in three digits
_OF_PEOPLE = "People who contributed several examples: the unit is one example."
_OF_GROUPS = (
    "A {unit} whose examples stand in several rows of the data, under several names or in other data: the unit "
    "is one row, all examples of one {unit} together."
)
_OF_SUMS = (
    "Floating-point sums: gradients are clipped and summed in float32, whose rounding can pass the recorded "
    "sensitivity by a few parts in a million; nor the time that a step takes, nor what stays in memory."
)
_OF_UNSAID_NOISE = (
    "Floating-point noise: the Gaussian of the proof is real-valued, the one drawn has finite precision "
    "(Mironov 2012), and the ledger does not say how it was drawn, so nothing is charged for that."
)
_OF_THREEFRY = (
    "The noise was drawn by threefry from a key of 64 bits, which is meant for reproducing a run: nobody "
    "vouches for it against an adversary who knows parts of it."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """The privacy of a run.

    Attributes:
      private: whether the epsilon is a guarantee.
      epsilon: the number with its settings; None where none may be stated.
      mechanism, sampling: of each stretch of the run.
      unit: what is protected.
      assumptions: what has to be true for it.
      warnings: what weakens it in this run.
      not_covered: what it says nothing about.
      membership: what a test of whether one example took part can reach; None where epsilon is not by privacy
        loss distributions.
    """

    private: bool
    epsilon: Epsilon | None
    mechanism: tuple[str, ...]
    sampling: tuple[str, ...]
    unit: str
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    not_covered: tuple[str, ...]
    membership: Gdp | None = None

    def to_dict(self) -> dict:
        """The statement as what JSON can hold."""
        record = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}

    def __str__(self):
        if self.epsilon is None:
            claim = "NOT PRIVATE: no epsilon holds."
        elif self.private:
            claim = f"For {self.unit}, {self.epsilon}."
        else:
            claim = f"NOT PRIVATE. {self.epsilon}."
        lines = ["Privacy statement", f"  {claim}"]
        if self.epsilon is not None:
            neighbours = _said_of(ADJACENCY_IN_WORDS[self.epsilon.adjacency], self.epsilon.unit)
            lines.append(f"  Neighbours: {neighbours}.")
        if self.membership is not None:
            lines.append(f"  Membership: {_of_tests(self.membership)}.")
        lines += [f"  Mechanism: {m}." for m in self.mechanism] + [f"  Sampling: {s}." for s in self.sampling]
        for title, sentences in (
            ("Warnings", self.warnings), ("Assumed", self.assumptions), ("Not covered", self.not_covered)
        ):  # fmt: skip
            lines += [f"  {title}:"] * bool(sentences) + [f"    - {sentence}" for sentence in sentences]
        return "\n".join(lines)


def privacy_statement(
    ledger: Ledger,
    epsilon: Epsilon | None = None,
    *,
    disclosed: tuple[str, ...] = (),
    examples: int | None = None,
) -> Statement:
    """The statement for a run.

    Args:
      ledger: what was done.
      epsilon: of `accounting.epsilon` for this ledger; a nominal one, or None, if it is not private.
      disclosed: what else got out, keys of `DISCLOSURES`; `chosen_on_private_data` makes the run not private.
      examples: how many there are, where it is known: a delta that is not below one over it is warned of.

    Raises:
      ValueError: an epsilon claimed for a run that is not private or of another ledger, none for one that is
        private, or an unknown disclosure.
    """
    for name in disclosed:
        _validate.one_of(DISCLOSURES, disclosed=name)
    undone = "chosen_on_private_data" in disclosed
    private = ledger.private and not undone
    if ledger.private and epsilon is None and not undone:
        raise ValueError("epsilon=None: a private run is stated with its epsilon")
    if epsilon is not None and (epsilon.accountant == "renyi filter") != (ledger.filter is not None):
        raise ValueError(
            f"accountant={epsilon.accountant!r}: a run under a filter, and no other, is stated with the "
            "filter's epsilon"
        )
    if epsilon is not None and epsilon.nominal == ledger.private:
        raise ValueError(f"nominal={epsilon.nominal}: the run is {'' if ledger.private else 'not '}private")
    if epsilon is not None and epsilon.ledger != ledger.sha256:
        raise ValueError(f"epsilon={epsilon.value:g}: was computed for another ledger than this run's")
    warnings = [f"Not private: {reason}" for reason in ledger.reasons]
    if epsilon is not None and examples is not None:
        warnings += Claim(delta=epsilon.delta, adjacency=epsilon.adjacency).warnings(examples)
    if epsilon is not None and epsilon.caveat:
        warnings.append(f"{epsilon.caveat[0].upper()}{epsilon.caveat[1:]}.")
    warnings += [DISCLOSURES[name] for name in disclosed]
    if any(entry.seed == "given" for entry in ledger.entries):
        warnings.append(
            "The noise was drawn from a given seed: whoever knows or guesses it, or sees two runs drawn from "
            "it, can subtract the noise, and against them there is no privacy."
        )
    mechanisms = dict.fromkeys(entry.mechanism for entry in ledger.entries)
    warnings += [_OF_MECHANISM[name] for name in mechanisms if name in _OF_MECHANISM]
    if any(entry.sampling.kind == "shuffled" for entry in ledger.entries):
        warnings.append("Batches were shuffled, not Poisson: no amplification by sampling is claimed.")
    generators = {entry.generator for entry in ledger.entries}
    warnings += [_OF_THREEFRY] * ("threefry" in generators)
    assumptions = ["the noise is Gaussian, drawn afresh for each step, of the standard deviation recorded"]
    assumptions += _assumed_of_generators(generators - {None}, epsilon)
    assumptions.append(
        "every example's contribution to a sum is bounded as recorded (one whose gradient is not finite adds "
        "zero), and sums are divided by a constant"
    )
    if ledger.filter is not None:
        assumptions += _assumed_of(ledger.filter)
    elif any(entry.charged for entry in ledger.entries):
        assumptions.append(
            "the clip bound follows noised counts only, and no noise multiplier follows it: all were fixed "
            "before the run, so that they compose as usual"
        )
    assumptions += dict.fromkeys(_SAMPLING_ASSUMED[entry.sampling.kind] for entry in ledger.entries)
    return Statement(
        private=private,
        epsilon=None if undone else epsilon,
        mechanism=tuple(_describe(entry) for entry in ledger.entries),
        sampling=tuple(dict.fromkeys(str(entry.sampling) for entry in ledger.entries)),
        unit=f"one {ledger.unit}",
        assumptions=tuple(_said_of(text, ledger.unit) for text in assumptions),
        warnings=tuple(warnings),
        membership=_membership(ledger, epsilon) if private else None,
        not_covered=((_OF_UNSAID_NOISE if None in generators else _OF_SUMS), *_not_covered(ledger.unit)),
    )


def _membership(ledger: Ledger, epsilon: Epsilon | None) -> Gdp | None:
    if epsilon is None or epsilon.accountant != "pld":
        return None
    claim = Claim(delta=epsilon.delta, adjacency=epsilon.adjacency)
    return gdp(ledger, claim, tolerance=_TOLERANCE)


def _of_tests(found: Gdp) -> str:
    """Rounded up, as bounds are."""
    rates = ", ".join(
        f"{rounded(100 * true)} % at {100 * false:g} %"
        for false, true in zip(FALSE_POSITIVE_RATES, found.true_positive_rates, strict=True)
    )
    tests = f"of ideal noise a test's true positive rate is at most {rates} of false positives"
    if found.mu is None:
        return f"{tests}; no mu of Gaussian differential privacy fits"
    return f"{rounded(found.mu)}-GDP{f' but for {found.excess:g}' if found.excess else ''}; {tests}"


def _said_of(text: str, unit: str) -> str:
    """The sentence of one example as one of the unit that is protected."""
    return text if unit == "example" else text.replace("an example", f"one {unit}").replace("example", unit)


def _not_covered(unit: str) -> list[str]:
    people = _OF_PEOPLE if unit == "example" else _OF_GROUPS.format(unit=unit)
    return [people if text == "{people}" else text for text in _NOT_COVERED]


def _assumed_of_generators(names: set[str | None], epsilon: Epsilon | None) -> list[str]:
    """What is taken of the generators of the noise, and what their remaining error was charged."""
    if not names:
        return []
    drawn = " and ".join(sorted(str(name) for name in names))
    sentences = [
        "noised sums were rounded to a public grid of powers of two, which is post-processing, and the words "
        f"of {drawn} cannot be told from random ones by whoever does not hold the secret"
    ]
    if epsilon is not None and epsilon.generator is not None:
        added = epsilon.generator
        sentences.append(
            "the probabilities of the noise differ from the Gaussian's by at most what was measured on CPUs, "
            f"for which {added.epsilon:.1e} is added to epsilon and {added.delta:.1e} to delta "
            f"({added.numbers:.3g} noised numbers)"
        )
    return sentences


def _assumed_of(filter: Filter) -> list[str]:
    return [
        "the noise multipliers were chosen during the run from noised outputs (fully adaptive), so epsilon is "
        "not the sum that ordinary composition gives for those that were used: it is the budget of a privacy "
        f"filter, {filter.budget:.6g} of Renyi differential privacy at the one order {filter.order:g} "
        "(Feldman & Zrnic 2021, arXiv 2008.11193), and holds wherever the run stopped",
        "order and budget were fixed before the first step, and no step was taken that would have passed the "
        "budget",
        "the clip bound and the noise multipliers follow noised counts and nothing else of the data",
    ]


def _describe(entry) -> str:
    sigmas = [sigma for sigma, _ in entry.noise_multipliers]
    span = f"{sigmas[0]:g}" if min(sigmas) == max(sigmas) else f"{min(sigmas):g} to {max(sigmas):g}"
    return (
        f"steps {entry.start} to {entry.stop - 1}: Gaussian noise on the sum of per-{entry.unit} gradients,"
        f" {entry.mechanism} clipping, effective noise multiplier {span}"
        + (f" = {entry.charged}" if entry.charged else "")
    )
