"""`python -m benchmarks [NAME [options]]`: runs the benchmarks and writes the table, or runs one.

`accuracy` and `adam` run only where they are named: they train for long, the first on data that have to be
prepared before; and so do `device`, which is all that a GPU is asked in a few minutes, `devices`, several that
XLA makes of one CPU, and `streaming`, which writes a file of 2 GB.
"""

import importlib
import subprocess
import sys

from benchmarks import malloc

NAMES = (
    "step", "language", "dynamic", "scaling", "memory", "peers", "noise", "accounting", "audit", "attacks",
    "accuracy", "adam", "device", "devices", "streaming", "table",
)  # fmt: skip
ON_REQUEST = ("accuracy", "adam", "device", "devices", "streaming")
TIMED = (  # in processes whose malloc is tuned
    "step", "language", "dynamic", "scaling", "peers", "noise", "device", "devices", "streaming",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Runs the named benchmark, or all but those on request."""
    if arguments and arguments[0] not in NAMES:
        print(f"benchmarks: name={arguments[0]!r}: unknown; choose from {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in arguments[:1] or [name for name in NAMES if name not in ON_REQUEST]:
        if name in TIMED and malloc.setting() != "tuned":
            command = [sys.executable, "-m", "benchmarks", name, *arguments[1:]]
            if code := subprocess.run(command, env=malloc.tuned(), check=False).returncode:
                return code
            continue
        sys.argv = [f"benchmarks {name}", *arguments[1:]]
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
