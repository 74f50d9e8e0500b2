"""What a training run does, in one flat dataclass: the command line's options and the document of a record."""

import dataclasses
from typing import Literal

from jaxdp.clipping.adaptive import LEARNING_RATE, TARGET_QUANTILE

ScheduleName = Literal[
    "none", "fixed", "linear", "staircase", "exponential", "quarter_cosine", "inverse_time", "polynomial",
    "adaptive",
]  # fmt: skip
ClippingName = Literal[
    "flat", "automatic", "per_layer", "per_layer_published", "l2_max", "quantile", "quantile_per_layer"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run does: all that it takes to repeat it."""

    data: str = "digits"
    """Data set: a name that `jaxdp data list` shows, or a .npz file."""
    image_size: int | None = None
    """Resample images to this size; None leaves them as they are."""
    model: Literal["cnn", "lenet", "mlp", "cifar_cnn", "tanh_cnn", "logistic"] = "mlp"
    """Network."""
    activation: Literal["relu", "tanh", "sigmoid"] | None = None
    """Activation; None for the network's own."""
    initialization: Literal["fan_in", "uniform"] = "fan_in"
    """Initial weights: fan_in, or the published attack's U(-.5, .5)."""

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

    steps: int = 500
    """Number of steps."""
    sampling: Literal["poisson", "shuffled", "full"] = "poisson"
    """How batches are drawn."""
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

    delta: float = 1e-5
    """delta of the privacy statement."""
    adjacency: Literal["add_or_remove_one", "replace_one", "zero_out"] = "add_or_remove_one"
    """What neighbouring data sets are."""
    accountant: Literal["rdp", "pld"] = "rdp"
    """Accountant behind the claimed epsilon."""
    budget_epsilon: float | None = None
    """Stop before the step that would pass this epsilon."""

    evaluate_every: int = 50
    """Steps between evaluations on the test split, and between checkpoints."""
    seed: int = 0
    """Seed of the initial weights (public)."""
    noise_seed: int | None = None
    """Seed of batches and noise; None takes the system's entropy. A known seed protects nothing."""
    diagnostics: bool = False
    """Also record exact training loss and clip counts: unnoised, the run is then not private."""

    def __post_init__(self):
        for name in ("steps", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be >= 1")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta}: must lie in (0, 1)")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate={self.sampling_rate}: must lie in (0, 1]")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: must lie in (0, 1)")
        for name in (
            *("learning_rate", "scale", "l2_norm_clip", "target_epsilon", "budget_epsilon"),
            *("noise_multiplier", "clip_learning_rate", "count_noise"),
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value}: must be finite and > 0")
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
        if self.sampling == "shuffled":
            raise ValueError(f"sampling={self.sampling!r}: {needs} Poisson or full batches")
        if self.accountant != "rdp":
            raise ValueError(f"accountant={self.accountant!r}: {needs} rdp, there is no filter by another")
