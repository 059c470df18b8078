# make demo: install, run the paper's experiment on the embedded world, print where the report is.
# make test: install, then lint, type check and all tests.
# PYTHON must be 3.11 for the CPU lock.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCK := configs/locks/cpu.txt
READY := $(VENV)/.ready-$(shell cat $(LOCK) setup.py | sha256sum | cut -c1-12)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# Two files of tests at a time: starting an engine or a group of ranks is mostly imports, on one core. More would not fit into two.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup demo test test-fast lint lock-cuda clean

help:
	@grep -E '^# make' Makefile | cut -c3-

setup: $(READY)

# The CPU build of torch is found where pip is set up to look, else on PyTorch's own index.
$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "setup: $(LOCK) is for Python 3.11; say make PYTHON=/path/to/python3.11"; exit 3; }
	@echo "setup: making $(VENV) from $(LOCK) (two to five minutes, once)"
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -q --no-deps $$(grep -E '^(setuptools|wheel)==' $(LOCK))
	@torch=$$(grep '^torch==' $(LOCK)); echo "setup: $$torch"; \
	  $(PIP) install -q --no-deps "$$torch" 2>/dev/null || $(PIP) install -q --no-deps --index-url $(TORCH_CPU_INDEX) "$$torch"
	@echo "setup: the other packages"
	$(PIP) install -q --no-deps --no-build-isolation -r $(LOCK)
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $(READY)
	@echo "setup: done"

demo: setup
	$(BIN)/ift-scale run configs/demo.yaml
	@echo "open runs/demo/report/index.html in a browser"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-fast: setup
	$(PYTEST) -m "not engine"

test: lint
	$(PYTEST)

# The vllm that matches torch 2.11; drop the constraint for the newest.
lock-cuda:
	@head -n 2 configs/locks/cuda.txt > configs/locks/cuda.new
	echo 'vllm==0.26.0' | uv pip compile setup.py - --extra cuda --python-version 3.12 \
	  --python-platform x86_64-unknown-linux-gnu --no-header --no-annotate -q >> configs/locks/cuda.new
	mv configs/locks/cuda.new configs/locks/cuda.txt

clean:
	rm -rf $(VENV) runs build *.egg-info
