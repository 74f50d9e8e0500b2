"""What a run of `jaxdp train` does, as five groups of options: the command line's, and the document of a
record.
"""

import dataclasses
from typing import Any, Literal

from jaxdp import _validate
from jaxdp.accounting import Claim
from jaxdp.clipping.adaptive import LEARNING_RATE, TARGET_QUANTILE

ScheduleName = Literal[
    "none", "fixed", "linear", "staircase", "exponential", "quarter_cosine", "inverse_time", "polynomial",
    "adaptive",
]  # fmt: skip
ClippingName = Literal[
    "flat", "automatic", "per_layer", "per_layer_published", "l2_max", "preconditioned", "quantile",
    "quantile_per_layer",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Data and network."""

    data: str = "digits"
    """Data set: a name that `jaxdp data list` shows, or a .npz file."""
    image_size: int | None = None
    """Resample images to this size; None leaves them as they are."""
    model: str = "mlp"
    """Network: cnn, lenet, mlp, cifar_cnn, tanh_cnn, logistic, or your own as FILE.py:FUNCTION, called with
    (key, input_shape, classes); it returns a Flax nnx module, or (apply, params)."""
    loss: str | None = None
    """Loss of one example as FILE.py:FUNCTION, called with (output, label); None for cross-entropy."""
    activation: Literal["relu", "tanh", "sigmoid"] | None = None
    """Activation; None for the network's own."""
    initialization: Literal["fan_in", "uniform"] = "fan_in"
    """Initial weights: fan_in, or the published attack's U(-.5, .5)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise."""

    schedule: ScheduleName = "fixed"
    """Noise multiplier sigma over the steps; none trains without privacy; adaptive follows the noised bound of
    quantile clipping between --start and --end, under a Renyi filter that holds --budget-epsilon."""
    noise_multiplier: float | None = None
    """sigma of the fixed schedule; None for the published 6."""
    start: float | None = None
    """First value of a dynamic schedule; None for the published 15."""
    end: float | None = None
    """Last value of a dynamic schedule; None for the published 4.85."""
    scale: float = 1.0
    """Factor on the whole schedule."""
    target_epsilon: float | None = None
    """Scale the schedule so that the whole run spends this epsilon (instead of --scale)."""
    generator: Literal["chacha12", "chacha20", "threefry"] = "chacha12"
    """What noise is drawn with; threefry is of 64 bits, and nobody vouches for it against an adversary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clipping:
    """Clipping."""

    clipping: ClippingName = "flat"
    """How each example's gradient is bounded."""
    l2_norm_clip: float = 1.0
    """Bound C on an example's gradient; of quantile clipping where the bound starts."""
    l2_norm_clip_end: float | None = None
    """Where given, C falls linearly to this over the run."""
    target_quantile: float = TARGET_QUANTILE
    """Quantile clipping: the share of examples that are to be below the bound."""
    clip_learning_rate: float = LEARNING_RATE
    """Quantile clipping: how fast ln C follows the noised share."""
    count_noise: float | None = None
    """Quantile clipping: noise on the count; None for the larger of batch / 20 and the largest sigma."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Training."""

    steps: int = 500
    """Number of steps."""
    sampling: Literal["poisson", "truncated_poisson", "shuffled", "full"] = "poisson"
    """How batches are drawn; truncated_poisson keeps a random part of more than --batch-size-limit."""
    batch_size_limit: int | None = None
    """Of truncated_poisson: the most examples of a step; None for what one step in a million passes."""
    sampling_rate: float = 0.1
    """Expected share of the data in a batch (q)."""
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """Optimizer of the noised gradients."""
    learning_rate: float = 0.5
    """Its learning rate."""
    learning_rate_decay: Literal["linear", "cosine"] | None = None
    """Let the learning rate fall to 0 over --steps, along this curve; None keeps it."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the noised parameters over the steps: what is evaluated, at no
    cost in privacy. None evaluates the parameters of the step."""
    microbatch_size: int | Literal["auto"] = "auto"
    """Examples whose gradients exist at the same time."""
    evaluate_every: int = 50
    """Steps between evaluations on the test split, and between checkpoints."""
    seed: int = 0
    """Seed of the initial weights (public)."""
    noise_seed: int | None = None
    """Seed of batches and noise; None takes the system's entropy. A known seed protects nothing."""
    diagnostics: bool = False
    """Also record exact training loss and clip counts: unnoised, the run is then not private."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Privacy:
    """Privacy claim."""

    delta: float = 1e-5
    """delta of the privacy statement."""
    adjacency: Literal["add_or_remove_one", "replace_one", "zero_out"] = "add_or_remove_one"
    """What neighbouring data sets are."""
    accountant: Literal["pld", "rdp"] = "pld"
    """Accountant behind the claimed epsilon."""
    budget_epsilon: float | None = None
    """Stop before the step that would pass this epsilon."""


_POSITIVE = (
    *("learning_rate", "scale", "l2_norm_clip", "target_epsilon", "budget_epsilon"),
    *("noise_multiplier", "clip_learning_rate", "count_noise"),
)
_SEEDS = 2**32  # of weights and of noise: what a key is made from


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run does: all that it takes to repeat it.

    An option is read by its own name, whatever group it is in: `config.steps` is `config.training.steps`.
    """

    network: Network = dataclasses.field(default_factory=Network)
    noise: Noise = dataclasses.field(default_factory=Noise)
    clip: Clipping = dataclasses.field(default_factory=Clipping)
    training: Training = dataclasses.field(default_factory=Training)
    privacy: Privacy = dataclasses.field(default_factory=Privacy)

    @classmethod
    def of(cls, **options: Any) -> "TrainConfig":
        """The configuration with these options, each by its own name.

        >>> TrainConfig.of(schedule="linear", steps=100).noise.schedule
        'linear'

        Raises:
          ValueError: an unknown option, or values that contradict each other.
        """
        return cls().replace(**options)

    def replace(self, **options: Any) -> "TrainConfig":
        """The configuration with some options changed."""
        for name in options:
            if name not in OPTIONS:
                raise ValueError(f"{name}={options[name]!r}: no option of a training run")
        parts = {}
        for group in GROUPS:
            mine = {name: value for name, value in options.items() if OPTIONS[name] == group}
            parts[group] = dataclasses.replace(getattr(self, group), **mine)
        return TrainConfig(**parts)

    def options(self) -> dict[str, Any]:
        """Every option by its own name."""
        return {name: getattr(getattr(self, group), name) for name, group in OPTIONS.items()}

    def __getattr__(self, name: str) -> Any:
        group = OPTIONS.get(name)
        if group is None:
            raise AttributeError(f"{type(self).__name__} has no option {name!r}")
        return getattr(getattr(self, group), name)

    @property
    def claim(self) -> Claim:
        """What epsilon is claimed at, and by which accountant."""
        return Claim(delta=self.delta, adjacency=self.adjacency, accountant=self.accountant)

    def __post_init__(self):
        for name in ("steps", "evaluate_every"):
            _validate.whole(**{name: getattr(self, name)})
        _validate.share(sampling_rate=self.sampling_rate)
        if self.batch_size_limit is not None:
            _validate.whole(batch_size_limit=self.batch_size_limit)
            if self.sampling != "truncated_poisson":
                raise ValueError(
                    f"batch_size_limit={self.batch_size_limit}: only truncated_poisson batches have a limit"
                )
        for name in ("seed", "noise_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < _SEEDS:
                raise ValueError(f"{name}={value}: must lie in 0 .. {_SEEDS - 1}")
        if self.ema_decay is not None:
            _validate.between(0, 1, ema_decay=self.ema_decay)
        for name in _POSITIVE:
            if getattr(self, name) is not None:
                _validate.positive(**{name: getattr(self, name)})
        _ = self.claim  # or an error
        self._check_noise()

    def _check_noise(self) -> None:
        if self.clipping.startswith("quantile") and self.l2_norm_clip_end is not None:
            raise ValueError(
                f"l2_norm_clip_end={self.l2_norm_clip_end}: {self.clipping} clipping finds its own bound"
            )
        if self.target_epsilon is not None and self.scale != 1:
            raise ValueError(
                f"scale={self.scale}, target_epsilon={self.target_epsilon}: the target sets the scale"
            )
        if self.schedule == "none" and (self.target_epsilon or self.budget_epsilon):
            raise ValueError("schedule='none': a run without noise has no epsilon to aim at or to bound")
        if self.schedule == "adaptive":
            self._check_adaptive()
        elif self.noise_multiplier is not None and self.schedule not in ("fixed", "none"):
            raise ValueError(
                f"noise_multiplier={self.noise_multiplier}: of the fixed schedule; for {self.schedule} give "
                "start, end or scale"
            )

    def _check_adaptive(self) -> None:
        needs = "schedule='adaptive' needs"
        if not self.clipping.startswith("quantile"):
            raise ValueError(f"clipping={self.clipping!r}: {needs} quantile clipping, whose bound it follows")
        if self.budget_epsilon is None:
            raise ValueError(f"budget_epsilon=None: {needs} the budget of its filter")
        if self.target_epsilon is not None:
            raise ValueError(f"target_epsilon={self.target_epsilon}: {needs} budget_epsilon instead")
        if self.noise_multiplier is not None:
            raise ValueError(f"noise_multiplier={self.noise_multiplier}: {needs} start and end instead")
        if self.sampling not in ("poisson", "full"):
            raise ValueError(f"sampling={self.sampling!r}: {needs} Poisson or full batches")


GROUPS = {
    "network": Network, "noise": Noise, "clip": Clipping, "training": Training, "privacy": Privacy
}  # fmt: skip
OPTIONS = {field.name: group for group, kind in GROUPS.items() for field in dataclasses.fields(kind)}
