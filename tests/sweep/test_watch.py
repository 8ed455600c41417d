"""``watch``: what it shows of runs that others train, and that it leaves them as they are."""

import os

import pytest
from made_runs import edit, make_data, make_run

from yolox_loss_patch import cli
from yolox_loss_patch.runs.process import birth
from yolox_loss_patch.sweep.watch import row, runs_of, spark


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    data = make_data(tmp_path / "data", images=3)
    folder = tmp_path / "YOLOX_outputs"
    make_run(folder / "tiny-iou_iou-seed0", data)
    make_run(folder / "tiny-iou_ciou-seed0", data, status="running", losses={"loss_iou": "ciou"})
    edit(folder / "tiny-iou_ciou-seed0", epochs_done=2, pid=os.getpid(), pid_born=birth(os.getpid()),
         machine=os.uname().nodename, exp={"max_epoch": 8})  # fmt: skip
    (folder / "tiny-sweep").mkdir()
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_sweep_is_shown_with_progress_time_left_and_curves(outputs, capsys):
    before = {path: path.stat().st_mtime_ns for path in outputs.rglob("*")}
    assert cli.main(["watch", "tiny-sweep", "--once"]) == 0
    text = capsys.readouterr().out
    running, finished = (next(line for line in text.splitlines() if name in line) for name in ("ciou", "iou_iou"))
    assert "running" in running and "2/8" in running and "0:00:09" in running  # 1.5 s an epoch, six to go
    assert "finished" in finished and "█" in finished
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("*")} == before


def test_a_killed_run_an_empty_folder_and_a_damaged_one(outputs):
    edit(outputs / "tiny-iou_ciou-seed0", pid=2**22 + 1)
    assert row(outputs / "tiny-iou_ciou-seed0")[1] == "killed"
    assert row(outputs / "tiny-sweep")[1] == "starting"
    (outputs / "tiny-iou_iou-seed0" / "run.json").write_text("{")
    assert row(outputs / "tiny-iou_iou-seed0")[1].startswith("cannot be read: ")


def test_it_ends_when_nothing_is_in_training(outputs, capsys):
    edit(outputs / "tiny-iou_ciou-seed0", status="failed")
    assert cli.main(["watch", "tiny-*"]) == 0
    assert capsys.readouterr().out.count("tiny-iou_ciou-seed0") == 1


def test_runs_are_found_by_name_glob_and_sweep(outputs):
    assert [path.name for path in runs_of(["tiny-sweep"])] == ["tiny-iou_ciou-seed0", "tiny-iou_iou-seed0"]
    assert [path.name for path in runs_of(["tiny-iou_iou-seed0", "tiny-*"])] == [
        "tiny-iou_iou-seed0",
        "tiny-iou_ciou-seed0",
    ]


@pytest.mark.parametrize(
    "words,answer", [(["gone"], "There is no folder 'gone'"), (["tiny-sweep", "--every", "0"], "at least 0.5")]
)
def test_a_mistake_is_answered(outputs, capsys, words, answer):
    assert cli.main(["watch", *words]) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize(
    "values,curve",
    [
        ([], "-"),
        ([1.0], "▁"),
        ([0, 1], "▁█"),
        ([1, float("nan"), 0], "█▁"),
        ([2, 2], "▁▁"),
        (list(range(8)), "▁▂▃▄▅▆▇█"),
    ],
)
def test_a_curve(values, curve):
    assert spark(values) == curve


def test_a_long_curve_fits_and_ends_with_the_last_value():
    curve = spark([*range(99), 0], width=10)
    assert len(curve) == 10 and curve[-1] == "▁" and curve[-2] == "█"
