"""`python -m benchmarks [NAME [options]]`: runs the benchmarks and writes the table, or runs one.

`accuracy` runs only where it is named: it trains for long, on data that have to be prepared first;
`device`, which is all that a GPU is asked in a few minutes; `devices`, several that XLA makes of one CPU.
"""

import importlib
import subprocess
import sys

from benchmarks import malloc

NAMES = (
    "step", "dynamic", "scaling", "memory", "peers", "noise", "accounting", "audit", "attacks",
    "accuracy", "device", "devices", "table",
)  # fmt: skip
ON_REQUEST = ("accuracy", "device", "devices")
TIMED = (
    "step",
    "dynamic",
    "scaling",
    "peers",
    "noise",
    "device",
    "devices",
)  # in processes whose malloc is tuned


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
