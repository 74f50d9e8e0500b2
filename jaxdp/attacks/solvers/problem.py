"""What a solver is: `init` makes the state of one lane, `tick` advances it.

A lane is one restart on one victim.  The engine maps `tick` over lanes, so a solver is written for one lane,
has no host control flow, and does the same amount of work in every tick: then no lane ever waits for
another's line search.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Problem(NamedTuple):
    """One lane's minimisation.

    Attributes:
      objective: z -> scalar.
      lower, upper: box on z, infinite where free.
      progress: share of the iterations that are spent, for solvers whose step size decays.
    """

    objective: Callable[[Array], Array]
    lower: Array | float = -jnp.inf
    upper: Array | float = jnp.inf
    progress: Array | float = 0.0

    def project(self, z: Array) -> Array:
        """The nearest point of the box."""
        return jnp.clip(z, self.lower, self.upper)

    def free(self, z: Array, gradient: Array) -> Array:
        """1 where a step against the gradient stays in the box, else 0."""
        blocked = ((z <= self.lower) & (gradient > 0)) | ((z >= self.upper) & (gradient < 0))
        return jnp.where(blocked, 0, 1).astype(z.dtype)


class Solver(NamedTuple):
    """A pair of pure functions; the state has the fields `z`, `value`, `ticks`, `done`.

    Attributes:
      init: z0 -> state; evaluates nothing.
      tick: (problem, state) -> state.
      kept: names of large fields that `tick` leaves as they are where `done` is set.
    """

    init: Callable[[Float[Array, " n"]], Any]
    tick: Callable[[Problem, Any], Any]
    kept: tuple[str, ...] = ()

    def advance(self, old: Any, new: Any) -> Any:
        """The state of each lane after a tick, of whole lanes [n]: the old one where a lane was done."""
        large = {name: getattr(new, name) for name in self.kept}  # in place, without a copy of what they were
        return rows_where(~old.done, new, old)._replace(**large)


def rows_where(mask: Bool[Array, " n"], new: Any, old: Any) -> Any:
    """New rows where the mask holds, old ones elsewhere."""

    def choose(new, old):
        return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new, old)
