#!/usr/bin/env bash
# The README's table on blood cells: nine trainings that differ in the loss only, then `compare`.
#
#   scripts/bccd_table.sh PATH/TO/bccd [OUTPUT_DIR]
#
# Finished runs are kept and interrupted ones resumed. JOBS=2 trains two at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${1:?say where the BCCD data set is (COCO format): scripts/bccd_table.sh PATH/TO/bccd}"
export BCCD=$1 OUT=${2:-YOLOX_outputs/bccd} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHON=${PYTHON:-.venv/bin/python}

train() {
    local name=$1 resume=()
    shift
    grep -qs '"status": "finished"' "$OUT/$name/run.json" && return
    [ -e "$OUT/$name/latest_ckpt.pth" ] && resume=(--resume)
    echo "training $name: $*"
    mkdir -p "$OUT/$name"
    "$PYTHON" -m yolox_loss_patch train -f exps/bccd_nano.py -b 8 -expn "$name" "${resume[@]}" output_dir "$OUT" "$@" \
        >>"$OUT/$name/screen.log" 2>&1 || { echo "$name failed, see $OUT/$name/screen.log" >&2; exit 1; }
}
export -f train

RUNS="stock
bce_iou loss_obj.target iou
focal_article loss_obj.type focal loss_obj.alpha 0.75
varifocal_hard loss_obj.type varifocal loss_obj.target hard
varifocal_iou loss_obj.type varifocal loss_obj.target iou
giou loss_iou giou
ciou loss_iou ciou
eiou loss_iou eiou
alpha_ciou loss_iou alpha_ciou"
xargs -P "${JOBS:-1}" -I{} bash -c 'set -f; train {}' <<<"$RUNS"
# shellcheck disable=SC2046
exec "$PYTHON" -m yolox_loss_patch compare $(cut -d' ' -f1 <<<"$RUNS" | sed "s|^|$OUT/|") --out "$OUT"
