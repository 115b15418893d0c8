# Two commands set everything up on a fresh machine: `make demo` and `make test`.
# `make check` is the whole gate; run it before you push.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip's notes about its own age are noise in a first run
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Each test process computes on one core; three of them fill two cores, since many tests wait for servers.
JOBS ?= 3
# They start some hundred more, which keep their bytecode, also where the environment says to keep none.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: help demo setup test coverage check format lint types imports unit interop fuzz soak bench bench-engine bench-learning bench-client bench-server bench-mesh docs wheel clean
.DEFAULT_GOAL := help

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# Old Pythons would find no torch, and say nothing of themselves.
RECENT := import sys; sys.version_info >= (3, 11) or sys.exit("tinkex needs Python 3.11 or later, and %s is %s: %s" % (sys.executable, sys.version.split()[0], sys.argv[1]))

# By its pip, as the folder is there without one where `venv` was interrupted, or had no ensurepip (Debian's python3-venv).
$(BIN)/pip:
	@$(PYTHON) -c '$(RECENT)' 'name another one, as in "make demo PYTHON=python3.11"'
	@echo "==> setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv $(VENV)

# torch goes first and pinned: a looser range lets pip choose another build than the one that is tested.
# On Linux, PyPI's brings gigabytes of CUDA packages; TORCH chooses another one (README.md has the words).
TORCH ?= torch==2.13.0

$(VENV)/.torch: | $(BIN)/pip
	@$(BIN)/python -c '$(RECENT)' 'remove $(VENV), and run "make" with another one, as in "make demo PYTHON=python3.11"'
	@$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.server: $(VENV)/.torch pyproject.toml
	@$(PIP) install --editable '.[server]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "==> installing the server's packages and the development tools"
	@$(PIP) install --editable '.[server,dev]'
	@touch $(VENV)/.server $@

# An older official SDK, and schemathesis, which the tests drive the server with; `make interop` installs the others.
.interop/.short: tests/support/interop_environments.py | $(BIN)/pip
	@echo "==> installing an older official SDK, and schemathesis, into .interop"
	@$(BIN)/python tests/support/interop_environments.py sdk-0.25 fuzz
	@touch $@

# What all tests need, one beside the other: pip waits for the disk and the network, and uses one core.
setup:
	@$(MAKE) --no-print-directory -j 2 $(VENV)/.dev .interop/.short

demo: $(VENV)/.server ## Start a server, fine-tune two adapters through the API, sample before and after
	@$(BIN)/tinkex demo --output .demo

# What fails is run once more, and the summary shows both: see CONTRIBUTING.md.
test: setup ## Run every test, in parallel and in random order
	$(PYTEST) --reruns 1 -raR

# Tracing each line doubles the time of most tests, so the tests that run at each push go without.
coverage: setup ## Run every test and show the lines that none of them reached
	$(PYTEST) --cov --cov-report=term --cov-fail-under=80
	@for part in trust feeds rpc; do \
	  printf "tinkex.mesh.$$part, of which 95%% must be reached: "; \
	  $(BIN)/coverage report --format=total --precision=1 --fail-under=95 --include="*/tinkex/mesh/$$part/*" || exit 1; \
	done

unit: $(VENV)/.dev ## Run the unit tests alone
	$(PYTEST) tests/unit

check: format lint types imports coverage ## The whole gate: format, lint, types, import rules, tests with coverage

format: $(VENV)/.dev ## Check the formatting
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev ## Lint and spell-check
	$(BIN)/ruff check .
	$(BIN)/codespell src tests tools benchmarks examples docs *.md

types: $(VENV)/.dev ## Check the types
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/api.py tests/typing/mesh.py

imports: $(VENV)/.dev ## Check who may import whom
	$(BIN)/lint-imports

interop: $(VENV)/.dev ## Drive the server with others' clients, unmodified: SDKs, cookbook, openai, PEFT (environments in .interop)
	$(BIN)/python tests/support/interop_environments.py
	$(PYTEST) -q --no-header -m interop tests/interop --durations=0

fuzz: setup ## Fuzz the server: schemathesis, protobuf, JSON, headers, bodies; short and long forms (minutes)
	$(PYTEST) -q --no-header -m "soak or not soak" tests/integration/server/fuzz --durations=0

soak: setup ## The long form of the proofs, then unit and integration tests 20 times (over an hour)
	$(PYTEST) -q --no-header -m soak tests
	@for i in $$(seq 1 20); do \
	  echo "==> round $$i of 20"; \
	  $(PYTEST) -q --no-header tests/unit tests/integration || exit 1; \
	done

bench: $(VENV)/.dev ## Measure training and sampling through the API on the shipped model
	$(BIN)/python benchmarks/train_sample.py --start-server

bench-engine: $(VENV)/.dev ## Measure the engine beside its floors, and beside transformers with PEFT
	$(BIN)/python benchmarks/engine.py

bench-learning: $(VENV)/.dev ## Train by examples and by reward, sweep rates and ranks; figures and plots into docs/learning
	$(BIN)/python benchmarks/learning.py

bench-server: $(VENV)/.dev ## Measure the server under many clients, and what it spends besides the engine
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/overhead.py

bench-client: $(VENV)/.dev ## Measure the client beside the official one, on a server that does nothing
	$(BIN)/python benchmarks/client.py

bench-mesh: $(VENV)/.dev ## Measure everything that the mesh must reach, over both transports, as one table
	$(BIN)/python benchmarks/mesh.py

docs: $(VENV)/.dev ## Build guides and API reference into build/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "==> open build/docs/index.html; with search: $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/docs 8080"

wheel: $(VENV)/.dev ## Build the wheel and the source archive into dist/
	@$(PIP) install build
	$(BIN)/python -m build

clean: ## Remove what these commands made
	rm -rf $(VENV) .interop .demo build dist .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage*
