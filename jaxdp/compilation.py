"""Compiled programs kept from one call of the command line to the next."""

import hashlib
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

_LEAST_SECONDS = 0.2  # of compilation, for a program to be kept


def programs_folder(environment: Mapping[str, str] = os.environ) -> pathlib.Path:
    """Where they lie in the user's cache folder: apart for every kind of processor, whose code they are."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "jaxdp" / "programs" / _processor()


def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        text = platform.processor()
    told = {line for line in text.splitlines() if line.startswith(("model name", "flags", "Features"))}
    return f"{platform.machine()}-{hashlib.sha256(repr(sorted(told)).encode()).hexdigest()[:8]}"


def keep_programs(environment: Mapping[str, str] = os.environ) -> pathlib.Path | None:
    """Lets JAX keep what it compiles, and says once where.

    Args:
      environment: with `JAX_COMPILATION_CACHE_DIR` in it (empty: nothing is kept), nothing is changed.

    Returns:
      The folder; None where JAX was told another, or where it cannot be made.
    """
    import jax

    config: Any = jax.config
    if "JAX_COMPILATION_CACHE_DIR" in environment or config.jax_compilation_cache_dir:
        return None
    folder = programs_folder(environment)
    if not folder.is_dir():
        try:
            folder.mkdir(parents=True, mode=0o700)
        except OSError:
            return None
        print(
            f"jaxdp: keeps compiled programs in {folder}; JAX_COMPILATION_CACHE_DIR= for none",
            file=sys.stderr,
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    return folder
