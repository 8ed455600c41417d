#!/usr/bin/env bash
# Compute the verdicts of docs/data.md again, without a training, from the detections that its runs left: every set of
# benchmarks/remedies/detections. Ends with an error where a difference, an interval or a verdict is not the one in the CSV.
#
#   benchmarks/recompute.sh          all sets, a minute
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v yolox-loss > /dev/null || PATH=$PWD/.venv/bin:$PATH

for folder in benchmarks/remedies/detections/*/; do
    set=$(basename "$folder")
    python benchmarks/recompute.py "$folder" "benchmarks/remedies/$set.csv"
done
