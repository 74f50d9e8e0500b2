"""The platform that a program is made for, which decides the form that is fast, and its memory."""

from typing import Any

import jax

from jaxdp import _validate

PLATFORMS = ("auto", "cpu", "cuda", "gpu", "rocm", "tpu")


def resolved(platform: str) -> str:
    """`platform`, where `auto` is that of the device on which JAX computes unless it is told otherwise.

    Naming it shows the program of another machine: `jax.jit(f).trace(...).lower(lowering_platforms=("cuda",))`
    gives on any machine what a GPU would run.

    Raises:
      ValueError: an unknown platform.
    """
    _validate.one_of(PLATFORMS, platform=platform)
    if platform != "auto":
        return platform
    config: Any = jax.config
    chosen = config.jax_default_device
    return jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)


def memory() -> int:
    """Bytes that the first device gives to programs; 8 GiB where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 2**33)
