# Sourced by the commands: finds the packages, sets the paths, and runs each part under a limit.
#
#   OUT      folder for what comes back (runs/gpu)         PYTHON   interpreter (python3)
#   LIMIT    seconds for the whole command                 WORK     scratch folder (/tmp/ift-scale-gpu)
#   TINY=1   tiny sizes on any machine: shows that it runs
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 3
here=benchmarks/gpu
begun=$(date +%s)
OUT=${OUT:-$PWD/runs/gpu} WORK=${WORK:-/tmp/ift-scale-gpu} TINY=${TINY:-}
python=${PYTHON:-python3}
mkdir -p "$OUT/rows" "$OUT/logs" "$WORK/links"
OUT=$(cd "$OUT" && pwd)
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false VLLM_NO_USAGE_STATS=1
export TORCH_EXTENSIONS_DIR=$WORK/extensions VLLM_CACHE_ROOT=$WORK/vllm-cache IFT_SCALE_BENCH_OUT=$OUT/rows
ln -sfn "$PWD/kernels" "$WORK/links/ift_scale_kernels" # as setup.py maps them
export PYTHONPATH=$PWD:$WORK/links:$WORK/site${PYTHONPATH:+:$PYTHONPATH}
failed=0

# now: seconds since the command began.
now() { echo $(($(date +%s) - begun)); }

# unpacked NAME...: the packages that pack.sh laid out under .gpu, once. Without them, or in another Python than the one that they
# are for, those that are installed are used.
unpacked() {
  local folders=() name version
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  for name in "$@"; do
    if [ ! -e ".gpu/$name/site.tar.xz" ]; then
      echo "== $name: not packed, using what is installed"
    elif [ "$version" != 3.12 ]; then
      echo "== $name: packed for Python 3.12, this is $version: using what is installed"
    elif [ ! "$WORK/$name.done" -nt ".gpu/$name/site.tar.xz" ]; then
      folders+=(".gpu/$name")
    fi
  done
  [ ${#folders[@]} -gt 0 ] || return 0
  "$python" $here/unpack.py "$WORK/site" "${folders[@]}" || return 1
  for name in "${folders[@]}"; do touch "$WORK/${name#.gpu/}.done"; done
  echo "== unpacked ${folders[*]} at $(now) s"
}

# enough NAME SECONDS: whether so many are left of the whole; says if not, and counts the part as failed.
enough() {
  local left=$((LIMIT - $(now) - 5))
  [ "$left" -lt "$2" ] || return 0
  echo "== $1: skipped, $left s are left"
  failed=$((failed + 1))
  return 1
}

# part NAME SECONDS COMMAND...: the command under the lesser of its limit and what is left of the whole; the end of its log.
part() {
  local name=$1 limit=$2 code=0 at left
  shift 2
  at=$(now)
  [ -z "$TINY" ] || limit=$((limit * 4)) # a busy CPU
  enough "$name" "${LEAST:-10}" || return 1
  left=$((LIMIT - at - 5))
  [ "$limit" -le "$left" ] || limit=$left
  timeout -k 3 "$limit" "$@" >"$OUT/logs/$name.log" 2>&1 || code=$?
  echo "== $name: exit $code, $(($(now) - at)) s, at $(now) s"
  if [ $code -eq 0 ]; then
    tail -n 3 "$OUT/logs/$name.log" | cut -c1-400
  else
    tail -n 25 "$OUT/logs/$name.log" | cut -c1-300
    failed=$((failed + 1))
  fi
  return $code
}

# have NAME MODULE...: whether the part's modules are there; says which are not.
have() {
  local name=$1
  shift
  for module in "$@"; do
    "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)" ||
      { echo "== $name: skipped, $module is not installed"; return 1; }
  done
}

# finish: packs what comes back into one file and ends with the number of parts that failed.
finish() {
  [ -n "$TINY" ] || cp kernels/figures.json "$OUT/rows/kernels-figures.json"
  tar -C "$OUT" -czf "$OUT/back.tar.gz" rows logs && rm -rf "$OUT/rows" "$OUT/logs"
  echo "== $(now) s in all, $failed parts failed; $OUT/back.tar.gz"
  exit "$failed"
}

device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")') || exit 3
if [ "$device" = cpu ] && [ -z "$TINY" ]; then
  echo "there is no GPU that torch sees; TINY=1 shows on any machine that the commands run" >&2
  exit 3
fi
# Without a GPU the kernels run in Triton's interpreter.
interpreted=
if [ "$device" = cuda ]; then
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
else
  interpreted=TRITON_INTERPRET=1
fi
tiny=${TINY:+--tiny}
