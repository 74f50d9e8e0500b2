"""Per-example gradients of any JAX loss, dense or as the products they are.

| module         | owns                                                                                     |
|----------------|------------------------------------------------------------------------------------------|
| `_per_example` | traces the gradient of a loss, and keeps each parameter's in the form that it has        |
| `forms`        | which form that is: of those that are exact, the cheapest                                |
| `terms`        | reads products and rows off the gradient's program                                       |
| `loops`        | moves products that a loop makes last behind the loop                                    |
| `costs`        | what a form costs in operations and bytes                                                |
| `factored`, `scattered` | a leaf of per-example gradients: its squared norms and its weighted sum         |
| `_grouped`     | a user's examples, or augmentations of an image, as one example                          |
| `positions`, `precision` | norms of sums of products, never below the true ones, on any device         |
| `microbatches` | how many examples' gradients exist at the same time                                      |
| `inputs`       | parameters, batches and masks: which are taken, which are refused by name                |
| `independence` | refuses losses in which an example could see others                                      |
| `shards`       | which devices of a mesh hold which examples                                              |
| `convolution`, `pooling` | forms that XLA runs fast on a CPU                                              |
| `correlation`  | convolutions of two arrays of an example, as products                                    |
| `jaxprs`       | evaluating traced programs equation by equation                                          |
"""

from jaxdp.gradients._grouped import grouped as grouped
from jaxdp.gradients._per_example import METHODS as METHODS
from jaxdp.gradients._per_example import Loss as Loss
from jaxdp.gradients._per_example import explain as explain
from jaxdp.gradients._per_example import per_example as per_example
from jaxdp.gradients.factored import Factored as Factored
from jaxdp.gradients.factored import Leaf as Leaf
from jaxdp.gradients.factored import is_leaf as is_leaf
from jaxdp.gradients.factored import squared_norm as squared_norm
from jaxdp.gradients.factored import weighted_sum as weighted_sum
from jaxdp.gradients.inputs import as_mask as as_mask
from jaxdp.gradients.inputs import batch_size as batch_size
from jaxdp.gradients.scattered import Scattered as Scattered
from jaxdp.gradients.scattered import Tied as Tied
