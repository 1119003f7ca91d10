# The one list of commands. `make demo` and `make test` work on a fresh clone.
CARGO ?= cargo
# Outside a terminal cargo draws no bars; --locked keeps Cargo.lock the only say on versions.
BUILD = $(CARGO) build --locked

.PHONY: help setup build demo test verify fix jepsen bench model

help:
	@echo "make demo     a cluster stores a real tree, loses servers on the way, and gives it back"
	@echo "make test     all tests"
	@echo "make verify   formatting and lints, changes nothing"
	@echo "make fix      formats, and applies what the lints can mend"
	@echo "make jepsen   clients under kills, pauses and restarts, judged (3 minutes)"
	@echo "make bench    the benchmarks, each beside the bare limit"
	@echo "make model    explores the chunk protocol exhaustively: half an hour and 6 GiB"

# What the build needs beside Rust: a C++ compiler and libclang, for RocksDB.
setup:
	@.ci/setup

build: setup
	$(BUILD) --package gfs --package gfs-tests --bins

demo: build
	$(CARGO) run --locked --quiet --package gfs-tests --bin demo

# The stories run the real binary, so it is built first.
test: build
	$(CARGO) test --locked --workspace --doc --quiet
	$(CARGO) test --locked --workspace --all-targets --no-fail-fast

verify: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo "cargo-deny is not installed: licences and advisories were not checked"; fi

fix:
	$(CARGO) clippy --locked --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

# Each workload without faults, under servers lost and masters lost, and under everything.
jepsen: build
	$(CARGO) run --locked --quiet --package gfs-jepsen -- matrix --time 7s \
		--nemesis none,kill+pause,leader+leader-pause+master,kill+pause+leader+leader-pause+master+restart

bench: build
	$(CARGO) run --locked --quiet --package gfs-bench

# What `make test` explores in small, here in full.
model:
	$(CARGO) run --locked --quiet --package gfs-tests --bin gfs-model -- check
	$(CARGO) run --locked --quiet --package gfs-tests --bin gfs-model -- bugs
	$(CARGO) run --locked --quiet --package gfs-tests --bin gfs-model -- variants
	$(CARGO) run --locked --quiet --package gfs-tests --bin gfs-model -- fence
