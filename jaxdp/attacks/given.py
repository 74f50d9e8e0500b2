"""What one attack is given: a leaked observation, and public data."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxdp.attacks import priors


class Public(NamedTuple):
    """What the attacker has of public data.

    Attributes:
      examples: inputs [m, *input_shape] for label templates; grey ones where nothing is known.
      labels: their labels [m], or -1 where every class uses every example.
      mean: the mean input, a start.
      prior: the Gaussian prior, or None.
      lower, upper: the box that inputs lie in, scalars or [*input_shape]; [0, 1] for images.
    """

    examples: Float[Array, "m ..."]
    labels: Int[Array, " m"]
    mean: Float[Array, "..."]
    prior: priors.Gaussian | None = None
    lower: Array | np.ndarray | float = 0.0
    upper: Array | np.ndarray | float = 1.0


class Observation(NamedTuple):
    """One victim as the attacker meets it, without the parameters.

    Attributes:
      observed: the leaked pytree.
      noise_std: standard deviation of its noise, [T].
      bound: the clip bound C.
      learning_rate: of local steps.
      labels: [B], used only by `labels="known"`.
    """

    observed: PyTree
    noise_std: Array | np.ndarray
    bound: Array | np.ndarray
    learning_rate: Array | np.ndarray
    labels: Array | np.ndarray
