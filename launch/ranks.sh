#!/usr/bin/env bash
# The training ranks alone, started by hand with the deepspeed launcher, for a job file that `ift-scale train` has written:
#   launch/ranks.sh RUN_FOLDER NUM_RANKS
# Finished arms are trained again: this is for looking into a failure, `ift-scale train CONFIG` is for work.
set -euo pipefail
run=${1:?folder of the run}
ranks=${2:?number of ranks on this machine}
job="$run/train/.job.json"
[ -f "$job" ] || { echo "no $job: run 'ift-scale train CONFIG' once first" >&2; exit 2; }
exec deepspeed --num_accelerators "$ranks" --no_local_rank --module ift_scale.train.ranks "$job"
