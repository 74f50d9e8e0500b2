"""What an attacker computes is in full float32 on every device, whatever the device's default."""

import jax
import numpy as np
import pytest

from jaxdp import attacks, models
from jaxdp.attacks import Attack, Leak, Setting, Victims, lanes
from jaxdp.attacks.portfolio import POSTERIOR
from jaxdp.gradients import convolution

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (8, 8, 1)


def products(jaxpr):
    """Every matrix product and convolution, in calls and loops too, with its precision."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.primitive.name, equation.params["precision"]
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


@pytest.mark.parametrize("form", ["patches", "lax"])
@pytest.mark.parametrize("attack", [POSTERIOR, Attack(solver="adam", labels="signal")], ids=["lbfgs", "adam"])
def test_every_product_of_an_attacks_programs_is_of_the_highest_precision(form, attack, monkeypatch):
    traced = []

    class Recorded:
        def __init__(self, function):
            self.function = function

        def __call__(self, *arguments):
            traced.append(jax.make_jaxpr(self.function)(*arguments).jaxpr)
            return self.function(*arguments)

    monkeypatch.setattr(lanes, "CompiledOnce", Recorded)
    monkeypatch.setattr(convolution, "uses_patches", lambda _: form == "patches")
    network = models.create("lenet", jax.random.key(0), input_shape=SHAPE)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(20, *SHAPE)).astype(np.float32), rng.integers(0, 10, 20)
    public, loss_fn = attacks.public_knowledge(x, y), models.cross_entropy(network)
    setting = Setting(loss_fn=loss_fn, leak=Leak(clip="flat"), input_shape=SHAPE, public=public)
    victims = Victims(network.params, jax.tree.map(lambda leaf: np.asarray(leaf)[None], network.params))
    short = Attack(**{**vars(attack), "iterations": 1, "memory": 2})
    attacks.invert_many(setting, short, victims, jax.random.key(0), lanes=1)

    found = [product for jaxpr in traced for product in products(jaxpr)]
    kinds = {kind for kind, _ in found}
    assert "dot_general" in kinds and ("conv_general_dilated" in kinds) == (form == "lax")
    assert {precision for _, precision in found} == {(jax.lax.Precision.HIGHEST,) * 2}
