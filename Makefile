# `make demo` and `make test` are all that a fresh machine with Python 3.11+ needs.
# Each makes .venv, installs what it needs there once, and runs.

PYTHON ?= python3
VENV ?= .venv
# Each JAX process wants half a gigabyte to a gigabyte of memory and every core it can get.
WORKERS ?= 2
PYTEST_ARGS ?=
SPHINX_ARGS ?=

BIN := $(VENV)/bin
# uv installs faster than pip; `make UV= test` does without it.
UV ?= $(shell uv --version >/dev/null 2>&1 && echo uv)
ifeq ($(strip $(UV)),)
INSTALL := $(BIN)/python -m pip install --quiet
else
INSTALL := $(UV) pip install --quiet --python $(BIN)/python
endif

export MPLBACKEND ?= Agg
# Threads of XLA's pool. On two cores jaxlib before 0.11.2 can hang for ever: batched LAPACK calls that run at
# once wait for tasks behind them in the same pool.
export NPROC ?= 16

.PHONY: help demo picture test test-fast lint types format docs bench clean
.DEFAULT_GOAL := help

help:  ## say what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s'|'

demo: $(VENV)/.demo  ## fit two models to real data, print a table, draw figures
	$(BIN)/python examples/demo.py

picture: demo  ## draw the demo's figure in README.md and on the site anew
	$(BIN)/python docs/picture.py

test: lint types $(VENV)/.dev  ## check the code's form and types, and run every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-fast: $(VENV)/.dev  ## run the tests that are not marked slow
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## build the site, running every example: docs/_build/html/index.html
	$(BIN)/python -m sphinx -b html -W --keep-going $(SPHINX_ARGS) docs docs/_build/html

bench: $(VENV)/.bench  ## compare with the peers, ratios side by side
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:  ## remove everything that was made here, environments apart (they are in .venv)
	rm -rf .cache .ruff_cache .hypothesis build dist docs/_build docs/gallery figures
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Environments: one .venv, to which each target adds what it needs. A stamp says that it is there.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "statespace needs Python 3.11 or later; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml examples/data-packages.txt | $(BIN)/python
	$(INSTALL) -e ".[examples]"
	$(INSTALL) --no-deps -r examples/data-packages.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) -e ".[dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(INSTALL) -e ".[docs]"
	@touch $@

$(VENV)/.bench: $(VENV)/.demo
	$(INSTALL) -e ".[bench]"
	@touch $@
