"""What an attacker computes is in full float32 on every device, whatever the device's default."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import networks
from jaxdp import attacks, models, platforms
from jaxdp.attacks import Attack, Leak, Setting, Victims, lanes
from jaxdp.attacks.portfolio import POSTERIOR

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (8, 8, 1)


PRODUCT = re.compile(r"stablehlo\.(dot_general|convolution)\b.*")


class Grouped(nnx.Module):
    """Convolutions of which some stay what they are: plain, depthwise and dilated ones."""

    def __init__(self, rngs):
        self.plain = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.depthwise = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs)
        self.dilated = nnx.Conv(4, 4, (3, 3), kernel_dilation=2, rngs=rngs)
        self.dense = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        for layer in (self.plain, self.depthwise, self.dilated):
            x = nnx.sigmoid(layer(x))
        return self.dense(x.reshape(-1))


@pytest.mark.parametrize("own_params", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("attack", [POSTERIOR, Attack(solver="adam", labels="signal")], ids=["lbfgs", "adam"])
def test_for_cuda_every_product_of_an_attacks_programs_is_of_the_highest_precision(
    attack, own_params, monkeypatch
):
    monkeypatch.setattr(platforms, "resolved", lambda platform: "cuda")  # the forms of the search too
    programs = []

    class Recorded:
        def __init__(self, function):
            self.function = function

        def __call__(self, *arguments):
            lowered = self.function.trace(*arguments).lower(lowering_platforms=("cuda",))
            programs.append(lowered.as_text())
            return self.function(*arguments)

    monkeypatch.setattr(lanes, "CompiledOnce", Recorded)
    network = networks.functional(Grouped(nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(20, *SHAPE)).astype(np.float32), rng.integers(0, 10, 20)
    public, loss_fn = attacks.public_knowledge(x, y), models.cross_entropy(network)
    setting = Setting(loss_fn=loss_fn, leak=Leak(clip="flat"), input_shape=SHAPE, public=public)
    observed = jax.tree.map(lambda leaf: np.asarray(leaf)[None], network.params)
    given = observed if own_params else network.params
    victims = Victims(given, observed, own_params=own_params)
    short = Attack(**{**vars(attack), "iterations": 1, "memory": 2})
    attacks.invert_many(setting, short, victims, jax.random.key(0), lanes=1)

    found = [match for text in programs for match in PRODUCT.finditer(text)]
    assert {match[1] for match in found} == {"dot_general", "convolution"}
    assert [match[0] for match in found if match[0].count("HIGHEST") != 2] == []
    assert [text[:60] for text in programs if "stablehlo.case" in text] == []
