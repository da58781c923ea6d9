# `make demo` and `make test` work on a fresh machine: they make the environment in .venv first.
# CI runs the same targets (.ci/run).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

OLDEST := .venv-oldest
LEROBOT := .venv-lerobot
RELEASE := .venv-release
PYTHONS := 3.11 3.12 3.13 3.14
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
# Without byte code for modules that are never imported, an environment takes half the time.
PIP := --quiet --no-compile
PARALLEL := --numprocesses logical --maxprocesses 8 --dist worksteal

MINUTES ?= 60

.PHONY: demo test test-all faults fuzz test-oldest test-lerobot test-pythons lint format docs bench parity coverage release-check clean

demo: $(VENV)/.installed
	$(BIN)/vitbackbone demo --out demo

test: $(VENV)/.dev
	$(PYTEST) -m "not slow" $(PARALLEL)

test-all: $(VENV)/.dev
	$(PYTEST) $(PARALLEL)

# Inject every fault that extraction promises to survive, with a hundred kills.
faults: $(VENV)/.dev
	$(PYTEST) -m promise --promises --kills 100 $(PARALLEL)

# Send mutated files through every reader: 10,000 inputs, or as many as fit into MINUTES.
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES)

test-oldest: $(OLDEST)/.made
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -m "not slow" $(PARALLEL)

test-lerobot: $(LEROBOT)/.made
	$(LEROBOT)/bin/python -m pytest -q tests/heads/test_lerobot.py tests/heads/test_cameras.py tests/heads/test_vla.py

# Style, types, and the direction of imports.
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Build the documentation site, offline. A warning is an error.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs docs/_build
	@echo "open docs/_build/index.html"

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.report

parity: $(VENV)/.dev
	$(BIN)/python -m benchmarks.parity

# Try every architecture of timm and every model type of transformers, and write docs/coverage.md.
coverage: $(VENV)/.dev
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m benchmarks.coverage

# Run the quick tests on each Python that is on the path or in pyenv. A version that is not found is named and left out.
test-pythons:
	@for version in $(PYTHONS); do \
		found=$$(python$$version -c 'import sys; print(sys.executable)' 2>/dev/null || \
			ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python 2>/dev/null | tail -n 1); \
		if [ -z "$$found" ]; then echo "Python $$version: not found, left out"; continue; fi; \
		echo "Python $$version: $$found"; \
		$$found -m venv .venv-$$version && \
		.venv-$$version/bin/python -m pip install $(PIP) --editable ".[dev]" && \
		OMP_NUM_THREADS=1 .venv-$$version/bin/python -m pytest -q -m "not slow" $(PARALLEL) || exit 1; \
	done

# Build both distributions, check them, install the wheel in a clean environment, and run the demo there.
release-check: $(VENV)/.dev
	rm -rf dist $(RELEASE)
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install $(PIP) "$$(ls dist/*.whl)[view]"
	cd $(RELEASE) && bin/vitbackbone --version && bin/vitbackbone demo --out demo

clean:
	rm -rf $(VENV) $(OLDEST) $(LEROBOT) $(RELEASE) $(PYTHONS:%=.venv-%) docs/_build docs/_generated demo build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install $(PIP) --editable ".[view]"
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install $(PIP) --editable ".[dev]"
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install $(PIP) --editable ".[bench]"
	touch $@

# An environment with the lower bound of each dependency. It lacks transformers, which needs a newer huggingface_hub:
# tests/conftest.py leaves out the tests that import it.
$(OLDEST)/.made: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	grep -oE '"[A-Za-z_-]+(\[[a-z]+\])?>=[0-9.]+"' pyproject.toml | tr -d '"' | sed -E 's/\[.*\]//; s/>=/==/' \
		> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install $(PIP) --constraint $(OLDEST)/constraints.txt \
		--editable ".[view]" beartype hypothesis pandas pytest pytest-xdist
	touch $@

$(LEROBOT)/.made: pyproject.toml
	$(PYTHON) -m venv $(LEROBOT)
	$(LEROBOT)/bin/python -m pip install $(PIP) --editable . "lerobot==0.4.4" beartype hypothesis pytest
	touch $@
