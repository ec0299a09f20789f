# Each target does all of its own set-up, once, in a virtual environment of its own.
#
#   make demo PROMPT='Why is the sky blue?'     make test PYTEST='-k gguf'
#   make PYTHON=python3.12 VENV=/tmp/env test   (another interpreter, another place)

PYTHON ?= python3
VENV ?= .venv
DIST ?= dist
PROMPT ?= What is the capital of France?
PYTEST ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# An editable install knows the packages of its day: one more in a source root (or another dependency) installs anew.
SETUP := pyproject.toml backends plugins conf tools demos

.PHONY: help demo test check table format dist clean

help:
	@echo "make demo    ask SmolLM2-135M a question, on the CPU (PROMPT='...' for another one)"
	@echo "make test    run the tests"
	@echo "make check   formatting, lint and types"
	@echo "make table   compile all GPU kernels anew and compare with docs/gpu-kernels-compiled.md (minutes; needs no GPU)"
	@echo "make format  repair formatting and what lint can repair"
	@echo "make dist    build the sdist and the wheel"
	@echo "make clean   remove what was built; the virtual environment $(VENV) and the model cache stay"

demo: $(VENV)/.installed
	@$(BIN)/llama_infer model=smollm2 backend=numba --prompt '$(subst ','\'',$(PROMPT))'

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 $(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

table: $(VENV)/.installed-dev
	$(BIN)/llmcore gpu-compile --check docs/gpu-kernels-compiled.md >$(VENV)/table.log

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dist: $(VENV)/.installed-dev
	@$(BIN)/python -m build --outdir '$(DIST)' >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@ls '$(DIST)'

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmcore needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": name another one, such as make PYTHON=python3.12")'
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv '$(VENV)'

$(VENV)/.installed: $(BIN)/python $(SETUP)
	@echo "installing llmcore into $(VENV) (the first time this downloads its dependencies)"
	@$(PIP) install --quiet --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(BIN)/python $(SETUP)
	@echo "installing llmcore and its development tools into $(VENV) (the first time this downloads them)"
	@$(PIP) install --quiet --quiet --editable '.[dev]'
	@touch $(VENV)/.installed $@
