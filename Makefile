# The one list of commands. `make demo` and `make test` work on a fresh clone.
CARGO ?= cargo
# Outside a terminal cargo draws no bars; --locked keeps Cargo.lock the only say on versions.
BUILD = $(CARGO) build --locked

.PHONY: help setup build demo test verify fix jepsen proof faults mutants bench model fuzz fuzz-corpus sim sim-faults

help:
	@echo "make demo     a cluster stores a real tree, loses servers on the way, and gives it back"
	@echo "make test     all tests"
	@echo "make verify   formatting and lints, changes nothing"
	@echo "make fix      formats, and applies what the lints can mend"
	@echo "make jepsen   clients under faults of processes, network, disks and members, judged (an hour)"
	@echo "make proof    16 clients append 10,000 records each under faults; waits after losses (half an hour)"
	@echo "make faults   every fail point crashes, fails and stalls under load; wrong clocks and slow disks (40 minutes)"
	@echo "make mutants  every seeded bug, and which check finds it (half an hour)"
	@echo "make bench    the benchmarks, each beside the bare limit"
	@echo "make fuzz     every decoder under libFuzzer (GFS_FUZZ_SECONDS each, 20 if not set; needs cargo-fuzz)"
	@echo "make sim      the whole cluster in one process, under seeds (SEEDS=0..40 TIME=20s); sim-faults: with fail points"
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

# Each workload without faults, under servers lost, masters lost, restarts, cuts around chunkservers, cuts around
# masters, bad cables, power and disks, members that come and go, and everything. Without root (and iproute2, xfsprogs)
# the cuts, the cables and the power are left out.
MIXES = none,kill+pause,leader+leader-pause+master,restart+rolling+storm+startup
MIXES := $(MIXES),cut+cut-clients+cut-data+cut-heartbeats+cut-servers+flap
MIXES := $(MIXES),cut-leader+cut-master+halves+minority+bridge+ring+deaf+mute
MIXES := $(MIXES),delay+loss+reorder+duplicate+corrupt+forge+slow
MIXES := $(MIXES),power+power-one+disk-dead+disk-full+bit-rot,disk-lost+disk-swapped+join-master+join-shadow+replace
MIXES := $(MIXES),kill+pause+leader+leader-pause+master+restart+cut+cut-leader+halves+bridge+deaf+mute+flap+loss
jepsen: build
	$(CARGO) run --locked --quiet --package gfs-jepsen -- matrix --time 7s --nemesis $(MIXES)

PROOF = $(CARGO) run --locked --quiet --package gfs-jepsen --
PROOF_RUN = $(PROOF) run --workload append --clients 16 --operations 10000
# Exactly once, at its offset, on every replica; nobody waits longer than is promised, whoever is lost and however; what a
# chunkserver held, a GiB, is elsewhere within a minute; nothing that has rotted is served, and all of it is made good.
proof: build
	$(PROOF_RUN) --nemesis kill,pause,cut
	$(PROOF_RUN) --nemesis leader,cut-leader,leader-pause
	$(PROOF) measure leader --rounds 20 --within 2s
	$(PROOF) measure leader --by cut --rounds 20 --within 2s
	$(PROOF) measure primary --rounds 20 --within 5s
	$(PROOF) measure primary --by cut --rounds 20 --within 5s
	$(PROOF) measure chunkserver --rounds 3 --within 60s
	$(PROOF) rot --corruptions 1000

# Programs with fail points in them (docs/decisions/0016), beside the ordinary ones. What only they can suffer is tried here,
# so that no other target has to build them.
TARGET = $(or $(CARGO_TARGET_DIR),target)
FAULTY = GFS_BIN=$(TARGET)/faults/gfs $(TARGET)/faults/gfs-jepsen
faults: setup
	$(BUILD) --workspace --features faults --bin gfs --bin gfs-jepsen
	@mkdir -p $(TARGET)/faults && cp $(TARGET)/debug/gfs $(TARGET)/debug/gfs-jepsen $(TARGET)/faults/
	$(FAULTY) faults
	$(FAULTY) matrix --time 10s --nemesis clock-jump+clock-drift+disk-slow+kill+pause+leader+cut-heartbeats+cut-servers

mutants: setup
	$(BUILD) --workspace --features faults --bin gfs-jepsen
	$(TARGET)/debug/gfs-jepsen mutants

bench: build
	$(CARGO) run --locked --quiet --package gfs-bench

# What `make test` explores in small, here in full.
model:
	$(CARGO) run --locked --quiet --package gfs-tests --bin gfs-model -- check
	$(CARGO) run --locked --quiet --package gfs-tests --bin gfs-model -- bugs
	$(CARGO) run --locked --quiet --package gfs-tests --bin gfs-model -- variants
	$(CARGO) run --locked --quiet --package gfs-tests --bin gfs-model -- fence

# Targets with coverage under libFuzzer, then the one that it can't reach. `make test` tries the same functions in small.
GFS_FUZZ_SECONDS ?= 20
fuzz: build
	@$(CARGO) run --locked --quiet --package gfs-fuzz -- run --seconds $(GFS_FUZZ_SECONDS)
	@GFS_FUZZ_SECONDS=$(GFS_FUZZ_SECONDS) $(CARGO) test --locked --quiet --package gfs settings_hold_for_a_while -- --ignored --nocapture

# Keeps the smallest corpora that reach all that was found.
fuzz-corpus: build
	@$(CARGO) run --locked --quiet --package gfs-fuzz -- minimise

# Each seed is a process; a failing one prints the line that replays it.
SEEDS ?= 0..40
TIME ?= 20s
sim: setup
	$(CARGO) run --locked --quiet --package gfs-sim -- sweep --seeds $(SEEDS) --time $(TIME)

# The same with fail points, which the seed arms.
sim-faults: setup
	$(CARGO) test --locked --quiet --package gfs-sim --features faults
	$(CARGO) run --locked --quiet --package gfs-sim --features faults -- sweep --seeds $(SEEDS) --time $(TIME)
