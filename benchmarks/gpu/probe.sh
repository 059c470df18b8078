#!/bin/bash
# Command 2: MMLU 5-shot in vLLM on a 7B shape, beside one request an option; then compiled by vLLM.
LIMIT=${LIMIT:-290}
. "$(dirname "$0")/common.sh"
unpacked site-train || exit 3
. $here/ask.sh
ask probe
[ -n "$TINY" ] || ask probe-compiled --compile --per-option 20
finish
