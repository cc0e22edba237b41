# Needs python3 (3.11 or newer) and nothing else; `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := -c constraints.txt
ARGS ?=

# Installing happens once, and again when what is installed changes.
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
PROJECT := pyproject.toml constraints.txt

export TOKENIZERS_PARALLELISM := false
export TRANSFORMERS_VERBOSITY := error

.DEFAULT_GOAL := help
.PHONY: help install demo test test-learning endurance mutants wheel lint format clean

help:
	@echo 'make demo           train the tiny offline model on the shipped photographs (installs first)'
	@echo 'make install        only install, into $(VENV)'
	@echo 'make test           all quick tests that need no GPU; ARGS="-k resume" chooses some'
	@echo 'make test-learning  trainings of a small model: do they learn what they should? about 3 minutes'
	@echo 'make endurance      one long run with accidents: is every sample trained as often as it should? 6 minutes'
	@echo 'make mutants        plant known faults, one at a time: do the tests catch them? about 20 minutes; ARGS="--only NAME"'
	@echo 'make wheel          build dist/*.whl and try it in an environment of its own'
	@echo 'make lint           ruff, mypy and the import rules'
	@echo 'make format         let ruff rewrite the sources'
	@echo 'make clean          remove $(VENV) and what tools left; output/ and cache/ stay'

demo: $(BASE)
	@$(BIN)/difftrain --model flux --flavour kontext --demo $(ARGS)

install: $(BASE)

# Two processes with one thread each: the models are tiny, threads would only wait for each other. A file's tests stay
# together, since they share runs; the long files of integration tests come first, in the order of their names.
test: $(DEV)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not learning' $(ARGS)

# One process with two threads: the trainings are shared by the tests.
test-learning: $(DEV)
	@OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m learning $(ARGS)

# A SIGHUP, a full disk at a preview, a NaN and two resumes with other batch sizes within 5,000 steps.
endurance: $(DEV)
	@$(BIN)/python tools/endurance.py

# In copies of the tree: the working tree is never touched.
mutants: $(DEV)
	@$(BIN)/python tools/mutants.py $(ARGS)

wheel: $(DEV)
	@$(BIN)/python tools/try_wheel.py --keep dist $(ARGS)

# All four run even if the first fails, so that one run tells all.
lint: $(DEV)
	@failed=0; \
	$(BIN)/python -m ruff check . || failed=1; \
	$(BIN)/python -m ruff format --check . || failed=1; \
	$(BIN)/python -m mypy || failed=1; \
	$(BIN)/lint-imports --no-logo || failed=1; \
	exit $$failed

format: $(DEV)
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

clean:
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find core plugins tests tools docs benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"difftrain needs Python 3.11 or newer, and $(PYTHON) is {sys.version.split()[0]}; try make PYTHON=python3.12 ...")'
	@echo 'making $(VENV)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'hint: on Debian and Ubuntu the module venv is in the package python3-venv' >&2; exit 1; }

# torch comes first and by itself: where the machine's pip is set up to prefer a build (CPU, CUDA), that one is taken
# before anything else asks for it. It is large, so a terminal sees pip's own progress.
$(BASE): $(PROJECT) | $(BIN)/python
	@echo 'installing torch (once; 0.2 to 3 GB, whether it is the CPU or a CUDA build)'
	@if [ -t 2 ]; then quiet=; else quiet=-q; fi; $(PIP) install $$quiet $(PINS) torch
	@echo 'installing difftrain and what it needs (once; about a minute)'
	@$(PIP) install -q $(PINS) -e .
	@touch $@

$(DEV): $(BASE)
	@echo 'installing the tools for tests and lint (once)'
	@$(PIP) install -q $(PINS) -e '.[dev]'
	@touch $@
