#!/bin/sh
# Everything that one GPU can show within nine minutes, without a network: first whether the kernels are right, then how fast they and
# whole training steps are. Rows go to benchmarks/results (or to $IFT_SCALE_BENCH_OUT), logs to $LOGS. Safe to run again: rows of the
# same programs on the same device are replaced.
#
#   benchmarks/gpu.sh
#
# PYTHON: an interpreter with torch, transformers, deepspeed, scipy and pytest; the project itself need not be installed there, and
# neither datasets nor, but for the probe's part, vllm. A part that runs out of its time or fails does not stop the next; wrong kernels stop the speeds. What is
# left of the nine minutes bounds every part. Exit code: the number of parts that failed.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
LOGS=${LOGS:-runs/gpu}
MINUTES=${MINUTES:-9}
mkdir -p "$LOGS/site"
ln -sfn "$PWD/kernels" "$LOGS/site/ift_scale_kernels" # as setup.py maps them
export PYTHONPATH="$PWD:$(cd "$LOGS/site" && pwd)${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "gpu: no GPU is visible to torch" >&2; exit 3; }
failed=0
end=$(($(date +%s) + MINUTES * 60))

# part NAME SECONDS COMMAND...: the command under a time limit, its output in a log and, at its end, here.
part() {
  name=$1 limit=$2 left=$((end - $(date +%s) - 5))
  shift 2
  [ "$limit" -le "$left" ] || limit=$left
  [ "$limit" -gt 10 ] || { skip "$name" "the time is over"; failed=$((failed + 1)); return 1; }
  echo "gpu: $name (at most $limit s)"
  if timeout -k 5 "$limit" "$@" >"$LOGS/$name.log" 2>&1; then
    tail -n 5 "$LOGS/$name.log"
  else
    echo "gpu: $name failed ($?); the end of $LOGS/$name.log:"
    tail -n 20 "$LOGS/$name.log"
    failed=$((failed + 1))
    return 1
  fi
}

# skip NAME REASON
skip() { echo "gpu: $1 skipped: $2"; }

if part kernels-correct 120 "$python" -m pytest -q -m "gpu or not engine" tests/kernels; then
  part kernels-speed 90 "$python" benchmarks/bench_kernels.py
else
  skip kernels-speed "the kernels are not right"
fi
part train 240 "$python" benchmarks/gpu_train.py --shape 1b --shape 7b
if "$python" -c 'import trl, liger_kernel' 2>/dev/null; then
  part trl 80 "$python" benchmarks/gpu_trl.py --shape 1b
else
  skip trl "trl or liger_kernel is not installed"
fi
if "$python" -c 'import vllm' 2>/dev/null; then
  part probe 200 "$python" benchmarks/gpu_probe.py
else
  skip probe "vllm is not installed"
fi
exit "$failed"
