#!/bin/sh
# Makes benchmarks/peers/.venv-trl: TRL's SFTTrainer and HF Trainer with DeepSpeed, on the CPU build of torch.
#
#   benchmarks/peers/install_trl.sh
#
# PYTHON must be 3.11. Nothing is resolved: trl.txt is installed with --no-deps, so that no CUDA build of torch is pulled.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
venv=$here/.venv-trl
lock=$here/trl.txt
torch_index=https://download.pytorch.org/whl/cpu

"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  { echo "install_trl: the lock is for Python 3.11; say PYTHON=/path/to/python3.11 $0" >&2; exit 3; }

echo "install_trl: making $venv (about two minutes, once)"
"${PYTHON:-python3}" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-deps "$@"; }

pip $(grep -E '^(setuptools|wheel)==' "$lock")
torch=$(grep '^torch==' "$lock")
echo "install_trl: $torch"
pip "$torch" 2>/dev/null || pip --index-url "$torch_index" "$torch"

echo "install_trl: the other packages (deepspeed is built)"
# deepspeed's setup.py imports torch, which is why it stands behind it and is built without isolation.
pip --no-build-isolation -r "$lock"

"$venv/bin/python" -c '
from importlib.metadata import version
from trl import SFTTrainer  # what the peers need, imported once
for name in ("torch", "transformers", "accelerate", "deepspeed", "trl"):
    print("install_trl:", name, version(name))'
echo "install_trl: done"
