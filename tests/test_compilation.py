"""Compiled programs kept between calls of the command line."""

import os
import pathlib
import subprocess
import sys

import pytest

TRAIN = ["train", "--data", "digits", "--model", "mlp", "--steps", "2", "--sampling-rate", "0.02"]


def called(cache, **environment):
    """What `jaxdp train` says on stderr, and the files that then lie in the cache."""
    outside = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-m", "jaxdp.cli", *TRAIN, "--output", str(cache / "run")],
        env={**outside, "XDG_CACHE_HOME": str(cache), **environment}, capture_output=True, text=True,
        cwd=pathlib.Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr, {path.name for path in cache.glob("jaxdp/programs/*/*-cache")}


def test_the_second_run_compiles_nothing_and_says_nothing(tmp_path):
    said, kept = called(tmp_path)
    assert said.count("keeps compiled programs in") == 1 and str(tmp_path) in said and kept
    (tmp_path / "run").rename(tmp_path / "first")
    said, still = called(tmp_path)
    assert "compiled programs" not in said and "rror" not in said and still == kept


@pytest.mark.parametrize("folder", ["", "elsewhere"])
def test_the_environment_turns_it_off_or_elsewhere(tmp_path, folder):
    chosen = str(tmp_path / folder) if folder else ""
    said, kept = called(tmp_path, JAX_COMPILATION_CACHE_DIR=chosen)
    assert "compiled programs" not in said and not kept
    assert not folder or list((tmp_path / folder).iterdir())
