# What the sbatch scripts share; they source it. `step COMMAND...` runs a command as one srun step, a task for each rank, and
# returns its exit code.
#
# A job that is about to reach its time limit gets USR1 (--signal in the scripts), a pre-empted one too where the cluster is set up so
# (preempt_send_user_signal), else its ranks get TERM if there is a grace time. Either goes to the ranks, which save after the step
# they are in and leave with 75; then the job puts itself into the queue again and goes on from there.
#
# IFT_SCALE_HOME          the project's folder, where jobs are not submitted from it
# IFT_SCALE_SETUP         a file to source first (modules, a virtual environment); else .venv of the project's folder, if it is there
# IFT_SCALE_SRUN          further options of srun, such as --container-image=ift-scale.sqsh; they
#                         may end with a command that starts a container, such as
#                         apptainer exec --nv ift-scale.sif
# IFT_SCALE_MAX_RESTARTS  how often a job may go back into the queue by itself

told_to_stop=
trap 'told_to_stop=1' USR1

IFT_SCALE_HOME=${IFT_SCALE_HOME:-$SLURM_SUBMIT_DIR}
source "$IFT_SCALE_HOME/launch/env.sh"
if [ -n "${IFT_SCALE_SETUP:-}" ]; then
  source "$IFT_SCALE_SETUP"
elif [ -f "$IFT_SCALE_HOME/.venv/bin/activate" ]; then
  source "$IFT_SCALE_HOME/.venv/bin/activate"
fi

# The ranks meet at the first node, told here since a container may have no scontrol. Their port follows from the job and the step.
if [ -z "${MASTER_ADDR:-}" ]; then
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
fi
export MASTER_ADDR
# srun does not take the job's own since SLURM 22.05.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

requeue() {
  local id=$SLURM_JOB_ID restarts=${SLURM_RESTART_COUNT:-0} state
  trap '' USR1
  # The last task of an array has the array's own number, which stands for all tasks.
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  state=$(scontrol show job -o "$id" | grep -o 'JobState=[A-Z]*')
  if [ "$state" != JobState=RUNNING ]; then
    echo "slurm: the job is being ended ($state), and does not go back into the queue"
    exit 75
  fi
  if [ "$restarts" -ge "${IFT_SCALE_MAX_RESTARTS:-100}" ]; then
    echo "slurm: the job was restarted $restarts times already, and does not go back into the queue (IFT_SCALE_MAX_RESTARTS)"
    exit 75
  fi
  echo "slurm: stopped and saved; the job goes back into the queue and on from there (restart $((restarts + 1)))"
  scontrol requeue "$id"
  sleep 600 # the job is ended here
}

step() {
  local code signalled srun_pid
  [ -z "$told_to_stop" ] || requeue
  # The first task that fails ends the step; the others, which would wait for it, get a minute.
  # shellcheck disable=SC2086
  srun ${step_options:---kill-on-bad-exit=1 --wait=60} ${IFT_SCALE_SRUN:-} "$@" &
  srun_pid=$!
  trap 'signalled=1; echo "slurm: told to stop; the ranks save"; kill -USR1 "$srun_pid" 2>/dev/null || true' USR1
  while :; do # a trap interrupts wait
    signalled=
    code=0
    wait "$srun_pid" || code=$?
    [ -n "$signalled" ] || break
  done
  trap 'told_to_stop=1' USR1
  [ "$code" -ne 75 ] || requeue
  return "$code"
}

# share COMMAND...: a step whose tasks do each other's work. One that dies costs what it was computing: the others do its share, and a
# second call finds all done, or does what is missing. Your input's mistakes (2) and the environment's (3) would only come again.
share() {
  local code=0 step_options='--kill-on-bad-exit=0 --wait=0'
  step "$@" || code=$?
  case $code in
    0 | 2 | 3) return "$code" ;;
    *) step_options= step "$@" ;;
  esac
}
