#!/bin/bash
# Command 1, within 4 minutes: are the kernels right, is training exact, how fast are 1B and 7B, TRL with the same, and probing.
LIMIT=${LIMIT:-235}
. "$(dirname "$0")/common.sh"
unpacked site-train || exit 3
part kernels-correct 60 env $interpreted "$python" tests/kernels/triton_checks.py "$device"
part train 120 "$python" -m benchmarks.gpu.train $tiny
have trl trl liger_kernel && part trl 60 "$python" -m benchmarks.gpu.peer_trl ${tiny:---shape 1b}
. $here/ask.sh
LEAST=50 ask probe --questions 1000 --per-option 40 --repeats 2
finish
