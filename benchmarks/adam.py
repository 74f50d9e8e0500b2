"""Private Adam with noise of one size, or scaled first: `python -m benchmarks adam`.

A small decoder learns letters of text that ships with Python, from nothing, at one epsilon.  Of both clippers
(`clipping.flat`, and `clipping.preconditioned` of arXiv 2507.01129) the best learning rate and bound are chosen
by a run of another seed; then three seeds, each by its test loss in nats a letter.
"""

import argparse
import functools
import itertools
import pydoc_data.topics

import jax
import numpy as np
import optax

import jaxdp
from benchmarks import timing
from jaxdp import clipping, decoder, sampling
from jaxdp.training.run import train

LENGTH, STEPS, RATE, SIZES = 32, 200, 0.04, dict(width=32, layers=2, heads=2)
CLAIM = jaxdp.Claim(delta=1e-5, adjacency="add_or_remove_one")
LEARNING_RATES, BOUNDS, CHOOSING, SEEDS = (1e-3, 3e-3, 1e-2), (0.1, 1.0), 100, (0, 1, 2)
CLIPPERS = {"flat": clipping.flat, "preconditioned": clipping.preconditioned}


def passages() -> tuple[np.ndarray, np.ndarray, int]:
    """Passages [N, LENGTH + 1] to learn from and to test on, and the number of letters."""
    text = "".join(entry for _, entry in sorted(pydoc_data.topics.topics.items()))
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    ids = np.array([letters[letter] for letter in text], np.int32)
    count = (len(ids) - 1) // LENGTH
    rows = np.stack([ids[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(count)])
    return np.delete(rows, np.s_[::10], axis=0), rows[::10], len(letters)


def run(name: str, learning_rate: float, bound: float, seed: int, epsilon: float) -> float:
    """The test loss of one private run."""
    private, test, letters = passages()
    model = decoder.create(jax.random.key(seed), vocabulary=letters, tokens=LENGTH, tied=True, **SIZES)
    loss_fn = decoder.next_token_loss(model)
    plan = jaxdp.Plan(
        clipper=CLIPPERS[name](bound), noise_multiplier=1.0, steps=STEPS, seed=seed,
        sampler=sampling.poisson(len(private), RATE, steps=STEPS),
    )  # fmt: skip
    plan = jaxdp.calibrate(plan, epsilon, CLAIM)
    result = train(loss_fn, model.params, private, plan, optax.adam(learning_rate), CLAIM)
    return float(jax.jit(jax.vmap(loss_fn, (None, 0)))(result.params, test).mean())


def measured(name: str, epsilon: float) -> dict:
    """One record: the settings that one seed chose, and the losses of the others with them."""
    tried = {
        settings: run(name, *settings, CHOOSING, epsilon)
        for settings in itertools.product(LEARNING_RATES, BOUNDS)
    }
    best = min(tried, key=lambda settings: tried[settings])
    losses = list(map(functools.partial(run, name, *best, epsilon=epsilon), SEEDS))
    return {
        "clipper": name, "epsilon": epsilon, "learning_rate": best[0], "l2_norm_clip": best[1],
        "losses": losses, "mean": float(np.mean(losses)),
        "tried": [{"learning_rate": r, "l2_norm_clip": c, "loss": x} for (r, c), x in tried.items()],
    }  # fmt: skip


def main() -> None:
    """Measures and writes `records/adam_DEVICE.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks adam", description=__doc__)
    parser.add_argument("--epsilon", type=float, default=3.0)
    options = parser.parse_args()
    rows = []
    for name in CLIPPERS:
        rows.append(measured(name, options.epsilon))
        print({k: v for k, v in rows[-1].items() if k != "tried"}, flush=True)
    timing.write(f"adam_{jax.default_backend()}", rows)


if __name__ == "__main__":
    main()
