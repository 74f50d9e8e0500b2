"""How strong and how fast the gradient leakage attacks are: `python -m benchmarks attacks [TABLE ...]`.

Each table writes `records/attacks_TABLE.json`.  Victims are held images of `digits` at 28 x 28; what the
attacker knows of images comes from the training split.  8 x 8 digits resampled to 28 x 28 fill only a
64-dimensional space, so a prior learned from such images is at its strongest here: rows without one stand
first, and rows with one say so in their name.  Times are of compiled programs.
"""

import json
import pathlib
import sys
import time
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import attacks_text, forecasts
from jaxdp import atomic, data, models, records
from jaxdp.attacks import Attack, Conditions, Leak, Setting, evaluate, public_knowledge
from jaxdp.attacks.leaks import NOISELESS, RAW
from jaxdp.attacks.portfolio import PLAIN, POSTERIOR, RELU, SIGNAL, SMOOTH
from jaxdp.gradients import convolution
from jaxdp.laboratory.leakage.sweep import Model, trajectory

RECORDS = pathlib.Path(__file__).parent / "records"
COSINE = Attack(objective="cosine", labels="column_norm", start="constant", iterations=600)


def _digits():
    dataset = data.load("digits", size=28)
    return dataset, public_knowledge(dataset.train_x, dataset.train_y)


def _victims(dataset, count, batch_size=1):
    chosen = slice(0, count * batch_size)
    shape = dataset.test_x.shape[1:]
    x = np.asarray(dataset.test_x[chosen]).reshape(count, batch_size, *shape)
    return x, dataset.test_y[chosen].reshape(count, batch_size)


def _networks(count, **options):
    """The parameters of `count` fresh LeNets, stacked."""
    nets = [models.create("lenet", jax.random.key(seed), **options).params for seed in range(count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *nets)


def _setting(loss_fn, public, leak=RAW, **options):
    return Setting(loss_fn=loss_fn, leak=leak, input_shape=public.mean.shape, public=public, **options)


def _loss(activation="sigmoid"):
    return models.cross_entropy(models.create("lenet", jax.random.key(0), activation=activation))


def _row(name, setting, attack, params, x, y, conditions=NOISELESS, **options):
    """One row; its programs are compiled first, by a run of one iteration."""

    def run(attack):
        return evaluate(setting, attack, params, x, y, jax.random.key(1), conditions, **options)

    began = time.perf_counter()
    run(replace(attack, iterations=1))
    compiled = time.perf_counter()
    row, found = run(attack)
    seconds = time.perf_counter() - compiled
    shares = {key: row[key]._asdict() for key in ("exact", "recognisable")}
    ticks = float(np.sum(found.iterations))
    print(f"{name:<44} exact {row['exact']}  recognisable {row['recognisable']}  {seconds:.1f} s", flush=True)
    speed = {
        "seconds": seconds,
        "compile_seconds": compiled - began,
        "attacks_per_minute": 60 * len(x) / seconds,
        "attack_steps_per_second": ticks / seconds,
        "seconds_an_attack": seconds / len(x),
    }
    return {"name": name, "method": asdict(attack)} | row | shares | speed


def undefended(victims: int = 64) -> list[dict]:
    """B = 1, every victim with fresh weights of its own."""
    dataset, public = _digits()
    x, y = _victims(dataset, victims)
    tasks = {
        "sigmoid": ({"published": PLAIN, "signal": SIGNAL}, ("uniform", "fan_in")),
        "tanh": ({"published": PLAIN, "signal": SIGNAL}, ("fan_in",)),
        "relu": ({"signal": SIGNAL, "cosine, smoothed ReLU": RELU}, ("fan_in",)),
    }
    rows = []
    for activation, (attacks, initializations) in tasks.items():
        loss_fn = _loss(activation)
        for initialization in initializations:
            params = _networks(victims, activation=activation, initialization=initialization)
            for name, attack in attacks.items():
                title = f"{activation} {initialization}: {name}"
                rows.append(_row(title, _setting(loss_fn, public), attack, params, x, y, own_params=True))
    return rows


def batches(victims: int = 8) -> list[dict]:
    """B = 1 .. 32 with the authors' LeNet; labels inferred, and not all distinct."""
    dataset, public = _digits()
    loss_fn, rows = _loss(), []
    for size in (1, 2, 4, 8, 16, 32):
        count = victims if size <= 8 else victims // 4
        x, y = _victims(dataset, count, size)
        params = _networks(count, initialization="uniform")
        for name, prior, start in (("plain", "none", "uniform"), ("learned prior", "gaussian", "mean")):
            if name == "plain" or size >= 8:
                attack = Attack(start=start, prior=prior, iterations=1200 if name == "plain" else 600)
                title, setting = f"B = {size}: {name}", _setting(loss_fn, public, Leak(batch_size=size))
                rows.append(_row(title, setting, attack, params, x, y, own_params=True, lanes=count))
    return rows


def noise(victims: int = 32) -> list[dict]:
    """Plain against noise-aware, with and without a learned prior, noise relative to the gradient's norm."""
    dataset, public = _digits()
    net = models.create("lenet", jax.random.key(0), initialization="uniform")
    loss_fn, (x, y), rows = models.cross_entropy(net), _victims(dataset, victims), []
    size = sum(leaf.size for leaf in jax.tree.leaves(net.params))
    attacks = {"plain": PLAIN, "noise-aware": SMOOTH, "noise-aware, learned prior": POSTERIOR}
    for relative in (0.0, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0):
        # The clip of bound 1 is active for every victim here, so the gradient's norm is 1.
        std = relative / size**0.5
        for name, attack in attacks.items():
            title, setting = (
                f"noise / gradient {relative:g}: {name}",
                _setting(loss_fn, public, Leak(clip="flat")),
            )
            row = _row(title, setting, attack, net.params, x, y, Conditions(std, bound=1.0))
            rows.append(row | {"relative_noise": relative, "noise_std": std})
    return rows


def clipping(victims: int = 32) -> list[dict]:
    """Clipped gradients without noise: the attacker who models the clip against the one who does not."""
    dataset, public = _digits()
    net = models.create("lenet", jax.random.key(0), initialization="uniform")
    loss_fn, (x, y), rows = models.cross_entropy(net), _victims(dataset, victims), []
    for clip in ("flat", "per_layer", "per_layer_published"):
        naive = Attack(clip_aware=False, start="constant", iterations=400)
        attacks = {"not aware": naive, "aware": replace(naive, clip_aware=True)}
        if clip == "flat":
            attacks["signal"] = SIGNAL
        for name, attack in attacks.items():
            title = f"{clip}, bound 0.1, {name}"
            setting = _setting(loss_fn, public, Leak(clip=clip))
            rows.append(_row(title, setting, attack, net.params, x, y, Conditions(bound=0.1)))
    return rows


def _adam_trajectory(net, loss_fn, dataset, steps, rate=1e-3, batch_size=64):
    """Parameters after every 20 steps of Adam, without privacy."""
    optimizer = optax.adam(rate)
    train_x, train_y = jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)
    fast = convolution.with_patches(loss_fn)

    @jax.jit
    def twenty(params, state, key):
        def step(carry, key):
            params, state = carry
            i = jax.random.randint(key, (batch_size,), 0, len(train_x))
            mean = lambda p: jax.vmap(fast, (None, 0))(p, (train_x[i], train_y[i])).mean()  # noqa: E731
            updates, state = optimizer.update(jax.grad(mean)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jax.random.split(key, 20))[0]

    params, state = net.params, optimizer.init(net.params)
    for step in range(0, steps + 1, 20):
        yield step, params
        params, state = twenty(params, state, jax.random.key(step))


def training(victims: int = 32) -> list[dict]:
    """Along the training of a tanh LeNet by Adam, undefended, without any prior."""
    dataset, public = _digits()
    net = models.create("lenet", jax.random.key(0), activation="tanh")
    loss_fn, (x, y), rows = models.cross_entropy(net), _victims(dataset, victims), []
    published = replace(PLAIN, labels="column_norm")
    attacks = {"published": published, "cosine": COSINE, "signal": SIGNAL}
    for step, params in _adam_trajectory(net, loss_fn, dataset, 1000):
        if step in (0, 40, 60, 200, 1000):
            logits = net.apply(params, jnp.asarray(dataset.test_x))
            accuracy = float((logits.argmax(-1) == dataset.test_y).mean())
            for name, attack in attacks.items():
                title = f"step {step}, accuracy {accuracy:.3f}: {name}"
                row = _row(title, _setting(loss_fn, public), attack, params, x, y)
                rows.append(row | {"step": step, "accuracy": accuracy})
    return rows


def at_once(victims: int, iterations: int = 400, networks: int = 64) -> dict:
    """As many attacks as victims in as many lanes, each on an image and weights that no other has together."""
    dataset, public = _digits()
    own, places = _networks(min(victims, networks), initialization="uniform"), np.arange(victims)
    params = jax.tree.map(lambda leaf: leaf[places % len(leaf)], own)
    x, y = (a[places % len(a)] for a in _victims(dataset, min(victims, len(dataset.test_x))))
    fast = replace(SIGNAL, iterations=iterations, tolerance=1e-7)
    title = f"{victims} victims at once"
    return _row(title, _setting(_loss(), public), fast, params, x, y, own_params=True, lanes=victims)


def throughput() -> list[dict]:
    """Whole attacks a minute against the number of victims, each with weights of its own."""
    dataset, public = _digits()
    loss_fn, rows = _loss(), []
    fast = replace(SIGNAL, iterations=400, tolerance=1e-7)
    for victims in (1, 8, 64, 256):
        x, y = _victims(dataset, victims)
        params = _networks(victims, initialization="uniform")
        title = f"{victims} victims"
        rows.append(_row(title, _setting(loss_fn, public), fast, params, x, y, own_params=True))
    return rows


def windows(victims: int = 16) -> list[dict]:
    """A window of T noised gradients of the same example along SGD, and updates after k local steps."""
    dataset, public = _digits()
    net = models.create("lenet", jax.random.key(0), initialization="uniform")
    loss_fn, (x, y), rows = models.cross_entropy(net), _victims(dataset, victims), []
    model = Model(
        loss_fn=loss_fn, params=net.params, x=dataset.test_x, y=dataset.test_y, train_x=dataset.train_x,
        train_y=dataset.train_y, public=public, classes=10,
    )  # fmt: skip
    for steps in (1, 4, 8):
        path = trajectory(model, steps, 0) if steps > 1 else net.params
        falling = np.geomspace(10.0, 1.0, steps) if steps > 1 else np.ones(1)
        for shape, factors in (("equal", np.ones(steps)), ("falling tenfold", falling)):
            if steps == 1 and shape != "equal":
                continue
            std = np.broadcast_to(1e-2 * factors, (victims, steps)).astype(np.float32)
            attack = replace(POSTERIOR, iterations=200)
            leak = Leak(clip="flat", window=steps)
            title = f"window {steps}, sigma to 0.01, {shape}: learned prior"
            row = _row(title, _setting(loss_fn, public, leak), attack, path, x, y, Conditions(std))
            rows.append(row | {"window": steps})
    for steps in (2, 4):
        setting, attack = _setting(loss_fn, public, Leak(local_steps=steps)), replace(PLAIN, start="constant")
        rows.append(_row(f"update after {steps} steps", setting, attack, net.params, x, y))
    return rows


def tabular(victims: int = 64) -> list[dict]:
    """Rows of `breast_cancer`, standardised: recognisable below .3 standard deviations."""
    dataset = data.load("breast_cancer", scaling="standardized")
    public = public_knowledge(dataset.train_x, dataset.train_y, classes=2)
    net = models.create("mlp", jax.random.key(0), input_shape=dataset.input_shape, classes=2)
    loss_fn, rows = models.cross_entropy(net), []
    for size, count in ((1, victims), (4, victims // 4)):
        x, y = _victims(dataset, count, size)
        plain = Attack(start="mean", labels="column_norm" if size == 1 else "bias", iterations=400)
        relu = replace(RELU, start="mean", labels=plain.labels, tv=0.0)
        for sigma, name, attack in (
            (0.0, "plain", plain),
            (0.0, "cosine, smoothed ReLU", relu),
            (1e-2, "plain", plain),
            (1e-2, "learned prior", POSTERIOR),
            (1e-1, "learned prior", POSTERIOR),
        ):
            setting = _setting(loss_fn, public, Leak(clip="flat", batch_size=size), classes=2)
            title = f"B = {size}, sigma {sigma:g}: {name}"
            row = _row(title, setting, attack, net.params, x, y, Conditions(sigma / size))
            rows.append(row | {"sigma": sigma})
    return rows


TABLES = {
    "undefended": undefended,
    "batches": batches,
    "noise": noise,
    "clipping": clipping,
    "training": training,
    "throughput": throughput,
    "windows": windows,
    "tabular": tabular,
    **forecasts.TABLES,
    **attacks_text.TABLES,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the named tables, or all."""
    names = list(sys.argv[1:] if arguments is None else arguments) or list(TABLES)
    for name in names:
        if name not in TABLES:
            raise ValueError(f"table={name!r}: choose from {', '.join(TABLES)}")
    for name in names:
        document = {"table": name, "environment": records.environment(), "rows": TABLES[name]()}
        content = json.dumps(records.plain(document), indent=1, allow_nan=False)
        atomic.write_text(RECORDS / f"attacks_{name}.json", content + "\n")


if __name__ == "__main__":
    main()
