# `make` lists what there is to do. Each target sets up what it needs, once.

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
STAMPS := $(TARGET)/stamps

NEXTEST_VERSION := 0.9.143
FUZZ_VERSION := 0.13.2

RUST_SOURCES := $(shell find crates -name '*.rs' -not -path '*/target/*' 2>/dev/null) \
	$(wildcard Cargo.toml Cargo.lock crates/*/Cargo.toml)

# One interpreter for every build of the native module, or cargo would build it anew each time.
export PYO3_PYTHON := $(BIN)/python
export CARGO_TARGET_DIR := $(TARGET)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where the tests of virtual machines find their guest, and a kernel as distributions ship it.
export GIANTVM_GUEST := $(TARGET)/guests/guest.elf
TEST_KERNEL = GIANTVM_TEST_KERNEL="$$(echo $(TARGET)/testbed/kernels/*-6.12-cloud-*/boot/vmlinuz-*)"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-regions guests test test-long bench lint testbed-shell testbed-attach testbed-bochs wheel lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/stamp-develop $(STAMPS)/testbed ## Linux as one machine over two hosts; in a terminal, a shell in it
	@PYTHONPATH=tests $(BIN)/python examples/demo_linux.py

demo-regions: $(VENV)/stamp-develop ## three nodes compute on shared numpy arrays, and tell what the memory did
	@$(BIN)/python examples/demo.py

test: guests $(VENV)/stamp-develop $(STAMPS)/nextest $(STAMPS)/fuzz $(STAMPS)/testbed $(STAMPS)/etcd ## lints and all tests but the long ones
	@$(TEST_KERNEL) $(BIN)/python tests/run.py

test-long: guests $(VENV)/stamp-develop $(STAMPS)/nextest $(STAMPS)/fuzz $(STAMPS)/testbed $(STAMPS)/etcd $(STAMPS)/bochs ## all tests, the long ones too: takes hours
	@$(TEST_KERNEL) $(BIN)/python tests/run.py --long

bench: guests $(VENV)/stamp-develop $(VENV)/stamp-bench $(STAMPS)/testbed ## measure, beside floors and peers; one only: make bench BENCH=name
	@PYTHONPATH=benches/python:tests $(BIN)/python -m pybench $(if $(BENCH),--bench $(BENCH))
	@$(if $(BENCH),,$(BIN)/python -m pytest -q benches/python --benchmark-only --benchmark-columns=median,mean,iqr)

guests: | $(STAMPS)/debian ## build the bare-metal guests into target/guests/
	@$(MAKE) --no-print-directory -C guests OUT=$(TARGET)/guests

lint: $(VENV)/stamp-develop ## format, lints and types
	@$(BIN)/python tests/run.py --only lint

testbed-shell: $(VENV)/stamp-develop $(STAMPS)/testbed ## start virtual hosts, shell on the first: HOSTS=2 MEMORY=1024
	@PYTHONPATH=tests $(BIN)/python -m testbed shell --hosts $(or $(HOSTS),2) --memory $(or $(MEMORY),1024)

testbed-attach: ## shell on one more of these hosts: HOST=1
	@PYTHONPATH=tests $(BIN)/python -m testbed attach $(or $(HOST),1)

testbed-bochs: $(VENV)/stamp-develop $(STAMPS)/testbed $(STAMPS)/bochs ## run the guest over two nodes on an Intel host (Bochs)
	@PYTHONPATH=tests $(BIN)/python -m testbed bochs-run

wheel: $(VENV)/stamp-venv ## build the wheel into dist/
	@$(BIN)/maturin build --release --locked --out dist

lock: $(VENV)/stamp-venv ## choose the versions of Python packages anew
	@$(PYTHON) -m venv $(STAMPS)/lock-venv
	@$(STAMPS)/lock-venv/bin/pip install -q pip-tools
	@for file in requirements requirements-bench; do \
		$(STAMPS)/lock-venv/bin/pip-compile -q --upgrade --strip-extras --generate-hashes \
			--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
			--no-header --no-annotate -o $$file.lock $$file.in || exit 1; \
	done

clean: ## remove what was built
	rm -rf $(TARGET) $(VENV) dist python/giantvm/*.so
	find python tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. A stamp is newer than what it was made from, and lies beside what it stands for.

# Debian packages, only where what they bring is missing: a compiler for linking, and ensurepip.
$(STAMPS)/debian:
	@mkdir -p $(@D)
	@missing=; \
	command -v cc >/dev/null || missing="$$missing build-essential"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	command -v ip >/dev/null || test -x /usr/sbin/ip || missing="$$missing iproute2"; \
	command -v iasl >/dev/null || missing="$$missing acpica-tools"; \
	tests/debian.sh $$missing
	@touch $@

$(VENV)/stamp-venv: requirements.lock | $(STAMPS)/debian
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --no-deps --require-hashes -r requirements.lock
	@touch $@

$(VENV)/stamp-develop: $(VENV)/stamp-venv pyproject.toml $(RUST_SOURCES)
	@$(BIN)/maturin develop --release --locked --quiet
	@touch $@

$(STAMPS)/nextest: | $(STAMPS)/debian
	@cargo nextest --version >/dev/null 2>&1 \
		|| cargo install --locked cargo-nextest --version $(NEXTEST_VERSION)
	@touch $@

$(STAMPS)/fuzz: | $(STAMPS)/debian
	@cargo fuzz --version >/dev/null 2>&1 \
		|| cargo install --locked cargo-fuzz --version $(FUZZ_VERSION)
	@touch $@

# What virtual hosts are made of. The kernels are unpacked in the target directory, not installed.
$(STAMPS)/testbed: tests/testbed/kernel.py | $(VENV)/stamp-venv
	@missing=; \
	command -v qemu-system-x86_64 >/dev/null || missing="$$missing qemu-system-x86"; \
	test -x /bin/busybox || missing="$$missing busybox-static"; \
	command -v cpio >/dev/null || missing="$$missing cpio"; \
	test -x /sbin/depmod || missing="$$missing kmod"; \
	test -x /sbin/mke2fs || missing="$$missing e2fsprogs"; \
	tests/debian.sh $$missing
	@apt-cache show linux-image-6.12-amd64 >/dev/null 2>&1 || apt-get update -q
	@PYTHONPATH=tests $(BIN)/python -m testbed prepare
	@touch $@

# Tests start servers of their own.
$(STAMPS)/etcd: | $(STAMPS)/debian
	@command -v etcd >/dev/null || tests/debian.sh etcd-server
	@touch $@

# Intel hosts: the emulator, its firmware, and what makes a boot disc.
$(STAMPS)/bochs: | $(STAMPS)/debian
	@missing=; \
	command -v bochs-bin >/dev/null || missing="$$missing bochs bochs-term"; \
	test -e /usr/share/bochs/BIOS-bochs-latest || missing="$$missing bochsbios"; \
	test -e /usr/share/bochs/VGABIOS-lgpl-latest || missing="$$missing vgabios"; \
	test -e /usr/lib/ISOLINUX/isolinux.bin || missing="$$missing isolinux"; \
	test -e /usr/lib/syslinux/modules/bios/ldlinux.c32 || missing="$$missing syslinux-common"; \
	command -v xorriso >/dev/null || missing="$$missing xorriso"; \
	tests/debian.sh $$missing
	@touch $@

$(VENV)/stamp-bench: requirements-bench.lock $(VENV)/stamp-venv
	@missing=; \
	command -v mpiexec >/dev/null || missing="$$missing openmpi-bin"; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	tests/debian.sh $$missing
	@$(BIN)/pip install -q --no-deps --require-hashes -r requirements-bench.lock
	@touch $@
