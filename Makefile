# Everything is set up here: a fresh machine needs Python 3.11 or newer, git and make.
#
#   make test     set up .venv and run the whole library suite
#   make plan     set up .venv and plan a DeepSeek-V3 deployment
#   make test-torch  add the CPU build of torch to .venv and run the tests that need it
#   make calibrate   measure this machine's CPU in under 5 minutes, with torch as above
#   make gpu         measure a machine with a gpu and run plans on it, in 8 minutes: a python3 with torch and NumPy is all
#   make validate    run plans as real layers on this machine and write docs/accuracy/measured.md, in under 15 minutes
#   make lint     ruff, mypy and the import floors
#   make bench    the speed benchmarks, in CPU time
#   make clean    remove what these made
#
# PYTHON names the interpreter to use; without it the first one on PATH that is new enough is taken.

NEW_ENOUGH := import sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python,\
              $(shell $(name) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(name))))
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt --editable

.PHONY: test test-torch calibrate gpu validate plan lint bench clean

# First the tests of single floors with every annotation of moesim checked while they run, array shapes included (the
# tower lets an int be a float, as mypy does); then all tests without, since checking takes most of the time of a search.
# --benchmark-disable still runs every benchmark once, so that the counts they assert are checked.
SHAPES := "--jaxtyping-packages=moesim,beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
SHAPED := $(addprefix tests/test_, alltoall.py footprint.py gating.py lowering.py overlap.py placement.py pricing.py \
	routing.py schedule.py timeline.py)
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) $(SHAPES) $(SHAPED)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadgroup --benchmark-disable --ignore=tests/with_torch

# Real torch on tiny shapes, one test at a time: each starts processes of its own.
test-torch: $(VENV)/.torch
	$(BIN)/python -m pytest tests/with_torch

OUT ?= measured
calibrate: $(VENV)/.torch
	$(BIN)/moesim calibrate --device cpu --out $(OUT)/cpu.yaml --budget 240s $(if $(ONLY),--only $(ONLY))

# No .venv: such a machine may have no network. Stopped by its time limit or killed, it goes on where it was when run again.
# PART=calibrate or PART=execute does one of the two, ONLY=gemm,copy some of what calibrating measures. To keep what comes
# out: OUT=validate/cases/measured, beside the predictions that are committed there for this kind of gpu.
GPU_PYTHON ?= python3
gpu:
	$(GPU_PYTHON) -m validate.run.bare --out $(OUT) $(if $(PART),--part $(PART)) $(if $(ONLY),--only $(ONLY))

# A machine's results lie beside those that are committed, and all of them are on the page. MACHINE names the folder: stopped,
# it goes on where it was under the same name; a plan that fails is on the page, too, and is the exit code in the end.
MACHINE ?= machine-$(shell date -u +%Y%m%d)
MEASURED := validate/cases/measured
validate: $(VENV)/.torch
	$(BIN)/moesim validate run $(MEASURED)/suite.yaml --out $(MEASURED)/$(MACHINE); ran=$$?; \
	    $(BIN)/moesim validate report && exit $$ran

plan: $(VENV)/.core
	$(BIN)/moesim optimize examples/deepseek_v3_serving.yaml

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only --benchmark-timer=time.process_time

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks

# The stamps: what is installed is as new as the files that say what to install.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	touch $(VENV)/.core $@

# A machine whose package index has another build than the CPU's names PyTorch's own, TORCH_INDEX=https://download.pytorch.org/whl/cpu
$(VENV)/.torch: $(VENV)/.dev
	$(PIP) install --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) 'torch==2.13.0'
	touch $@

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'moesim needs Python 3.11 or newer: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
