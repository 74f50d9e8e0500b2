"""Deep learning that withstands gradient leakage, in JAX.

The way of data and of privacy parameters, each module below what it uses:

    data -> sampling -> gradients -> clipping -> privatize(schedules) -> any Optax optimizer
    Plan (clipper, noise, sampler, steps) -> ledger -> accounting.epsilon(ledger, Claim) -> statement
    calibrate (noise for an epsilon), train (any loss, with budget, checkpoints and statement)
    attacks (what an adversary sees, and makes of it); laboratory (what the command line does)

>>> import jaxdp
>>> sampler = jaxdp.sampling.poisson(60_000, 0.01, steps=1_000)
>>> clipper, sigma = jaxdp.clipping.flat(1.0), jaxdp.schedules.linear(steps=1_000)
>>> plan = jaxdp.Plan(clipper=clipper, noise_multiplier=sigma, sampler=sampler, steps=1_000)
>>> claim = jaxdp.Claim(delta=1e-5, adjacency="add_or_remove_one")
>>> round(jaxdp.accounting.epsilon(plan.ledger(), claim).value, 2)
0.12
"""

import importlib

from jaxdp import accounting as accounting
from jaxdp import clipping as clipping
from jaxdp import gradients as gradients
from jaxdp import sampling as sampling
from jaxdp import schedules as schedules
from jaxdp._privatize import privatize as privatize
from jaxdp._privatize import privatize_state as privatize_state
from jaxdp.accounting import Claim as Claim
from jaxdp.calibration import calibrate as calibrate
from jaxdp.clipping import clipped_gradients as clipped_gradients
from jaxdp.gradients import per_example as per_example
from jaxdp.noise import entropy_key as entropy_key
from jaxdp.plan import Plan as Plan

__version__ = "0.1.0"

_LATER = {
    "train": "jaxdp.training.run",
    "attacks": "",
    "auditing": "",
    "data": "",
    "models": "",
    "records": "",
}


def __getattr__(name: str):
    """What takes longer to import, when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'jaxdp' has no attribute {name!r}")
    home = _LATER[name]
    return getattr(importlib.import_module(home), name) if home else importlib.import_module(f"jaxdp.{name}")
