#!/usr/bin/env bash
# The main job on a fresh machine: environment, data, two trainings (YOLOX's losses; varifocal + CIoU), one table, one figure.
#
# Needs Python 3.10-3.13 and a C++ compiler. A second call keeps what is there: finished runs are not trained again,
# interrupted ones go on where they stopped. A CUDA device is used when there is one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
python=.venv/bin/python
"$python" scripts/make_digits.py --out datasets/digits

train() {
    local name=$1 resume=()
    if grep -qs '"status": "finished"' "YOLOX_outputs/$name/run.json"; then
        echo "== $name: finished earlier, kept (remove YOLOX_outputs/$name to train it again)"
        return
    fi
    [ -e "YOLOX_outputs/$name/latest_ckpt.pth" ] && resume=(--resume)
    echo "== training $name ${resume[*]:-}"
    # Without the prefix nobody could tell the two apart; the table of settings is in the run's train_log.txt.
    "$python" -u -m yolox_loss_patch train -f "exps/$name.py" -b 8 ${resume[@]+"${resume[@]}"} 2>&1 |
        grep --line-buffered -E "epoch|AP|error|Error|WARNING|images|Saved" | sed -u "s/^/[${name#digits_}] /"
}

# On CUDA one after the other. On a CPU side by side with half of the cores each: a model this small gains next to nothing
# from a second thread, so both are done in little more than the time of one.
read -r cuda threads < <("$python" -c '
import os, torch
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
print(int(torch.cuda.is_available()), max(1, cores // 2))')
if [ "$cuda" = 1 ]; then
    train digits_stock
    train digits_varifocal_ciou
else
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
    train digits_stock & first=$!
    train digits_varifocal_ciou & second=$!
    failed=0
    wait "$first" || failed=1
    wait "$second" || failed=1
    [ "$failed" = 0 ] || { echo "A training failed; what it said is above." >&2; exit 1; }
fi

echo
"$python" -m yolox_loss_patch compare YOLOX_outputs/digits_stock YOLOX_outputs/digits_varifocal_ciou \
    --out YOLOX_outputs/digits_comparison
