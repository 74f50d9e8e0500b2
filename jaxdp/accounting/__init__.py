"""Epsilon of a ledger, at a stated delta, adjacency and accountant.

>>> from jaxdp import accounting
>>> from jaxdp.accounting.ledger import Entry, Ledger, Sampling
>>> steps = Entry(start=0, stop=10_000, noise_multipliers=((6.0, 10_000),), sampling=Sampling(rate=0.01))
>>> claim = accounting.Claim(delta=1e-5, adjacency="add_or_remove_one", accountant="rdp")
>>> round(accounting.epsilon(Ledger((steps,)), claim).value, 4)
0.6592

Adjacency is never implied, and decides what may be claimed:

| adjacency           | neighbours differ in          | sensitivity | Poisson   | fixed size | shuffled      |
|---------------------|-------------------------------|-------------|-----------|------------|---------------|
| `add_or_remove_one` | one example more or less      | C           | amplified | refused    | refused       |
| `zero_out`          | one gradient replaced by zero | C           | amplified | refused    | once an epoch |
| `replace_one`       | one example exchanged         | 2 C         | amplified | amplified  | once an epoch |

Full batches are Gaussian steps under each.  Sampling without replacement keeps the number of examples and so
has no add/remove or zero-out theorem here.  With shuffled batches of fixed size an added example displaces
others into other batches, so add/remove is refused; with the permutation fixed, an exchanged example takes
part in one step of an epoch at the most, and the divergence is at most that of the step with the least noise.
"""

from jaxdp.accounting._epsilon import ACCOUNTANTS as ACCOUNTANTS
from jaxdp.accounting._epsilon import ADJACENCIES as ADJACENCIES
from jaxdp.accounting._epsilon import Claim as Claim
from jaxdp.accounting._epsilon import Epsilon as Epsilon
from jaxdp.accounting._epsilon import divergences as divergences
from jaxdp.accounting._epsilon import epsilon as epsilon
from jaxdp.accounting._epsilon import equivalent_noise_multiplier as equivalent_noise_multiplier
from jaxdp.accounting._epsilon import runs as runs
from jaxdp.accounting.gdp import Gdp as Gdp
from jaxdp.accounting.trajectory import epsilon_trajectory as epsilon_trajectory
from jaxdp.accounting.trajectory import steps_within as steps_within
