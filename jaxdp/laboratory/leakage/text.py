"""`jaxdp attack --model decoder --data text`: the words behind the gradients of a small language model."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdp import atomic, decoder, intervals, records
from jaxdp.accounting import reconstruction
from jaxdp.attacks import Conditions, Leak, observe, tokens
from jaxdp.attacks.tokens import metrics, ngrams
from jaxdp.attacks.tokens.likelihood import example_loss
from jaxdp.laboratory.console import line
from jaxdp.laboratory.leakage import passages, words
from jaxdp.laboratory.leakage.sweep import Settings
from jaxdp.laboratory.records import attack_record

NAME = "text"
WIDTH, LAYERS = 128, 2
ATTACKS = {"plain": tokens.PLAIN, "noise-aware": tokens.TokenAttack()}
MEANING = {
    "plain": "spans of the layers' gradients, as if there were no noise (DAGER)",
    "noise-aware": "spans weighted by what the noise leaves of them, frequencies of words and pairs in public "
    "text, likelihood of the clipped gradient",
}


class Model(NamedTuple):
    """What is attacked: a loss of passages, its parameters, and the text."""

    loss_fn: Any
    params: Any
    text: passages.Passages


class Point(NamedTuple):
    """One row to be: a leak point, its noise multiplier and the attack's name."""

    name: str
    leak: Leak
    sigma: float
    attack: str


def fresh(seed: int, **options: Any) -> Model:
    """A decoder with fresh weights; `options` of `decoder.create`."""
    text = passages.load()
    sizes: dict[str, Any] = {"width": WIDTH, "layers": LAYERS, "tokens": text.private.shape[1] - 1}
    made = decoder.create(jax.random.key(seed), vocabulary=len(text.words), **sizes | options)
    return Model(decoder.next_token_loss(made), made.params, text)


def points(settings: Settings) -> list[Point]:
    """What is tried: without noise, one noised gradient of one passage, and of a batch of them."""
    size = settings.batch_size
    one, batch = Leak(clip="flat"), Leak(clip="flat", batch_size=size)
    rows = [
        Point("raw batch", Leak(batch_size=size), 0.0, "plain"),
        Point("clipped batch", batch, 0.0, "plain"),
    ]
    for name in ATTACKS:
        rows += [Point("noised", one, sigma, name) for sigma in settings.sigmas]
    if size > 1:
        for name in ATTACKS:
            rows += [Point("noised batch", batch, sigma, name) for sigma in settings.sigmas]
    return rows


def attacked(
    model: Model, settings: Settings, point: Point, key: jax.Array
) -> tuple[dict[str, Any], Int[np.ndarray, "n l"], Int[np.ndarray, "n l"]]:
    """One row with the passages [n, L] and what came back of them, those of a batch in the order that fits.

    The bound is that of one step with the noise multiplier: who knows all of a batch but one passage, and the
    private half from which it was drawn at random, names the word at a place with at most this probability, on
    average over places.  It stands beside gradients of one passage, which are what such a one has once the
    others are subtracted.  Where several passages are unknown, and ordered by the truth, nothing compares.
    """
    size, bound = point.leak.batch_size, settings.l2_norm_clip
    count, began = max(1, settings.victims // size), time.perf_counter()
    truth = model.text.private[: count * size].reshape(count, size, -1)
    vocabulary = len(model.text.words)
    std = point.sigma * bound / size
    conditions = Conditions(std, bound)
    victims = observe(
        example_loss(model.loss_fn), point.leak, model.params, truth, np.zeros((count, size), np.int32), key,
        conditions,
    )  # fmt: skip
    prior = ngrams.learned(model.text.public, vocabulary)
    found = [
        tokens.recover(
            model.loss_fn, model.params, jax.tree.map(lambda leaf, i=i: leaf[i], victims.observed),
            length=truth.shape[-1], vocabulary=vocabulary, leak=point.leak, conditions=conditions, prior=prior,
            attack=ATTACKS[point.attack],
        )
        for i in range(count)
    ]  # fmt: skip
    guess = np.stack([metrics.matched(each.tokens, t) for each, t in zip(found, truth, strict=True)])
    limit = None
    if size == 1 and point.sigma > 0:
        limit = float(reconstruction.gaussian_bound(1 / point.sigma, model.text.chance))
    row = {"leak": point.name, "attack": point.attack, "sigma": point.sigma, "batch_size": size}
    row |= metrics.judged(guess, truth)
    row |= {"chance": model.text.chance, "bound": limit, "noise_std": std}
    row |= {"seconds_a_gradient": (time.perf_counter() - began) / count}
    row |= {"unexplained": float(np.median([each.unexplained for each in found]))}
    length = truth.shape[-1]
    return row, truth.reshape(-1, length), guess.reshape(-1, length)


def sweep(model: Model, settings: Settings) -> Iterator[tuple]:
    """Attacks every point."""
    for index, point in enumerate(points(settings)):
        yield attacked(model, settings, point, jax.random.fold_in(jax.random.key(settings.seed), index))


def table(rows: Sequence[dict]) -> str:
    """The rows as text."""
    widths = {"leak": -15, "attack": -13, "sigma": 8, "B": 4, "tokens": 9, "anywhere": 10, "ROUGE-1": 9}
    widths |= {"ROUGE-2": 9, "whole": 7, "bound": 8, "s": 7}
    lines = [line(widths, list(widths))]
    for row in rows:
        shares = [row[name] for name in ("tokens", "tokens_anywhere", "rouge1", "rouge2", "exact")]
        limit = "-" if row["bound"] is None else f"{row['bound']:.3f}"
        cells = [row["leak"], row["attack"], f"{row['sigma']:g}", row["batch_size"]]
        cells += [*(f"{share:.3f}" for share in shares), limit, f"{row['seconds_a_gradient']:.1f}"]
        lines.append(line(widths, cells))
    return "\n".join(lines)


def record(settings: Settings, options: dict, row: dict) -> dict:
    """One row as a record; a success is a passage of which every word came back."""
    whole = intervals.wilson(round(row["exact"] * row["examples"]), row["examples"])
    known = {
        "model": "architecture and parameters at the leak",
        "clip": "none" if row["leak"].startswith("raw") else f"flat, bound {settings.l2_norm_clip}",
        "noise": f"standard deviation {row['noise_std']}"
        if row["attack"] == "noise-aware"
        else "not modelled",
        "batch_size": row["batch_size"],
        "prior": "words and pairs of public text" if row["attack"] == "noise-aware" else "none",
    }
    numbers: dict[str, Any] = {"victims": row["examples"], "success": whole, "iterations": None}
    numbers |= {"rmse": None, "rmse_mean_image": None}
    return attack_record(
        variant="attack", seed=settings.seed, stage=None, step=0, leak_point=row["leak"], attack=row["attack"],
        noise_std=row["noise_std"], knowledge=known, config=options, metrics=row | numbers,
    )  # fmt: skip


def run(settings: Settings, options: dict, output) -> None:
    """Attacks, prints the table, writes attack.json, attack.png and the records."""
    model = fresh(settings.seed)
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(model.params))
    length = model.text.private.shape[1]
    print(
        f"fresh decoder of {size} parameters, passages of {length} words, {len(model.text.words)} words known; "
        f"clip C = {settings.l2_norm_clip:g}; the commonest word at a place: {model.text.chance:.3f}",
        flush=True,
    )
    rows, truths, guesses = zip(*sweep(model, settings), strict=True)
    print("\n".join([table(rows), *(f"{name}: {text}" for name, text in MEANING.items())]))
    for row in rows:
        records.write(record(settings, options, row), output / "records")
    document = {
        "attacked": "fresh decoder, topics of help()",
        "config": options,
        "environment": records.environment(),
        "methods": {name: asdict(attack) for name, attack in ATTACKS.items()},
        "rows": rows,
        "passages": [
            {"leak": row["leak"], "attack": row["attack"], "sigma": row["sigma"],
             "truth": model.text.text(truth[0]), "found": model.text.text(guess[0])}
            for row, truth, guess in zip(rows, truths, guesses, strict=True)
        ],
    }  # fmt: skip
    content = json.dumps(records.plain(document), indent=1, allow_nan=False)
    atomic.write_text(output / "attack.json", content + "\n")
    atomic.write_bytes(output / "attack.png", words.figure(rows, truths, guesses, model.text))
    print(f"\nwritten: {output}/attack.json, attack.png, records/")
