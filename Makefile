# `make demo` and `make test` need Python 3.10+ with its headers, a C++17 compiler and make; `make help` lists the rest.
# Everything goes into $(VENV); nothing outside this directory is changed.

PYTHON ?= python3
VENV ?= .venv
# Installed first, in a call of its own, and only where no torch >= 2.6 is in $(VENV). Any pip arguments will do.
TORCH ?= torch==2.13.0
# 1: `make test` runs the slow tests too.
SLOW ?= 0
# So many processes run the Python tests, most of which compute on one thread.
TEST_JOBS ?= 2
# 1: compiler warnings are errors.
WERROR ?= 0
# --record: `make counts` writes the counts instead of comparing them.
COUNTS ?=
# --record: `make sizes` writes the sizes likewise.
SIZES ?=
# How long each of the fuzzing targets goes on, and where the mutations of the native one begin.
FUZZ_SECONDS ?= 25
FUZZ_SEED ?= 1
DEMO_ARGS ?=
BENCH_ARGS ?=
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
STAMPS := $(VENV)/stamps
# The build tools of $(VENV), so that the machine needs no cmake and every build uses the same one.
export PATH := $(abspath $(VENV))/bin:$(PATH)

# setup.py compiles here too, so that the C++ tests and sparseinfer._C share their object files.
BUILD := build/dev
export SPARSEINFER_BUILD_DIR := $(abspath $(BUILD))
WERROR_FLAG := $(if $(filter 1,$(WERROR)),-DSPARSEINFER_WERROR=ON)
export CMAKE_ARGS := $(CMAKE_ARGS) -DSPARSEINFER_TESTS=ON $(WERROR_FLAG)

# Directories are in the list because adding or removing a file changes only them.
NATIVE_SOURCES := $(shell find csrc -type d -o -name '*.cc' -o -name '*.c' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
FORMATTED_SOURCES = $(shell find csrc examples sparseinfer tests -name '*.cc' -o -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# The processors of `make cross`, beside aarch64, which is `make neon`.
CROSS := armv7 riscv64
cross_build = build-$(if $(filter aarch64,$1),neon,$1)
CTEST := ctest --output-on-failure --no-tests=error --timeout 600 --parallel $(CMAKE_BUILD_PARALLEL_LEVEL)

.DEFAULT_GOAL := help
.PHONY: help demo test test-benchmarks native lint format sanitize fuzz fuzz-native tsan neon cross cortex-m serial c-projects sizes cuda counts bench wheel docs setup clean FORCE

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'
	@echo
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH='$(TORCH)' SLOW=$(SLOW) WERROR=$(WERROR)" \
	  "CMAKE_BUILD_PARALLEL_LEVEL=$(CMAKE_BUILD_PARALLEL_LEVEL)"

demo: $(STAMPS)/native.stamp $(STAMPS)/demo.stamp ## Train, prune and convert a small network; compare speed, accuracy and size
	$(VENV)/bin/sparseinfer demo $(DEMO_ARGS)

test: $(STAMPS)/native.stamp $(STAMPS)/test.stamp ## Run the C++ and the Python tests (SLOW=1: the slow ones too)
	cmake --build $(BUILD)
	$(CTEST) --test-dir $(BUILD)
	$(PY) -m pytest -n $(TEST_JOBS) --dist worksteal -m "not cross$(if $(filter 1,$(SLOW)),, and not slow)"

test-benchmarks: $(STAMPS)/native.stamp $(STAMPS)/test.stamp ## Run the tests of the benchmark programs
	$(PY) -m pytest benchmarks/tests

native: $(STAMPS)/native.stamp ## Build the extension module in place

lint: lint-ruff lint-format lint-types lint-native ## Check style and types: ruff, mypy, clang-format (-k: all of them)
lint-%: $(STAMPS)/test.stamp $(STAMPS)/dev.stamp
	$(LINT_$*)
LINT_ruff = $(PY) -m ruff check .
LINT_format = $(PY) -m ruff format --check .
LINT_types = $(PY) -m mypy
LINT_native = $(VENV)/bin/clang-format --dry-run -Werror $(FORMATTED_SOURCES)

format: $(STAMPS)/dev.stamp ## Format all sources
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(FORMATTED_SOURCES)

sanitize: $(STAMPS)/tools.stamp ## Run the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake -S . -B build-sanitize -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g" \
	  "-DSPARSEINFER_SANITIZE=address;undefined" $(WERROR_FLAG)
	cmake --build build-sanitize
	ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 $(CTEST) --test-dir build-sanitize

# With CXX=clang++ and no build-sanitize from before, libFuzzer drives it.
fuzz-native: $(STAMPS)/tools.stamp ## Give mutated packed buffers and model files to the native core, under the same sanitizers (FUZZ_SECONDS)
	cmake -S . -B build-sanitize -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g" \
	  "-DSPARSEINFER_SANITIZE=address;undefined" $(WERROR_FLAG)
	cmake --build build-sanitize --target packed_fuzz model_fuzz
	cd build-sanitize && if grep -q '^SPARSEINFER_LIBFUZZER:INTERNAL=1' CMakeCache.txt; then \
	  mkdir -p corpus models && cp ../csrc/formats/*/golden/*.bin corpus && cp ../csrc/runtime/golden/*.sinf models && \
	  ./packed_fuzz -max_total_time=$(FUZZ_SECONDS) -seed=$(FUZZ_SEED) -max_len=65536 -timeout=60 corpus && \
	  ./model_fuzz -max_total_time=$(FUZZ_SECONDS) -seed=$(FUZZ_SEED) -max_len=65536 -timeout=60 models; \
	else ./packed_fuzz $(FUZZ_SECONDS) $(FUZZ_SEED) ../csrc/formats/*/golden/*.bin && \
	  ./model_fuzz $(FUZZ_SECONDS) $(FUZZ_SEED) ../csrc/runtime/golden/*.sinf; fi

# Only what runs on the library's own threads: no OpenMP runtime tells this sanitizer how it synchronises, and it follows
# no threads into a forked child.
TSAN_TESTS := core.parallel_test kernels.linear.linear_test kernels.conv.conv_test api.model_api_test api.context_memory_test
empty :=
tsan: $(STAMPS)/tools.stamp ## Run the C++ tests of threads under ThreadSanitizer
	cmake -S . -B build-tsan -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g" \
	  -DSPARSEINFER_SANITIZE=thread $(WERROR_FLAG)
	cmake --build build-tsan --target $(TSAN_TESTS)
	$(CTEST) --test-dir build-tsan --tests-regex "^($(subst $(empty) ,|,$(TSAN_TESTS)))$$"

neon: cross-aarch64 ## Cross-compile for 64-bit ARM and run the C++ tests under qemu

cross: $(CROSS:%=cross-%) ## The same for every other processor: armv7 (32 bits), riscv64

# The build directory is build-PROCESSOR, and build-neon for aarch64.
CROSS_TESTS := $(addprefix cross-,aarch64 $(CROSS))
.PHONY: $(CROSS_TESTS)
$(CROSS_TESTS): cross-%: cross-%-configured $(STAMPS)/native.stamp $(STAMPS)/test.stamp
	cmake --build $(call cross_build,$*)
	$(CTEST) --test-dir $(call cross_build,$*)
	cmake --build $(BUILD) --target sparseinfer-run
	SPARSEINFER_CROSS_BUILD=$(call cross_build,$*) $(PY) -m pytest -m cross -k $(word 1,$(CROSS_$*)) tests/test_c_projects.py

cortex-m: $(STAMPS)/native.stamp $(STAMPS)/test.stamp ## Run exported models on Cortex-M3 and M4 under qemu; print how large their code is
	@for tool in arm-none-eabi-gcc qemu-system-arm; do \
	  command -v $$tool >/dev/null || { echo "expected $$tool on PATH, got none, try: apt-get install" \
	    "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm (Debian, Ubuntu)" >&2; exit 1; }; done
	$(PY) -m pytest -m cross tests/test_cortex_m.py

serial: $(STAMPS)/tools.stamp ## Build without threads and run the C++ tests
	cmake -S . -B build-serial -G Ninja -DSPARSEINFER_THREADS=OFF $(WERROR_FLAG)
	cmake --build build-serial
	$(CTEST) --test-dir build-serial

c-projects: $(STAMPS)/native.stamp $(STAMPS)/test.stamp ## Install the C library, and build projects of C on it in every way
	$(PY) -m pytest tests/test_c_projects.py

sizes: $(STAMPS)/native.stamp $(STAMPS)/test.stamp ## Compare the sizes of small programs of C, on each processor whose compiler is here, with the committed ones
	$(PY) -m benchmarks.sizes $(SIZES)

fuzz: fuzz-files ## Feed damaged input to everything that reads some, FUZZ_SECONDS each
.PHONY: fuzz-files
fuzz-files: $(STAMPS)/native.stamp $(STAMPS)/test.stamp
	$(PY) -m tests.fuzz.files --seconds $(FUZZ_SECONDS)

cuda: $(STAMPS)/native.stamp $(STAMPS)/test.stamp ## Compile the CUDA kernels for sm_80 and sm_90a and look at their code (needs nvcc, no GPU)
	@command -v nvcc >/dev/null || { echo "expected nvcc on PATH, got none, try: https://developer.nvidia.com/cuda-downloads" >&2; \
	  exit 1; }
	$(PY) -m pytest tests/test_cuda_compile.py

counts: $(STAMPS)/native.stamp $(STAMPS)/test.stamp cross-aarch64-configured ## Compare the kernels' instruction counts with the committed ones
	@command -v valgrind >/dev/null || { echo "expected valgrind on PATH, got none, try: apt-get install valgrind" \
	  "(Debian, Ubuntu)" >&2; exit 1; }
	cmake --build $(BUILD) --target kernel_calls
	cmake --build build-neon --target sparseinfer_isa
	$(PY) -m benchmarks.instructions --build $(BUILD) --neon-build build-neon $(COUNTS)

bench: $(STAMPS)/native.stamp $(STAMPS)/test.stamp ## Measure against dense PyTorch (BENCH_ARGS=--quick: a few cases)
	$(PY) -m benchmarks.run $(BENCH_ARGS)

# From the source distribution, so that a file missing there is found. The tag is the one that auditwheel finds for the
# symbols that the module needs: an older glibc on the building machine gives a wheel for older systems.
wheel: $(STAMPS)/dev.stamp ## Build dist/: the source distribution and a stripped wheel for other machines
	rm -rf build/wheel dist
	CMAKE_ARGS="$(CMAKE_ARGS) -DSPARSEINFER_PORTABLE=ON" env -u SPARSEINFER_BUILD_DIR \
	  $(PY) -m build --no-isolation --outdir build/wheel .
	auditwheel repair --strip --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist
	@du -b dist/*

docs: $(STAMPS)/native.stamp $(STAMPS)/docs.stamp ## Build the pages of docs/ as a site in build/site; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

setup: $(STAMPS)/native.stamp $(STAMPS)/test.stamp $(STAMPS)/dev.stamp ## Install everything that the other targets need

clean: ## Remove what was built; the virtual environment stays
	rm -rf build build-sanitize build-tsan build-neon build-serial $(CROSS:%=build-%) dist *.egg-info sparseinfer/_C*.so $(STAMPS)/native.stamp

# ---- What the targets stand on ----------------------------------------------------------------------------------

# Of each processor the prefix of its compiler, and qemu's name for it.
CROSS_aarch64 := aarch64-linux-gnu aarch64
CROSS_armv7 := arm-linux-gnueabihf arm
CROSS_riscv64 := riscv64-linux-gnu riscv64
CROSS_CONFIGURED := $(addsuffix -configured,$(CROSS_TESTS))
.PHONY: $(CROSS_CONFIGURED)
$(CROSS_CONFIGURED): cross-%-configured: $(STAMPS)/tools.stamp
	@for tool in $(word 1,$(CROSS_$*))-g++ qemu-$(word 2,$(CROSS_$*))-static; do \
	  command -v $$tool >/dev/null || { echo "expected $$tool on PATH, got none, try: apt-get install" \
	    "g++-$(word 1,$(CROSS_$*)) qemu-user-static (Debian, Ubuntu)" >&2; exit 1; }; done
	cmake -S . -B $(call cross_build,$*) -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/$(word 1,$(CROSS_$*)).cmake $(WERROR_FLAG)

$(STAMPS)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "expected Python 3.10 or newer, got $$($(PYTHON) --version 2>&1), try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { \
	  echo "expected Python's venv module with pip, got none, try: apt-get install python3-venv (Debian, Ubuntu)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
	  echo "expected Python's header Python.h, got none, try: apt-get install python3-dev (Debian, Ubuntu)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# What pyproject.toml's build-system.requires names: builds here run without pip's isolated environment, so that
# object files can be kept between them.
$(STAMPS)/tools.stamp: $(STAMPS)/venv.stamp
	$(PIP) install "setuptools>=77" "pybind11>=2.12" cmake ninja
	@touch $@

$(STAMPS)/torch.stamp: $(STAMPS)/venv.stamp
	$(PY) -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6))' 2>/dev/null \
	  || $(PIP) install $(TORCH)
	@touch $@

# A module that was deleted is built again.
$(STAMPS)/native.stamp: $(STAMPS)/tools.stamp $(NATIVE_SOURCES) CMakeLists.txt setup.py pyproject.toml \
    $(if $(wildcard sparseinfer/_C*.so),,FORCE)
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

# demo.stamp, test.stamp, docs.stamp and dev.stamp: the package in editable form with the extra of that name.
$(STAMPS)/%.stamp: $(STAMPS)/torch.stamp $(STAMPS)/tools.stamp pyproject.toml | $(STAMPS)/native.stamp
	$(PIP) install --no-build-isolation --editable ".[$*]"
	@touch $@
