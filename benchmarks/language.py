"""What a step of a language model costs, with and without privacy: `python -m benchmarks language`.

A causal decoder (`jaxdp.decoder`): the output a matrix of its own or the embedding, layers written out or
scanned.  Ordinary training is the mean loss over the batch, whole or in pieces; `private` is compared with the
faster of them, round by round.  `temporary_mb` is what XLA says that the compiled step needs for intermediate
values, `example_mb` what an example's gradient takes as it is kept.
"""

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import timing
from benchmarks.step import Carried
from benchmarks.variants import L2_NORM_CLIP, LEARNING_RATE, SIGMA, Step
from jaxdp import clipping, decoder, gradients
from jaxdp._privatize import privatize
from jaxdp.clipping import clipped_gradients
from jaxdp.gradients import microbatches

CASES: dict[str, dict[str, Any]] = {
    "untied": {}, "tied": dict(tied=True),
    "untied_scanned": dict(scanned=True), "tied_scanned": dict(tied=True, scanned=True),
}  # fmt: skip
TOKENS, VOCABULARY, BATCH = 128, 8192, 16


def ordinary(loss_fn, params, batch_size: int, piece_size: int) -> Step:
    """Mean loss, its gradient accumulated over pieces, SGD."""
    optimizer = optax.sgd(LEARNING_RATE)

    def loss(params, x):
        return jax.vmap(loss_fn, (None, 0))(params, x).mean()

    def accumulated(params, x):
        if piece_size == batch_size:
            return jax.grad(loss)(params, x)
        pieces = x.reshape(-1, piece_size, *x.shape[1:])

        def add(total, piece):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(params, piece)), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), pieces)
        return jax.tree.map(lambda g: g * (piece_size / batch_size), total)

    def step(params, state, x, y):
        updates, state = optimizer.update(accumulated(params, x), state)
        return optax.apply_updates(params, updates), state

    return Step(jax.jit(step), optimizer.init(params))


def private(loss_fn, params, batch_size: int, microbatch_size: int | str | None = "auto") -> Step:
    """DP-SGD as the library does it."""
    clipper = clipping.flat(L2_NORM_CLIP)
    chain = optax.chain(privatize(clipper, SIGMA, batch_size), optax.sgd(LEARNING_RATE))
    gradient = clipped_gradients(loss_fn, clipper, microbatch_size=microbatch_size)

    def step(params, state, x, y):
        _, summed = gradient(params, x, None, state[0].clip, state[0].step)
        updates, state = chain.update(summed, state, params)
        return optax.apply_updates(params, updates), state

    return Step(jax.jit(step), chain.init(params))


def measure(name: str, rounds: int, budget_seconds: float) -> list[dict]:
    """One record for each variant of a case."""
    model = decoder.create(jax.random.key(0), vocabulary=VOCABULARY, tokens=TOKENS, **CASES[name])
    loss_fn, params = decoder.next_token_loss(model), model.params
    x = jax.random.randint(jax.random.key(1), (BATCH, TOKENS + 1), 0, VOCABULARY)
    example = microbatches.example_bytes(gradients.per_example(loss_fn), params, x)
    size = min(BATCH, microbatches.automatic_size(example))
    steps = {f"ordinary in pieces of {s}": ordinary(loss_fn, params, BATCH, s) for s in sorted({size, BATCH})}
    steps["private"] = private(loss_fn, params, BATCH)
    runs = {variant: Carried(step, params, x, None) for variant, step in steps.items()}
    compiled = {variant: timing.first_call(run) for variant, run in runs.items()}
    seconds = timing.interleaved({k: timing.timed(run) for k, run in runs.items()}, rounds, budget_seconds)
    best = min((times for variant, times in seconds.items() if variant != "private"), key=np.median)
    rows = []
    for variant, times in seconds.items():
        of_best = timing.ratio(times, best)
        memory = steps[variant].run.lower(params, steps[variant].state, x, None).compile().memory_analysis()
        rows.append(
            {
                "model": name,
                "batch": BATCH,
                "microbatch": size,
                "variant": variant,
                "median_ms": 1e3 * float(np.median(times)),
                "ratio_to_best_ordinary": of_best["median"],
                "ratio_quartiles": of_best["quartiles"],
                "temporary_mb": memory.temp_size_in_bytes / 2**20,
                "example_mb": example.gradient / 2**20,
                "compile_seconds": compiled[variant],
                "rounds": len(times),
            }
        )
    return rows


def main() -> None:
    """Measures the cases asked for and writes `records/language_MODEL_DEVICE.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks language", description=__doc__)
    known = ", ".join(CASES)
    parser.add_argument("--models", default=",".join(CASES), help=f"comma-separated, of {known}")
    parser.add_argument("--rounds", type=int, default=15, help="how often each variant runs")
    parser.add_argument("--seconds", type=float, default=120, help="no further round of a model after this")
    parser.add_argument("--json", action="store_true", help="print one JSON record a line; write no file")
    options = parser.parse_args()
    names = options.models.split(",")
    for name in names:
        if name not in CASES:
            parser.error(f"models={name!r}: choose from {known}")
    for name in names:
        rows = measure(name, options.rounds, options.seconds)
        for row in rows:
            line = (
                "{model:<16}{variant:<26}{median_ms:9.1f} ms  {ratio_to_best_ordinary:.3f} of the best "
                "ordinary  {temporary_mb:7.1f} MB  {example_mb:.1f} MB an example"
            ).format(**row)
            print(json.dumps(row) if options.json else line, flush=True)
        if not options.json:
            timing.write(f"language_{name}_{jax.default_backend()}", rows)


if __name__ == "__main__":
    main()
