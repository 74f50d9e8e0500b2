"""Programs run in processes of their own, on several CPU devices each."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def environment(devices: int) -> dict[str, str]:
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}


def run(code: str, *arguments: str, devices: int = 4, seconds: int = 300) -> str:
    """What a program prints; its errors become the test's."""
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(
        command, env=environment(devices), capture_output=True, text=True, timeout=seconds, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout
