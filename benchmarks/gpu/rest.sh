#!/bin/bash
# Command 3: training exact under every setting, the kernels' speeds, and training steps under other settings and at 3B.
LIMIT=${LIMIT:-290}
. "$(dirname "$0")/common.sh"
unpacked site-train || exit 3
quick=${TINY:+--quick}
part exact 120 "$python" -m benchmarks.gpu.exact $quick
if part kernels-correct 60 env $interpreted "$python" tests/kernels/triton_checks.py "$device"; then
  part kernels-speed 90 "$python" -m benchmarks.bench_kernels $quick
fi
part train-rest 200 "$python" -m benchmarks.gpu.train --rest --steps 3 $tiny
[ -n "$TINY" ] || part train-profile 60 "$python" -m benchmarks.gpu.train --shape 7b --steps 1 --profile
finish
