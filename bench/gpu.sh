#!/usr/bin/env bash
# On a machine with a CUDA device: check every structure's outputs and gradients there, then run the GPU sweep.
#
#     bench/gpu.sh results-gpu.json            about 25 minutes at most: 5 to check, 20 to measure
#
# Further arguments go to both runs, such as --structures "dyad_it monarch". Goes on with a sweep that was cut off.
set -euo pipefail
output=$(realpath -m "${1:?name the results file to write}")
shift
python=${PYTHON:-python}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

"$python" -m pytest bench --check --device cuda --dtypes float32,bfloat16 --mode forward,train \
    --shapes 256x256,768x3072 --tokens 16,128 --no-controls --time-budget 5m --point-timeout 60s "$@"
begun=--benchmark-json=$output
test ! -s "$output.journal" || begun=--resume=$output
"$python" -m pytest bench --device cuda --time-budget 20m --point-timeout 60s "$begun" "$@"
"$python" -m bench report "$output" -o "${output%.json}-report"
