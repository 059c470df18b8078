# What the sbatch scripts share; they source it. `step COMMAND...` runs a command as one srun step, a task for each rank, and
# returns its exit code.
#
# A job that is about to end (time limit, pre-emption) gets USR1, see --signal in the scripts. It goes to the ranks, which save
# after the step they are in and leave with 75; then the job puts itself into the queue again and goes on from there.
#
# IFT_SCALE_HOME          the project's folder, where jobs are not submitted from it
# IFT_SCALE_SETUP         a file to source first (modules, a virtual environment); else .venv of the project's folder, if it is there
# IFT_SCALE_SRUN          further options of srun, such as --container-image=ift-scale.sqsh --container-mounts=/data
# IFT_SCALE_MAX_RESTARTS  how often a job may go back into the queue by itself

IFT_SCALE_HOME=${IFT_SCALE_HOME:-$SLURM_SUBMIT_DIR}
source "$IFT_SCALE_HOME/launch/env.sh"
if [ -n "${IFT_SCALE_SETUP:-}" ]; then
  source "$IFT_SCALE_SETUP"
elif [ -f "$IFT_SCALE_HOME/.venv/bin/activate" ]; then
  source "$IFT_SCALE_HOME/.venv/bin/activate"
fi

# The ranks meet at the first node. Their port follows from the job's and the step's number.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
# srun does not take the job's own since SLURM 22.05.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

requeue() {
  local restarts=${SLURM_RESTART_COUNT:-0} state
  state=$(scontrol show job -o "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z]*')
  if [ "$state" != JobState=RUNNING ]; then
    echo "slurm: the job is being ended ($state), and does not go back into the queue"
    exit 75
  fi
  if [ "$restarts" -ge "${IFT_SCALE_MAX_RESTARTS:-100}" ]; then
    echo "slurm: the job was restarted $restarts times already, and does not go back into the queue (IFT_SCALE_MAX_RESTARTS)"
    exit 75
  fi
  echo "slurm: stopped and saved; the job goes back into the queue and on from there (restart $((restarts + 1)))"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 600 # the job is ended here
}

step() {
  local code signalled srun_pid
  # The first task that fails ends the step; the others, which would wait for it, get a minute.
  # shellcheck disable=SC2086
  srun --kill-on-bad-exit=1 --wait=60 ${IFT_SCALE_SRUN:-} "$@" &
  srun_pid=$!
  trap 'signalled=1; echo "slurm: told to stop; the ranks save"; kill -USR1 "$srun_pid" 2>/dev/null || true' USR1
  while :; do # a trap interrupts wait
    signalled=
    code=0
    wait "$srun_pid" || code=$?
    [ -n "$signalled" ] || break
  done
  trap - USR1
  [ "$code" -ne 75 ] || requeue
  return "$code"
}
