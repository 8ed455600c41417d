#!/usr/bin/env bash
# Everything that needs a CUDA device, in one command, for whoever has one. Exit status 0 only if all of it holds.
#
#   benchmarks/check_gpu.sh                  half an hour on a current GPU; two GPUs are used where there are two
#   DEVICE=cpu benchmarks/check_gpu.sh       tries the script itself where there is none, with small numbers; proves nothing of a GPU
#
# It writes benchmarks/{defaults,step,stage,losses}.csv (on a CPU defaults.csv only). Send them with what it printed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "check_gpu: torch sees no CUDA device. yolox-loss doctor says why; DEVICE=cpu tries the script itself." >&2
    exit 2
fi
failed=()
check() { # NAME COMMAND...
    local name=$1
    shift
    echo "== $name: $*"
    "$@" || { failed+=("$name"); echo "== $name: FAILED" >&2; }
}

images=10000 steps=200
[ "$device" = cuda ] || images=40 steps=3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check "default losses against stock" "$python" benchmarks/defaults.py --device "$device"
check "matches of the fast assignment" "$python" benchmarks/assign_equality.py --device "$device" --images "$images"
check "every loss in half precision" "$python" benchmarks/half.py --device "$device" --steps "$steps"
if [ "$device" = cuda ]; then
    check "time and memory of the loss stage" "$python" benchmarks/stage.py --device cuda --boxes 5 20 100 300
    check "time and memory of each loss" "$python" benchmarks/losses.py --device cuda
    check "time and memory of the step" "$python" benchmarks/step.py --device cuda
fi

# A training in half precision that is stopped and resumed, beside one that is not; and two processes.
"$python" scripts/make_digits.py --out "$work/digits" --train 64 --val 16 --size 96 >/dev/null
overrides=(data_dir "$work/digits" output_dir "$work/runs" max_epoch 2 no_aug_epochs 1 warmup_epochs 0 eval_interval 2 seed 0
    input_size 96,96 test_size 96,96)
train() { "$python" -m yolox_loss_patch train -f exps/digits_stock.py -b 8 --fp16 --device "$device" "$@" "${overrides[@]}"; }
resume_in_half_precision() {
    local run=$work/runs/stopped pid
    train -d 1 -expn straight || return 1
    train -d 1 -expn stopped &
    pid=$!
    until grep -qs '"epochs_done": 1' "$run/run.json"; do
        kill -0 $pid 2>/dev/null || break
        sleep 0.2
    done
    kill -TERM $pid 2>/dev/null
    wait $pid
    grep -q '"status": "finished"' "$run/run.json" || train -d 1 -expn stopped --resume || return 1
    "$python" - "$work/runs/straight/metrics.csv" "$run/metrics.csv" <<'PY'
import csv, sys
last = [list(csv.DictReader(open(path)))[-1] for path in sys.argv[1:]]
straight, stopped = (float(row["total_loss"]) for row in last)
print(f"total loss of the last epoch: {straight:.6g} straight, {stopped:.6g} stopped and resumed; 2% are allowed")
sys.exit(not abs(straight - stopped) <= 0.02 * straight)
PY
}
check "resume in half precision" resume_in_half_precision
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$device" = cpu ] || [ "$gpus" -ge 2 ]; then
    check "two processes" train -d 2 -expn two
else
    echo "== two processes: left out, as there is one GPU"
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "check_gpu: FAILED: $(IFS=, && echo "${failed[*]}")" >&2
    exit 1
fi
echo "check_gpu: all of it holds on $device"
