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
    "$python" -m yolox_loss_patch train -f "exps/$name.py" -b 8 "${resume[@]}"
}
train digits_stock
train digits_varifocal_ciou

echo
"$python" -m yolox_loss_patch compare YOLOX_outputs/digits_stock YOLOX_outputs/digits_varifocal_ciou \
    --out YOLOX_outputs/digits_comparison
