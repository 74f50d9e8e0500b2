"""The text behind a leaked gradient of a language model, token by token.

| module       | owns                                                                                      |
|--------------|-------------------------------------------------------------------------------------------|
| `products`   | which products a model makes with its parameters, their inputs and gradients, off the trace |
| `spans`      | the span of a layer's gradient, exactly or behind noise                                     |
| `evidence`   | what the spans, and the rows of tables, say of each token                                   |
| `ngrams`     | what is known of the language                                                               |
| `likelihood` | examples that explain the whole gradient                                                    |
| `_recover`   | all of it: places, sequences, the batch                                                     |
| `metrics`    | how much came back                                                                          |
"""

from jaxdp.attacks.tokens._recover import PLAIN, Recovered, TokenAttack, recover

__all__ = ["PLAIN", "Recovered", "TokenAttack", "recover"]
