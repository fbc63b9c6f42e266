# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
AIPERF_VENV := .venv-aiperf
AIPERF_STAMP := $(AIPERF_VENV)/.complete
MODEL := examples/demo_model/weights

# Environments that set this make every start of a worker compile its imports anew: a minute each.
unexport PYTHONDONTWRITEBYTECODE
# The commands of the environment come first, also for what the demo and the tests start.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env aiperf demo demo-model test test-full lint format types pytest bench bench-http soak \
    gpu-check wheel clean

help: ## Print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## Create .venv from the pins; later calls reuse it until the pins change

$(STAMP): requirements/cpu.txt pyproject.toml
	@echo "env: creating $(VENV)"
	@rm -f $@
	@python=$$(command -v python3.11 || command -v python3) && \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: no python3.11, and python3 is older or missing" >&2; exit 1; }; \
	    test -x $(BIN)/python || "$$python" -m venv $(VENV)
	@echo "env: installing uv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    "$$(grep '^uv==' requirements/cpu.txt)"
	@echo "env: installing the pinned packages (6 GB) and compiling them to bytecode"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode \
	    -r requirements/cpu.txt
	@echo "env: installing this project, editable"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation \
	    --editable .
	@touch $@
	@echo "env: ready in $(VENV)"

aiperf: $(AIPERF_STAMP) ## Create .venv-aiperf, where one test and examples/client/aiperf.sh find it

$(AIPERF_STAMP): requirements/aiperf.txt | $(STAMP)
	@echo "aiperf: creating $(AIPERF_VENV) (1 GB)"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(AIPERF_VENV)
	@$(BIN)/uv pip install --quiet --python $(AIPERF_VENV)/bin/python --no-deps \
	    -r requirements/aiperf.txt
	@touch $@

demo: $(STAMP) ## Start the whole graph on this machine and send it a picture (KEEP=1: leave it up)
	@$(BIN)/python examples/demo.py $(if $(KEEP),--keep)

demo-model: $(STAMP) ## Train the small model that the demo serves
	@# Not in place: an interrupted training must leave the shipped weights as they are.
	@$(BIN)/python examples/demo_model/train.py --out build/demo-model
	@cp build/demo-model/* $(MODEL)/

test: lint types pytest ## Lint, check types and run the tests

test-full: ARGS += --full
test-full: test ## The same with the slow tests too: matrices of models, graphs and faults

lint: $(STAMP) ## Check style and formatting
	@echo "lint: ruff"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(STAMP) ## Format the code and sort its imports
	@$(BIN)/ruff check --select I --fix
	@$(BIN)/ruff format

types: $(STAMP) ## Check types
	@echo "types: mypy"
	@$(BIN)/mypy

pytest: $(STAMP) ## Run the tests (ARGS="..." goes to pytest)
	@echo "tests: pytest"
	@$(BIN)/python -m pytest $(ARGS)

bench: $(STAMP) ## Measure the hand-off of embeddings, in ten minutes (ARGS="--quick": in one or two)
	@$(BIN)/python -m benchmarks $(ARGS)

bench-http: $(STAMP) ## Measure whole graphs over HTTP, ours and Dynamo's own, for half an hour
	@$(BIN)/python -m benchmarks.end_to_end $(ARGS)

soak: $(STAMP) ## Load the graph for ten minutes while faults are injected (ARGS="--minutes 2")
	@$(BIN)/python -m tests.soak $(ARGS)

gpu-check: $(STAMP) ## Prove pools, copies and writes on this machine's GPU (ARGS="--device cpu")
	@$(BIN)/python -m benchmarks.gpu_check $(ARGS)

wheel: $(STAMP) ## Build dist/*.whl and dist/*.tar.gz
	@$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir dist .
	@ls dist/*.whl dist/*.tar.gz

clean: ## Remove what was built, and the caches; .venv stays
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find components examples tests benchmarks -name __pycache__ -type d -prune \
	    -exec rm -rf {} + 2>/dev/null || true
