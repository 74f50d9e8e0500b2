"""The allocator of the command line, in processes of their own."""

import os
import subprocess
import sys

import pytest

from jaxdp import malloc

_FAULTS = """
import ctypes, resource, sys
from jaxdp import malloc
told = malloc.keep_freed_memory() if sys.argv[1] == "kept" else None
libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(told, faults)
"""


def _faults(mode: str) -> tuple[str, int]:
    """What was told, and the page faults of writing to 64 MiB that were in use before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, mode], env=environment, capture_output=True, text=True, check=True
    )
    told, faults = done.stdout.split()
    return told, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept():
    told, kept = _faults("kept")
    if told == "False":
        pytest.skip("no glibc")
    _, given_back = _faults("as it comes")
    assert kept <= 4 < 16 <= given_back


def test_settings_of_the_user_stand():
    assert not malloc.keep_freed_memory({"MALLOC_TRIM_THRESHOLD_": "1000"})
    assert not malloc.keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.top_pad=1"})
