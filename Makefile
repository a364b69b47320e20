# Two commands matter: `make demo` and `make test`. Both set up .venv on the first run.
#
# Where there is no GPU, torch's CPU build saves gigabytes:
#     make test TORCH_INDEX=URL-of-the-CPU-index

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help install demo test slurm lint types unit clean

help:
	@echo "make demo     answer examples/questions.jsonl with the bundled model, and show the answers"
	@echo "make test     lint, types and all tests"
	@echo "make slurm    the tests on a real Slurm of this machine only (root, slurm-wlm, munge, curl)"
	@echo "make lint     ruff          make types   mypy          make unit   the unit tests only"
	@echo "make install  set up .venv  make clean   remove what the others made"

install: $(STAMP)

# torch first, alone: so that a CPU build that an index or a folder of wheels offers is taken.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is too old, hpcserve needs Python 3.10 or newer (set PYTHON=)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "error: cannot make $(VENV); on Debian: apt install python3-venv" >&2; exit 2; }
	$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@

demo: $(STAMP)
	@mkdir -p demo-output
	@$(BIN)/hpcserve batch examples/questions.jsonl --launcher local -o demo-output/answers.jsonl --overwrite; \
	code=$$?; \
	test ! -f demo-output/answers.jsonl \
		|| $(BIN)/hpcserve batch show demo-output/answers.jsonl --input examples/questions.jsonl; \
	exit $$code

# One thread of torch a process: the tests run side by side. Those on a real Slurm come by
# themselves: their three nodes share the machine. Where it cannot run they say so, and are skipped.
test: export OMP_NUM_THREADS ?= 1
test: lint types
	$(BIN)/python -m pytest -n $(WORKERS) --ignore tests/slurm
	$(BIN)/python -m pytest tests/slurm

slurm: $(STAMP)
	$(BIN)/python -m pytest tests/slurm

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy hpcserve

unit: export OMP_NUM_THREADS ?= 1
unit: $(STAMP)
	$(BIN)/python -m pytest tests/unit -n $(WORKERS)

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
