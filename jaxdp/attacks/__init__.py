"""Gradient leakage attacks: what an adversary reads off a leaked gradient, at its strongest.

| module                | owns                                                                              |
|-----------------------|-----------------------------------------------------------------------------------|
| `leaks`               | the leak points as one forward map                                                |
| `observe`             | observations of known examples                                                    |
| `objectives`          | what a reconstruction must match                                                  |
| `priors`, `starts`    | what is known of inputs, and where a search starts                                |
| `labels`              | labels from a gradient                                                            |
| `lbfgs`, `adam`, `levenberg_marquardt` | solvers, one lane each                                           |
| `attack`              | the choices as one frozen dataclass, and the minimisation they make               |
| `engine`              | every victim and restart through a fixed number of compiled lanes                 |
"""

from jaxdp.attacks.attack import Attack
from jaxdp.attacks.engine import Reconstruction, Victims, invert, public_knowledge
from jaxdp.attacks.given import Public
from jaxdp.attacks.leaks import Leak, forward
from jaxdp.attacks.observe import observe

__all__ = [
    "Attack", "Leak", "Public", "Reconstruction", "Victims",
    "forward", "invert", "observe", "public_knowledge",
]  # fmt: skip
