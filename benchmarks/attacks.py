"""How strong and how fast the gradient leakage attacks are: `python -m benchmarks attacks [TABLE ...]`.

Each table writes `records/attacks_TABLE.json`.  Victims are held images of `digits` at 28 x 28; what the
attacker knows of images comes from the training split.  8 x 8 digits resampled to 28 x 28 fill only a
64-dimensional space, so the Gaussian prior is at its strongest here: rows without it stand beside it.
"""

import json
import os
import pathlib
import platform
import sys
import tempfile
import time
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp import convolution, data, models
from jaxdp.attacks import Attack, Leak, evaluation, public_knowledge
from jaxdp.attacks.portfolio import PLAIN, POSTERIOR

RECORDS = pathlib.Path(__file__).parent / "records"
COSINE = Attack(objective="cosine", labels="column_norm", iterations=600)
COSINE_PRIOR = Attack(
    objective="cosine", labels="column_norm", prior="gaussian", start="mean", iterations=400
)
COSINE_ADAM = Attack(
    objective="cosine", labels="column_norm", solver="adam", start="normal", tv=1e-3, iterations=2400
)


def _digits():
    dataset = data.load("digits", size=28)
    return dataset, public_knowledge(dataset.train_x, dataset.train_y)


def _victims(dataset, count, batch_size=1):
    chosen = slice(0, count * batch_size)
    x = dataset.test_x[chosen].reshape(count, batch_size, 28, 28, 1)
    return x, dataset.test_y[chosen].reshape(count, batch_size)


def _networks(count, **options):
    """`count` fresh LeNets, stacked."""
    nets = [models.create("lenet", jax.random.key(seed), **options) for seed in range(count)]
    return nets[0], jax.tree.map(lambda *leaves: np.stack(leaves), *(net.params for net in nets))


def _row(name, loss_fn, leak, attack, params, x, y, public, **options):
    """One row, with the time of a second, compiled run."""
    run = lambda: evaluation.evaluate(  # noqa: E731
        loss_fn, leak, attack, params, x, y, jax.random.key(1), public=public, **options
    )
    run()
    begin = time.perf_counter()
    row, _ = run()
    seconds = time.perf_counter() - begin
    shares = {key: row[key]._asdict() for key in ("exact", "recognisable")}
    print(f"{name:<44} exact {row['exact']}  recognisable {row['recognisable']}  {seconds:.1f} s", flush=True)
    speed = {"seconds": seconds, "attacks_per_minute": 60 * len(x) / seconds}
    return {"name": name, "method": asdict(attack)} | row | shares | speed


def undefended(victims: int = 64) -> list[dict]:
    """B = 1, every victim with fresh weights of its own."""
    dataset, public = _digits()
    x, y = _victims(dataset, victims)
    rows = []
    for activation, initialization in (
        ("sigmoid", "uniform"), ("sigmoid", "fan_in"), ("tanh", "fan_in"), ("relu", "fan_in"),
    ):  # fmt: skip
        net, params = _networks(victims, activation=activation, initialization=initialization)
        loss_fn = models.cross_entropy(net)
        attacks = {"plain": PLAIN, "cosine": COSINE, "cosine, prior": COSINE_PRIOR}
        if activation == "relu":
            attacks |= {"cosine + TV, Adam": COSINE_ADAM}
        for name, attack in attacks.items():
            title = f"{activation} {initialization}: {name}"
            rows.append(_row(title, loss_fn, Leak(), attack, params, x, y, public, own_params=True))
    return rows


def batches(victims: int = 8) -> list[dict]:
    """B = 1 .. 32 with the authors' LeNet."""
    dataset, public = _digits()
    net, params = _networks(victims, initialization="uniform")
    loss_fn, rows = models.cross_entropy(net), []
    for size in (1, 2, 4, 8, 16, 32):
        x, y = _victims(dataset, victims, size)
        for name, prior, start in (("plain", "none", "uniform"), ("prior", "gaussian", "mean")):
            attack = Attack(start=start, prior=prior, iterations=800)
            title = f"B = {size}: {name}"
            leak = Leak(batch_size=size)
            rows.append(_row(title, loss_fn, leak, attack, params, x, y, public, own_params=True))
    return rows


def noise(victims: int = 32) -> list[dict]:
    """Plain against noise-aware, noise relative to the gradient's norm."""
    dataset, public = _digits()
    net = models.create("lenet", jax.random.key(0), initialization="uniform")
    loss_fn, (x, y), rows = models.cross_entropy(net), _victims(dataset, victims), []
    size = sum(leaf.size for leaf in jax.tree.leaves(net.params))
    for relative in (0.0, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0):
        # The clip of bound 1 is active for every victim here, so the gradient's norm is 1.
        std = relative / size**0.5
        for name, attack in (("plain", PLAIN), ("noise-aware", POSTERIOR)):
            row = _row(
                f"noise / gradient {relative:g}: {name}", loss_fn, Leak(clip="flat"), attack, net.params,
                x, y, public, noise_std=std, bound=1.0,
            )  # fmt: skip
            rows.append(row | {"relative_noise": relative, "noise_std": std})
    return rows


def clipping(victims: int = 32) -> list[dict]:
    """Clipped gradients without noise: the attacker who models the clip against the one who does not."""
    dataset, public = _digits()
    net = models.create("lenet", jax.random.key(0), initialization="uniform")
    loss_fn, (x, y), rows = models.cross_entropy(net), _victims(dataset, victims), []
    for clip in ("flat", "per_layer", "per_layer_published"):
        for aware in (False, True):
            attack = Attack(clip_aware=aware, start="constant", iterations=400)
            title = f"{clip}, bound 0.1, {'aware' if aware else 'not aware'}"
            rows.append(_row(title, loss_fn, Leak(clip=clip), attack, net.params, x, y, public, bound=0.1))
    return rows


def training(victims: int = 32) -> list[dict]:
    """Along the training of a tanh LeNet by Adam, undefended."""
    dataset, public = _digits()
    net = models.create("lenet", jax.random.key(0), activation="tanh")
    loss_fn, (x, y), rows = models.cross_entropy(net), _victims(dataset, victims), []
    optimizer = optax.adam(1e-3)
    train_x, train_y = jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)
    fast = convolution.with_patches(loss_fn)

    @jax.jit
    def twenty(params, state, key):
        def step(carry, key):
            params, state = carry
            i = jax.random.randint(key, (64,), 0, len(train_x))
            losses = lambda p: jax.vmap(fast, (None, 0))(p, (train_x[i], train_y[i])).mean()  # noqa: E731
            updates, state = optimizer.update(jax.grad(losses)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jax.random.split(key, 20))[0]

    params, state = net.params, optimizer.init(net.params)
    for step in range(0, 1001, 20):
        if step in (0, 40, 60, 200, 1000):
            accuracy = float(
                (net.apply(params, jnp.asarray(dataset.test_x)).argmax(-1) == dataset.test_y).mean()
            )
            for name, attack in (("plain", PLAIN), ("cosine", COSINE), ("cosine, prior", COSINE_PRIOR)):
                title = f"step {step}, accuracy {accuracy:.3f}: {name}"
                row = _row(title, loss_fn, Leak(), attack, params, x, y, public)
                rows.append(row | {"step": step, "accuracy": accuracy})
        params, state = twenty(params, state, jax.random.key(step))
    return rows


def throughput() -> list[dict]:
    """Whole attacks a minute against the number of victims, compiled."""
    dataset, public = _digits()
    rows = []
    for victims in (1, 8, 64, 256):
        x, y = _victims(dataset, victims)
        net, params = _networks(victims, initialization="uniform")
        for name, attack in (("cosine", COSINE), ("cosine, prior", COSINE_PRIOR)):
            attack = Attack(**{**asdict(attack), "iterations": 300})
            title = f"{victims} victims: {name}"
            row = _row(
                title, models.cross_entropy(net), Leak(), attack, params, x, y, public, own_params=True
            )
            rows.append(row | {"attack_steps_per_second": row["iterations"] * victims / row["seconds"]})
    return rows


TABLES = {
    "undefended": undefended,
    "batches": batches,
    "noise": noise,
    "clipping": clipping,
    "training": training,
    "throughput": throughput,
}


def _write(path: pathlib.Path, document: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        json.dump(document, file, indent=1)
    os.replace(name, path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the named tables, or all."""
    names = list(sys.argv[1:] if arguments is None else arguments) or list(TABLES)
    for name in names:
        if name not in TABLES:
            raise ValueError(f"table={name!r}: choose from {', '.join(TABLES)}")
    for name in names:
        machine = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "jax": jax.__version__}
        document = {"table": name, "python": platform.python_version(), **machine, "rows": TABLES[name]()}
        _write(RECORDS / f"attacks_{name}.json", document)


if __name__ == "__main__":
    main()
