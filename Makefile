# Every target sets up .venv by itself, once. `make help` lists them.
SHELL := /bin/bash
BIN := .venv/bin
READY := .venv/.ready

# Bytecode is written even where the environment says otherwise: it makes `import vllm` three times faster.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup quickstart doctor test test-long lint types imports check format lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the locked packages (the others do it by themselves)

$(READY): pyproject.toml scripts/setup $(wildcard requirements/*.txt)
	@scripts/setup

quickstart: $(READY) ## data to served model on this machine, in minutes: the whole tour (ARGS="...")
	@$(BIN)/tunery quickstart $(ARGS)

doctor: $(READY) ## is this machine fit, and what to mend
	@$(BIN)/tunery doctor $(ARGS)

test: $(READY) ## the test suite (ARGS="-k template")
	@$(BIN)/pytest $(ARGS)

test-long: $(READY) ## the tests that take minutes each: lost machines, a whole watched training
	@$(BIN)/pytest -m long $(ARGS)

lint: $(READY) ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check --output-format concise

types: $(READY) ## pyright
	@$(BIN)/pyright

imports: $(READY) ## the architecture: who may import whom
	@$(BIN)/lint-imports

check: lint types imports test ## all four: what CI runs

format: $(READY) ## let ruff rewrite
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

lock: ## resolve the locks anew (ARGS="--upgrade")
	@scripts/lock $(ARGS)

clean: ## remove caches and build products
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path "./.venv/*" -type d -prune -exec rm -rf {} +
