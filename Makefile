# make demo   sets up .venv and runs a small scVI campaign on simulated cells (DATA=/path/to.h5ad: on those)
# make test   sets up .venv and runs all tests, 4 files at a time (JOBS=1: one after the other)
# make setup  sets up .venv alone: all extras and the tools for development
# make check  what CI runs: make test, then style and types
# make bench  the benchmarks, some hours, in an environment with the other systems (DATA=/path/to.h5ad: those on real cells too;
#             BENCHMARKS='scale campaign': only those)
# make chaos  campaigns under faults of every kind (SCENARIOS='storm soak': only those); about half an hour

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?=
DEMO_HOME ?= $(CURDIR)/.demo
PYTEST_ARGS ?=
JOBS ?= 4
SCENARIOS ?=
PEERS := .venv-peers
MONGOTRIALS := .venv-mongotrials
BENCHMARKS ?= suggest_latency orchestration growth scale start_up infeasible simulated_campaign stopped_trials search_quality big_data \
  $(if $(DATA),campaign hyperband_scvi)

.PHONY: setup demo test static check bench chaos clean

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	touch $(READY)

demo: $(READY)
	@AUTOTUNE_DEMO_HOME='$(DEMO_HOME)' BIN='$(CURDIR)/$(BIN)' DATA='$(DATA)' bash examples/demo.sh

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

static: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: test static

$(PEERS)/.ready: pyproject.toml benchmarks/requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --editable '.[all]' -r benchmarks/requirements.txt
	touch $@

$(MONGOTRIALS)/.ready: benchmarks/requirements-mongotrials.txt
	test -x $(MONGOTRIALS)/bin/python || $(PYTHON) -m venv $(MONGOTRIALS)
	$(MONGOTRIALS)/bin/python -m pip install --quiet -r benchmarks/requirements-mongotrials.txt
	touch $@

bench: $(BENCHMARKS:%=bench-%)

bench-orchestration: $(PEERS)/.ready $(MONGOTRIALS)/.ready
	PYTHONPATH=$(CURDIR) $(PEERS)/bin/python benchmarks/orchestration.py --mongotrials $(MONGOTRIALS)/bin/python

bench-campaign bench-hyperband_scvi: bench-%: $(PEERS)/.ready
	@test -n '$(DATA)' || { echo 'set DATA=/path/to/cells.h5ad'; exit 2; }
	PYTHONPATH=$(CURDIR) $(PEERS)/bin/python benchmarks/$*.py $(DATA)

bench-%: $(PEERS)/.ready
	PYTHONPATH=$(CURDIR) $(PEERS)/bin/python benchmarks/$*.py

chaos: $(READY)
	$(BIN)/python -m benchmarks.chaos $(SCENARIOS)

clean:
	rm -rf $(VENV) $(PEERS) $(MONGOTRIALS) .demo build *.egg-info
