#!/usr/bin/env bash
# All stages of a configuration on this machine: launch/local.sh CONFIG [--set a.b=value ...]
# Killed or interrupted, the same command goes on where it was. Exit codes: 0 done, 2 input, 3 environment, 75 stopped.
set -euo pipefail

# Network and library settings stand here and nowhere else.
export TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}                          # compute nodes have no network; models and data are local paths
export DEEPSPEED_TIMEOUT=${DEEPSPEED_TIMEOUT:-60}                   # minutes until a collective that hangs is given up
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}

exec ift-scale run "$@"
