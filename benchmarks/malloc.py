"""What glibc's malloc does with freed memory, which may double the time of a step.

As it comes, it gives large buffers back to the system, or keeps them, by thresholds that follow what was freed
before: of one and the same step the buffers are faulted in anew each time in one process (12,000 page faults
and 41 ms for the paper's CNN) and never in another (none, 21 ms).  Tuned, it keeps what it gets.
"""

import os
from collections.abc import Mapping

TUNED = {
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


def tuned() -> dict[str, str]:
    """This process's environment with malloc tuned."""
    return {**os.environ, **TUNED}


def as_it_comes() -> dict[str, str]:
    """This process's environment without."""
    return {name: value for name, value in os.environ.items() if name not in TUNED}


def setting(environment: Mapping[str, str] = os.environ) -> str:
    """How malloc is set, in words."""
    return "tuned" if TUNED.items() <= environment.items() else "as it comes"
