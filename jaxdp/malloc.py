"""What glibc's malloc does with freed memory, for the processes of the command line."""

import ctypes
import os
from collections.abc import Mapping

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
_KEPT = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28, _MMAP_THRESHOLD: 2**30}


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Lets malloc keep what is freed, so that a step's large buffers are not faulted in anew at each step.

    As it comes, glibc gives them back to the system or not by thresholds that follow what was freed before: of
    one and the same step half the time may go into page faults in one process, and none in another.

    Args:
      environment: with malloc's own variables in it, nothing is changed.

    Returns:
      Whether malloc was told so: false without glibc.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _KEPT.items())
