# The README's two commands are `make run` and `make test`; both set up everything they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PYTEST := $(BIN)/python -m pytest -q
SOURCES := actors kernels bench tests tools
NATIVE := $(sort $(wildcard kernels/cpu/*.cpp kernels/cpu/*.hpp kernels/cpu/*.inc actors/runner/native/*.?pp))
CUDA := $(sort $(wildcard kernels/cuda/*.cu kernels/cuda/*.cuh kernels/cuda/emulator/*.hpp))
NATIVE_TESTS := $(sort $(wildcard tests/kernels/native/*.?pp))
BUILD_TOOLS := "scikit-build-core>=0.11" "nanobind>=2.9" "cmake>=3.26" "ninja>=1.11"
FUZZ_S ?= 600
LOADS ?= 10000
SOAK_S ?= 600
STEPS ?= 200
KILLS ?= 50
REQUESTS ?= 10000

.PHONY: help run test setup dev lint format types unit kernels golden actors system faults fuzz-slice fuzz load-campaign soak \
        sim-campaign kill-campaign request-campaign sanitize check-native check-neon work-gate bench bench-load docs clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: setup ## start the runtime and talk to the built-in model
	@$(BIN)/runtime run --up

test: lint types unit kernels golden actors system faults fuzz-slice sanitize check-native check-neon ## every check and test

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
	$(BIN)/clang-format --dry-run --Werror $(NATIVE) $(CUDA) $(NATIVE_TESTS)

format: dev ## put everything in shape
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/clang-format -i $(NATIVE) $(CUDA) $(NATIVE_TESTS)

types: dev ## pyright, strict
	$(BIN)/basedpyright

# Programs of the kernels without Python, from the objects of the ordinary build; and for aarch64, cross compiled.
WHEEL_TAG = import sys, sysconfig; cp = "cp%d%d" % sys.version_info[:2]; \
  print(cp, cp, sysconfig.get_platform().replace("-", "_"), sep="-")
BUILD = build/$(shell $(BIN)/python -c '$(WHEEL_TAG)')
CHECK := build/programs/kernel_check
WORK := build/programs/kernel_work
NEON := build/aarch64
CROSS := $(shell command -v aarch64-linux-gnu-g++)
EMULATOR := $(firstword $(shell command -v qemu-aarch64-static qemu-aarch64))

unit golden actors system faults: dev
	$(PYTEST) tests/$@

kernels: dev $(WORK)
	KERNEL_WORK=$(abspath $(WORK)) $(PYTEST) tests/$@

$(CHECK) $(WORK) &: $(NATIVE) $(NATIVE_TESTS) tests/kernels/native/CMakeLists.txt $(VENV)/.dev
	$(BIN)/cmake --build $(BUILD) --target kernel_check kernel_work
	mkdir -p $(@D) && cp $(BUILD)/tests/kernels/native/kernel_check $(BUILD)/tests/kernels/native/kernel_work $(@D)/

check-native: $(CHECK) ## compare this machine's instruction sets with the portable kernels
	$(CHECK)

check-neon: dev ## the same for NEON: cross compiled, emulated; needs g++-aarch64-linux-gnu and qemu-user-static
ifneq ($(and $(CROSS),$(EMULATOR)),)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -G Ninja -S tests/kernels/native -B $(NEON) \
	  --toolchain $(abspath tests/kernels/native/aarch64.cmake)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake --build $(NEON) --target kernel_check
	$(EMULATOR) $(NEON)/kernel_check neon
else
	@echo "check-neon: skipped; install g++-aarch64-linux-gnu and qemu-user-static"
endif

work-gate: dev $(WORK) ## instructions per token against the stored budget; ARGS=--record stores this build's
	$(BIN)/python -m tests.kernels.work_gate $(ARGS) $(WORK)

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
	mkdir -p $(ASAN)/tests && cp pyproject.toml $(ASAN)/ && cp -r tests/__init__.py tests/cuda.py tests/kernels $(ASAN)/tests/
	for folder in . cpu cuda cuda/emulator ops sim; do cp kernels/$$folder/*.py $(ASAN)/kernels/$$folder/; done
	cd $(ASAN) && LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH="$(SITE_PACKAGES)" \
	  $(abspath $(BIN))/python -S -m pytest -q -p no:cacheprovider tests/kernels -k "not cuda" \
	  --ignore-glob "*/test_cuda_*"

load-campaign: dev ## LOADS random machines and models through the layout search, some minutes
	LOAD_EXAMPLES=$(LOADS) $(PYTEST) tests/unit/test_load_campaign.py

fuzz: dev ## a long run of the fuzzer, FUZZ_S seconds
	$(BIN)/python tests/fuzz/fuzz_gguf.py -max_total_time=$(FUZZ_S)

soak: dev ## random use and kills of the real runtime, SOAK_S seconds
	$(BIN)/python -m tests.system.soak $(SOAK_S)

sim-campaign: dev ## STEPS random loads, unloads, hang-ups and kills on simulated devices, some minutes
	SIM_STEPS=$(STEPS) $(PYTEST) tests/system/test_sim_campaign.py

kill-campaign: dev ## KILLS runners killed under 32 streams, some minutes
	KILLS=$(KILLS) $(PYTEST) tests/system/test_kills_under_streams.py

request-campaign: dev ## REQUESTS short requests, some given up: memory, files and pages stay as they are
	REQUESTS=$(REQUESTS) $(PYTEST) tests/system/test_many_requests.py

bench: dev ## measure against the machine's limits and peers; ARGS="--peer llama.cpp=FOLDER", see docs/performance.md
	$(BIN)/python -m bench $(ARGS)

bench-load: dev ## many clients at once; ARGS="--llama-server PROGRAM", see docs/performance.md
	$(BIN)/python -m bench.load $(ARGS)

docs: dev ## generate docs/protocol.md
	$(BIN)/python -m tools.protocol_docs

clean: ## remove what was built
	rm -rf $(VENV) build kernels/cpu/*.so
