# Functions shared by the sbatch scripts, which source it. `step COMMAND...` runs a command as
# one srun step with one task per rank and returns its exit code.
#
# A job that approaches its time limit gets USR1 (--signal in the scripts). A pre-empted job gets it
# too if the cluster is configured that way (preempt_send_user_signal); otherwise its ranks get TERM
# if there is a grace time. The signal is forwarded to the ranks. They finish their step, save, and
# exit with code 75. The job then requeues itself and resumes from the saved step.
#
# IFT_SCALE_HOME          the project's folder, if jobs are not submitted from it
# IFT_SCALE_SETUP         a file to source first (modules, a virtual environment); the default is
#                         .venv in the project's folder, if it exists
# IFT_SCALE_SRUN          additional options for srun, such as --container-image=ift-scale.sqsh; a
#                         command that starts a container may follow them, such as
#                         apptainer exec --nv ift-scale.sif
# IFT_SCALE_MAX_RESTARTS  how often a job may requeue itself (100)

stop_requested=
trap 'stop_requested=1' USR1

IFT_SCALE_HOME=${IFT_SCALE_HOME:-$SLURM_SUBMIT_DIR}
source "$IFT_SCALE_HOME/launch/env.sh"
if [ -n "${IFT_SCALE_SETUP:-}" ]; then
  source "$IFT_SCALE_SETUP"
elif [ -f "$IFT_SCALE_HOME/.venv/bin/activate" ]; then
  source "$IFT_SCALE_HOME/.venv/bin/activate"
fi

# The ranks meet at the first node. Its name is determined here because a container may have no
# scontrol. Their port is derived from the job and the step.
if [ -z "${MASTER_ADDR:-}" ]; then
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
fi
export MASTER_ADDR
# Since SLURM 22.05, srun does not inherit the job's value.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

requeue() {
  local id=$SLURM_JOB_ID restarts=${SLURM_RESTART_COUNT:-0} state
  trap '' USR1
  # The last task of an array has the array's own job id, which scontrol would apply to all tasks.
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  state=$(scontrol show job -o "$id" | grep -o 'JobState=[A-Z]*')
  if [ "$state" != JobState=RUNNING ]; then
    echo "slurm: the job is ending ($state) and is not requeued"
    exit 75
  fi
  if [ "$restarts" -ge "${IFT_SCALE_MAX_RESTARTS:-100}" ]; then
    echo "slurm: not requeued after $restarts restarts (IFT_SCALE_MAX_RESTARTS)"
    exit 75
  fi
  echo "slurm: stopped and saved; the job is requeued and will resume (restart $((restarts + 1)))"
  scontrol requeue "$id"
  sleep 600 # SLURM ends the job here
}

forward_stop() {
  echo "slurm: stop requested; the ranks save"
  kill -USR1 "$1" 2>/dev/null || true
}

step() {
  local code signalled srun_pid
  [ -z "$stop_requested" ] || requeue
  # The first task that fails ends the step. The others, which would wait for it, get a minute.
  # shellcheck disable=SC2086
  srun ${step_options:---kill-on-bad-exit=1 --wait=60} ${IFT_SCALE_SRUN:-} "$@" &
  srun_pid=$!
  trap 'signalled=1; forward_stop "$srun_pid"' USR1
  while :; do # a trap interrupts wait
    signalled=
    code=0
    wait "$srun_pid" || code=$?
    [ -n "$signalled" ] || break
  done
  trap 'stop_requested=1' USR1
  [ "$code" -ne 75 ] || requeue
  return "$code"
}

# share COMMAND...: a step whose tasks take over each other's work. A task that dies loses only its
# current work: the others do its share, and a second call finishes what is missing. Errors in the
# input (2) and the environment (3) would only recur, so they end the job.
share() {
  local code=0 step_options='--kill-on-bad-exit=0 --wait=0'
  step "$@" || code=$?
  case $code in
    0 | 2 | 3) return "$code" ;;
    *) step_options= step "$@" ;;
  esac
}
