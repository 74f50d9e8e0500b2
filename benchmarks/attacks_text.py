"""The table `text` of `python -m benchmarks attacks`: words from the gradients of a small decoder.

Two layers of width 128, 1,000 words, passages of 17 words of which 16 go in.  `tokens` is the share of words in
their place.  `bound` stands beside the gradient of one passage only: see `laboratory.leakage.text.attacked`.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp.attacks import Leak
from jaxdp.laboratory.leakage import text
from jaxdp.laboratory.leakage.sweep import Settings
from jaxdp.laboratory.leakage.text import ATTACKS, Model, Point

SIZE = 4
SIGMAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
STEPS = 500


def trained(model: Model, steps: int) -> Model:
    """The model after steps of Adam on public passages."""
    optimizer, public = optax.adam(1e-3), jnp.asarray(model.text.public)

    def step(carry, key):
        params, state = carry
        batch = public[jax.random.randint(key, (32,), 0, len(public))]
        mean = lambda p: jax.vmap(model.loss_fn, (None, 0))(p, batch).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(mean)(params), state)
        return (optax.apply_updates(params, updates), state), None

    def run(params, keys):
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return model._replace(params=jax.jit(run)(model.params, jax.random.split(jax.random.key(1), steps)))


def cases() -> Iterator[tuple[str, Model, Point, int]]:
    """What is measured, by name: the model, the leak point, how many passages."""
    fresh = text.fresh(0)
    batch, clipped, one = Leak(batch_size=SIZE), Leak(batch_size=SIZE, clip="flat"), Leak(clip="flat")
    for sigma in SIGMAS:
        for attack in ATTACKS:
            yield "untied", fresh, Point("noised", one, sigma, attack), 4
    yield "untied", fresh, Point("raw batch", batch, 0.0, "plain"), 16
    yield "untied", fresh, Point("raw batch", batch, 0.0, "noise-aware"), SIZE
    yield "untied", fresh, Point("clipped batch", clipped, 0.0, "plain"), 8
    yield f"untied, {STEPS} steps", trained(fresh, STEPS), Point("raw batch", batch, 0.0, "plain"), SIZE
    for tied, scanned in ((True, False), (False, True), (True, True)):
        name = ("tied" if tied else "untied") + (", scanned" if scanned else "")
        yield name, text.fresh(0, tied=tied, scanned=scanned), Point("raw batch", batch, 0.0, "plain"), SIZE
    for attack in ATTACKS:
        yield "untied", fresh, Point("noised batch", clipped, SIGMAS[1], attack), SIZE


def table() -> list[dict]:
    """Words against noise, and undefended batches of every form of the decoder."""
    return [_row(*case) for case in cases()]


def _row(name: str, model: Model, point: Point, victims: int) -> dict:
    settings = Settings(victims=victims, batch_size=SIZE)
    row, _, _ = text.attacked(model, settings, point, jax.random.key(1))
    row = {"name": name} | row
    row["bound"] = "" if row["bound"] is None else row["bound"]
    print(text.table([row | {"bound": row["bound"] or None}]).splitlines()[1], flush=True)
    return {key: value if not isinstance(value, np.generic) else value.item() for key, value in row.items()}


TABLES = {"text": table}
