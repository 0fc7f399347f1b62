# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The pinned torch is installed first, so that nothing else chooses a larger build. To take PyTorch's own CPU build:
#   make demo TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_OPTIONS ?=
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints/dev.txt

.PHONY: demo test check lint types layers browser clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole main job on bundled data: train, record, distil, prove, export, report"
	@echo "make test    set up and run the tests"
	@echo "make check   everything CI runs: lint, types, layers, tests"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "potstill needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not create $(VENV). On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(INSTALL) $(TORCH_OPTIONS) torch==2.13.0

$(VENV)/.demo: pyproject.toml constraints/dev.txt | $(BIN)/python
	@echo "Installing potstill into $(VENV) ..."
	@$(INSTALL) --editable '.[demo,export,report]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints/dev.txt | $(BIN)/python
	@echo "Installing potstill and its development tools into $(VENV) ..."
	@$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	@$(BIN)/potstill run examples/digits/recipe.yaml --out runs/demo

test: $(VENV)/.dev browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: lint types layers test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

# The report is tested in a real browser. A user without one skips those tests; CI and root install it.
browser:
	@if command -v chromium >/dev/null 2>&1 || [ -n "$$POTSTILL_CHROMIUM" ]; then :; \
	elif command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ]; then \
	    echo "Installing chromium for the report's browser tests ..."; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else echo "No chromium: the report's browser tests are skipped. Install it with: sudo apt-get install chromium," \
	    "or set POTSTILL_CHROMIUM to a Chromium or Chrome executable."; fi

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
