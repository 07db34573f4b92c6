#!/usr/bin/env bash
# On a bare machine with a CUDA device and no internet: check every structure there, then measure, in ten minutes.
#
#     bench/gpu.sh FOLDER                      results, one file a portion, and logs
#
# Runs from the repository, without installing it. What the machine lacks, such as pytest-benchmark, is taken from wheels
# in bench/wheels/ (`pip download --no-deps -d bench/wheels pytest-benchmark py-cpuinfo2`), which git ignores.
set -euo pipefail
folder=$(realpath -m "${1:?name a folder for the results}")
shift
python=${PYTHON:-python3}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for wheel in bench/wheels/*.whl; do
    test -e "$wheel" || continue
    mkdir -p bench/wheels/unpacked
    "$python" -m zipfile -e "$wheel" bench/wheels/unpacked
done
PYTHONPATH=${PWD}/bench/wheels/unpacked${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m bench.sweep.gpu "$folder" "$@"
