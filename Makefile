# make quickstart | test | reliability | first-ten-minutes | lint | gpu-check
# PYTHON=python3.12 chooses the interpreter of a new .venv
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROCESSES ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test reliability first-ten-minutes lint gpu-check
.DELETE_ON_ERROR:

quickstart: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node $(PROCESSES) entry.py quickstart --output output/quickstart

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The same faults as in `make test`, more often, and a table of what was survived beside the goals.
reliability: $(INSTALLED)
	LOCAP_RELIABILITY=full LOCAP_FIGURES=output/reliability.json \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/reliability

# What a new user does, in an environment of its own with what `pip install ".[demo]"` brings: needs a package index.
# With playwright in .venv and Chromium on the machine, the demo is clicked in a browser.
first-ten-minutes: $(INSTALLED)
	$(BIN)/python tests/first_ten_minutes.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# On a GPU machine, with the torch and nvcc it has and without network: builds, tests and measures the CUDA kernels.
gpu-check:
	$(PYTHON) tests/gpu/check.py --output output/gpu-check.json

# Only a change of what is installed sets it up again. The editable install needs no network: it brings the command
# `locap` and lets lint-imports find the package.
$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
