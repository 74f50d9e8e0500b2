"""Made-up records of the shape that training and attacks write: for tests of tables and pages only."""

import numpy as np

from jaxdp.intervals import wilson
from jaxdp.laboratory import records as results
from jaxdp.records import made

VARIANTS = ("non_private", "fixed", "linear", "staircase", "exponential", "quarter_cosine", "l2_max")
STEPS = np.arange(0, 501, 25)


def _privacy(variant):
    if variant == "non_private":
        nothing = dict.fromkeys(("epsilon", "delta", "accountant", "adjacency", "sampling"))
        return {"private": False, "nominal": False, "statement": "NOT PRIVATE: no epsilon holds.", **nothing}
    nominal = variant == "l2_max"
    return {
        "private": not nominal, "nominal": nominal, "epsilon": 0.61 if nominal else 2.0, "delta": 1e-5,
        "accountant": "rdp", "adjacency": "add_or_remove_one", "sampling": "Poisson, rate 0.05",
        "statement": f"Privacy statement of {variant} <made up & escaped>",
    }  # fmt: skip


def train(variant="fixed", seed=0, accuracy=None):
    rng = np.random.default_rng([seed, len(variant)])
    top = {"non_private": 0.96, "l2_max": 0.7}.get(variant, 0.86)
    accuracy = top + 0.01 * rng.normal() if accuracy is None else accuracy
    share = STEPS / STEPS[-1]
    private = variant not in ("non_private", "l2_max")
    sigma = {"non_private": None, "fixed": 6 + 0 * share, "linear": 12 - 8 * share}.get(
        variant, 4 + 8 * np.cos(1.3 * share) * (1 + 0.1 * len(variant) * share)
    )
    return made(
        "train",
        variant=variant,
        seed=seed,
        config={"data": "digits", "model": "mlp", "steps": 500},
        seed_policy="noise from system entropy",
        privacy=_privacy(variant),
        metrics={
            "test_accuracy": accuracy, "steps": 500, "ms_per_step": 3 + 0.2 * rng.random(),
            "examples_per_second": 24_000.0, "compile_count": 1,
        },
        curves={
            "step": STEPS, "epsilon": 2 * np.sqrt(share) if private else None, "noise_multiplier": sigma,
            "test_accuracy": accuracy * (1 - 0.9 * np.exp(-6 * share)),
        },
    )  # fmt: skip


def _images(rng, noise):
    y, x = np.mgrid[0:8, 0:8] / 7
    truth = np.stack([np.exp(-(((x - a) ** 2 + (y - b) ** 2) * 12)) for a, b in rng.random((6, 2))])[
        ..., None
    ]
    return truth, np.clip(truth + noise * rng.normal(size=truth.shape), 0, 1)


def attack(variant="fixed", stage="early", leak_point="noised", noise_std=0.05, hits=3, victims=16):
    truth, found = _images(np.random.default_rng(5), min(0.4, 3 * noise_std))
    return results.attack_record(
        variant=variant,
        seed=0,
        config={"data": "digits"},
        stage=stage,
        step={"early": 10, "middle": 250, "late": 490, None: 0}[stage],
        leak_point=leak_point,
        attack="posterior",
        noise_std=noise_std,
        knowledge={"model": "architecture and parameters", "noise": f"standard deviation {noise_std}"},
        metrics={
            "victims": victims, "success": wilson(hits, victims), "rmse": min(0.4, 3 * noise_std) + 0.002,
            "rmse_mean_image": 0.27, "psnr": 20.0, "ssim": 0.7, "iterations": 120.0, "threshold": 0.1,
        },
        originals=truth,
        reconstructions=found,
    )  # fmt: skip


def everything(seeds=3):
    records = [train(variant, seed) for variant in VARIANTS for seed in range(seeds)]
    for variant in VARIANTS:
        for hits, stage in zip((16, 12, 6), results.STAGES, strict=True):
            records.append(attack(variant, stage, "raw", 0.0, hits))
            if variant != "non_private":
                records.append(attack(variant, stage, "noised", 0.12, 16 - hits))
    for noise in (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 1.0):
        records.append(attack("undefended", None, "noised", noise, int(16 * np.exp(-20 * noise))))
    return records
