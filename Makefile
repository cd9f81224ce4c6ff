# The commands of daily work; `make help` lists them. All but `help` and `clean` set up .venv when it
# is not there or pyproject.toml has changed. Works with GNU make 3.81 and any POSIX shell.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# A second one, with multiraft as machine code, and of all else what the first one has.
COMPILED := .venv-compiled
BUILT    := $(COMPILED)/.built
SOURCES   = $(shell find multiraft shard storage transport building setup.py -name '*.py' -type f)
# The Python to build .venv with, by name or path; empty: the first of 3.11, 3.12 and python3 that works.
PYTHON ?=
# Set to 1 to build plyvel from source where it is not published ready-built. Without it a node keeps its data in SQLite
# there; the tests need both.
BUILD_PLYVEL ?=

# What `make sim` runs.
SEEDS ?= 2000
FIRST_SEED ?= 1

# What `make resp-differential` runs.
SEQUENCES ?= 2000

comma := ,

# What `make faults` runs.
ROUNDS ?= 20
OFFSETS ?= 500

.PHONY: help demo test test-compiled sim sim-compiled faults mutants mutants-random coverage-raft check bench bench-idle bench-scale bench-resp resp-differential soak-increments soak-state clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    run three nodes of the example key-value store here, and show what they survive"
	@echo "make test    run all tests"
	@echo "make test-compiled  compile the hot path by mypyc, and run all tests on that (ARGS='tests/raft tests/engine')"
	@echo "make sim     simulate clusters under faults, SEEDS=2000 of them from FIRST_SEED=1 on, and judge what they did"
	@echo "make sim-compiled   the same on the compiled build"
	@echo "make faults  let real disks fail and fill up, ROUNDS=20 times each, and turn OFFSETS=500 bits (about 25 minutes)"
	@echo "make mutants take the rules out of the code one by one, and see that a named test fails each time"
	@echo "make mutants-random  change the core at random, and list what no test notices (ARGS='--count 200 --seed 1')"
	@echo "make coverage-raft   branch coverage of the core by its own tests; fails below 97 %"
	@echo "make check   formatting, lint, types and import rules; changes nothing"
	@echo "make bench   measure multiraft beside its peers (ARGS=--quick, --full); see benchmarks/README.md"
	@echo "make bench-idle  what idle groups cost, and how fast they fail over (about four minutes)"
	@echo "make bench-scale  10,000 groups: start, memory, CPU with all nodes up and one down (about three minutes)"
	@echo "make bench-resp  redis-benchmark against the key-value store, beside a redis-server that syncs (about two minutes)"
	@echo "make resp-differential  SEQUENCES=2000 random sequences of commands, here and in a real redis-server (about five minutes)"
	@echo "make soak-increments  a million increments through kill -9, and an exact sum (about five minutes)"
	@echo "make soak-state  2 GiB of state in one node, and a shard of 500 MB handed on: memory, restart, lateness"
	@echo "make clean   remove both .venv and all caches"
	@echo "Options: PYTHON=/path/to/python3.12 (what .venv is built with), BUILD_PLYVEL=1 (any platform, from source)"

demo: $(STAMP)
	@$(BIN)/python -m examples.kv demo

test: $(STAMP)
	@$(BIN)/python -m pytest

test-compiled: $(BUILT)
	@PYTHONSAFEPATH=1 MULTIRAFT_TEST_BUILD=compiled $(COMPILED)/bin/python -m pytest -o pythonpath= $(ARGS)

sim-compiled: $(BUILT)
	@$(COMPILED)/bin/multiraft sim --seeds $(SEEDS) --first-seed $(FIRST_SEED) $(ARGS)

sim: $(STAMP)
	@$(BIN)/multiraft sim --seeds $(SEEDS) --first-seed $(FIRST_SEED) $(ARGS)

faults: $(STAMP)
	@$(BIN)/python -m tests.soak.disks --rounds $(ROUNDS)
	@$(BIN)/python -m tests.soak.bitflips --offsets $(OFFSETS) --quiet

mutants: $(STAMP)
	@$(BIN)/python -m tests.mutants

mutants-random: $(STAMP)
	@$(BIN)/python -m tests.mutants random $(ARGS)

# Only the tests of the core count here: what other tests reach by the way says nothing about how well it is tested.
coverage-raft: $(STAMP)
	@$(BIN)/python -m coverage run --data-file=.coverage.raft --source=multiraft.raft -m pytest -q tests/raft
	@$(BIN)/python -m coverage report --data-file=.coverage.raft --include='multiraft/raft/*' --show-missing --fail-under=97

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The peer that is written in Python, and what draws the plots, are an extra; without them they are named as missing.
bench: $(STAMP)
	@$(BIN)/python -c 'import matplotlib, pysyncobj' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' || true
	@$(BIN)/python -m benchmarks $(ARGS)

bench-idle: $(STAMP)
	@$(BIN)/python -m benchmarks.idle $(ARGS)

bench-scale: $(STAMP)
	@$(BIN)/python -m benchmarks.scale $(ARGS)

bench-resp: $(STAMP)
	@$(BIN)/python -m benchmarks --rows redis-set-16 redis-get-16 redis-incr-16 redis-set-1 redis-get-1 redis-incr-1 $(ARGS)

resp-differential: $(STAMP)
	@$(BIN)/python -m tests.examples.resp_differential --sequences $(SEQUENCES) $(ARGS)

soak-increments: $(STAMP)
	@$(BIN)/python -m tests.soak.increments $(ARGS)

soak-state: $(STAMP)
	@$(BIN)/python -m tests.soak.big_state $(ARGS)

clean:
	rm -rf $(VENV) $(COMPILED) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One shell script, handed over in the environment so that it can be read as one. `$$` is make's way to write `$`.
define SETUP
set -eu
fail() { printf 'error: %s\n' "$$1" >&2; shift; for line; do printf '       %s\n' "$$line" >&2; done; exit 1; }

# Whether "$$1" is a Python of a version that we support, and one that can make a virtual environment. It is run, not
# just looked for: a name on PATH may be a version manager's stand-in for a Python that is not there.
works() {
    "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] < (3, 11))' >/dev/null 2>&1
}

candidates='$(or $(PYTHON),python3.11 python3.12 python3)'
if [ -n "$(PYTHON)" ] || ! works $(BIN)/python; then
    found=
    for name in $$candidates; do
        if works "$$name"; then found=$$name; break; fi
    done
    [ -n "$$found" ] || fail "no working Python 3.11 or later with venv found (tried: $$candidates). Ways out:" \
        "- install one; on Debian and Ubuntu: apt-get install python3.11 python3.11-venv (or later)" \
        "- or name one: add PYTHON=/path/to/python3.12 to the make command" \
        "- or run this in a container of the image python:3.12"
    echo "setting up $(VENV) with $$("$$found" -V) ..."
    "$$found" -m venv --clear $(VENV)
fi
echo "installing multiraft and its tools into $(VENV) ..."
$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev$(if $(BUILD_PLYVEL),$(comma)leveldb)]' ||
    fail "installing into $(VENV) failed; pip says why above. Ways out:" \
        "- without a network, point pip at a folder of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=/folder make ..." \
        "- if plyvel does not build: install LevelDB with its headers and a C++ compiler, or leave BUILD_PLYVEL away"
$(BIN)/python -c 'import plyvel' 2>/dev/null ||
    echo "LevelDB is not available here: nodes keep their data in SQLite, and the tests of LevelDB cannot run." \
        "With LevelDB's headers and a C++ compiler, BUILD_PLYVEL=1 adds it."
touch $(STAMP)
endef
export SETUP

$(STAMP): pyproject.toml
	@sh -c "$$SETUP"

# The `.pth` file has all else found in .venv and in the checkout, and `import multiraft` find what is installed, wherever
# Python is started. MULTIRAFT_COMPILE_LEVEL=0 has the C compiler be quicker, and what it makes slower.
define COMPILE
set -eu
echo "compiling multiraft into $(COMPILED) ..."
$(BIN)/python -m venv --clear --without-pip $(COMPILED)
packages=$$($(COMPILED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
$(BIN)/python -c 'import os, sysconfig; print(sysconfig.get_path("purelib"), os.getcwd(), sep="\n")' > "$$packages/all_else.pth"
rm -rf build
touch $(COMPILED)/.began
MULTIRAFT_COMPILE=1 $(BIN)/python -m pip \
    --python $(COMPILED)/bin/python install --quiet --disable-pip-version-check --no-deps --no-build-isolation .
cp tests/installed/multiraft_as_installed.py "$$packages/"
echo 'import multiraft_as_installed' >> "$$packages/all_else.pth"
mv $(COMPILED)/.began $(BUILT) # with the time at which the sources were read
endef
export COMPILE

$(BUILT): $(STAMP) $(SOURCES) pyproject.toml tests/installed/multiraft_as_installed.py
	@sh -c "$$COMPILE"
