#!/usr/bin/env bash
# Creates a virtual environment from configs/locks/cpu.txt and installs this checkout into it.
# `make setup` runs it.
#   launch/setup.sh [FOLDER]        default: .venv
# An environment that is complete and matches the lock, setup.py, the checkout's path and the
# interpreter is kept; any other is created again.
# PYTHON  the interpreter, a name or a path; default: the first of python3, python3.11, python3.12
#         and python3.13 that fits, else one that uv manages
# Packages are installed with uv if it is on PATH, else with pip.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(pwd -P)
venv=${1:-.venv}
lock=configs/locks/cpu.txt
torch_index=https://download.pytorch.org/whl/cpu
uv=$(command -v uv || true)

fail() {
  echo "setup: $*" >&2
  exit 3
}

# problem PYTHON: prints why the interpreter does not fit; nothing if it does. The headers are needed
# because DeepSpeed and torch.compile compile C++ extensions at run time.
problem() {
  WITH_UV=$uv "$1" - 2>/dev/null <<'PY' || echo "does not start"
import importlib.util, os, sys, sysconfig
version = "%d.%d" % sys.version_info[:2]
problems = []
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    problems.append("is Python %s (3.11, 3.12 and 3.13 are supported)" % version)
else:
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        problems.append("needs its headers (apt-get install python%s-dev)" % version)
    if not os.environ["WITH_UV"] and importlib.util.find_spec("ensurepip") is None:
        problems.append("needs venv (apt-get install python%s-venv)" % version)
print(" and ".join(problems))
PY
}

# Prints the interpreter to use; messages go to stderr.
choose() {
  local candidate problem nearly=
  if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not an executable"
    problem=$(problem "$PYTHON")
    [ -z "$problem" ] || fail "PYTHON=$PYTHON $problem"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.11 python3.12 python3.13; do
    command -v "$candidate" >/dev/null || continue
    problem=$(problem "$candidate")
    if [ -z "$problem" ]; then
      echo "$candidate"
      return
    fi
    case $problem in *apt-get*) nearly=${nearly:-"$candidate $problem"} ;; esac
  done
  if [ -n "$uv" ]; then
    "$uv" python find --managed-python '>=3.11,<3.14' 2>/dev/null && return
    echo "setup: no Python 3.11, 3.12 or 3.13 with headers on PATH; installing 3.12 with uv" >&2
    "$uv" python install -q 3.12 >&2 && "$uv" python find --managed-python 3.12 && return
    fail "uv could not install Python 3.12; name an interpreter: make PYTHON=/path/to/python3.12"
  fi
  [ -z "$nearly" ] || fail "$nearly; or install uv (https://docs.astral.sh/uv)"
  fail "no Python 3.11, 3.12 or 3.13 on PATH: apt-get install python3 python3-venv python3-dev," \
    "or install uv (https://docs.astral.sh/uv), or name one: make PYTHON=/path/to/python3.12"
}

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Written last, so an interrupted set-up has no stamp. The checkout's path is part of it because
# scripts and the editable install contain that path.
stamp() { echo "$root $(version "$1") $(cat "$lock" setup.py | sha256sum | cut -c1-12)"; }

ready() {
  local have=$venv/bin/python
  [ -f "$venv/.ready" ] && [ "$(cat "$venv/.ready")" = "$(stamp "$have")" ] || return 1
  [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version "$have")" ]
}

if [ -n "$uv" ]; then
  with=uv
  pip_links=${PIP_FIND_LINKS:-}
  export UV_FIND_LINKS=${UV_FIND_LINKS:-${pip_links// /,}} # uv reads none of the settings of pip
  create() { "$uv" venv -q --seed --clear --python "$1" "$venv"; }
  # Without bytecode, every command would compile its imports again where nothing writes it later
  # (PYTHONDONTWRITEBYTECODE, which images of Python often set, or a read-only environment).
  install() { "$uv" pip install -q --compile-bytecode --python "$venv/bin/python" "$@"; }
else
  with=pip
  create() { "$1" -m venv --clear "$venv"; }
  install() { "$venv/bin/python" -m pip --disable-pip-version-check install -q "$@"; }
fi

# Takes the CPU build from where pip or uv is configured to look, else from PyTorch's index. PyPI
# has only the build for CUDA, which works without a GPU but is much larger.
install_torch() {
  local torch
  torch=$(grep -oE '^torch==[0-9.]+' "$lock")
  echo "setup: $torch"
  install --no-deps "$torch+cpu" 2>/dev/null && return
  PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=20 UV_HTTP_RETRIES=1 UV_HTTP_TIMEOUT=20 \
    install --no-deps --index-url "$torch_index" "$torch+cpu" 2>/dev/null && return
  echo "setup: no CPU build of $torch for Python $(version "$venv/bin/python") at $torch_index;" \
    "installing PyPI's build for CUDA (3 GB)"
  install "$torch"
}

ready && exit 0
command -v g++ >/dev/null || fail "no C++ compiler (apt-get install g++)"
python=$(choose)
echo "setup: creating $venv from $lock with Python $(version "$python") and $with (minutes, once)"
create "$python"
# shellcheck disable=SC2046
install --no-deps $(grep -E '^(setuptools|wheel)==' "$lock")
install_torch
echo "setup: the other packages"
install --no-deps --no-build-isolation -r "$lock"
install --no-deps --no-build-isolation -e .
stamp "$venv/bin/python" >"$venv/.ready"
echo "setup: done"
