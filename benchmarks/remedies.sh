#!/usr/bin/env bash
# What remedies for faulty data do, and a balance of the losses that moves: digits with a fault, a network that stock YOLOX
# trained on them, and from there stock against the remedies, five seeds each. Writes benchmarks/remedies/. Some two hours
# on one core.
#
#   benchmarks/remedies.sh                                   all of it
#   benchmarks/remedies.sh crowd --jobs 2                    one set, with flags for each sweep
#
# Finished runs are skipped and those that were cut off are resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v yolox-loss > /dev/null || PATH=$PWD/.venv/bin:$PATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} YOLOX_LOSS_REPORT=off

sets=() flags=()
while [ $# -gt 0 ] && [[ $1 != -* ]]; do
    [[ " crowd rare noisy balancing " = *" $1 "* ]] ||
        { echo "There is no set '$1'. Choose of: crowd, rare, noisy, balancing." >&2; exit 2; }
    sets+=("$1")
    shift
done
flags=("$@")
[ ${#sets[@]} -gt 0 ] || sets=(crowd rare noisy balancing)

# EXP, the set, and what else sweep takes; overrides (key value) come last.
sweep() {
    local exp=$1 set=$2
    shift 2
    yolox-loss sweep -f "exps/$exp.py" -b 8 --seeds 0,1,2,3,4 ${flags[@]+"${flags[@]}"} \
        -c "YOLOX_outputs/remedies_${set}_start-seed100/latest_ckpt.pth" "$@" \
        exp_name "remedies_$set" data_dir "datasets/digits_$set"
}

# What is committed of a set: its table and the rows of its runs. The set, the name of the table, flags of compare.
keep() {
    local set=$1 name=$2
    shift 2
    yolox-loss compare "remedies_$set-*" "$@" --out "YOLOX_outputs/comparison-$name"
    cp "YOLOX_outputs/comparison-$name/comparison.csv" "benchmarks/remedies/$name.csv"
    for folder in YOLOX_outputs/"remedies_$set"-*seed*/; do
        cp "$folder/metrics.csv" "benchmarks/remedies/$(basename "$folder").csv"
    done
    cp "YOLOX_outputs/remedies_${set}_start-seed100/metrics.csv" "benchmarks/remedies/remedies_${set}_start.csv"
    [ "$name" != "$set" ] || python benchmarks/recompute.py --keep "benchmarks/remedies/detections/$set" "remedies_$set-*"
}

mkdir -p benchmarks/remedies
for set in "${sets[@]}"; do
    fault=--$set
    [ "$set" != balancing ] || fault=
    python scripts/make_digits.py --out "datasets/digits_$set" $fault
    yolox-loss sweep -f exps/digits_stock.py -b 8 --seeds 100 ${flags[@]+"${flags[@]}"} \
        exp_name "remedies_${set}_start" data_dir "datasets/digits_$set" max_epoch 30 eval_interval 10
    case $set in
        crowd) sweep digits_finetune crowd --set ignore_crowd=False,True max_epoch 6 ;;
        rare)
            effective="bce(class_weight={'type':'effective_number','beta':0.999})"
            sweep digits_finetune rare --set "loss_cls=bce,bce(class_weight='inverse'),$effective" max_epoch 6
            sweep digits_finetune rare --set repeat_factor=0.3 max_epoch 6
            # The labels of this set are right, so it also answers for the hard examples.
            sweep digits_finetune rare --set "loss_obj=bce(sampler={'type':'OHEMSampler'}),bce(level_weights=[4.0,1.0,0.4])" max_epoch 6
            keep rare rare_classes --classes 0,7
            ;;
        noisy)
            sweep digits_finetune noisy --set "loss_cls=bce,bce(label_smoothing=0.1)" max_epoch 6
            sweep digits_finetune noisy --set gt_score=True --set "loss_cls=bce,bce(label_smoothing=0.1)" max_epoch 6
            ;;
        balancing)
            sweep digits_finetune balancing --set "loss_cls=bce"
            sweep digits_balancing balancing
            ;;
    esac
    keep "$set" "$set"
done
