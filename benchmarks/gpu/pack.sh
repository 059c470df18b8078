#!/bin/bash
# Lays out, in the folder .gpu of this checkout, what a machine without network needs beside the tree (README.md): run it on a
# machine with network, from the checkout's root or anywhere.
#
#   benchmarks/gpu/pack.sh [DATA]
#
# Needs the project's environment (PYTHON, .venv/bin/python), whose DeepSpeed is taken as it is: plain Python with its sources. DATA is
# the folder with mmlu/ and pools/ (../shared/data). Downloads some 600 MB of wheels into .gpu-wheels, once, and needs 2 GB for a
# while. Fails if the tree and .gpu come to more than 64 MiB, or one folder of .gpu to more than 50.
set -euo pipefail
kit=$(cd "$(dirname "$0")" && pwd)
cd "$kit/../.."
python=${PYTHON:-$PWD/.venv/bin/python}
data=$(cd "${1:-../shared/data}" && pwd) || { echo "pack: no folder of data; name it: pack.sh DATA" >&2; exit 2; }
[ -d "$data/mmlu" ] || { echo "pack: $data/mmlu is missing" >&2; exit 2; }
mkdir -p .gpu-wheels

# fetch LIST: its wheels for Python 3.12 on x86-64 Linux.
fetch() {
  local platforms=() n
  for n in 39 35 34 31 28 27 26 24 17 12 5; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
  for n in 2014 2010 1; do platforms+=(--platform "manylinux${n}_x86_64"); done
  "$python" -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" -d .gpu-wheels -r "$1"
}

# unpack LIST FOLDER
unpack() {
  local line stem
  while IFS= read -r line; do
    stem=${line%%==*}
    "$python" -m zipfile -e .gpu-wheels/"${stem//-/_}-${line##*==}"-*.whl "$2"
  done <"$1"
}

# pack FOLDER NAME: .gpu/NAME/site.tar.xz of it, without compiled Python.
pack() {
  find "$1" -name __pycache__ -prune -exec rm -rf {} +
  mkdir -p ".gpu/$2"
  tar -C "$1" --owner 0 --group 0 --sort name -cf - . | xz -6 -T0 >".gpu/$2/site.tar.xz"
}

# bytes: of the files whose names come on standard input, each ended by a NUL.
bytes() { xargs -0 -r stat -c %s | awk '{ sum += $1 } END { printf "%d", sum }'; }

echo "pack: wheels"
fetch "$kit/train.txt"
fetch "$kit/vllm.txt"
rm -rf .gpu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/train" "$work/vllm" "$work/fa3/vllm/vllm_flash_attn"

echo "pack: site-train"
unpack "$kit/train.txt" "$work/train"
deepspeed=$("$python" -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("deepspeed").origin).parent)')
cp -r "$deepspeed" "$deepspeed"-*.dist-info "$work/train"
pack "$work/train" site-train

echo "pack: site-vllm-1, site-vllm-2"
unpack "$kit/vllm.txt" "$work/vllm"
v=$work/vllm/vllm
# Of no use to a Llama in bfloat16 on Hopper: the server, other cards' attention, mixtures of experts, quantised products.
rm -rf "$v/vllm-rs" "$v/third_party/fmha_sm100" "$v/third_party/deep_gemm" "$v/benchmarks" "$v"/_moe_C* "$v"/_flashmla* \
  "$v"/_qutlass* "$v"/_rust_tool_parser* "$v/vllm_flash_attn/_vllm_fa2_C.abi3.so"
find "$v/model_executor/layers" -path '*configs*' -name '*.json' -delete
for library in "$v/_C_stable_libtorch.abi3.so" "$v/vllm_flash_attn/_vllm_fa3_C.abi3.so"; do
  "$python" "$kit/slim_fatbin.py" "$library" "$library.slim" --keep 90
  strip --strip-unneeded "$library.slim"
  mv "$library.slim" "$library"
done
mv "$v/vllm_flash_attn/_vllm_fa3_C.abi3.so" "$work/fa3/vllm/vllm_flash_attn/"
pack "$work/vllm" site-vllm-1
pack "$work/fa3" site-vllm-2

echo "pack: questions and their tokenizer"
mkdir -p .gpu/probe/data/mmlu .gpu/probe/tokenizer
cp "$data"/mmlu/*.gz .gpu/probe/data/mmlu/
"$python" -m benchmarks.peers.model "$work/model" --data "$data" >"$work/model.log" 2>&1 || { cat "$work/model.log" >&2; exit 1; }
cp "$work"/model/*token* .gpu/probe/tokenizer/

failed=0
for folder in .gpu/*; do
  size=$(find "$folder" -type f -print0 | bytes)
  echo "pack: $folder $((size / 1024)) KiB"
  [ "$size" -le $((50 * 1024 * 1024)) ] || { echo "pack: $folder is over 50 MiB" >&2; failed=1; }
done
tree=$(git ls-files -co --exclude-standard -z | bytes)
all=$(find .gpu -type f -print0 | bytes)
echo "pack: the tree $((tree / 1024)) KiB, with .gpu $(((tree + all) / 1024)) KiB of 65536"
[ $((tree + all)) -le $((64 * 1024 * 1024)) ] || { echo "pack: over 64 MiB" >&2; failed=1; }
exit $failed
