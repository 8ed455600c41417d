#!/usr/bin/env bash
# Every training behind the tables of docs/which_loss.md and docs/from_scratch.md, their comparisons, and the tables again.
#
#   benchmarks/loss_table.sh                                 all of it: days on two cores
#   benchmarks/loss_table.sh digits_one bccd_one             these sets only, see below
#   benchmarks/loss_table.sh digits_one --jobs 2             with flags for each sweep: --jobs, --device, --cluster, --dry-run
#
# Finished runs are skipped and those that were cut off are resumed, so the same command goes on where it stopped. Needs
# the environment of scripts/setup.sh or one of your own with yolox-loss, and for the blood cells their folder in $BCCD.
# One thread a training, as the committed rows had: OMP_NUM_THREADS=4 is another machine's rounding.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v yolox-loss > /dev/null || PATH=$PWD/.venv/bin:$PATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} BCCD=${BCCD:-datasets/bccd}

ALL=(bccd_finetune bccd_catalogue bccd_scores digits_finetune digits_catalogue digits_scores digits_newcls digits_one bccd_one digits_one_multi digits_fixed
    bccd digits bccd_scratch digits_scratch digits_pair)
sets=() flags=()
while [ $# -gt 0 ] && [[ $1 != -* ]]; do
    [[ " ${ALL[*]} " = *" $1 "* ]] || { echo "There is no set '$1'. Choose of: $(IFS=, && echo "${ALL[*]}")." >&2; exit 2; }
    sets+=("$1")
    shift
done
flags=("$@")
[ ${#sets[@]} -gt 0 ] || sets=("${ALL[@]}")
dry=no
[[ " ${flags[*]:-} " = *" --dry-run "* ]] && dry=yes

POWER_1=giou,siou,focal_eiou,mpdiou,piou,diou,ciou,eiou,shape_iou,wiou
POWER_1+=,inner_iou,inner_giou,inner_diou,inner_ciou,inner_eiou,inner_siou
OTHERS="alpha_iou,alpha_giou,alpha_diou,alpha_ciou,alpha_eiou,iou+nwd(constant='mean')"
SETS=bce+0.2*ghmc,bce+dice,bce+tversky,bce+dice_focal
CALIBRATED_OBJ="focal(calibrated=True),varifocal(calibrated=True, target='hard'),quality_focal(calibrated=True, target='hard')"
CALIBRATED_CLS='focal(calibrated=True),varifocal(calibrated=True),quality_focal(calibrated=True)'
OFFSETS=smooth_l1,l2,balanced_l1
IOU_TARGET="{'type':'bce','target':'iou'}"
BOX_WEIGHT="{'type':'iou','loss_weight':2.0}"
EARLY_L1="{'type':'l1','start_epoch':1}"

# Each box times 2 IoU, of losses by name.
by_overlap() { sed -E "s/[a-z_]+/&(by_overlap=True)/g" <<< "$1"; }

# EXP, SEEDS, and what else sweep takes. Overrides (key value) come last.
sweep() {
    local exp=$1 seeds=$2
    shift 2
    yolox-loss sweep -f "exps/$exp.py" -b 8 --seeds "$seeds" "${flags[@]}" "$@"
}

# Data and the trained network that a set starts from.
digits() { [ $dry = yes ] || python scripts/make_digits.py; }
blood_cells() {
    [ $dry = yes ] || [ -d "$BCCD/annotations" ] && return
    echo "The blood cells are not in $BCCD; set BCCD to their folder (where to get them: exps/bccd_nano.py)." >&2
    exit 2
}
one_class() { [ $dry = yes ] || [ -d "$2" ] || python benchmarks/merge_classes.py "$1" "$2" --name "$3"; }
digits_start() { digits && sweep digits_stock 100 -expn digits_start max_epoch 60 eval_interval 5; }
bccd_start() { blood_cells && sweep bccd_nano 100 -expn bccd_start max_epoch 90; }
DIGITS_START=YOLOX_outputs/digits_start-seed100/latest_ckpt.pth
BCCD_START=YOLOX_outputs/bccd_start-seed100/latest_ckpt.pth

# EXP, the trained network, box losses, and overrides: the catalogue but for the losses of a score.
catalogue() {
    local exp=$1 start=$2 boxes=$3
    shift 3
    sweep "$exp" 0,1,2 -c "$start" --set "loss_iou=$boxes,$OTHERS" "$@"
    sweep "$exp" 0,1,2 -c "$start" --set "loss_obj=$SETS" "$@"
    sweep "$exp" 0,1,2 -c "$start" --set "loss_cls=$SETS" "$@"
    sweep "$exp" 0,1,2 -c "$start" --set "loss_l1=$OFFSETS" "$@"
}

train_bccd_finetune() {
    bccd_start
    sweep bccd_finetune 0,1,2,3,4 -c $BCCD_START --set "loss_obj=bce,$IOU_TARGET"
    catalogue bccd_finetune $BCCD_START $POWER_1
    sweep bccd_finetune 3 -c $BCCD_START --set loss_iou=giou
    sweep bccd_finetune 0 -c $BCCD_START --set "loss_l1=$EARLY_L1"
}

train_bccd_catalogue() {
    bccd_start
    catalogue bccd_finetune $BCCD_START "iou,$(by_overlap $POWER_1)" exp_name bccd_catalogue
    sweep bccd_finetune 3,4 -c $BCCD_START --set loss_iou=iou exp_name bccd_catalogue
    sweep bccd_finetune 3,4 -c $BCCD_START --set loss_cls=bce+dice,bce+tversky exp_name bccd_catalogue
}

train_digits_finetune() {
    digits_start
    sweep digits_finetune 0,1,2,3,4,5,6,7,8,9 -c $DIGITS_START --set "loss_obj=bce,$IOU_TARGET"
    catalogue digits_finetune $DIGITS_START $POWER_1
    sweep digits_finetune 0,1,2,3,4 -c $DIGITS_START --set "loss_l1=$EARLY_L1"
    sweep digits_finetune 0 -c $DIGITS_START --set "loss_l1={'type':'l1','start_epoch':1,'loss_weight':3.0}"
    sweep digits_finetune 0 -c $DIGITS_START --set "loss_iou=$BOX_WEIGHT"
}

train_digits_catalogue() {
    digits_start
    catalogue digits_finetune $DIGITS_START "iou,$(by_overlap $POWER_1)" exp_name digits_catalogue
    sweep digits_finetune 3,4 -c $DIGITS_START --set loss_iou=iou exp_name digits_catalogue
}

train_digits_scores() {
    digits_start
    sweep digits_finetune 0,1,2,3,4 -c $DIGITS_START --set "loss_obj=bce,varifocal(calibrated=True, target='hard')" exp_name digits_scores
    sweep digits_finetune 0,1,2 -c $DIGITS_START --set "loss_obj=$CALIBRATED_OBJ" exp_name digits_scores
    sweep digits_finetune 0,1,2,3,4 -c $DIGITS_START --set 'loss_cls=quality_focal(calibrated=True)' exp_name digits_scores
    sweep digits_finetune 0,1,2 -c $DIGITS_START --set "loss_cls=$CALIBRATED_CLS" exp_name digits_scores
}

train_bccd_scores() {
    bccd_start
    sweep bccd_finetune 0,1,2 -c $BCCD_START --set "loss_obj=bce,$CALIBRATED_OBJ" exp_name bccd_scores
    sweep bccd_finetune 0,1,2 -c $BCCD_START --set "loss_cls=$CALIBRATED_CLS" exp_name bccd_scores
}

train_digits_newcls() {
    digits_start
    [ $dry = yes ] || python - $DIGITS_START digits_newcls.pth <<'PY'
import sys, torch
model = torch.load(sys.argv[1], map_location="cpu", weights_only=True)["model"]
torch.save({"model": {key: value for key, value in model.items() if "cls_preds" not in key}}, sys.argv[2])
PY
    sweep digits_finetune 0,1,2,3,4,5,6,7,8,9 -c digits_newcls.pth --set "loss_obj=bce,$IOU_TARGET" exp_name digits_newcls
}

train_digits_one() {
    digits_start
    one_class datasets/digits datasets/digits_one digit
    sweep digits_finetune 0,1,2,3,4 -c $DIGITS_START --set "loss_iou=iou,$BOX_WEIGHT" \
        exp_name digits_one data_dir datasets/digits_one num_classes 1 random_size "(5,5)"
}

train_digits_one_multi() {
    digits_start
    one_class datasets/digits datasets/digits_one digit
    sweep digits_finetune 0,1,2,3,4,5,6,7,8,9 -c $DIGITS_START --set "loss_iou=iou,$BOX_WEIGHT" \
        exp_name digits_one_multi data_dir datasets/digits_one num_classes 1
}

train_digits_fixed() {
    digits_start
    sweep digits_finetune 0,1,2,3,4,5,6,7,8,9 -c $DIGITS_START --set "loss_iou=iou,$BOX_WEIGHT" \
        exp_name digits_fixed random_size "(5,5)"
}

train_bccd_one() {
    bccd_start
    one_class "$BCCD" datasets/bccd_one cell
    sweep bccd_finetune 0,1,2 -c $BCCD_START --set "loss_iou=iou,$BOX_WEIGHT" \
        exp_name bccd_one data_dir datasets/bccd_one num_classes 1 random_size "(8,8)"
}

train_bccd() {
    blood_cells
    sweep bccd_nano 0,1,2,3,4 --set loss_obj=bce
    sweep bccd_nano 0,1,2 --set loss_obj=focal,varifocal
    sweep bccd_nano 0,1,2 --set loss_iou=ciou
    sweep bccd_nano 0,1 --set "loss_iou=2*ciou,$BOX_WEIGHT,alpha_ciou,eiou,shape_iou,piou"
    sweep bccd_nano 0 --set "loss_iou={'type':'iou','mode':'log'},iou+nwd(constant='mean'),nwd,wiou,mpdiou,focal_eiou"
    sweep bccd_nano 0 --set "loss_obj=bce+dice,bce+0.2*ghmc,$IOU_TARGET"
    sweep bccd_nano 0,1,2,3,4 --set "loss_l1=$EARLY_L1"
}

train_digits() {
    digits
    sweep digits_stock 0,1,2,3,4 --set loss_obj=bce
    sweep digits_stock 0,1,2 --set loss_obj=focal
    sweep digits_stock 1,2,3,4 --set loss_obj=bce+dice
    sweep digits_stock 0 --set loss_obj=bce+tversky,bce+dice_focal,bce+0.2*ghmc
    sweep digits_stock 0,1 --set "loss_l1=$EARLY_L1"
    sweep digits_stock 0,1 --set "loss_cls={'type':'bce','loss_weight':3.0}"
    sweep digits_stock 0 --set loss_cls=bce+dice,bce+0.2*ghmc
    sweep digits_stock 0 --set "loss_iou=iou+nwd(constant='mean')"
}

train_bccd_scratch() {
    blood_cells
    sweep bccd_nano 0,1,2 --set "loss_obj=bce,focal(calibrated=True),varifocal(calibrated=True, target='hard')" exp_name bccd_scratch
    sweep bccd_nano 0 --set loss_obj=focal exp_name bccd_scratch
}

train_digits_scratch() {
    digits
    sweep digits_stock 0 --set "loss_iou=iou,$(by_overlap giou,ciou,mpdiou,piou,wiou),giou,ciou,mpdiou" exp_name digits_scratch
}

train_digits_pair() {
    digits
    sweep digits_stock 0,1,2 --set "loss_obj=bce,varifocal(calibrated=True, target='hard')" \
        --set "loss_iou=iou,ciou(by_overlap=True)" exp_name digits_pair
}

# What is committed of a set: the rows of its runs and of its comparison.
keep() {
    local set=$1 name=$1 folder
    case $set in
        bccd) name=bccd_nano ;;
        digits) name=digits_stock ;;
        bccd_finetune) cp "${BCCD_START%/*}/metrics.csv" benchmarks/$set/bccd_start.csv ;;
        digits_finetune) cp "${DIGITS_START%/*}/metrics.csv" benchmarks/$set/digits_start.csv ;;
    esac
    yolox-loss compare "$name-*" --out "YOLOX_outputs/comparison-$set"
    cp "YOLOX_outputs/comparison-$set/comparison.csv" "benchmarks/$set/"
    for folder in "YOLOX_outputs/$name"-*seed*/; do
        cp "$folder/metrics.csv" "benchmarks/$set/$(basename "$folder").csv"
    done
}

for set in "${sets[@]}"; do
    echo "== $set"
    "train_$set"
    [ $dry = yes ] || keep "$set"
done
[ $dry = yes ] || python benchmarks/loss_table.py
