"""The audit of every clipper with fixed and dynamic sigma: `python -m benchmarks audit`."""

import argparse
import pathlib
import tempfile

from jaxdp import atomic
from jaxdp.laboratory.audit import command as audit

RECORD = pathlib.Path(__file__).parent / "records" / "audit.json"


def main() -> None:
    """Runs `jaxdp audit` as it comes and keeps its record."""
    argparse.ArgumentParser(prog="python -m benchmarks audit", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        audit.run(audit.Config(output=pathlib.Path(folder)))
        (record,) = pathlib.Path(folder).glob("*.json")
        atomic.write_text(RECORD, record.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
