# The README's two commands are `make run` and `make test`; both set up everything they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PYTEST := $(BIN)/python -m pytest -q
SOURCES := actors kernels bench tests tools
NATIVE := $(sort $(wildcard kernels/cpu/*.cpp kernels/cpu/*.hpp kernels/cpu/*.inc actors/runner/native/*.?pp))
BUILD_TOOLS := "scikit-build-core>=0.11" "nanobind>=2.9" "cmake>=3.26" "ninja>=1.11"
FUZZ_S ?= 600

.PHONY: help run test setup dev lint format types unit kernels golden actors system faults fuzz-slice fuzz \
        sanitize bench docs clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: setup ## start the runtime and talk to the built-in model
	@$(BIN)/runtime run --up

test: lint types unit kernels golden actors system faults fuzz-slice sanitize ## every check and test

setup: $(VENV)/.runtime ## make the environment and build
dev: $(VENV)/.dev ## the same, with the tools of the tests

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -U pip
	$(PIP) install $(BUILD_TOOLS)
	@touch $@

$(VENV)/.runtime: CMakeLists.txt pyproject.toml $(NATIVE) | $(VENV)/.made
	@echo "building the runtime; a few minutes, once"
	$(PIP) install --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install --no-build-isolation -e ".[dev]"
	@touch $@

lint: dev ## formatting and lint, without changing anything
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

format: dev ## put everything in shape
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/clang-format -i $(NATIVE)

types: dev ## pyright, strict
	$(BIN)/basedpyright

unit kernels golden actors system faults: dev
	$(PYTEST) tests/$@

fuzz-slice: dev
	$(PYTEST) tests/fuzz

# The module built with AddressSanitizer and UBSan lies in a folder of its own, beside a copy of its tests; -S keeps
# the editable install's import hook from finding the ordinary one.
ASAN := build/asan/site
SANITIZERS = $(shell for lib in asan ubsan stdc++; do gcc -print-file-name=lib$$lib.so; done)
SITE_PACKAGES = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

$(ASAN)/.made: CMakeLists.txt pyproject.toml $(NATIVE) | $(VENV)/.dev
	$(PIP) install --no-build-isolation --no-deps --upgrade --target $(ASAN) . \
	  -C build-dir=build/asan/cmake -C cmake.define.RUNTIME_SANITIZE=ON
	@touch $@

sanitize: $(ASAN)/.made ## the kernel tests under AddressSanitizer and UBSan
	mkdir -p $(ASAN)/tests && cp pyproject.toml $(ASAN)/ && cp -r tests/__init__.py tests/kernels $(ASAN)/tests/
	cp kernels/*.py $(ASAN)/kernels/ && cp kernels/cpu/*.py $(ASAN)/kernels/cpu/ && cp kernels/ops/*.py $(ASAN)/kernels/ops/
	cd $(ASAN) && LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$(SITE_PACKAGES)" \
	  $(abspath $(BIN))/python -S -m pytest -q -p no:cacheprovider tests/kernels

fuzz: dev ## a long run of the fuzzer, FUZZ_S seconds
	$(BIN)/python tests/fuzz/fuzz_gguf.py -max_total_time=$(FUZZ_S)

bench: dev ## measure against the machine's limits and peers; ARGS="--peer llama.cpp=FOLDER", see docs/performance.md
	$(BIN)/python -m bench $(ARGS)

docs: dev ## generate docs/protocol.md
	$(BIN)/python -m tools.protocol_docs

clean: ## remove what was built
	rm -rf $(VENV) build kernels/cpu/*.so
