# make run: a virtual environment, the package, and the main job. make test: everything that guards the project.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
# Tests at a time, each with one thread: two with two threads each slow each other four times.
WORKERS ?= 2
# Minutes on 2 idle cores, shown at the end and kept as the project grows: who adds, pays (CONTRIBUTING.md).
BUDGET      := 12
SOAK_BUDGET := 28
NOW         := $(shell date +%s)
# Whole files go to a worker, the dearest first (tests/costs.json).
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --since $(NOW)
FILES  = --dist loadfile --no-loadscope-reorder
# Tests of numbers, and the CPU kernels that they must hold under: what a processor has decides which ones a user gets.
NUMERIC = tests/methods tests/distributed/test_equality.py tests/distributed/test_deepspeed.py tests/guards \
	$(addprefix tests/train/test_,classification.py loss.py lr_find.py precision.py regularisers.py runs.py tiny_model.py) \
	tests/unit/test_activations.py tests/unit/test_optim.py plugins/tuneforge-lorafa
KERNELS = ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE MKL_CBWR=AVX2

.PHONY: help run test check lint types contracts suite soak soak-full test-kernels test-gpu tiny clean

help: ## this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

run: $(STAMP) ## fine-tune the bundled model on bundled text (about 3 minutes on 2 CPU cores); ARGS="..." are overrides
	$(BIN)/python -m tuneforge $(ARGS)

test: check suite ## lint, types, import contracts and the suite (budget: 12 minutes)

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
	$(PYTEST) $(FILES) --budget $(BUDGET) -m "not soak and not soak_full and not gpu"

soak: $(STAMP) ## what is too long for the suite, as CI runs it (budget: 28 minutes)
	$(PYTEST) --dist worksteal --budget $(SOAK_BUDGET) -m soak

soak-full: $(STAMP) test-kernels ## everything that is too long for the suite, also for CI (docs/testing.md: its last run)
	$(PYTEST) --dist worksteal -m "soak or soak_full"

test-kernels: $(STAMP) ## the tests of numbers under CPU kernels of other processors (five passes)
	set -e; for kernels in $(KERNELS); do echo "$$kernels"; \
		env $$kernels $(PYTEST) $(FILES) -m "not soak and not soak_full and not gpu" $(NUMERIC); done

test-gpu: $(STAMP) ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu -rs

tiny: $(STAMP) ## make the bundled model again (docs/tiny_model.md)
	$(BIN)/python -m tuneforge.tiny src/tuneforge/assets/tiny

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
