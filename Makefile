# `make compare` and `make test` set everything up by themselves: a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: compare test smoke test-all test-gpu check benchmarks notebooks docs clean

compare: .venv/installed
	$(BIN)/jaxdp compare

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

SMOKE := tests/test_layout.py tests/test_readme.py tests/test_schedules.py tests/test_sampling.py \
	tests/test_refusals.py tests/accounting/test_statement.py tests/accounting/test_ledger.py \
	tests/accounting/test_gdp.py tests/clipping/test_precision.py tests/training/test_program.py \
	tests/commands/test_account_command.py tests/data jaxdp/plan.py jaxdp/__init__.py

smoke: .venv/installed  # what a change anywhere breaks first
	$(BIN)/python -m pytest -n 2 --dist worksteal $(SMOKE)

test-all: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ''

test-gpu: .venv/installed  # on one GPU and many cores, in ten minutes
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m pytest -n 14 --dist worksteal -p no:benchmark

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

benchmarks: .venv/installed
	$(BIN)/python -m benchmarks

notebooks: .venv/notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

docs: .venv/docs  # docs/_build/html/index.html; builds and reads without a network
	JAX_PLATFORMS=cpu $(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --jobs 2 docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

.venv/notebooks: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[notebooks]'
	@touch $@

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: PYTHON=$(PYTHON) is older than 3.11; try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv runs docs/_build docs/notebooks docs/benchmarks
