# make run     a folder on a private node server, in the foreground; MOUNTPOINT=~/Buckets
# make setup   Debian packages that are missing, .venv, pinned Python packages; nothing when done
# make test    format, lint, types, import layers, all tests on real mounts; TESTS=... picks some
# make bench   this product beside JuiceFS and a local directory
# make cluster several nodes on this machine, in the foreground; N=5, CLUSTER=directory
# make fuzz    random orders of calls on files, in the manner of fsx; SEED=..., ROUNDS=100: 10 seeds of 100,000 operations
# make soak    a mount at work while its nodes suffer; SEED=..., ROUNDS=... times the rounds of the test
# make clean   removes what the targets above made in this directory

SHELL := /bin/bash
MOUNTPOINT ?= $(HOME)/Buckets
TESTS ?=
N ?= 5
CLUSTER ?= cluster
SEED ?= $(shell date +%s)
ROUNDS ?= 50
VENV := .venv
BIN := $(VENV)/bin
# The place is part of the name: a virtual environment that was moved or copied does not work.
PLACE := $(VENV)/.made-in$(subst /,_,$(CURDIR))

RUN_DEBS := fuse3 libfuse3-dev pkg-config gcc libc6-dev
TEST_DEBS := acl attr dbus fio git libpam-systemd mandoc postgresql procps psmisc rsync sqlite3 strace systemd systemd-container vim-tiny
BENCH_DEBS := fio git postgresql procps
DEBS := $(RUN_DEBS)

.PHONY: setup run test bench cluster fuzz soak clean debian
.DELETE_ON_ERROR:

setup: $(VENV)/.setup
run: setup
	@# At a terminal a process group of its own, so that Ctrl-C reaches mountfs and not make, and the exit code is 0.
	@[ -t 0 ] || exec $(BIN)/mountfs up "$(MOUNTPOINT)"; \
	set -m; setpriv --pdeathsig TERM $(BIN)/mountfs up "$(MOUNTPOINT)"; exit $$?

test: DEBS := $(RUN_DEBS) $(TEST_DEBS)
test: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy mountfs nodeserver tests
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TESTS) \
	  || $(MAKE) --no-print-directory again CODE=$$?

# Real processes with deadlines share few cores here. A few tests that failed beside others run once more, alone; what
# fails again has failed. Both runs are shown: a test that is named in the first and passes in the second wants mending.
.PHONY: again
again:
	@failed=$$(grep -c :: .pytest_cache/v/cache/lastfailed || true); \
	[ "$(CODE)" = 1 ] && [ "$${failed:-0}" -le 3 ] || exit 1; \
	echo "$$failed failed beside others; once more, alone:"; \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none

bench: DEBS := $(RUN_DEBS) $(BENCH_DEBS)
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

cluster: setup
	@[ -t 0 ] || exec $(BIN)/nodeserver cluster --nodes $(N) --data "$(CLUSTER)"; \
	set -m; setpriv --pdeathsig TERM $(BIN)/nodeserver cluster --nodes $(N) --data "$(CLUSTER)"; exit $$?

fuzz: DEBS := $(RUN_DEBS) $(TEST_DEBS)
fuzz: $(VENV)/.test
	SEED=$(SEED) $(BIN)/python -m pytest -s --soak $(ROUNDS) $(or $(TESTS),tests/fuzz)

soak: DEBS := $(RUN_DEBS) $(TEST_DEBS)
soak: $(VENV)/.test
	SEED=$(SEED) $(BIN)/python -m pytest -s --soak $(ROUNDS) tests/cluster/test_soak.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Python packages: the versions of constraints.txt, from wherever pip of this machine gets them.

$(VENV)/.setup: EXTRA :=
$(VENV)/.test: EXTRA := [test]
$(VENV)/.bench: EXTRA := [bench]
$(VENV)/.test $(VENV)/.bench: $(VENV)/.setup
$(VENV)/.setup $(VENV)/.test $(VENV)/.bench: pyproject.toml constraints.txt nodeserver/__init__.py | $(PLACE)
	@set -o pipefail; printf 'Python packages, a minute or two:'; \
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.$(EXTRA)' | \
	while read -r word name _; do case "$$word $$name" in Collecting*) printf ' %s' "$${name%%[!A-Za-z0-9._-]*}";; \
	  "Installing collected") printf '; installing them';; esac; done; code=$$?; echo; exit $$code
	@touch $@

$(PLACE): | debian
	@python=$$($(FIND_PYTHON)) && [ -n "$$python" ] || { echo "Python 3.11 or newer is needed." >&2; exit 1; }; \
	echo "virtual environment: $(VENV), with $$python"; "$$python" -m venv --clear $(VENV)
	@touch $@

# The first Python >= 3.11 that can make a virtual environment and compile extensions.
FIND_PYTHON = for name in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	"$$name" -c '$(PROBE)' 2>/dev/null && break; done
PROBE = import ensurepip, os, sys, sysconfig, venv; \
	ok = sys.version_info >= (3, 11) and os.path.exists(sysconfig.get_path("include") + "/Python.h"); \
	ok and print(os.path.realpath(sys._base_executable)); sys.exit(not ok)

debian:
	@command -v dpkg-query >/dev/null || exit 0; debs="$(DEBS)"; \
	[ -e $(PLACE) ] || [ -n "$$($(FIND_PYTHON))" ] || debs="$$debs python3 python3-venv python3-dev"; \
	missing=$$(comm -23 <(printf '%s\n' $$debs | sort -u) \
	  <(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $$debs 2>/dev/null | sed -n 's/^installed //p' | sort -u)); \
	[ -n "$$missing" ] || exit 0; \
	echo "Debian packages: "$$missing; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; \
	else echo "As root: apt-get install "$$missing >&2; exit 1; fi; \
	$$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
