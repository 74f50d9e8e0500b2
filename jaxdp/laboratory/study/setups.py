"""What the study trains: its data sets and how each is trained, its variants, and the run of each trial."""

import dataclasses
import functools
from typing import Any

from jaxdp import _validate, calibration, clipping, schedules
from jaxdp.accounting import Claim
from jaxdp.accounting.ledger import Sampling
from jaxdp.plan import Plan
from jaxdp.training.config import TrainConfig

VARIANTS = ("non_private", "fixed", *schedules.DYNAMIC, "scheduled_clip", "quantile", "l2_max")
PUBLISHED = (
    "published_fixed",
    *(f"{prefix}_{name}" for name in schedules.DYNAMIC for prefix in ("published", "matched")),
)
# RDP is no even judge of schedules: over few steps of small batches its epsilon is above the true one by a
# factor that depends on the schedule (1.6 for fixed sigma, 2.9 for the linear one at epsilon .5, q = .01, 100
# steps), so that runs equal by RDP are not equal.  Privacy loss distributions are within half a percent.
CLAIM = Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="pld")
SELECTION_SEED = 1000  # first of those of the runs that choose a learning rate: none of these is reported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """How a data set is trained, whatever the variant.

    Attributes:
      image_size, model, activation, sampling_rate, steps: as in `TrainConfig`.
      learning_rates: the grid, the same for every variant: wide where a run is cheap, fine where it is not.
      published: whether the variants as published are trained as well.
      images: whether its images are attacked.
      selection_seeds: runs that judge a learning rate.
      finalists: how many learning rates get all of these runs, after one of each rate; None for all rates.
    """

    model: str
    sampling_rate: float
    steps: int
    image_size: int | None = None
    activation: str | None = None
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    published: bool = False
    images: bool = False
    selection_seeds: int = 3
    finalists: int | None = None

    @property
    def network(self) -> dict[str, Any]:
        """What `TrainConfig` is told of the network and its input."""
        return dict(image_size=self.image_size, model=self.model, activation=self.activation)


_SPECIAL: dict[str, dict[str, Any]] = {  # variants that are no schedule's name
    "non_private": dict(schedule="none"),
    "scheduled_clip": dict(schedule="fixed", l2_norm_clip=1.5, l2_norm_clip_end=0.5),
    "quantile": dict(schedule="fixed", clipping="quantile"),
    "l2_max": dict(schedule="fixed", clipping="l2_max"),
}
CONVOLUTIONAL: dict[str, Any] = dict(
    model="tanh_cnn", sampling_rate=0.01, steps=100, finalists=2,
    learning_rates=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
)  # fmt: skip
SETUPS = {
    "digits": Setup(model="mlp", sampling_rate=0.05, steps=100, images=True),
    "breast_cancer": Setup(model="logistic", sampling_rate=0.1, steps=200),
    "adult": Setup(model="logistic", sampling_rate=0.01, steps=150),
    "mnist": Setup(**CONVOLUTIONAL, images=True, published=True),
    "fashion_mnist": Setup(**CONVOLUTIONAL),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is studied."""

    data: tuple[str, ...] = tuple(SETUPS)
    """Data sets."""
    variants: tuple[str, ...] = (*VARIANTS, *PUBLISHED)
    """Variants; those as published are trained on mnist alone."""
    epsilons: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    """epsilon that every private variant spends."""
    learning_rates: tuple[float, ...] | None = None
    """The grid, the same for every variant; None for each data set's own."""
    seeds: int = 5
    """Runs reported of each variant and epsilon; an interval needs two."""
    steps: int | None = None
    """Length of a run; None for each data set's own."""

    def __post_init__(self):
        for name in ("data", "variants", "epsilons", "learning_rates"):
            if getattr(self, name) == ():
                raise ValueError(f"{name}=(): needs at least one")
        for name in self.data:
            _validate.one_of(SETUPS, data=name)
        for name in self.variants:
            _validate.one_of((*VARIANTS, *PUBLISHED), variants=name)
        _validate.whole(seeds=self.seeds)
        if self.steps is not None:
            _validate.whole(20, steps=self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One run: its variant, the epsilon it is to spend (None: as published, or no privacy), its seed."""

    variant: str
    epsilon: float | None
    learning_rate: float
    seed: int

    @property
    def file(self) -> str:
        """The name of its record."""
        epsilon = "" if self.epsilon is None else f"-eps{self.epsilon:g}"
        return f"train-{self.variant}{epsilon}-lr{self.learning_rate:g}-seed{self.seed}.json"


def planned(schedule: str, sampling_rate: float, steps: int) -> Plan:
    """The plan of a published schedule, flat clipping and Poisson batches."""
    return Plan(
        clipper=clipping.flat(1.0),
        noise_multiplier=schedules.create(schedule, steps),
        sampler=Sampling(kind="poisson", rate=sampling_rate),
        steps=steps,
    )


def targets(config: StudyConfig, setup: Setup, variant: str) -> tuple[float | None, ...]:
    """The epsilons that a variant is trained at; none where it is not trained."""
    if variant in PUBLISHED:
        return (None,) if setup.published else ()
    return (None,) if variant == "non_private" else config.epsilons


@functools.cache
def matched_noise_multiplier(schedule: str, sampling_rate: float, steps: int) -> float:
    """The constant noise multiplier that spends what a published schedule spends."""
    return calibration.matched_constant(planned(schedule, sampling_rate, steps).ledger(), CLAIM)


def settings(name: str, setup: Setup, trial: Trial) -> TrainConfig:
    """The training run of a trial."""
    kind, _, schedule = trial.variant.partition("_")
    chosen: dict[str, Any] = _SPECIAL.get(trial.variant, dict(schedule=trial.variant))
    if kind == "published":
        chosen = dict(schedule=schedule)
    elif kind == "matched":
        sigma = matched_noise_multiplier(schedule, setup.sampling_rate, setup.steps)
        chosen = dict(schedule="fixed", noise_multiplier=sigma)
    return TrainConfig.of(
        data=name,
        **setup.network,
        steps=setup.steps,
        sampling_rate=setup.sampling_rate,
        target_epsilon=trial.epsilon,
        learning_rate=trial.learning_rate,
        **dataclasses.asdict(CLAIM),
        evaluate_every=setup.steps,
        seed=trial.seed,
        noise_seed=trial.seed,  # a study that can be repeated: each statement says that the seed is known
        **chosen,
    )
