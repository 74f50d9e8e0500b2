"""Where a number was made: versions, device and revision."""

import functools
import os
import pathlib
import platform
import subprocess
from typing import Any


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, device and revision of this process."""
    import importlib.metadata as metadata

    import jax

    versions: dict[str, str | None] = {}
    for package in ("jaxdp", "jax", "jaxlib", "flax", "optax", "dp-accounting", "numpy", "scipy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": versions,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "git": git_revision(),
    }


def git_revision() -> str | None:
    """The revision of the source this package runs from, `-dirty` if it was changed; None outside of git."""
    package = pathlib.Path(__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
