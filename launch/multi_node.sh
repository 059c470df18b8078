#!/usr/bin/env bash
# The train stage on several hosts without SLURM, with the deepspeed launcher over ssh:
#   launch/multi_node.sh HOSTFILE CONFIG [--set a.b=value ...]
#
# HOSTFILE has DeepSpeed's format (hostfile.example). Requirements: pdsh on this host, ssh without a
# password to every host, and the project, the data and the run's folder at the same paths
# everywhere. This host may be one of them. All ranks get the settings of env.sh and those in
# ~/.deepspeed_env. MASTER_ADDR, if set, is the address at which the other hosts reach the first;
# otherwise DeepSpeed asks that host.
set -euo pipefail
hostfile=${1:?give a hostfile, see launch/hostfile.example}
shift
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec ift-scale train "$@" --set "train.hostfile=$hostfile"
