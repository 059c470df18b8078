# Sourced after common.sh: what both commands that probe need.

# ask NAME OPTION...: probe.py with the questions and tokenizer that pack.sh laid out, or those of a checkout.
ask() {
  local name=$1 data=${DATA:-../shared/data}
  shift
  [ -d .gpu/probe/data ] && data=.gpu/probe/data
  [ -d "$data/mmlu" ] || { echo "== $name: skipped, $data/mmlu is missing (DATA=FOLDER)"; return 1; }
  enough "$name" "${LEAST:-10}" || return 1 # before the packages are unpacked, which no limit cuts off
  unpacked site-vllm-1 site-vllm-2 || return 1
  have "$name" vllm || return 1
  # The tokenizer was trained where the data is; here only a small model's random weights are made, on the CPU.
  if [ -d .gpu/probe/tokenizer ] && [ ! -e "$WORK/model/model.safetensors" ]; then
    mkdir -p "$WORK/model" && cp .gpu/probe/tokenizer/* "$WORK/model/"
    "$python" -c "from benchmarks.peers import model; model.random_llama(model.LAYERS, model.HIDDEN_SIZE).save_pretrained('$WORK/model')" \
      >"$OUT/logs/$name-model.log" 2>&1 || return 1
  fi
  part "$name" 260 "$python" -m benchmarks.gpu.probe $tiny --data "$data" --work "$WORK" --logs "$OUT/logs" "$@"
}
