#!/usr/bin/env bash
# All stages of a configuration on this machine: launch/local.sh CONFIG [--set a.b=value ...]
# Killed or interrupted, the same command goes on where it was. Exit codes: 0 done, 2 input, 3 environment, 75 stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec ift-scale run "$@"
