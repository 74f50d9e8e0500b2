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
)
from jaxdp.attacks.labels import infer_labels
from jaxdp.attacks.portfolio import POSTERIOR, SIGNAL, SMOOTH, bounded_by_themselves, invert_portfolio
from jaxdp.gradients import convolution
from jaxdp.laboratory import records as results

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
    """

    variant: str
    stage: str | None
    step: int
    params: PyTree
    point: str
    clip: str
    noise_std: np.ndarray
    bound: float | None = None


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

    loss_fn: Any
    x: np.ndarray
    y: np.ndarray
    public: Public
    classes: int
    l2_norm_clip: float
    iterations: int
    settings: dict[str, Any]

    def batches(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The victims in batches of `size`: [N / size, size, ...]."""
        return self.x.reshape(-1, size, *self.x.shape[1:]), self.y.reshape(-1, size)

    def portfolio(self, unnoised: bool) -> list[Attack]:
        """The attacks that may win: without noise the exact ones too, with noise the posterior alone."""
        exact = [
            SIGNAL,
            dataclasses.replace(SMOOTH, start="normal", labels="column_norm", restarts=8),
            dataclasses.replace(POSTERIOR, labels="column_norm"),
        ]
        kinds = exact if unnoised else [POSTERIOR]
        return [dataclasses.replace(kind, iterations=self.iterations) for kind in kinds]

    def expose(self, cases: Sequence[Case], *, batch_size: int, unnoised: bool, seed: int) -> list[dict]:
        """Leaks and attacks every case, all in one program; the records, in the order of the cases.

        Args:
          cases: what leaks.
          batch_size: B.
          unnoised: whether the attacks that want exact gradients are tried as well.
          seed: of noise and starts.
        """
        setting = self.setting(batch_size)
        noise_key, start_key = jax.random.split(jax.random.key(seed))
        victims = self._leaked(setting.leak, cases, noise_key)
        attacks = self.portfolio(unnoised)
        known = attacks
        if unnoised:
            victims = bounded_by_themselves(victims)
        else:
            victims = victims._replace(labels=self._labels(setting, victims, cases))
            known = [dataclasses.replace(attack, labels="known") for attack in attacks]
        if len(known) == 1:
            found = invert_many(setting, known[0], victims, start_key)
        else:
            found, _ = invert_portfolio(setting, known, victims, start_key)
        count = len(self.x) // batch_size
        parts = [
            Reconstruction(*(np.asarray(field)[i * count : (i + 1) * count] for field in found))
            for i in range(len(cases))
        ]
        return [
            self._record(case, part, attacks, batch_size) for case, part in zip(cases, parts, strict=True)
        ]

    def setting(self, batch_size: int) -> Setting:
        """What the attacks of all cases share."""
        return Setting(
            loss_fn=self.loss_fn, leak=Leak(clip="flat", batch_size=batch_size), input_shape=self.x.shape[1:],
            classes=self.classes, public=self.public,
        )  # fmt: skip

    def _leaked(self, leak: Leak, cases: Sequence[Case], key: jax.Array) -> Victims:
        """What leaks of every case and batch, each with the parameters of its case."""
        x, y = self.batches(leak.batch_size)
        count = len(x)
        bounds = [math.inf if case.clip == "none" else self._bound(case) for case in cases]
        own = jax.tree.map(
            lambda *leaves: np.repeat(np.stack(leaves), count, axis=0), *(case.params for case in cases)
        )
        xs, ys = (np.tile(v, (len(cases), *[1] * (v.ndim - 1))) for v in (x, y))
        noise_std = np.concatenate([case.noise_std for case in cases])
        conditions = Conditions(noise_std, np.repeat(np.asarray(bounds, np.float32), count))
        return observe(self.loss_fn, leak, own, xs, ys, key, conditions, own_params=True)

    def _bound(self, case: Case) -> float:
        return self.l2_norm_clip if case.bound is None else case.bound

    def _labels(self, setting: Setting, victims: Victims, cases: Sequence[Case]) -> np.ndarray:
        """The labels that fit each victim's observation best, [cases * batches, B]."""
        program = _label_program(setting.static)
        count = len(self.x) // setting.leak.batch_size
        observed = leaks.observations(victims, setting.leak, count * len(cases))
        found = [
            program(case.params, lanes.rows(observed, np.arange(i * count, (i + 1) * count)), self.public)
            for i, case in enumerate(cases)
        ]
        return np.concatenate([np.asarray(labels) for labels in found])

    def _record(self, case: Case, found: Reconstruction, attacks: list[Attack], batch_size: int) -> dict:
        """The record of one case."""
        x, y = self.batches(batch_size)
        row = judge(found, x, y, np.asarray(self.public.mean))
        guess = metrics.matched(found.x, x).reshape(self.x.shape)
        errors = np.round(np.asarray(metrics.rmse(np.nan_to_num(guess), self.x), float), 5).tolist()
        std = float(case.noise_std.mean())
        leak = Leak(clip=case.clip, batch_size=batch_size)
        known = knowledge(leak, attacks[-1], Conditions(std, self._bound(case)))
        return results.attack_record(
            variant=case.variant,
            seed=0,
            config=self.settings,
            stage=case.stage,
            step=case.step,
            leak_point=case.point,
            attack=" or ".join(f"{a.solver} {a.objective}" for a in attacks)
            + (", best by the posterior" if len(attacks) > 1 else ""),
            noise_std=std,
            knowledge=known,
            metrics={
                **row,
                "success": row["recognisable"],
                "threshold": metrics.RECOGNISABLE,
                "batch_size": batch_size,
                "rmse_of_each": errors,
            },
            originals=self.x[:_SHOWN],
            reconstructions=guess[:_SHOWN],
        )


@functools.lru_cache(maxsize=32)
def _label_program(setting: Setting):
    """Labels of victims that share their parameters, by templates."""
    setting = dataclasses.replace(setting, loss_fn=convolution.with_patches(setting.loss_fn))

    def one(params, observation, public):
        return infer_labels("template", setting, setting.leak, params, observation, public)

    return jax.jit(leaks.precise(jax.vmap(one, in_axes=(None, 0, None))))


def noise_scales(bench: Bench, params: PyTree, clip: str) -> np.ndarray:
    """The noise scale that a batch of each victim alone would get: C, or its own S for l2-max."""
    if clip == "flat":
        return np.full(len(bench.x), bench.l2_norm_clip, np.float32)
    _, grads = jax.jit(gradients.per_example(bench.loss_fn, method="dense"))(params, (bench.x, bench.y))
    clipper = clipping.l2_max()
    alone = jnp.eye(len(bench.x), dtype=bool)
    scales = [clipper.noise_scale(clipper.clip(grads, (), 0, mask), (), 0) for mask in alone]
    return np.asarray(scales, np.float32)


def relative_noise(bench: Bench, params: PyTree, levels: Sequence[float]) -> list[np.ndarray]:
    """For each level the noise per coordinate whose norm is that share of the victim's raw gradient's."""
    _, grads = jax.jit(gradients.per_example(bench.loss_fn, method="dense"))(params, (bench.x, bench.y))
    squares = sum(gradients.squared_norm(leaf) for leaf in jax.tree.leaves(grads))
    dimension = sum(leaf[0].size for leaf in jax.tree.leaves(grads))
    per_coordinate = np.sqrt(np.asarray(squares) / dimension)
    return [(level * per_coordinate).astype(np.float32) for level in levels]
