"""The tables of `python -m benchmarks attacks` that need no search: informed adversary, labels, risk."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp import data, models, schedules
from jaxdp.accounting import reconstruction
from jaxdp.attacks import Conditions, Leak, evaluate, public_knowledge
from jaxdp.attacks import candidates as hypotheses
from jaxdp.attacks.portfolio import POSTERIOR
from jaxdp.intervals import success_rate
from jaxdp.laboratory.leakage import forecast
from jaxdp.laboratory.leakage.sweep import Model

_STEPS, _TRIALS, _CANDIDATES = 100, 20_000, 10


def _model() -> Model:
    dataset = data.load("digits", size=28)
    net = models.create("lenet", jax.random.key(0), initialization="uniform")
    return Model(
        loss_fn=models.cross_entropy(net), params=net.params, x=dataset.test_x, y=dataset.test_y,
        train_x=dataset.train_x, train_y=dataset.train_y,
        public=public_knowledge(dataset.train_x, dataset.train_y), classes=10,
    )  # fmt: skip


def _schedules():
    """sigma(t) of the published comparison, and the fixed one that spends as much as the linear one."""
    known = {
        "fixed 6": np.full(_STEPS, 6.0),
        "linear 15 to 4.85": schedules.values(schedules.create("linear", _STEPS), _STEPS),
        "exponential 15 to 4.85": schedules.values(schedules.create("exponential", _STEPS), _STEPS),
    }
    linear = known["linear 15 to 4.85"]
    known["fixed, as private as linear"] = np.full(_STEPS, np.mean(linear**-2.0) ** -0.5)
    return known


def informed() -> list[dict]:
    """One of ten candidates, each step seen without amplification, against the reconstruction bound."""
    k, rows, model = _CANDIDATES, [], _model()
    real = np.asarray(hypotheses.gram(model.loss_fn, "flat", model.params, model.x[:k], model.y[:k], 1.0))
    for kind, gram in (("worst case", hypotheses.canaries(k)), ("real digits", real)):
        for name, sigmas in _schedules().items():
            hits = hypotheses.informed_adversary(
                jnp.asarray(np.broadcast_to(gram, (_STEPS, k, k)), jnp.float32),
                jnp.asarray(sigmas, jnp.float32), jax.random.key(0), trials=_TRIALS,
            )  # fmt: skip
            share = success_rate(np.asarray(hits)[:, -1])
            bound = float(reconstruction.gaussian_bound(float(np.sqrt((sigmas**-2.0).sum())), 1 / k))
            gap = (share.estimate - 1 / k) / (bound - 1 / k)
            print(f"{kind}, {name:<28} {share} bound {bound:.3f}", flush=True)
            rows.append(
                {"name": f"{kind}, {name}", "right": share._asdict(), "bound": bound, "chance": 1 / k,
                 "share_of_gap": gap, "steps": _STEPS, "trials": _TRIALS}
            )  # fmt: skip
    return rows


def labels() -> list[dict]:
    """Labels after several looks at one example, at the published noise multipliers."""
    rows = forecast.labels(_model(), (1.0, 4.85, 6.0, 15.0), bound=1.0, victims=300, seed=0)
    for row in rows:
        print(f"sigma {row['sigma']:g}, {row['looks']} looks: {row['right']}", flush=True)
    return [row | {"right": row["right"]._asdict()} for row in rows]


def risk() -> list[dict]:
    """The linearised error beside the posterior attack's."""
    model, sigmas = _model(), (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 1.0)
    expected = forecast.errors(model, sigmas, bound=1.0, victims=8) or []
    x, y = np.asarray(model.x[:16])[:, None], np.asarray(model.y[:16])[:, None]
    setting, rows = model.setting(Leak(clip="flat")), []
    for guess in expected:
        conditions = Conditions(guess["sigma"])
        row, _ = evaluate(setting, POSTERIOR, model.params, x, y, jax.random.key(1), conditions)
        print(
            f"sigma {guess['sigma']:g}: expected {guess['rmse']:.4f}, measured {row['rmse']:.4f}", flush=True
        )
        rows.append({"sigma": guess["sigma"], "expected_rmse": guess["rmse"], "measured_rmse": row["rmse"]})
    return rows


TABLES = {"informed": informed, "labels": labels, "risk": risk}
