"""Gradient leakage attacks: what an adversary reads off a leaked gradient, at its strongest.

Three calls: `invert` reconstructs what is behind one gradient of one's own network, `observe` makes the leaks
of known examples, `judge` scores a reconstruction.  A leak goes this way:

| module                | owns                                                                              |
|-----------------------|-----------------------------------------------------------------------------------|
| `leaks`               | the leak points as one forward map; what leaks of known examples                  |
| `public`              | what the attacker knows: the setting, public data, the Gaussian prior             |
| `_invert`             | one gradient, by the attacks that suit what is known                              |
| `portfolio`           | the named attacks, and the best of several                                        |
| `lanes`               | every victim and restart through a fixed number of compiled lanes                 |
| `attack`              | the choices as one frozen dataclass, and the minimisation they make               |
| `labels`              | labels from a gradient, and the last layer                                        |
| `objectives`, `starts` | what a reconstruction must match, and where a search starts                      |
| `smoothing`, `solvers` | smooth ReLUs; L-BFGS and Adam, one lane each                                     |
| `_judge`, `metrics`   | how well it went                                                                  |
| `first_layer`, `candidates`, `expected_error` | attacks and forecasts that need no search                 |
| `tokens`              | text: the tokens behind the gradient of a language model (`tokens.recover`)       |
"""

from jaxdp.attacks._invert import invert
from jaxdp.attacks._judge import evaluate, judge, knowledge
from jaxdp.attacks.attack import Attack
from jaxdp.attacks.lanes import Reconstruction, invert_many
from jaxdp.attacks.leaks import Conditions, Leak, Victims, forward, observe
from jaxdp.attacks.public import Head, Public, Setting, public_knowledge

__all__ = [
    "Attack", "Conditions", "Head", "Leak", "Public", "Reconstruction", "Setting", "Victims", "evaluate",
    "forward", "invert", "invert_many", "judge", "knowledge", "observe", "public_knowledge",
]  # fmt: skip
