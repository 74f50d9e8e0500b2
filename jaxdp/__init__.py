"""Deep learning that withstands gradient leakage, in JAX.

The modules, in the order in which data flow:

    data -> sampling -> gradients -> clipping -> privatize(schedules) -> any Optax optimizer -> training, runs
                                     schedules -> ledger -> accounting, calibration, reconstruction, statement
    attacks (what an adversary sees, and makes of it) -> metrics -> results, tables, report; comparison

>>> import jaxdp, optax
>>> sigma = jaxdp.schedules.linear(steps=1_000)
>>> private = jaxdp.privatize(jaxdp.clipping.flat(1.0), sigma, expected_batch_size=64)
>>> optimizer = optax.chain(private, optax.adam(1e-3))
"""

from jaxdp import clipping as clipping
from jaxdp import gradients as gradients
from jaxdp import sampling as sampling
from jaxdp import schedules as schedules
from jaxdp._privatize import privatize as privatize
from jaxdp.clipping import clipped_gradients as clipped_gradients
from jaxdp.gradients import per_example as per_example

__version__ = "0.1.0"
