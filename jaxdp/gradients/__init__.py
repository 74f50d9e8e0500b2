"""Per-example gradients of any JAX loss, dense or as the products they are.

| module         | owns                                                                                     |
|----------------|------------------------------------------------------------------------------------------|
| `_per_example` | reads the gradient's jaxpr, and keeps kernels' gradients as their factors                |
| `_grouped`     | a user's examples, or augmentations of an image, as one example                          |
| `factored`     | a leaf of per-example gradients: its squared norms and its weighted sum                  |
| `microbatches` | how many examples' gradients exist at the same time                                      |
| `inputs`       | parameters, batches and masks: which are taken, which are refused by name                |
| `independence` | refuses losses in which an example could see others                                      |
| `shards`       | which devices of a mesh hold which examples                                              |
| `convolution`, `pooling` | forms that XLA runs fast on a CPU                                              |
| `correlation`  | convolutions of two arrays of an example, as products                                    |
| `platforms`    | what a program is made for                                                               |
| `jaxprs`       | evaluating traced programs equation by equation                                          |
"""

from jaxdp.gradients._grouped import grouped as grouped
from jaxdp.gradients._per_example import METHODS as METHODS
from jaxdp.gradients._per_example import Loss as Loss
from jaxdp.gradients._per_example import per_example as per_example
from jaxdp.gradients.factored import Factored as Factored
from jaxdp.gradients.factored import is_leaf as is_leaf
from jaxdp.gradients.factored import squared_norm as squared_norm
from jaxdp.gradients.factored import weighted_sum as weighted_sum
from jaxdp.gradients.inputs import as_mask as as_mask
from jaxdp.gradients.inputs import batch_size as batch_size
