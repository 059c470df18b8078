#!/bin/sh
# Everything that one GPU can show within nine minutes, without a network: first whether the kernels are right, then how fast they,
# whole training steps and probing are. Rows go to benchmarks/results (or to $IFT_SCALE_BENCH_OUT), logs to $LOGS. Safe to run
# again: rows of the same programs on the same device are replaced.
#
#   benchmarks/gpu.sh [kernels-correct kernels-speed train trl probe]      all of them where none is named
#
# PYTHON: an interpreter with torch, transformers, deepspeed, scipy, pydantic, rich, click and pytest; the project itself need not
# be installed there. trl and liger_kernel are for `trl`, vllm and pyarrow for `probe`, which also needs the questions in $DATA.
# A part that runs out of its time or fails does not stop the next; wrong kernels stop the speeds. What is left of the nine
# minutes ($MINUTES) bounds every part: name those that found no time in a second call. Exit code: the number of parts that failed.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
LOGS=${LOGS:-runs/gpu}
MINUTES=${MINUTES:-9}
DATA=${DATA:-../shared/data}
all="kernels-correct kernels-speed train trl probe"
parts=${*:-$all}
for name in $parts; do
  case " $all " in *" $name "*) ;; *) echo "gpu: there is no part $name; there are: $all" >&2; exit 2 ;; esac
done
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

# wanted NAME
wanted() { case " $parts " in *" $1 "*) ;; *) return 1 ;; esac; }

# skip NAME REASON
skip() { echo "gpu: $1 skipped: $2"; }

right=0
if wanted kernels-correct; then
  part kernels-correct 120 "$python" -m pytest -q -m "gpu or not engine" tests/kernels || right=1
fi
if wanted kernels-speed; then
  if [ "$right" -eq 0 ]; then
    part kernels-speed 90 "$python" benchmarks/bench_kernels.py
  else
    skip kernels-speed "the kernels are not right"
  fi
fi
if wanted train; then
  part train 240 "$python" benchmarks/gpu_train.py --shape 1b --shape 7b
fi
if wanted trl; then
  if "$python" -c 'import trl, liger_kernel' 2>/dev/null; then
    part trl 80 "$python" benchmarks/gpu_trl.py --shape 1b
  else
    skip trl "trl or liger_kernel is not installed"
  fi
fi
if wanted probe; then
  if ! "$python" -c 'import vllm, pyarrow' 2>/dev/null; then
    skip probe "vllm or pyarrow is not installed"
  elif [ ! -d "$DATA/mmlu" ]; then
    skip probe "$DATA/mmlu is not there (DATA=FOLDER)"
  else
    part probe 240 "$python" benchmarks/gpu_probe.py --data "$DATA"
  fi
fi
exit "$failed"
