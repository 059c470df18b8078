#!/usr/bin/env bash
# The train stage over several hosts without SLURM, by the deepspeed launcher over ssh:
#   launch/multi_node.sh HOSTFILE CONFIG [--set a.b=value ...]
#
# HOSTFILE is DeepSpeed's (hostfile.example). Needed: pdsh on this host, ssh without a password to each, and the project, the data and
# the run's folder under the same paths everywhere. This host may be one of them. All ranks get the settings of env.sh, and what
# ~/.deepspeed_env has. MASTER_ADDR, if set, is the address of the first host that the others reach it at.
set -euo pipefail
hostfile=${1:?a hostfile, see launch/hostfile.example}
shift
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec ift-scale train "$@" --set "train.hostfile=$hostfile"
