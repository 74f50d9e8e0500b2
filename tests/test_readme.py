"""The README's examples run as they stand."""

import numpy as np
from pages import code, run


def test_the_library_example_and_the_loop_run():
    example, loop = (block for block, _ in code("README.md"))
    assert sum(bool(line.strip()) for line in example.text.splitlines()) <= 30
    names: dict = {}
    printed = run(example, "README.md", names)
    assert printed.startswith("epsilon = 3.0000") or printed.startswith("epsilon = 3.0 ")
    assert "For one example, epsilon = " in printed and names["result"].epsilon.value <= 3.0
    exec("import jax", names)
    run(loop, "README.md", names)
    batch = {name: leaf[:8] for name, leaf in names["data"].items()}
    state = names["optimizer"].init(names["params"])
    params, _ = names["step"](names["params"], state, batch, np.ones(8, bool))
    assert names["accounting"].epsilon(names["plan"].ledger(1), names["claim"]).value > 0
    kernels = [np.asarray(p["hidden"]["kernel"][...]) for p in (params, names["params"])]
    assert np.isfinite(kernels[0]).all() and not np.array_equal(*kernels)
