# The README's two commands are `make run` and `make test`; both set up everything they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := CMakeLists.txt pyproject.toml $(wildcard kernels/cpu/*.cpp kernels/cpu/*.hpp kernels/cpu/*.inc)
PYTEST := $(BIN)/python -m pytest -q
SOURCES := actors kernels tests tools

.PHONY: run test setup dev lint format types unit kernels golden actors system faults fuzz sanitize docs clean

run: $(VENV)/.runtime ## start the runtime and talk to the built-in model
	@$(BIN)/runtime run --up

test: lint types unit kernels golden actors system faults ## everything that must hold before a change lands

setup: $(VENV)/.runtime
dev: $(VENV)/.dev

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -U pip

$(VENV)/.runtime: $(NATIVE_SOURCES) | $(BIN)/pip
	@echo "building the runtime (a minute, once)"
	$(BIN)/pip install -q --disable-pip-version-check "scikit-build-core>=0.11" "nanobind>=2.9" "cmake>=3.26" "ninja>=1.11"
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e ".[dev]"
	@touch $@

lint: dev ## format and lint, without changing anything
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(wildcard kernels/cpu/*.cpp kernels/cpu/*.hpp kernels/cpu/*.inc)

format: dev ## put everything in shape
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/clang-format -i $(wildcard kernels/cpu/*.cpp kernels/cpu/*.hpp kernels/cpu/*.inc)

types: dev
	$(BIN)/basedpyright

unit kernels golden actors system faults: dev
	$(PYTEST) tests/$@
