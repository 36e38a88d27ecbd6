# make run: a virtual environment, the package, and the main job. make test: everything that guards the project.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
# Tests at a time, each with one thread: two with two threads each slow each other four times.
WORKERS ?= 2

.PHONY: help run test check lint types contracts suite soak test-gpu tiny clean

help: ## this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

run: $(STAMP) ## fine-tune the bundled model on bundled text (about 3 minutes on 2 CPU cores); ARGS="..." are overrides
	$(BIN)/python -m tuneforge $(ARGS)

test: check suite ## lint, types, import contracts and the suite

check: lint types contracts

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

suite: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not soak and not gpu"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile plugins

soak: $(STAMP) ## what is too long for the suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m soak

test-gpu: $(STAMP) ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu -rs

tiny: $(STAMP) ## make the bundled model again (docs/tiny_model.md)
	$(BIN)/python -m tuneforge.tiny src/tuneforge/assets/tiny

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
