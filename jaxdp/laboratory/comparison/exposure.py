"""What an adversary makes of every variant of a comparison, at each leak point and stage of training.

All cases with the same batch size share their programs: a raw gradient is one clipped to an infinite bound, and
bounds, noise and parameters are arguments.  Labels behind noise are inferred once for each case, with its
parameters shared by all its victims, and not again in each lane.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdp import clipping, gradients
from jaxdp.attacks import (
    Attack,
    Conditions,
    Leak,
    Public,
    Reconstruction,
    Setting,
    Victims,
    invert_many,
    judge,
    knowledge,
    lanes,
    leaks,
    metrics,
    observe,
    public_knowledge,
)
from jaxdp.attacks.labels import infer_labels
from jaxdp.attacks.leaks import Loss
from jaxdp.attacks.portfolio import POSTERIOR, SIGNAL, SMOOTH, bounded_by_themselves, invert_portfolio
from jaxdp.data import Dataset
from jaxdp.gradients import convolution
from jaxdp.laboratory.records import attack_record

_SHOWN = 5  # reconstructions kept in a record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One model state, leaking at one point.

    Attributes:
      variant: of the comparison.
      stage: of training; None for the curve over noise.
      step: steps made.
      params: the model's parameters.
      point: what leaks, in words.
      clip: the clip rule, `none` or `flat`.
      noise_std: of the leaked mean gradient, per coordinate, one value for each batch of victims.
      bound: the clip bound at that step; None for the bench's.
      facts: kept beside the metrics of its record.
    """

    variant: str
    stage: str | None
    step: int
    params: PyTree
    point: str
    clip: str
    noise_std: np.ndarray
    bound: float | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all attacks of a comparison share.

    Attributes:
      loss_fn: of one example; the same object for all, so that a program is compiled once.
      x: victims [N, *input_shape], held out.
      y: their labels.
      public: what the attacker knows of images, from training images.
      classes: number of labels.
      l2_norm_clip: the clip bound C.
      iterations: of each attack.
      settings: the comparison's configuration, for the records.
    """

    loss_fn: Loss
    x: np.ndarray
    y: np.ndarray
    public: Public
    classes: int
    l2_norm_clip: float
    iterations: int
    settings: dict[str, Any]

    @classmethod
    def of(cls, dataset: Dataset, loss_fn: Loss, *, victims: int, known: int = 512, **options) -> "Bench":
        """The first test examples as victims, of an attacker who knows the first `known` of training."""
        return cls(
            loss_fn=loss_fn,
            x=np.asarray(dataset.to_float(dataset.test_x[:victims])),
            y=np.asarray(dataset.test_y[:victims]),
            public=public_knowledge(
                np.asarray(dataset.to_float(dataset.train_x[:known])),
                np.asarray(dataset.train_y[:known]),
                classes=len(dataset.classes),
            ),
            classes=len(dataset.classes),
            **options,
        )

    def batches(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The victims in batches of `size`: [N / size, size, ...]."""
        return self.x.reshape(-1, size, *self.x.shape[1:]), self.y.reshape(-1, size)

    def portfolio(self, unnoised: bool) -> list[Attack]:
        """The attacks that may win: without noise the exact ones too, with noise the posterior alone."""
        kinds = [POSTERIOR]
        if unnoised:
            smooth = dataclasses.replace(SMOOTH, start="normal", labels="column_norm", restarts=8)
            kinds = [SIGNAL, smooth, dataclasses.replace(POSTERIOR, labels="column_norm")]
        return [dataclasses.replace(kind, iterations=self.iterations) for kind in kinds]

    def expose(self, cases: Sequence[Case], *, batch_size: int, unnoised: bool, seed: int) -> list[dict]:
        """Leaks and attacks every case, all in one program; the records, in the order of the cases.

        Where they are `unnoised`, attacks that want exact gradients are tried as well.
        """
        setting = self.setting(batch_size)
        noise_key, start_key = jax.random.split(jax.random.key(seed))
        victims = self._leaked(setting.leak, cases, noise_key)
        attacks = self.portfolio(unnoised)
        if unnoised:
            found, _ = invert_portfolio(setting, attacks, bounded_by_themselves(victims), start_key)
        else:
            known = dataclasses.replace(attacks[0], labels="known")
            labelled = victims._replace(labels=self._labels(setting, victims, cases))
            found = invert_many(setting, known, labelled, start_key)
        parts = (np.split(np.asarray(field), len(cases)) for field in found)
        each = zip(cases, map(Reconstruction, *parts), strict=True)
        return [self._record(case, part, attacks, batch_size) for case, part in each]

    def setting(self, batch_size: int) -> Setting:
        """What the attacks of all cases share."""
        return Setting(
            loss_fn=self.loss_fn, leak=Leak(clip="flat", batch_size=batch_size), input_shape=self.x.shape[1:],
            classes=self.classes, public=self.public,
        )  # fmt: skip

    def _leaked(self, leak: Leak, cases: Sequence[Case], key: jax.Array) -> Victims:
        """What leaks of every case and batch, each with the parameters of its case."""
        x, y = self.batches(leak.batch_size)
        bounds = [math.inf if case.clip == "none" else self._bound(case) for case in cases]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(case.params for case in cases))
        own = jax.tree.map(lambda leaf: np.repeat(leaf, len(x), axis=0), stacked)
        xs, ys = (np.concatenate([v] * len(cases)) for v in (x, y))
        noise_std = np.concatenate([case.noise_std for case in cases])
        conditions = Conditions(noise_std, np.repeat(np.asarray(bounds, np.float32), len(x)))
        return observe(self.loss_fn, leak, own, xs, ys, key, conditions, own_params=True)

    def _bound(self, case: Case) -> float:
        return self.l2_norm_clip if case.bound is None else case.bound

    def _labels(self, setting: Setting, victims: Victims, cases: Sequence[Case]) -> np.ndarray:
        """The labels that fit each victim's observation best, [cases * batches, B]."""
        program = _label_program(setting.static)
        count = len(self.x) // setting.leak.batch_size * len(cases)
        observed = leaks.observations(victims, setting.leak, count)
        own = zip(cases, np.split(np.arange(count), len(cases)), strict=True)
        found = [program(case.params, lanes.rows(observed, rows), self.public) for case, rows in own]
        return np.concatenate(found)

    def _record(self, case: Case, found: Reconstruction, attacks: list[Attack], batch_size: int) -> dict:
        """The record of one case."""
        x, y = self.batches(batch_size)
        row = judge(found, x, y, np.asarray(self.public.mean))
        guess = metrics.matched(found.x, x).reshape(self.x.shape)
        errors = np.round(np.asarray(metrics.rmse(np.nan_to_num(guess), self.x), float), 5).tolist()
        leak, std = Leak(clip=case.clip, batch_size=batch_size), float(case.noise_std.mean())
        known = knowledge(leak, attacks[-1], Conditions(std, self._bound(case)))
        names = " or ".join(f"{a.solver} {a.objective}" for a in attacks)
        more = {"success": row["recognisable"], "threshold": metrics.RECOGNISABLE, "batch_size": batch_size}
        return attack_record(
            variant=case.variant, seed=0, config=self.settings, stage=case.stage, step=case.step,
            leak_point=case.point, attack=names + (", best by the posterior" if len(attacks) > 1 else ""),
            noise_std=std, knowledge=known, metrics=row | more | {"rmse_of_each": errors} | case.facts,
            originals=self.x[:_SHOWN], reconstructions=guess[:_SHOWN],
        )  # fmt: skip


@functools.lru_cache(maxsize=32)
def _label_program(setting: Setting):
    """Labels of victims that share their parameters, by templates."""
    setting = dataclasses.replace(setting, loss_fn=convolution.with_patches(setting.loss_fn))

    def one(params, observation, public):
        return infer_labels("template", setting, setting.leak, params, observation, public)

    return jax.jit(leaks.precise(jax.vmap(one, in_axes=(None, 0, None))))


def _gradients(bench: Bench, params: PyTree) -> PyTree:
    return jax.jit(gradients.per_example(bench.loss_fn, method="dense"))(params, (bench.x, bench.y))[1]


def noise_scales(bench: Bench, params: PyTree, clip: str) -> np.ndarray:
    """The noise scale that a batch of each victim alone would get: C, or its own S for l2-max."""
    if clip == "flat":
        return np.full(len(bench.x), bench.l2_norm_clip, np.float32)
    grads, clipper = _gradients(bench, params), clipping.l2_max()
    alone = jnp.eye(len(bench.x), dtype=bool)
    scales = [clipper.noise_scale(clipper.clip(grads, (), 0, mask), (), 0) for mask in alone]
    return np.asarray(scales, np.float32)


def relative_noise(bench: Bench, params: PyTree, levels: Sequence[float]) -> list[np.ndarray]:
    """For each level the noise per coordinate whose norm is that share of the victim's raw gradient's."""
    leaves = jax.tree.leaves(_gradients(bench, params))
    squares = sum(gradients.squared_norm(leaf) for leaf in leaves)
    per_coordinate = np.sqrt(np.asarray(squares) / sum(leaf[0].size for leaf in leaves))
    return [(level * per_coordinate).astype(np.float32) for level in levels]
