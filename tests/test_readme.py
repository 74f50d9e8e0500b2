"""The README's examples run as they stand."""

import pathlib
import re

import numpy as np

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
EXAMPLE, LOOP = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_library_example_and_the_loop_run(capsys):
    assert sum(bool(line.strip()) for line in EXAMPLE.splitlines()) <= 30
    names: dict = {}
    exec(compile(EXAMPLE, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("epsilon = 3.0000") or printed.startswith("epsilon = 3.0 ")
    assert "For one example, epsilon = " in printed and names["result"].epsilon.value <= 3.0
    exec(compile("import jax\n" + LOOP, "README.md", "exec"), names)
    batch = {name: leaf[:8] for name, leaf in names["data"].items()}
    state = names["optimizer"].init(names["params"])
    params, _ = names["step"](names["params"], state, batch, np.ones(8, bool))
    assert names["accounting"].epsilon(names["plan"].ledger(1), names["claim"]).value > 0
    kernels = [np.asarray(p["hidden"]["kernel"][...]) for p in (params, names["params"])]
    assert np.isfinite(kernels[0]).all() and not np.array_equal(*kernels)
