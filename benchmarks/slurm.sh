#!/usr/bin/env bash
# Check `yolox-loss sweep --cluster slurm` on a real Slurm: two nodes on this one machine, set up in a temporary folder.
#
#   PYTHON=.venv/bin/python benchmarks/slurm.sh
#
# Needs root, and Slurm and MUNGE (Debian and Ubuntu: apt install slurm-wlm munge); no service has to run, and none is
# left running. Takes two minutes. Two runs, one on each node: one job is requeued as by preemption, one is told that its time is
# up, the sweep itself is killed and started again; both runs must have been resumed and be finished in the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
fail() { echo "slurm: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "needs root"
for tool in munged slurmctld slurmd sbatch; do command -v "$tool" >/dev/null || fail "no $tool; install slurm-wlm and munge"; done

dir=$(mktemp -d)
chmod 755 "$dir"
export SLURM_CONF=$dir/slurm.conf PYTHONPATH=$PWD OMP_NUM_THREADS=1
stop() {
    kill $(cat "$dir"/*.pid 2>/dev/null) ${sweep:-} 2>/dev/null || true
    sleep 2
    rm -rf "$dir"
}
trap stop EXIT

head -c 1024 /dev/urandom >"$dir/munge.key"
chmod 400 "$dir/munge.key"
munged --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
mkdir "$dir/state"
host=$(hostname -s)
cat >"$SLURM_CONF" <<CONF
ClusterName=check
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmUser=root
AuthInfo=socket=$dir/munge.sock,cred_expire=10
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdSpoolDir=$dir/%n
SlurmdPidFile=$dir/%n.pid
SlurmdLogFile=$dir/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
MpiDefault=none
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=27001 CPUs=1 RealMemory=4000 Gres=gpu:1
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=27002 CPUs=1 RealMemory=4000 Gres=gpu:1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60
CONF
echo "Name=gpu File=/dev/null" >"$dir/gres.conf"
slurmctld
slurmd -N n1
slurmd -N n2

"$PYTHON" scripts/make_digits.py --out "$dir/digits" --train 24 --val 8 --size 96 >/dev/null
cat >"$dir/tiny.py" <<EXP
import sys, time
sys.path.insert(0, "tests")
from conftest import EXP
exec(EXP.format(data="$dir/digits").replace("class Exp(", "class Tiny("))
class Exp(Tiny):
    def preprocess(self, *args):
        time.sleep(1)  # so that there is time to interfere
        return super().preprocess(*args)
EXP
words=(-m yolox_loss_patch sweep -f "$dir/tiny.py" -b 8 --device cpu --set loss_iou=iou,giou --seeds 0 --cluster slurm
    --partition main --gpus-per-node 1 --cpus-per-task 1 --mem 2 --time 30 output_dir "$dir/runs")
runs=("$dir/runs/tiny-iou_iou-seed0" "$dir/runs/tiny-iou_giou-seed0")

"$PYTHON" "${words[@]}" &
sweep=$!
for run in "${runs[@]}"; do
    for _ in $(seq 200); do
        grep -qs '"epochs_done": [1-3]' "$run/run.json" && continue 2
        sleep 0.5
    done
    fail "$run did not get through its first epoch"
done
mapfile -t jobs < <(squeue --array --noheader --format %i | sort)
echo "slurm: requeue ${jobs[0]}, time is up for ${jobs[1]}, kill -9 the sweep, start it again"
scontrol requeue "${jobs[0]}"
scancel --signal=USR2 "${jobs[1]}"
kill -9 "$sweep"
"$PYTHON" "${words[@]}" || fail "the sweep did not end well"
for run in "${runs[@]}"; do
    grep -q '"status": "finished"' "$run/run.json" || fail "$run is not finished"
    grep -q '"resumed": \[' "$run/run.json" || fail "$run was not resumed"
done
[ "$(ls "$dir"/runs/tiny-sweep/jobs/*_submission.sh | wc -l)" = 1 ] || fail "jobs that were in the queue were submitted again"
echo "slurm: all well"
