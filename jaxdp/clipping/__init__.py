"""Bounding what one example can contribute.

A `Clipper` turns per-example gradients (dense or factored, see `jaxdp.gradients`) into their clipped sum and
knows the L2 sensitivity of that sum: how far it moves, at most, when one example is added or removed.  Its
parts add up over microbatches, so that a batch can be clipped piece by piece.

| clipper               | per example                              | sensitivity   | private |
|-----------------------|------------------------------------------|---------------|---------|
| `flat`                | g min(1, C / norm(g))                    | C             | yes     |
| `automatic`           | C g / (norm(g) + gamma)                  | C             | yes     |
| `per_layer`           | each tensor to C / sqrt(L)               | C             | yes     |
| `per_layer_published` | each tensor to C                         | C sqrt(L)     | yes     |
| `l2_max`              | each tensor to its own example's maximum | none          | NO      |
| `preconditioned`      | s g as `flat`, s from past noised g's    | C             | yes     |
| `quantile`            | as `flat`, to C_t from noised counts     | C_t           | yes     |
| `quantile_per_layer`  | each tensor to its own C_t from counts   | |(C_t)|       | yes     |

C is a number >= 1e-6 or a schedule C(t), which is held there where it falls below.  An example whose gradient
is not finite contributes exactly zero and is counted.
"""

from jaxdp.clipping import adaptive
from jaxdp.clipping._clipped_gradients import clipped_gradients as clipped_gradients
from jaxdp.clipping._preconditioned import preconditioned as preconditioned
from jaxdp.clipping.adaptive import quantile as quantile
from jaxdp.clipping.adaptive import quantile_per_layer as quantile_per_layer
from jaxdp.clipping.clipper import ClippedSum as ClippedSum
from jaxdp.clipping.clipper import Clipper as Clipper
from jaxdp.clipping.clipper import clipped_sum as clipped_sum
from jaxdp.clipping.clipper import down_to as down_to
from jaxdp.clipping.clipper import global_norm as global_norm
from jaxdp.clipping.clipper import leaf_norms as leaf_norms
from jaxdp.clipping.fixed import automatic as automatic
from jaxdp.clipping.fixed import flat as flat
from jaxdp.clipping.fixed import l2_max as l2_max
from jaxdp.clipping.fixed import per_layer as per_layer
from jaxdp.clipping.fixed import per_layer_published as per_layer_published
from jaxdp.schedules import Schedule

NAMES = (
    *("flat", "automatic", "per_layer", "per_layer_published", "l2_max"),
    *("preconditioned", "quantile", "quantile_per_layer"),
)


def create(
    name: str,
    l2_norm_clip: float | Schedule,
    *,
    layers: int = 1,
    expected_batch_size: float | None = None,
    **adaptation: float | None,
) -> Clipper:
    """The clipper called `name`.

    Args:
      name: one of `NAMES`.
      l2_norm_clip: the bound C, or C(t); of the quantile clippers the first bound; `l2_max` takes none and
        ignores it.
      layers: number of parameter tensors, for `per_layer_published`.
      expected_batch_size: for the quantile clippers.
      **adaptation: of the quantile clippers: `target_quantile`, `learning_rate`, `count_noise`.

    Raises:
      ValueError: an unknown name, or a bound that is refused.
    """
    if name in ("quantile", "quantile_per_layer"):
        return adaptive.BY_NAME[name](l2_norm_clip, expected_batch_size, **adaptation)
    if name == "l2_max":
        return l2_max()
    if name == "per_layer_published":
        return per_layer_published(l2_norm_clip, layers)
    by_name = {
        "flat": flat, "automatic": automatic, "per_layer": per_layer, "preconditioned": preconditioned,
    }  # fmt: skip
    if name not in by_name:
        raise ValueError(f"clipping={name!r}: unknown; choose from {', '.join(NAMES)}")
    return by_name[name](l2_norm_clip)
