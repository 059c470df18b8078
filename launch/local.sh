#!/usr/bin/env bash
# Runs all stages of a configuration on this machine: launch/local.sh CONFIG [--set a.b=value ...]
# After an interruption, the same command resumes.
# Exit codes: 0 done, 2 error in the input, 3 error in the environment, 75 stopped and saved.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec ift-scale run "$@"
