# Everything runs from the checkout's own .venv, which is built on first use.
# Needs: Python 3.11 or newer, make.

PYTHON ?= python3
# The release this was tried with; where it has no wheel, the bound in pyproject.toml counts instead.
TORCH ?= torch==2.13.0
# auto: the torch that is there, else the CPU build | cpu | cuda | default: whatever pip itself would take
TORCH_BUILD ?= auto
# further arguments for pip when it installs torch, for example an index with another CUDA release
TORCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: errors only.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

# A spinning OpenMP worker makes two threads slower than one on a shared machine.
OMP_WAIT_POLICY ?= passive
export OMP_WAIT_POLICY

TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
PARALLEL := -n 2 --dist loadfile

FAULTS := tests/faults tests/test_class_server.py tests/test_class_board.py tests/test_shaping.py tests/test_bad_input.py tests/test_wire.py tests/test_wire_fuzz.py \
	tests/test_connections.py tests/test_keys.py tests/test_service.py tests/test_service_loop.py tests/test_sessions.py \
	tests/test_remote.py tests/test_reached.py tests/test_engine_prge.py
FUZZ := MOBILLM_FUZZ=200000 MOBILLM_FUZZ_RESULTS=10000

# A build that is asked for by name is looked at again, even where the environment stands already.
ifeq ($(origin TORCH_BUILD),command line)
ASKED := ask
endif

.DEFAULT_GOAL := help
.PHONY: help setup compare test faults class-soak browser mutants lab student nbgrader executorch cluster docs lint benchmarks-check clean ask

help:
	@echo "make compare           train and compare the methods on the packaged model's two tasks: runs/pocket/, runs/pocket-turns/"
	@echo "make test              style, tests and notebooks, each notebook compared with its stored outputs"
	@echo "make faults            every fault and every bad input, at length: tens of minutes"
	@echo "make class-soak        a class of thirty whose devices and server are killed: STUDENTS=8 MINUTES=3 for a smaller one"
	@echo "make browser           the notebooks, the app and the report in a real Chromium"
	@echo "make mutants           put small faults into the mathematics one by one; tests must fail: an hour or two"
	@echo "make lab               open JupyterLab at notebooks/00_start_here.ipynb"
	@echo "make student           copies of the notebooks and labs without solutions, for a class: student/"
	@echo "make nbgrader          install nbgrader and grade a solved and an empty sheet with it: some minutes"
	@echo "make executorch        install ExecuTorch and train P-RGE through it: some minutes"
	@echo "make cluster           install Ray and compare on a cluster of two nodes on this machine: some minutes"
	@echo "make docs              build the pages of docs/ into site/, without a warning"
	@echo "make setup             build .venv only (the others do it when needed)"
	@echo "make lint              style, types, floors and size of the house"
	@echo "make benchmarks-check  hold the committed records against their bars"
	@echo "make clean             remove .venv, build outputs and caches; runs/ stays"
	@echo
	@echo "TORCH_BUILD=cpu|cuda|default chooses torch's build (now: $(TORCH_BUILD)); PYTHON=python3.12 the interpreter"

setup: $(VENV)/.installed
	@:

$(VENV)/.installed: pyproject.toml scripts/install_torch.py $(ASKED)
	@$(PYTHON) -c 'import sys; sys.exit("mobillm-kit needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || { echo "Making $(VENV) (the first time takes a few minutes)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python scripts/install_torch.py --torch '$(TORCH)' --build '$(TORCH_BUILD)' -- $(TORCH_ARGS)
	@echo "Installing mobillm-kit and what it needs"
	@$(PIP) install -e '.[lab,test]'
	@touch $@

# One process at a time where seconds are compared, two where another task is the point: twelve minutes in all.
# What is done already is only shown: after Ctrl-C the same command goes on, in whichever of the two it was.
compare: setup
	@echo "The task reviews: what is asked stands at the last token"
	@$(BIN)/mobillm compare
	@echo; echo "The task turns: it does not, and the methods differ"
	@$(BIN)/mobillm compare --task turns --jobs 2

test: lint
	$(TEST_ENV) $(BIN)/python -m pytest -q $(PARALLEL) tests
	$(TEST_ENV) $(BIN)/python -m pytest -q --nbval --nbval-current-env --nbval-cell-timeout 300 $(PARALLEL) notebooks labs

# The short ones of them run in `make test` too.  Real processes are killed; nothing outside tests/ is touched.
faults: setup
	$(TEST_ENV) $(FUZZ) $(BIN)/python -m pytest -q $(PARALLEL) -m "faults or not faults" $(FAULTS)

# A process of 400 MiB for each student.  Whatever was killed, each side network has to be its solo run's, to the byte.
STUDENTS ?= 30
MINUTES ?= 10
class-soak: setup
	$(TEST_ENV) $(BIN)/python scripts/class_soak.py --students $(STUDENTS) --minutes $(MINUTES)

# Real pages in a real browser; it needs Chromium (Debian and Ubuntu: apt install chromium).  Pictures: runs/browser/.
# Twenty minutes; ONLY="app or report" takes the tests whose name holds one of them, as pytest's -k does.
browser: setup
	@$(PIP) install -e '.[browser]'
	$(TEST_ENV) $(BIN)/python -m pytest -q -rs -m browser -k '$(ONLY)' tests/browser

# WORDS="quant side" takes the modules whose path holds one of them.
mutants: setup
	@$(PIP) install -e '.[mutants]'
	$(BIN)/python scripts/mutants.py $(WORDS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@found=$$($(BIN)/lint-imports --no-cache) || { echo "$$found"; exit 1; }
	@$(BIN)/python scripts/house.py

lab: setup
	@$(BIN)/python -m jupyterlab notebooks/00_start_here.ipynb

student: setup
	@$(BIN)/python scripts/student.py

# The extra stays out of `make setup`: it brings a second notebook server and a database.
nbgrader: setup
	@$(PIP) install -e '.[nbgrader]'
	$(TEST_ENV) $(BIN)/python -m pytest -q -m nbgrader tests/test_nbgrader.py

# The extra stays out of `make setup`: it brings torchao, which costs every process that imports transformers memory and time.
executorch: setup
	@$(PIP) install -e '.[executorch]'
	$(TEST_ENV) $(BIN)/python -m pytest -q -rs tests/test_engine_executorch.py

# The extra stays out of `make setup`: Ray brings a server for each node.
cluster: setup
	@$(PIP) install -e '.[cluster]'
	$(TEST_ENV) $(BIN)/python -m pytest -q -rs tests/test_cluster.py

docs: setup
	@$(PIP) install -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict
	@echo "Open site/index.html"

benchmarks-check: setup
	rc=0; for name in compare codec pipeline memory papers leak notebooks engines fairness; do $(BIN)/python benchmarks/$$name.py --check || rc=1; done; exit $$rc

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
