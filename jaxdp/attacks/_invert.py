"""Reconstructs what is behind one leaked gradient, by the attacks that suit what is known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxdp.attacks import first_layer, labels, leaks, portfolio
from jaxdp.attacks.attack import Attack
from jaxdp.attacks.lanes import Reconstruction, count_victims, first_network
from jaxdp.attacks.leaks import NOISELESS, RAW, Conditions, Leak, Loss, Victims
from jaxdp.attacks.public import Head, Public, Setting, grey

# Half the squared relative error of a predicted gradient, below which ...
_EXPLAINED = 1e-4  # ... the closed form has not failed
_EXACT = 1e-8  # ... no other attack is tried


def invert(
    loss_fn: Loss,
    params: PyTree,
    gradient: PyTree,
    *,
    input_shape: tuple[int, ...],
    classes: int | None = None,
    head: Head | None = None,
    leak: Leak = RAW,
    conditions: Conditions = NOISELESS,
    given_labels: Array | np.ndarray | None = None,
    box: tuple[float, float] | None = (0.0, 1.0),
    public: Public | None = None,
    key: Array | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Reconstructs the examples behind one leaked gradient of one's own network.

    The attacks are those that suit what leaked: without noise and for one example the closed form where the
    network begins with a dense layer, else a search with p - y read off the gradient, and one with smoothed
    ReLUs where there are any; for a batch and with noise searches for the most probable inputs.  The one that
    explains the gradient best is kept; the truth is never asked for.

    Args:
      loss_fn: `(params, (x, y)) -> scalar` for one example.
      params: the parameters at the leak, a pytree of any framework.
      gradient: what leaked, a pytree like `params`.
      input_shape: shape of one input.
      classes: number of labels; None to read it off the last layer.
      head: the last layer; None to have it found.
      leak: the leak point: batch size, clip, window, local steps.
      conditions: the noise's standard deviation, the clip bound, the learning rate.
      given_labels: the labels [B], where they are known; None to infer them.
      box: range of every entry of an input, [0, 1] for images; None if unbounded.
      public: public inputs like the victims (`public_knowledge`), which also bring the box with them.
      key: randomness of the starts; None for a fixed one.
      progress: show progress bars.

    Returns:
      `x` [B, *input_shape], `labels` [B], and `objective`, the mismatch that is left.

    Raises:
      ValueError: a gradient that does not fit, or a number of classes that cannot be read.
    """
    std = np.asarray(conditions.noise_std, np.float32)
    rows = std[None] if std.ndim else std
    observed = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], gradient)
    given = None if given_labels is None else np.asarray(given_labels)[None]
    victims = Victims(params, observed, conditions._replace(noise_std=rows), given)
    noisy = bool((std > 0).any())
    count_victims(victims, leak)
    if leak.single and leak.clip in ("none", "flat") and not noisy:
        leak, victims = replace(leak, clip="flat"), portfolio.bounded_by_themselves(victims)
    network = first_network(victims, leak)
    head = head or _head(loss_fn, network, input_shape)
    classes = head.classes if head and not classes else classes
    if classes is None:
        raise ValueError("classes=None: the loss shows no last layer to read it off; say it")
    setting = Setting(
        loss_fn=loss_fn, leak=leak, input_shape=input_shape, classes=classes, head=head,
        public=grey(input_shape, *box) if public is None and box else public,
    )  # fmt: skip
    return _best(setting, victims, network, noisy, box is not None, key, progress)


def _best(setting, victims, network, noisy, boxed, key, progress) -> Reconstruction:
    """The closed form where it explains the gradient, else the best of the attacks that suit."""
    found = None if noisy else _closed_form(setting, victims, network)
    if found is None:
        relu = portfolio.takes_relu(setting, network)
        attacks = portfolio.suited(setting, noisy=noisy, relu=relu, given=victims.labels is not None)
        attacks = [replace(attack, box=boxed and attack.box) for attack in attacks]
        key = jax.random.key(0) if key is None else key
        enough = 0.0 if noisy else _EXACT
        found, _ = portfolio.invert_portfolio(
            setting, attacks, victims, key, enough=enough, progress=progress
        )
    return Reconstruction(*(np.asarray(field)[0] for field in found))


def _head(loss_fn: Loss, network: PyTree, input_shape: tuple[int, ...]) -> Head | None:
    """The last layer, or None if the loss shows none."""
    try:
        return labels.find_head(loss_fn, network, input_shape)
    except ValueError:
        return None


def _closed_form(setting: Setting, victims: Victims, network: PyTree) -> Reconstruction | None:
    """The input of a first dense layer; None where there is none, or where it does not explain the gradient."""
    if not setting.leak.single or setting.leak.clip.startswith("per_layer"):
        return None
    try:
        x = first_layer.closed_form(setting.loss_fn, network, victims, setting.input_shape)
    except ValueError:
        return None
    observation = jax.tree.map(
        lambda leaf: jnp.asarray(leaf[0]), leaks.observations(victims, setting.leak, 1)
    )
    rule = portfolio.label_rule("bias", setting, given=victims.labels is not None)
    y = labels.infer_labels(rule, setting, setting.leak, network, observation, setting.known)
    found = np.asarray(y)[None]
    left = portfolio.score(setting, Attack(objective="likelihood"), victims, x, found)
    if not left[0] < _EXPLAINED:
        return None
    return Reconstruction(x, found, left, np.zeros(1, int), np.zeros(1, int))
