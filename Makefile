# Everything runs in a virtual environment that the first call makes; later calls find it ready.
# A bare Debian 12 needs: apt-get install python3.11-venv git make g++ (cmake, ninja and node come from PyPI).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
ARGS ?=
# Processes that run the tests; 0 for none beside pytest itself, which a debugger needs.
TEST_PROCESSES ?= 2
FUZZ_SECONDS ?= 30
ATTACK_SECONDS ?= 120
TSAN_SECONDS ?= 15
# Where torch comes from, for development only: the package index's own wheels for Linux bring gigabytes of CUDA
# libraries. Give the address of an index of CPU wheels here (TORCH_INDEX=https://...) to do without them.
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml $(shell find native -type f -not -path 'native/tests/*' 2>/dev/null)
STATIC := src/deepwell/server/static
NPM := cd web && export PATH="$(abspath $(BIN)):$$PATH" && npm
# Python's C headers: the system's, or else Debian's package unpacked inside the environment.
HEADERS := $(abspath $(VENV))/headers
BUILD = include=$$(native/python-headers.sh $(BIN)/python $(HEADERS)) && \
  CPLUS_INCLUDE_PATH="$(HEADERS)/usr/include" CMAKE_ARGS="-DPython_INCLUDE_DIR=$$include $(CMAKE_ARGS)"
# A file's tests stay together: they share servers and browsers. In order, so that small files come last.
PARALLEL = -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
SECONDS_SINCE = $$(( $$(date +%s) - start ))

export CXX

.DEFAULT_GOAL := help
.PHONY: help serve test lint format types contract kernels arm pytest real clients attack tsan fuzz web web-check bench bench-kernels dist docs clean

define CHECK_COMPILER
@command -v $(firstword $(CXX)) > /dev/null || { echo "Deepwell compiles its kernels, and there is no C++17 compiler here: install g++ (Debian: apt-get install g++) or name yours with CXX=..." >&2; exit 1; }
endef

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.core ## set up if needed and serve the embedded model (ARGS="./model --port 9000")
	@command -v deepwell > /dev/null || echo "== the command deepwell, for a shell: . $(BIN)/activate"
	@exec $(BIN)/deepwell serve $(ARGS)

bench: $(VENV)/.core ## measure the embedded model on this machine
	@$(BIN)/deepwell bench $(ARGS)

bench-kernels: ## measure the kernels of quantised weights alone (AVX-512 with VNNI and BF16)
	@mkdir -p build && $(or $(CXX),g++) -std=c++17 -O3 -ffp-contract=off -fno-math-errno -w -mavx2 -mfma -mf16c -mavx512f \
	  -mavx512dq -mavx512bw -mavx512vl -mavx512vnni -mavx512bf16 benchmarks/kernels.cpp -o build/bench-kernels && build/bench-kernels

test: lint types contract kernels pytest web-check ## everything that must pass: lint, types, layers, kernels, tests, the page's build

lint: $(VENV)/.dev ## ruff: mistakes and formatting
	@start=$$(date +%s); $(BIN)/ruff check . && $(BIN)/ruff format --check . && echo "== lint: $(SECONDS_SINCE) s"

types: $(VENV)/.dev ## mypy, strict
	@start=$$(date +%s); $(BIN)/mypy && echo "== types: $(SECONDS_SINCE) s"

contract: $(VENV)/.dev ## imports point downward only
	@start=$$(date +%s); $(BIN)/lint-imports && echo "== layers: $(SECONDS_SINCE) s"

kernels: $(VENV)/.dev ## each instruction set here: results against plain formulas, bits, registers in object code
	@start=$$(date +%s); objects=$$(ls -td build/*/CMakeFiles/_native.dir | head -1); \
	native/tests/build.sh build/kernels/test "$$objects" && build/kernels/test && \
	if [ "$$(uname -m)" = x86_64 ] && command -v qemu-x86_64 > /dev/null; then \
	  qemu-x86_64 -cpu Nehalem build/kernels/test scalar && qemu-x86_64 -cpu Haswell build/kernels/test avx2 2> /dev/null; fi && \
	if [ "$$(uname -m)" = x86_64 ]; then $(BIN)/python native/tests/object_code.py "$$objects"; fi && \
	echo "== kernels: $(SECONDS_SINCE) s"

arm: ## the same for 64-bit ARM: cross-compiled, and run by an emulator as processors with and without dot products
	@.ci/packages arm
	@start=$$(date +%s); CXX=aarch64-linux-gnu-g++ CXXFLAGS=-static native/tests/build.sh build/arm/test && \
	qemu-aarch64 -cpu cortex-a72 build/arm/test neon && qemu-aarch64 -cpu cortex-a76 build/arm/test neon_dot && \
	$(PYTHON) native/tests/object_code.py build/arm/test.objects && echo "== arm: $(SECONDS_SINCE) s"

pytest: $(VENV)/.dev ## the tests alone (ARGS="tests/cli -k doctor")
	@.ci/packages
	@start=$$(date +%s); $(BIN)/python -m pytest $(PARALLEL) $(ARGS) && echo "== tests: $(SECONDS_SINCE) s"

real: $(VENV)/.dev ## tests of a real model, SmolLM2-135M, fetched once into the user's cache (93 MB; ARGS="-k chat")
	@start=$$(date +%s); $(BIN)/python -m pytest tests/real $(ARGS) && echo "== real model: $(SECONDS_SINCE) s"

clients: $(VENV)/.dev ## other people's clients against a server: SDKs of OpenAI and Anthropic, LangChain, LlamaIndex, editors, curl
	@start=$$(date +%s); VENV=$(VENV) tests/clients/run.sh && echo "== clients: $(SECONDS_SINCE) s"

attack: $(VENV)/.dev ## hostile files, hubs, heads, templates again and again, with other seeds (ATTACK_SECONDS=120; DEEPWELL_SEED=7 once)
	@start=$$(date +%s); until [ $(SECONDS_SINCE) -ge $(ATTACK_SECONDS) ]; do \
	  seed=$${DEEPWELL_SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}; echo "== DEEPWELL_SEED=$$seed"; \
	  DEEPWELL_SEED=$$seed $(BIN)/python -m pytest -q tests/attack $(ARGS) || \
	    { echo "again: make attack DEEPWELL_SEED=$$seed" >&2; exit 1; }; \
	  [ -z "$$DEEPWELL_SEED" ] || break; done; echo "== attack: $(SECONDS_SINCE) s"

web: web/node_modules/.ready ## build the page into the package
	@$(NPM) run --silent check && npm run --silent build

web-check: web/node_modules/.ready ## the page's tests, and: is the committed build the build of its sources?
	@start=$$(date +%s); out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; \
	($(NPM) run --silent check && npm run --silent build -- --outDir "$$out" --emptyOutDir) && \
	if diff -r "$$out" $(STATIC); then echo "== page: $(SECONDS_SINCE) s"; \
	else echo "$(STATIC) is not the build of web/: run 'make web' and commit the result" >&2; exit 1; fi

fuzz: build/fuzz/native ## fuzz the native backend for a while under sanitizers (FUZZ_SECONDS=30; needs clang)
	@start=$$(date +%s); mkdir -p build/fuzz/corpus; \
	build/fuzz/native -max_total_time=$(FUZZ_SECONDS) -max_len=1500 -len_control=0 -timeout=30 -rss_limit_mb=2048 \
	  -verbosity=0 -print_final_stats=1 -artifact_prefix=build/fuzz/ build/fuzz/corpus && echo "== fuzz: $(SECONDS_SINCE) s"

build/fuzz/native: $(shell find native -name '*.cpp' -o -name '*.h' -o -name build.sh)
	@command -v clang++-16 clang++ > /dev/null || .ci/packages clang
	@mkdir -p build/fuzz; native/fuzz/build.sh $@

tsan: build/tsan/threads ## plans, pool and packing on many threads for a while under ThreadSanitizer (TSAN_SECONDS=15)
	@start=$$(date +%s); fixed=$$(setarch -R true 2> /dev/null && echo setarch -R); \
	$$fixed build/tsan/threads $(TSAN_SECONDS) && echo "== tsan: $(SECONDS_SINCE) s"

build/tsan/threads: $(shell find native -name '*.cpp' -o -name '*.h' -o -name build_threads.sh)
	$(CHECK_COMPILER)
	@mkdir -p build/tsan; native/tests/build_threads.sh $@

dist: $(VENV)/.dev ## the source distribution, and the wheel built from it, into dist/
	@start=$$(date +%s); rm -rf dist && $(BIN)/python -c "import scikit_build_core.build as b; b.build_sdist('dist')" > /dev/null && \
	echo "== compiling the kernels of the wheel, 1 to 10 minutes" && \
	$(BUILD) $(PIP) wheel --quiet --no-deps --wheel-dir dist dist/*.tar.gz && ls dist && echo "== dist: $(SECONDS_SINCE) s"

format: $(VENV)/.dev ## let ruff format and repair what it can
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

docs: $(VENV)/.core ## rewrite the generated pages of docs/
	@$(BIN)/python -m deepwell.cli.docs > docs/cli.md

clean: ## remove what was built here
	rm -rf $(VENV) build dist web/node_modules

$(BIN)/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Deepwell needs Python 3.11 or newer: install it (Debian 12: apt-get install python3.11-venv) or name it with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo "Python's venv module is missing: install it (Debian 12: apt-get install python3.11-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Editable, so that a changed .py file needs no install; a changed C++ file does.
$(VENV)/.core: $(SOURCES) | $(BIN)/python
	$(CHECK_COMPILER)
	@echo "== installing into $(VENV): fetching packages and compiling the kernels, 1 to 10 minutes"
	@start=$$(date +%s); $(BUILD) $(PIP) install --quiet --quiet --editable . && echo "== installed: $(SECONDS_SINCE) s"
	@touch $@

$(VENV)/.dev: $(SOURCES) constraints-ci.txt | $(BIN)/python
	$(CHECK_COMPILER)
	@echo "== installing into $(VENV), with torch and the tools of development: a few minutes"
	$(if $(TORCH_INDEX),@$(PIP) install --quiet --index-url $(TORCH_INDEX) --constraint constraints-ci.txt torch)
	@$(BUILD) $(PIP) install --quiet --constraint constraints-ci.txt --editable '.[dev]'
	@touch $@ $(VENV)/.core

web/node_modules/.ready: web/package-lock.json | $(VENV)/.dev
	@$(NPM) ci --silent --no-audit --no-fund
	@touch $@
