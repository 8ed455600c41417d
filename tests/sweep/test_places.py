"""The jobs of a sweep: how far a run is, the process that trains it, this machine's GPUs, and Slurm's side."""

import argparse
import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
import torch
from conftest import ROOT

from yolox_loss_patch import cli
from yolox_loss_patch.errors import ConfigError, RunError
from yolox_loss_patch.sweep import places, training
from yolox_loss_patch.sweep.job import TrainingJob
from yolox_loss_patch.sweep.plan import parser

SWEEP = ("sweep", "-f", "tiny.py", "-b", "8", "--device", "cpu")


def make_run(folder, name="run", **more):
    return training.PlannedTraining(name, folder / name, ["-f", "tiny.py"], max_epoch=4, **more)


def test_a_job_is_pickled_with_its_code_so_that_the_waiting_process_stays_small(tmp_path):
    """Importing the package would load torch, some hundred MB, once more for each training."""
    path = tmp_path / "job.pkl"
    path.write_bytes(cloudpickle.dumps(TrainingJob(["a"], str(tmp_path), str(tmp_path), {}, str(tmp_path))))
    code = (
        "import pickle, sys, cloudpickle\n"
        f"job = pickle.load(open({str(path)!r}, 'rb'))\n"
        "again = pickle.loads(cloudpickle.dumps(job))\n"  # as when it is requeued
        "assert again.words == ['a'] and 'torch' not in sys.modules and 'yolox_loss_patch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("epochs,is_queued_again", [(3, True), (2, False)])
def test_a_job_whose_time_is_up_stops_its_training_and_resumes_if_it_got_on(tmp_path, epochs, is_queued_again):
    job = TrainingJob(["-f", "tiny.py"], str(tmp_path), str(tmp_path), {}, str(tmp_path), minutes=10)
    job.started, job.epochs_before = time.monotonic() - 500, 2
    (tmp_path / "run.json").write_text(json.dumps({"status": "running", "epochs_done": epochs}))
    job.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    again = job.checkpoint()
    assert job.child.returncode == -signal.SIGTERM
    if is_queued_again:
        assert again.function.words == job.words and again.function.child is None
        pickle.loads(cloudpickle.dumps(again))
    else:
        assert (
            again is None
            and "Not one epoch was finished in 8 of the 10 minutes" in (tmp_path / "screen.log").read_text()
        )


@pytest.mark.parametrize(
    "visible,devices,groups",
    [(None, None, ["0", "1", "2", "3"]), ("7,GPU-aa,2,1", None, ["7", "GPU-aa", "2", "1"]), (None, 3, ["0,1,2"]),
     ("4,5,6,7", 2, ["4,5", "6,7"])],
)  # fmt: skip
def test_each_job_gets_gpus_of_its_own(visible, devices, groups, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    submitted = []

    class Executor:
        def __init__(self, folder, python):
            pass

        def update_parameters(self, **parameters):
            pass

        def submit(self, job):
            submitted.append(job)
            return argparse.Namespace(done=lambda: True)

    monkeypatch.setattr(places.submitit, "LocalExecutor", Executor)
    where = places.Local(tmp_path, None, argparse.Namespace(device="auto", devices=devices))
    assert where.gpus == groups and where.at_once == len(groups)
    runs = [make_run(tmp_path, f"run{index}") for index in range(len(groups) + 1)]
    where.submit(runs[:-1])
    assert [job.environ["CUDA_VISIBLE_DEVICES"] for job in submitted] == groups
    assert where.has_ended(runs[len(groups) // 2])
    where.submit(runs[-1:])
    assert submitted[-1].environ["CUDA_VISIBLE_DEVICES"] == groups[len(groups) // 2]  # the one that is free
    with pytest.raises(RunError, match="-d 5"):
        places.gpu_groups(argparse.Namespace(device="auto", devices=5))


def test_the_time_that_is_left_is_reckoned_from_the_epochs_of_this_job(tmp_path, monkeypatch):
    """Not from the 90 seconds of the epoch before it was cut off, and it does not grow while an epoch lasts."""
    folder = tmp_path / "run"
    folder.mkdir()
    clock = [1000.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])

    def at(seconds, epochs):
        clock[0] = 1000.0 + seconds
        (folder / "run.json").write_text(
            json.dumps({"status": "running", "updated": str(seconds), "epochs_done": epochs})
        )
        (folder / "metrics.csv").write_text("epoch,AP,seconds\n" + "".join(f"{n + 1},,90\n" for n in range(epochs)))
        run.follow(None)
        return run.cells()[-1]

    run = make_run(tmp_path)
    assert at(0, 1) == "0:04:30"
    assert at(20, 2) == at(25, 2) == "0:00:40"
    assert at(60, 3) == "0:00:30"


# Slurm's commands as far as the sweep sees them; benchmarks/slurm.sh does it with a real Slurm.
SLURM = {
    "sbatch": 'cp "$1" "$(dirname "$0")/submitted"; echo "Submitted batch job 7"',
    "srun": "exit 1",
    "squeue": 'cat "$(dirname "$0")/queue"',
    "scancel": 'echo "$1" >> "$(dirname "$0")/cancelled"',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in SLURM.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_jobs_are_asked_for_followed_found_again_and_cancelled(slurm, tmp_path):
    words = ["--cluster", "slurm", "--partition", "long", "--gpus-per-node", "2", "--time", "90", "--cpus-per-task", "4",
             "--mem", "1.5", "--jobs", "2"]  # fmt: skip
    options = parser().parse_args(words)
    where = places.Slurm(tmp_path / "jobs", options, "tiny-sweep")
    runs = [make_run(tmp_path, f"run{index}") for index in range(3)]
    where.submit(runs)
    script = (slurm / "submitted").read_text()
    for line in (
        "partition=long",
        "gpus-per-node=2",
        "time=90",
        "cpus-per-task=4",
        "mem=1536MB",
        "array=0-2%2",
        "requeue",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert "srun " in script and "--cpus-per-task=4 " in script.split("srun ")[1] and sys.executable in script
    queue = "7_0|RUNNING|None|tiny-sweep\n7_1|PENDING|JobArrayTaskLimit|tiny-sweep\n"
    (slurm / "queue").write_text(queue)
    where.refresh()
    assert [where.waiting(run) for run in runs] == [None, "JobArrayTaskLimit", None]
    assert [where.has_ended(run) for run in runs] == [False, False, False]
    where.refresh()  # not in the queue twice: gone
    assert [where.has_ended(run) for run in runs] == [False, False, True]
    again = [make_run(tmp_path, f"run{index}") for index in range(3)]
    later = places.Slurm(tmp_path / "jobs", options, "tiny-sweep")
    later.attach(again)
    assert [run.todo for run in again] == ["attach", "attach", "train"]
    later.cancel(again[:2])
    assert (slurm / "cancelled").read_text().split() == ["7_0", "7_1"]


def test_a_job_of_another_name_is_left_alone(slurm, tmp_path):
    """The file of ids may come from somebody else, or the ids may have begun anew."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "slurm_jobs.json").write_text('{"run0": "7_0", "run1": "7_1"}')
    (slurm / "queue").write_text("7_0|RUNNING|None|payroll|x\n7_1|RUNNING|None|tiny-sweep\n")
    where = places.Slurm(tmp_path / "jobs", parser().parse_args(["--cluster", "slurm"]), "tiny-sweep")
    runs = [make_run(tmp_path, f"run{index}") for index in range(2)]
    where.attach(runs)
    assert [run.todo for run in runs] == ["train", "attach"]
    for number, run in enumerate(runs):
        run.job = places.submitit.SlurmJob(tmp_path / "jobs", f"7_{number}")
    where.cancel(runs)
    assert (slurm / "cancelled").read_text().split() == ["7_1"]


@pytest.mark.parametrize("text", ["", "[1]", '{"run0": 7}', '{"run0": "7', "[" * 10_000])
def test_a_damaged_file_of_job_ids_is_one_sentence(slurm, tmp_path, text):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "slurm_jobs.json").write_text(text)
    with pytest.raises(RunError, match=r"slurm_jobs.json is damaged.*Remove it"):
        places.Slurm(tmp_path / "jobs", parser().parse_args(["--cluster", "slurm"]), "tiny-sweep")


def test_jobs_that_cannot_be_written_down_are_cancelled(slurm, tmp_path, monkeypatch):
    where = places.Slurm(tmp_path / "jobs", parser().parse_args(["--cluster", "slurm"]), "tiny-sweep")

    def full(path, data):
        raise RunError("No space left on device")

    monkeypatch.setattr(places, "write_atomically", full)
    with pytest.raises(RunError, match="No space"):
        where.submit([make_run(tmp_path, f"run{index}") for index in range(2)])
    assert (slurm / "cancelled").read_text().split() == ["7_0", "7_1"]


def test_a_name_that_sbatch_would_change_is_refused_before_it_is_called(slurm, tmp_path):
    with pytest.raises(ConfigError, match="sbatch replaces %j"):
        places.Slurm(tmp_path / "100%A" / "jobs", parser().parse_args(["--cluster", "slurm"]), "tiny-sweep")
    assert not (slurm / "submitted").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks into the current folder first")
def test_a_module_of_the_current_folder_is_not_taken_for_pythons(tmp_path):
    """Neither by the process of submitit nor by the training that it starts."""
    (tmp_path / "queue.py").write_text("open('queue was run', 'w')\n")
    python = shlex.split(places.python_command())
    done = subprocess.run(
        [*python, "-m", "submitit.core._submit", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    job = TrainingJob(["--help"], str(tmp_path), str(tmp_path), {"PYTHONPATH": None}, str(ROOT))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert job() == 0, (tmp_path / "screen.log").read_text()
    finally:
        signal.signal(signal.SIGTERM, before)
    text = (tmp_path / "screen.log").read_text()
    assert text.startswith("$ yolox-loss train --help") and "usage:" in text
    assert not (tmp_path / "queue was run").exists()


def test_the_screen_of_a_training_follows_no_link(tmp_path):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "screen.log").symlink_to(tmp_path / "mine")
    job = TrainingJob(["--help"], str(tmp_path), str(tmp_path), {}, str(ROOT))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(OSError):
            job()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.slow
def test_what_slurm_says_when_it_refuses_is_passed_on(slurm, work, monkeypatch, capsys):
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: nope' >&2; exit 1\n")
    (slurm / "queue").write_text("")
    monkeypatch.chdir(work)
    assert cli.main([*SWEEP, "--seeds", "0,1", "--cluster", "slurm", "--partition", "nope"]) == 2
    error = capsys.readouterr().err
    assert "Slurm did not take the jobs" in error and "invalid partition" in error and "Traceback" not in error
    assert not Path(work / "YOLOX_outputs" / "tiny-seed0").exists()
