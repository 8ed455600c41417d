"""Sweeps: names, what is refused, real runs through submitit that are interrupted, fail and go on, and the screen."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from yolox_loss_patch import cli as command
from yolox_loss_patch.errors import ConfigError
from yolox_loss_patch.runs.claim import Claim
from yolox_loss_patch.runs.process import is_alive
from yolox_loss_patch.runs.record import read_run
from yolox_loss_patch.sweep import plan, schedule
from yolox_loss_patch.sweep.screen import Screen
from yolox_loss_patch.sweep.training import PlannedTraining

SWEEP = ("sweep", "-f", "tiny.py", "-b", "8", "--device", "cpu")


@pytest.mark.parametrize(
    "text,values",
    [
        ("bce", ["bce"]),
        ("bce,focal, varifocal", ["bce", "focal", "varifocal"]),
        ("bce,{'type':'focal','alpha':0.75}", ["bce", "{'type':'focal','alpha':0.75}"]),
        ("(256,320),[64,64]", ["(256,320)", "[64,64]"]),
        ("'a,b',\"c,'\"", ["'a,b'", '"c,\'"']),
        ("{'a':'}'},2", ["{'a':'}'}", "2"]),
    ],
)
def test_values_are_split_at_commas_of_their_own(text, values):
    assert plan.split_values(text) == values


@pytest.mark.parametrize("text", ["", "bce,", ",bce", "bce,,focal", "{'type':'focal'", "focal}", "(1]", "'bce"])
def test_broken_values_are_refused(text):
    with pytest.raises(ConfigError, match="--set"):
        plan.split_values(text)


@pytest.mark.parametrize(
    "key,value,expected",
    [
        ("loss_obj", "bce", "obj_bce"),
        ("loss_obj.gamma", "1", "obj.gamma_1"),
        ("loss_obj", "{'type':'focal','alpha':0.75}", "obj_focal_alpha0.75"),
        ("loss_obj", "{'alpha': 0.5, 'type': 'focal', 'sampler': {'type': 'RandomSampler', 'num': 9}}",
         "obj_focal_alpha0.5_samplerRandomSampler_num9"),
        ("input_size", "(256, 320)", "input_size_256_320"),
        ("data_dir", "/data/my set", "data_dir_data_my_set"),
        ("min_lr_ratio", "-1e-5", "min_lr_ratio_-1e-5"),
    ],
)  # fmt: skip
def test_labels(key, value, expected):
    assert plan.label(key, value) == expected


def test_a_long_label_is_cut_and_still_tells_values_apart():
    first, second = (
        plan.label("loss_cls", f"{{'type':'bce','class_weight':{[1.5] * 79 + [last]}}}") for last in (1, 2)
    )
    assert first != second and len(first) == len(second) == 80 and re.fullmatch(r"[A-Za-z0-9._-]+", first)


def test_a_dry_run_prints_each_command_and_starts_nothing(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    words = [
        "--set",
        "loss_obj.gamma=1,2",
        "--set",
        "loss_iou=iou,ciou",
        "--seeds",
        "0,4",
        "-expn",
        "mine",
        "--dry-run",
    ]
    assert command.main([*SWEEP, *words, "--fp16", "loss_obj", "focal", "max_epoch", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.removesuffix(": train") for line in lines[::2]]
    assert names[0] == "mine-obj.gamma_1-iou_iou-seed0" and names[-1] == "mine-obj.gamma_2-iou_ciou-seed4"
    assert len(names) == len(set(names)) == 8
    assert (
        lines[-1].split()
        == (
            f"yolox-loss train -f tiny.py -b 8 --device cpu --fp16 -expn {names[-1]} "
            "loss_obj focal max_epoch 2 loss_obj.gamma 2 loss_iou ciou seed 4"
        ).split()
    )
    assert not (work / "YOLOX_outputs").exists()


# words of the command, words of the answer
WRONG = [
    (["--set", "loss_obj"], ["--set is KEY=VALUE", "'loss_obj'"]),
    (["--set", "=bce"], ["--set is KEY=VALUE"]),
    (["--set", "loss_obj=bce,"], ["empty value", "'bce,'"]),
    (["--set", "loss_obj=bce,focal,bce"], ["--set loss_obj has 'bce' twice"]),
    (["--set", "loss_obj=bce", "--set", "loss_obj=focal"], ["'loss_obj' twice"]),
    (["--set", "loss_iou=iou", "--set", "loss_bbox=ciou"], ["'loss_iou' twice"]),
    (["--set", "loss_obj=bce,focl"], ["With loss_obj=focl", "Did you mean 'focal'"]),
    (["--set", "los_obj=bce"], ["no setting 'los_obj'", "Did you mean 'loss_obj'"]),
    (["--set", "loss_obj=bce", "--set", "loss_obj.gamma=1,2"], ["With loss_obj=bce, loss_obj.gamma=1", "gamma"]),
    (["--set", "max_epoch=0"], ["With max_epoch=0", "at least 1"]),
    (["--set", "data_dir=/a b,/a_b"], ["Two combinations", "data_dir_a_b-seed0"]),
    (["--set", "seed=1,2"], ["--seeds"]),
    (["--set", "output_dir=a,b"], ["output_dir", "-expn"]),
    (["--seeds", "0,1,0"], ["--seeds has 0 twice"]),
    (["--seeds", "0,one"], ["whole numbers", "0,one"]),
    (["--seeds", "-1"], ["--seeds"]),
    (["seed", "3"], ["seed stands in --seeds and in the trailing"]),
    (["--set", "loss_iou=iou", "loss_bbox", "ciou"], ["loss_iou stands in --set and in the trailing"]),
    (["max_epochs", "3"], ["Did you mean 'max_epoch'"]),
    (["--resume"], ["resumes by itself"]),
    (["-e", "3"], ["resumes by itself"]),
    (["--num_machines", "2"], ["--num_machines"]),
    (["--jobs", "0"], ["--jobs is a number above 0"]),
    (["-d", "0"], ["-d is at least 1"]),
    (["--partition", "gpu"], ["--partition is for a cluster", "--cluster slurm"]),
    (["--cluster", "slurm", "--time", "0"], ["--time is a number above 0"]),
    (["--cluster", "slurm"], ["sbatch, srun, squeue and scancel are not all here"]),
]


@pytest.mark.parametrize("words,answers", WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_a_mistake_is_one_clear_message_and_nothing_is_started(words, answers, work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", str(work))  # where no Slurm is
    assert command.main([*SWEEP, *words]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for answer in answers:
        assert answer in error
    assert not list(work.glob("YOLOX_outputs/*seed*"))


@pytest.mark.parametrize("words", [["--cluster", "pbs"], ["--nonsense", "1"]])
def test_an_unknown_option_is_an_exit_status(words, work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    with pytest.raises(SystemExit) as error:
        command.main([*SWEEP, *words])
    assert error.value.code == 2 and words[0] in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Real runs.

TRAPS = """
    def preprocess(self, inputs, targets, tsize):
        import os, time
        self.calls = getattr(self, "calls", 0) + 1
        if os.environ.get("HANG") and self.calls == 4:
            time.sleep(600)
        if os.environ.get("BROKEN") and self.loss_iou == "giou":
            raise OSError("disk on fire")
        return super().preprocess(inputs, targets, tsize)
"""


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_goes_on_by_the_same_command_past_a_run_that_fails(work, monkeypatch, capsys):
    """Ctrl-C in the second epoch of the first of three runs; then the same command, and the second run fails."""
    with (work / "tiny.py").open("a") as file:
        file.write(TRAPS)
    words = [*SWEEP, "--set", "loss_iou=iou,giou,ciou", "--seeds", "5"]
    iou, giou, ciou = (work / "YOLOX_outputs" / f"tiny-iou_{name}-seed5" for name in ("iou", "giou", "ciou"))

    first = subprocess.Popen(
        [sys.executable, "-m", "yolox_loss_patch", *words, "max_epoch", "2"],
        cwd=work, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HANG": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may run the tests without
    )  # fmt: skip
    try:
        wait_for(lambda: first.poll() is not None or (read_run(iou) or {}).get("epochs_done") == 1)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        text = first.communicate(timeout=100)[0]
    finally:
        first.kill()
    assert first.returncode == 130, text
    assert "Traceback" not in text and "The same command goes on" in text
    record = read_run(iou)
    assert record["status"] == "interrupted" and not is_alive(record["pid"])
    assert not giou.exists() and not ciou.exists()

    monkeypatch.chdir(work)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("BROKEN", "1")
    assert command.main([*words, "--jobs", "2", "max_epoch", "2"]) == 2
    second = capsys.readouterr()
    assert "Traceback" not in second.err
    assert second.out.startswith("3 runs: 1 to resume, 2 to train; 2 at a time on this machine (no GPU")
    assert f"{giou.name} failed: OSError: disk on fire\n    {giou.relative_to(work) / 'screen.log'}" in second.out
    assert "1 of 3 runs did not finish" in second.err
    assert [read_run(run)["status"] for run in (iou, giou, ciou)] == ["finished", "failed", "finished"]
    assert read_run(iou)["resumed"] == [{"epoch": 1, "was": "interrupted", "workers": 1, "exact": True}]
    facts = read_run(ciou)
    assert facts["resolved_losses"]["iou"]["type"] == "ciou" and facts["seed"] == 5 and facts["exp"]["max_epoch"] == 2
    # a line for each change in a log, the table at the end, and the comparison of what is there
    assert re.search(rf"\d\d:\d\d:\d\d {ciou.name}: finished, epoch 2/2, AP last 0\.\d+, best 0\.\d+, time 0:00:\d\d\n",
                     second.out)  # fmt: skip
    assert re.search(rf"^{giou.name} +failed +0/2 +- +- +- +-$", second.out, re.MULTILINE)
    report = (work / "YOLOX_outputs" / "tiny-sweep" / "comparison.md").read_text()  # a run that was resumed is in it
    assert iou.name in report and ciou.name in report and giou.name not in report

    assert command.main([*words, "--dry-run", "max_epoch", "2"]) == 0
    planned = re.findall(r"^(tiny\S+): (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert planned == [(iou.name, "skip (finished)"), (giou.name, "train"), (ciou.name, "skip (finished)")]
    assert command.main([*words, "--dry-run", "max_epoch", "3"]) == 2
    error = capsys.readouterr().err
    assert error.count("max_epoch: 2 there, 3 now") == 2 and "-expn" in error
    assert command.main([*words, "--dry-run", "max_epoch", "2", "random_size", "(3,3)"]) == 2
    assert capsys.readouterr().err.count("random_size: [2, 4] there, [3, 3] now") == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pipe", "SIGKILL", "SIGHUP"])
def test_no_training_outlives_its_sweep(work, how):
    """``sweep ... | head -2``, ``kill -9``, a closed terminal: the training ends, and says so in its record."""
    sweep = subprocess.Popen(
        [sys.executable, "-m", "yolox_loss_patch", *SWEEP, "--seeds", "5", "max_epoch", "500"],
        cwd=work, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )  # fmt: skip
    run = work / "YOLOX_outputs" / "tiny-seed5"
    try:
        assert sweep.stdout.readline().startswith("1 runs: 1 to train")
        assert any("running, epoch 1/500" in line for line in sweep.stdout)
        if how == "pipe":
            sweep.stdout.close()
        else:
            sweep.send_signal(signal.Signals[how])
        assert sweep.wait(100) == {"pipe": 1, "SIGKILL": -9, "SIGHUP": 130}[how]
        wait_for(
            lambda: (read_run(run) or {}).get("status") == "interrupted" and not is_alive(read_run(run)["pid"]), 60
        )
    finally:
        sweep.kill()
    assert read_run(run)["error"] == "stopped by SIGTERM"
    told = "The sweep that started this training is gone" in (run / "screen.log").read_text()
    assert told == (how == "SIGKILL")


def test_a_run_that_another_process_holds_is_waited_for(tmp_path):
    """Whoever holds it, here or on another machine: it is not started a second time, and used when it is free."""
    run = PlannedTraining("run", tmp_path / "run", ["-f", "tiny.py"], max_epoch=2)
    claim = Claim(run.folder)
    (run.folder / ".claim.1").write_text('{"token": "x", "pid": 7, "machine": "elsewhere"}')
    run.plan()
    assert run.todo == "wait" and not schedule.has_ended(run, None)
    (run.folder / ".claim.1").unlink()
    claim.release()
    assert schedule.has_ended(run, None) and (run.todo, run.state) == ("train", "queued")
    (run.folder / "run.json").write_text('{"status": "finished"}')
    assert schedule.has_ended(run, None) and (run.todo, run.state) == ("skip", "finished")


def test_a_folder_with_weights_but_no_record_is_not_entered(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    run = work / "YOLOX_outputs" / "tiny-seed0"
    run.mkdir(parents=True)
    (run / "best_ckpt.pth").write_bytes(b"precious")
    assert command.main([*SWEEP, "--seeds", "0"]) == 2
    assert "without a record" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# The screen.


def test_on_a_terminal_the_table_is_redrawn_in_place_and_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("COLUMNS", "40")
    screen = Screen()
    screen.in_place = True
    names = [f"a_run_with_a_rather_long_name{index}" for index in range(9)]
    runs = [PlannedTraining(name, tmp_path / name, ["-f", "tiny.py"], max_epoch=4) for name in names]
    runs[7].state, runs[8].state = "running", "failed"
    screen.show(runs)
    first = capsys.readouterr().out
    assert "name7" in first and "name8" in first and "... and 4 more" in first and "\x1b" not in first
    assert len(first.splitlines()) <= 9 and max(map(len, first.splitlines())) < 40
    screen.show(runs)
    assert not capsys.readouterr().out  # nothing new
    screen.show(runs[:2])
    assert capsys.readouterr().out.startswith(f"\x1b[{len(first.splitlines())}F\x1b[J")
    screen.end(runs)  # all of it
    last = capsys.readouterr().out
    assert last.startswith("\x1b[5F\x1b[J") and last.count("a_run_with_a_rather_long_name") == 9
