"""Training: repeatable, resumable to the bit, honest about its end."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import EXP, assert_same, checkpoint, cli, cli_here

from yolox_loss_patch.cli import main
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.runs.claim import Claim
from yolox_loss_patch.runs.predictions import evaluation_file, predictions_file
from yolox_loss_patch.runs.record import AP_COLUMNS, read_metrics
from yolox_loss_patch.runs.selection import facts as facts_of
from yolox_loss_patch.runs.selection import read
from yolox_loss_patch.train.checkpoints import Checkpoints

TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu")


def run_folder(work, name="tiny"):
    return work / "YOLOX_outputs" / name


def without_costs(folder):
    """The rows of a run's metrics without time and memory, which no two runs share."""
    return [{key: row[key] for key in row if key not in ("seconds", "memory_mib")} for row in read_metrics(folder)]


def record(folder):
    return json.loads((folder / "run.json").read_text())


def crash_at(epoch, iteration=1):
    """Lines for an experiment file: the process is killed as by ``kill -9`` in this epoch."""
    return f"""
    def preprocess(self, inputs, targets, tsize):
        import os, signal
        self.calls = getattr(self, "calls", 0) + 1
        if os.environ.get("CRASH") and self.calls == {3 * (epoch - 1) + iteration}:
            os.kill(os.getpid(), signal.{{signal}})
        return super().preprocess(inputs, targets, tsize)
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory, digits):
    """Four epochs without a stop, with other losses; 3 iterations each."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "tiny.py").write_text(EXP.format(data=str(digits)))
    done = cli(folder, *TRAIN, "loss_obj", "varifocal", "loss_iou", "ciou")
    return folder, done


LOSSES = ("loss_obj", "varifocal", "loss_iou", "ciou")


@pytest.mark.slow
def test_a_run_leaves_what_the_design_says(straight):
    folder, done = straight
    run = run_folder(folder)
    facts = record(run)
    assert facts["status"] == "finished" and facts["error"] is None and facts["epochs_done"] == 4
    assert facts["losses"]["loss_obj"] == "varifocal"
    assert facts["resolved_losses"]["obj"] == {
        "type": "varifocal", "alpha": 0.75, "gamma": 2.0, "iou_weighted": True, "calibrated": False,
        "loss_weight": 1.0, "reduction": "mean", "avg_factor": "num_fg", "target": "iou", "sampler": None, "level_weights": None,
    }  # fmt: skip
    assert facts["seed"] == 3 and facts["exp"]["max_epoch"] == 4 and facts["args"]["batch_size"] == 8
    assert facts["data"]["train"]["images"] == 24 and len(facts["data"]["train"]["sha256"]) == 64
    assert facts["host"]["get_losses"] and facts["versions"]["torch"] == torch.__version__
    rows = read_metrics(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    # every second epoch, and every one in the last no_aug_epochs, as YOLOX does it
    assert [row["AP"] is not None for row in rows] == [False, True, True, True]
    for row in rows:
        assert row["total_loss"] == pytest.approx(
            row["iou_loss"] + row["conf_loss"] + row["cls_loss"] + row["l1_loss"], rel=1e-5
        )
        assert 0 < row["fg_iou"] < 1 and 0 < row["obj_fg"] < 1 and 0 < row["obj_bg"] < 1 and row["seconds"] > 0
    assert rows[0]["l1_loss"] == 0 and rows[2]["l1_loss"] > 0
    for name in ("latest", "last_epoch", "last_mosaic_epoch"):
        saved = checkpoint(run, name)
        assert set(saved) == {"start_epoch", "model", "optimizer", "best_ap"}
        assert type(saved["best_ap"]) is float
    for row in rows:
        assert predictions_file(run, int(row["epoch"])).is_file() == (row["AP"] is not None)
    assert rows[3]["memory_mib"] >= rows[0]["memory_mib"] > 100
    for name, hashes in facts["files"].items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == hashes[0], name
    assert {"latest_ckpt.pth", "last_epoch_ckpt.pth"} <= set(facts["files"])
    text = done.stderr
    assert re.search(r"total_loss: \d+\.\d{4}, .*ETA: 0:\d\d:\d\d", text)
    assert "mean foreground IoU" in text and "24 images" in text
    assert "Warning" not in text and "Traceback" not in text, text
    assert (run / "train_log.txt").read_text().count("ETA") == 12


@pytest.mark.slow
def test_tensorboard_has_yoloxs_tags(straight):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder(straight[0]) / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    losses = ("total_loss", "iou_loss", "conf_loss", "cls_loss", "l1_loss", "lr", "fg_iou", "obj_fg", "obj_bg")
    assert tags == {f"train/{name}" for name in losses} | {"val/COCOAP50", "val/COCOAP50_95"}


@pytest.mark.slow
def test_the_same_command_gives_the_same_weights_with_any_number_of_workers(straight, work):
    cli_here(work, *TRAIN, *LOSSES, "data_num_workers", "2")
    one, two = run_folder(straight[0]), run_folder(work)
    assert_same(checkpoint(one)["model"], checkpoint(two)["model"])
    assert without_costs(one) == without_costs(two)


@pytest.mark.slow
def test_another_seed_gives_other_weights(straight, work):
    cli_here(work, *TRAIN, *LOSSES, "seed", "4", "max_epoch", "1")
    one, two = checkpoint(run_folder(straight[0]))["model"], checkpoint(run_folder(work))["model"]
    assert not torch.equal(one["head.obj_preds.0.bias"], two["head.obj_preds.0.bias"])


@pytest.mark.slow
@pytest.mark.parametrize("epoch,iteration,sign", [(3, 1, "SIGKILL"), (4, 2, "SIGTERM")])
def test_a_run_that_was_stopped_goes_on_exactly(straight, work, epoch, iteration, sign):
    """Killed in an epoch, resumed: the weights of a run that was never stopped, bit for bit."""
    with (work / "tiny.py").open("a") as file:
        file.write(crash_at(epoch, iteration).format(signal=sign))
    stopped = cli(work, *TRAIN, *LOSSES, check=False, CRASH="1")
    run = run_folder(work)
    if sign == "SIGKILL":
        assert stopped.returncode == -signal.SIGKILL
        assert record(run)["status"] == "running" and record(run)["pid"] > 0 and record(run)["started"]
    else:
        assert stopped.returncode == 130 and "--resume" in stopped.stderr
        assert record(run)["status"] == "interrupted" and "SIGTERM" in record(run)["error"]
    assert record(run)["epochs_done"] == epoch - 1
    again = cli_here(work, *TRAIN, *LOSSES, check=False)  # --resume forgotten: nothing may be lost
    assert again.returncode == 2 and "--resume" in again.stderr
    resumed = cli_here(work, *TRAIN, "--resume", *LOSSES)
    assert "resumed exactly" in resumed.stderr
    one, two = checkpoint(run_folder(straight[0])), checkpoint(run)
    assert_same(one["model"], two["model"])
    assert one["best_ap"] == two["best_ap"]
    momentum = [state["momentum_buffer"] for state in one["optimizer"]["state"].values()]
    other = [state["momentum_buffer"] for state in two["optimizer"]["state"].values()]
    assert all(map(torch.equal, momentum, other))
    assert record(run)["status"] == "finished" and record(run)["resumed"][0]["epoch"] == epoch - 1
    assert without_costs(run_folder(straight[0])) == without_costs(run)
    kept = [
        sorted(path.name for path in (folder / "predictions").iterdir()) for folder in (run_folder(straight[0]), run)
    ]
    assert kept[0] == kept[1] == ["epoch_2.json.gz", "epoch_3.json.gz", "epoch_4.json.gz"]


def write_record(run, facts):
    """A record as somebody leaves it who edited it and took its checksum out."""
    (run / "run.json").write_text(json.dumps({key: value for key, value in facts.items() if key != "sha256"}))


@pytest.mark.slow
def test_a_resume_with_other_settings_or_data_says_so_and_is_not_exact(straight, work, digits):
    """It goes on, as in YOLOX, but is not the run that the same settings would have given."""
    shutil.copytree(straight[0] / "YOLOX_outputs", work / "YOLOX_outputs")
    shutil.copytree(digits, work / "digits")
    annotations = work / "digits" / "annotations" / "instances_train2017.json"
    coco = json.loads(annotations.read_text())
    annotations.write_text(json.dumps({**coco, "annotations": coco["annotations"][: len(coco["annotations"]) // 2]}))
    with (work / "tiny.py").open("a") as file:
        file.write("\n    def random_resize(self, *args):\n        return (96, 96)\n")
    run = run_folder(work)
    facts = {**record(run), "exp": {**record(run)["exp"], "data_dir": str(work / "digits")}}
    write_record(run, facts)
    words = ("data_dir", str(work / "digits"), "max_epoch", "5")
    done = cli_here(work, "train", "-f", "tiny.py", "-b", "4", "--fp16", "--device", "cpu", "--resume", *LOSSES, *words)
    changed = record(run)["resumed"][0]["changed"]
    assert changed[:4] == ["max_epoch: 4 before, 5 now", "-b: 8 before, 4 now", "--fp16: False before, True now",
                           "the code of random_resize()"]  # fmt: skip
    assert re.fullmatch(r"train annotations \(sha256\): \w{12} before, \w{12} now", changed[4]) and len(changed) == 5
    assert not record(run)["resumed"][0].get("exact") and "resumed exactly" not in done.stderr
    assert "not as if it had never been stopped: max_epoch: 4 before, 5 now; -b" in done.stderr
    assert "goes on with other data: train annotations" in done.stderr
    assert facts_of(read(run))["resumed"].startswith("yes (max_epoch: 4 before, 5 now; -b: 8 before, 4 now; ")


# what the record says of the run before, what the resume says of it
MOVED_BITS = [
    ({"threads": 2}, "threads: 2 before, 1 now"),
    ({"cpu": "another"}, "CPU: 'another' before, "),
    ({"device": "cuda: another"}, "device: 'cuda: another' before, 'cpu' now"),
    ({"versions": {"numpy": "1"}}, "numpy: '1' before, "),
    ({"versions": {"opencv": "1"}}, "opencv: '1' before, "),
    ({"versions": {"python": "2"}}, "python: '2' before, "),
    ({"determinism": {"cudnn.benchmark": True}}, "cudnn.benchmark: True before, False now"),
]


@pytest.mark.slow
def test_a_resume_says_exactly_only_where_nothing_moves_the_last_bits(straight, work):
    shutil.copytree(straight[0] / "YOLOX_outputs", work / "YOLOX_outputs")
    run = run_folder(work)
    before = record(run)
    for changes, answer in MOVED_BITS:
        facts = {
            **before,
            **{key: {**before[key], **value} if isinstance(value, dict) else value for key, value in changes.items()},
        }
        write_record(run, facts)
        done = cli_here(work, *TRAIN, "--resume", *LOSSES)
        assert "resumed exactly" not in done.stderr
        assert f"not as if it had never been stopped: {answer}" in done.stderr and not record(run)["resumed"][0].get(
            "exact"
        )
    write_record(run, before)
    assert "resumed exactly" in cli_here(work, *TRAIN, "--resume", *LOSSES).stderr


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _drop(path, key):
    torch.save({name: value for name, value in torch.load(path).items() if name != key}, path)


# what is done to the run's folder, and words of the answer
DAMAGES = [
    (lambda run: _flip(run / "latest_ckpt.pth"), "is damaged or was replaced"),
    (lambda run: (run / "latest_ckpt.pth").write_bytes(b""), "it is empty"),
    (lambda run: _flip(run / "resume_state.pth"), "remove resume_state.pth, and --resume goes on from the EMA weights"),
    (lambda run: _drop(run / "best_ckpt.pth", "optimizer"), "no state to resume from (no 'optimizer')"),
]


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_a_resume_in_one_sentence(straight, work):
    run = run_folder(work)
    for damage, answer in DAMAGES:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(run_folder(straight[0]), run)
        shutil.copy(run / "latest_ckpt.pth", work / "best_ckpt.pth")
        words = ["-c", "best_ckpt.pth"] if "optimizer" in answer else []
        damage(work if words else run)
        done = cli_here(work, *TRAIN, "--resume", *words, *LOSSES, check=False)
        assert done.returncode == 2 and answer in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert record(run)["status"] == "failed" and not list(run.glob(".claim*"))


@pytest.mark.slow
def test_a_full_disk_fails_the_run_in_one_sentence_and_it_goes_on_later(straight, work, monkeypatch):
    """The disk is full when the third epoch's checkpoint is written."""
    save, calls = torch.save, []

    def full(state, file):
        calls.append(state)
        if state.get("start_epoch") == 3:
            file.write(b"half of it")
            raise RuntimeError("unexpected pos 576 vs 534") from OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    done = cli_here(work, *TRAIN, *LOSSES, check=False)
    run = run_folder(work)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "latest_ckpt.pth' cannot be written: No space left on device" in done.stderr
    assert "The last checkpoint is whole; go on with --resume." in done.stderr
    assert record(run)["status"] == "failed" and "No space left" in record(run)["error"]
    assert [path.name for path in run.glob(".*")] == [".resume_state.pth.next"]
    monkeypatch.undo()
    assert "resumed exactly" in cli_here(work, *TRAIN, "--resume", *LOSSES).stderr
    assert_same(checkpoint(run)["model"], checkpoint(run_folder(straight[0]))["model"])


@pytest.mark.slow
def test_a_resume_of_a_finished_run_leaves_its_record(straight, work):
    shutil.copytree(straight[0] / "YOLOX_outputs", work / "YOLOX_outputs")
    before = record(run_folder(work))
    cli_here(work, *TRAIN, "--resume", *LOSSES)
    after = record(run_folder(work))
    assert {key: after[key] for key in ("epochs_done", "best_ap", "status")} == {
        key: before[key] for key in ("epochs_done", "best_ap", "status")
    }
    assert after["epochs_done"] == 4 and after["resumed"][0]["exact"]
    assert without_costs(run_folder(work)) == without_costs(run_folder(straight[0]))


@pytest.mark.slow
def test_what_an_experiment_keeps_besides_plain_values_does_not_stop_a_resume(work):
    """An object's repr has its address, and a set its order, which are others in each process."""
    with (work / "tiny.py").open("a") as file:
        file.write("        self.aug, self.animals = object(), {'cow', 'cat', 'dog', 'hen'}\n")
    cli(work, *TRAIN, "max_epoch", "1", PYTHONHASHSEED="1")
    cli(work, *TRAIN, "--resume", "max_epoch", "1", PYTHONHASHSEED="2")
    assert record(run_folder(work))["resumed"][0]["exact"]


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_twice_still_writes_its_record(work):
    """A cluster tells all processes of a job, and the one that started them passes it on."""
    with (work / "tiny.py").open("a") as file:
        file.write("""
    def preprocess(self, inputs, targets, tsize):
        import os, signal
        from yolox_loss_patch.runs.record import RunRecord
        def finish(record, *args, write=RunRecord.finish):
            os.kill(os.getpid(), signal.SIGTERM)
            write(record, *args)
        RunRecord.finish = finish
        os.kill(os.getpid(), signal.SIGTERM)
        return super().preprocess(inputs, targets, tsize)
""")
    assert cli(work, *TRAIN, check=False).returncode == 130
    assert record(run_folder(work))["status"] == "interrupted"


@pytest.mark.slow
def test_a_stop_that_comes_with_an_error_still_leaves_a_record(work):
    """An error out of C code with a SIGTERM waiting, as when another worker is lost: Python sees the signal only after it."""
    with (work / "tiny.py").open("a") as file:
        file.write("""
    def preprocess(self, inputs, targets, tsize):
        import ctypes, itertools, operator
        list(map(ctypes.pythonapi.PyErr_SetInterruptEx, itertools.chain([15], map(operator.floordiv, [1], [0]))))
""")
    done = cli(work, *TRAIN, check=False)
    assert done.returncode != 0
    facts = record(run_folder(work))
    assert facts["status"] in ("failed", "interrupted") and facts["ended"], done.stderr[-2000:]


SCHEDULE = ("loss_iou", "[{'type': 'iou', 'loss_weight': {1: 1, 4: 0}}, {'type': 'ciou', 'loss_weight': {1: 0, 4: 1}}]")
SUM = ("loss_obj", "bce+0.5*dice")


@pytest.mark.slow
def test_sums_and_schedules_are_trained_recorded_and_resumed_exactly(work):
    cli_here(work, *TRAIN, *SCHEDULE, *SUM, "exp_name", "straight")
    rows = read_metrics(run_folder(work, "straight"))
    assert len(rows) == 4
    for row in rows:
        parts = [name for name in row if name.startswith("obj ")]
        assert parts == ["obj bce", "obj 0.5*dice"]
        assert sum(row[name] for name in parts) == pytest.approx(row["conf_loss"], rel=1e-5)
        boxes = [name for name in row if name.startswith("iou ")]
        assert len(boxes) == 2 and sum(row[name] for name in boxes) == pytest.approx(row["iou_loss"], rel=1e-5)
        iou, ciou = (row[name] for name in boxes)
        assert (ciou == 0) == (row["epoch"] == 1) and (iou == 0) == (row["epoch"] == 4)
    with (work / "tiny.py").open("a") as file:
        file.write(crash_at(3).format(signal="SIGKILL"))
    assert cli(work, *TRAIN, *SCHEDULE, *SUM, check=False, CRASH="1").returncode == -signal.SIGKILL
    cli_here(work, *TRAIN, "--resume", *SCHEDULE, *SUM)
    assert_same(checkpoint(run_folder(work, "straight"))["model"], checkpoint(run_folder(work))["model"])


@pytest.mark.slow
def test_losses_with_a_memory_go_on_exactly_and_the_l1_term_starts_when_asked(work):
    """Their running means are no weights and stand in no checkpoint, yet a resumed run has them."""
    losses = (
        "loss_obj", "{'type': 'ghmc', 'momentum': 0.5}", "loss_iou", "wiou", "loss_l1.start_epoch", "2", "max_epoch", "3",
    )  # fmt: skip
    cli_here(work, *TRAIN, *losses, "exp_name", "straight")
    with (work / "tiny.py").open("a") as file:
        file.write(crash_at(3).format(signal="SIGKILL"))
    assert cli(work, *TRAIN, *losses, check=False, CRASH="1").returncode == -signal.SIGKILL
    cli_here(work, *TRAIN, "--resume", *losses)
    assert_same(checkpoint(run_folder(work, "straight"))["model"], checkpoint(run_folder(work))["model"])
    assert [row["l1_loss"] > 0 for row in read_metrics(run_folder(work))] == [False, True, True]


@pytest.mark.slow
def test_a_kill_between_the_two_files_of_a_checkpoint_loses_nothing(straight, work):
    """The state for resuming has two names, and one of them fits whatever ``latest_ckpt.pth`` is."""
    source, run = run_folder(straight[0]), work / "run"
    shutil.copytree(source, run)
    read_state = Checkpoints(run, torch.device("cpu")).read_state
    os.replace(run / "resume_state.pth", run / ".resume_state.pth.next")
    torch.save({"epoch": 3, "model": {}}, run / "resume_state.pth")
    assert read_state(run / "latest_ckpt.pth", 4)["epoch"] == 4
    assert read_state(run / "latest_ckpt.pth", 3)["epoch"] == 3
    assert read_state(run / "latest_ckpt.pth", 2) is None


@pytest.mark.slow
def test_another_configuration_does_not_enter_the_folder(straight):
    folder, _ = straight
    before = checkpoint(run_folder(folder))["model"]
    done = cli_here(folder, *TRAIN, "loss_obj", "varifocal", "loss_iou", "giou", check=False)
    assert done.returncode == 2
    assert "another configuration" in done.stderr and "ciou" in done.stderr and "-expn" in done.stderr
    assert "Traceback" not in done.stderr
    done = cli_here(folder, *TRAIN, "--resume", *LOSSES, "basic_lr_per_img", "0.5", check=False)
    assert done.returncode == 2 and "basic_lr_per_img" in done.stderr
    assert_same(before, checkpoint(run_folder(folder))["model"])
    assert record(run_folder(folder))["status"] == "finished"


@pytest.mark.slow
def test_a_foreign_folder_is_not_overwritten(work):
    run = run_folder(work)
    run.mkdir(parents=True)
    (run / "best_ckpt.pth").write_bytes(b"precious")
    done = cli_here(work, *TRAIN, check=False)
    assert done.returncode == 2 and "without a record" in done.stderr
    assert (run / "best_ckpt.pth").read_bytes() == b"precious"


@pytest.mark.slow
def test_a_folder_where_a_process_trains_is_left_alone(work):
    claim = Claim(run_folder(work))
    try:
        done = cli_here(work, *TRAIN, check=False)
        assert done.returncode == 2 and f"Process {os.getpid()} is training" in done.stderr
        assert [path.name for path in run_folder(work).iterdir()] == [".claim.1"]
    finally:
        claim.release()


@pytest.mark.slow
def test_of_two_trainings_of_one_folder_one_is_refused_before_any_other_work(work):
    """Also while the first still reads the checkpoint that it starts from."""
    torch.manual_seed(0)
    exp = load_exp(str(work / "tiny.py"))
    torch.save({"model": exp.get_model().state_dict(), "padding": torch.zeros(10_000_000)}, work / "start.pth")
    words = [sys.executable, "-m", "yolox_loss_patch", *TRAIN, "-c", "start.pth", "max_epoch", "1"]
    both = [subprocess.Popen(words, cwd=work, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], texts
    loser = both[0] if both[0].returncode else both[1]
    assert f"Process {both[1 - both.index(loser)].pid} is training in" in texts[both.index(loser)]
    assert record(run_folder(work))["status"] == "finished" and len(read_metrics(run_folder(work))) == 1
    assert not list(run_folder(work).glob(".*"))


@pytest.mark.slow
def test_a_run_whose_folder_was_taken_over_stops_and_leaves_it_alone(work):
    """The file of the claim is gone, as when another machine took it for dead."""
    with (work / "tiny.py").open("a") as file:
        file.write("""
    def preprocess(self, inputs, targets, tsize):
        import pathlib
        for path in pathlib.Path("YOLOX_outputs/tiny").glob(".claim.*"):
            path.rename(path.with_name(".claim.7"))
            path.with_name(".claim.7").write_text('{"token": "another", "pid": 1, "machine": "elsewhere"}')
        return super().preprocess(inputs, targets, tsize)
""")
    done = cli_here(work, *TRAIN, check=False)
    assert done.returncode == 1 and "Process 1 of machine elsewhere took over" in done.stderr
    run = run_folder(work)
    assert record(run)["status"] == "running" and not read_metrics(run) and not list(run.glob("*.pth"))
    assert [path.name for path in run.glob(".*")] == [".claim.7"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(straight, work):
    """A broken image tensor: the run stops before the step, says what and where, and can go on from the last epoch."""
    with (work / "tiny.py").open("a") as file:
        file.write(
            """
    def preprocess(self, inputs, targets, tsize):
        import os
        self.calls = getattr(self, "calls", 0) + 1
        if os.environ.get("CRASH") and self.calls == 8:
            inputs = inputs * float("nan")
        return super().preprocess(inputs, targets, tsize)
"""
        )
    done = cli_here(work, *TRAIN, *LOSSES, check=False, CRASH="1")
    assert done.returncode == 1
    assert "iou (its predictions), obj" in done.stderr and "epoch 3, iteration 2 of 3" in done.stderr
    assert len(re.findall(r"\d{12}\.jpg", done.stderr.split("not finite")[1])) >= 8
    run = run_folder(work)
    assert record(run)["status"] == "failed" and "not finite" in record(run)["error"]
    assert all(torch.isfinite(value).all() for value in checkpoint(run)["model"].values())
    cli_here(work, *TRAIN, "--resume", *LOSSES)
    assert_same(checkpoint(run)["model"], checkpoint(run_folder(straight[0]))["model"])


HUGE_LOSS = """

import torch


@ylp.LOSSES.register_module()
class HugeLoss(torch.nn.Module):
    term = "obj"

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        return (1e38 * (pred - target).square()).sum()
"""


@pytest.mark.slow
def test_a_loss_that_diverges_names_its_term(work):
    """Finite predictions, but a sum that overflows fp32: the term and its value are named."""
    with (work / "tiny.py").open("a") as file:
        file.write(HUGE_LOSS)
    done = cli(work, *TRAIN, "loss_obj", "HugeLoss", "loss_cls.reduction", "sum", check=False)
    assert "loss_cls: reduction='sum' is not divided by the foreground anchors" in done.stderr
    assert done.returncode == 1 and "obj (conf_loss = inf)" in done.stderr
    assert "epoch 1, iteration 1 of 3" in done.stderr


@pytest.mark.slow
def test_a_crash_is_an_exit_status_and_a_record(work):
    with (work / "tiny.py").open("a") as file:
        file.write("\n    def preprocess(self, inputs, targets, tsize):\n        raise RuntimeError('on fire')\n")
    done = cli_here(work, *TRAIN, check=False)
    assert done.returncode == 1 and "on fire" in done.stderr
    assert record(run_folder(work))["status"] == "failed"
    assert record(run_folder(work))["error"] == "RuntimeError: on fire"


@pytest.mark.slow
def test_yoloxs_own_train_tool_runs_a_loss_exp_on_any_device_and_exits_honestly(work):
    """The losses are there although nothing of the kit is on the command line."""
    tool = ("-m", "yolox.tools.train")
    cli(work, "-f", "tiny.py", "-b", "8", "-d", "1", "max_epoch", "1", "loss_iou", "giou", python=tool)
    run = work / "YOLOX_outputs" / "yolox_nano"
    assert record(run)["status"] == "finished" and record(run)["resolved_losses"]["iou"]["type"] == "giou"
    with (work / "tiny.py").open("a") as file:
        file.write("\n    def preprocess(self, inputs, targets, tsize):\n        raise OSError('disk on fire')\n")
    words = ("-f", "tiny.py", "-b", "8", "-d", "1", "-expn", "two")
    assert cli(work, *words, python=tool, check=False).returncode != 0


@pytest.mark.slow
def test_a_model_of_yolox_by_name_is_adapted(work, digits):
    """``-n`` gives YOLOX's own Exp, which knows no loss_* keys."""
    sizes = ("input_size", "96,96", "test_size", "96,96", "random_size", "3,3", "data_num_workers", "0")
    words = ("data_dir", digits, "num_classes", "10", "max_epoch", "1", "print_interval", "1", *sizes)
    cli_here(work, "train", "-n", "yolox-nano", "-b", "8", "--device", "cpu", "loss_iou", "ciou", *words)
    assert record(run_folder(work, "yolox_nano"))["resolved_losses"]["iou"]["type"] == "ciou"


@pytest.mark.slow
def test_the_fast_assignment_trains_to_the_hosts_weights(straight, work):
    done = cli_here(work, "train", "--profile", *TRAIN[1:], *LOSSES, "loss_assign", "host")
    assert_same(checkpoint(run_folder(straight[0]))["model"], checkpoint(run_folder(work))["model"])
    shares = re.findall(r"the loss stage \(forward\) took [\d.]+ s, ([\d.]+)% of", done.stderr)
    assert len(shares) == 4 and all(0 < float(share) < 100 for share in shares)


@pytest.mark.slow
def test_eval_gives_the_metrics_of_the_run(straight):
    folder, _ = straight
    done = cli_here(
        folder, "eval", "-f", "tiny.py", "-b", "8", "--device", "cpu", "-c", "YOLOX_outputs/tiny/last_epoch_ckpt.pth"
    )
    last = read_metrics(run_folder(folder))[-1]
    printed = re.search(r"IoU=0.50:0.95 \| area=   all \| maxDets=100 \] = (\S+)", done.stdout).group(1)
    assert float(printed) == pytest.approx(last["AP"], abs=6e-4)


@pytest.mark.slow
def test_eval_says_when_a_model_has_diverged(straight, work):
    state = checkpoint(run_folder(straight[0]))
    state["model"]["head.reg_preds.0.bias"][2:] = 1000.0  # log sides
    torch.save(state, work / "diverged.pth")
    words = ("eval", "-f", "tiny.py", "-b", "8", "--device", "cpu", "-c")
    assert "boxes or scores are not finite in 8 of 8 images" in cli_here(work, *words, "diverged.pth").stderr
    assert "not finite" not in cli_here(work, *words, run_folder(straight[0]) / "latest_ckpt.pth").stderr


@pytest.mark.slow
def test_eval_without_a_best_checkpoint_names_the_others(straight, work, monkeypatch, capsys):
    run = run_folder(work)
    run.mkdir(parents=True)
    shutil.copy(run_folder(straight[0]) / "latest_ckpt.pth", run)
    monkeypatch.chdir(work)
    assert main(["eval", "-f", "tiny.py", "--device", "cpu"]) == 2
    assert "has no best_ckpt.pth" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_run_that_is_trained_anew_is_told_of(work):
    first = cli_here(work, *TRAIN, "max_epoch", "1")
    again = cli_here(work, *TRAIN, "max_epoch", "1")
    assert "trained anew and replaced" not in first.stderr and "trained anew and replaced" in again.stderr


@pytest.mark.slow
def test_eval_save_makes_the_predictions_of_a_run_anew(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path, dirs_exist_ok=True)
    run = run_folder(tmp_path)
    last = predictions_file(run, 4)
    before = last.read_bytes()
    shutil.rmtree(last.parent)
    cli_here(tmp_path, "eval", "-f", "tiny.py", "-b", "8", "--device", "cpu", "--save", "-c", run / "latest_ckpt.pth")
    assert last.read_bytes() == before
    facts = json.loads(evaluation_file(run, 4).read_text())
    row = read_metrics(run)[-1]
    assert facts["epoch"] == 4 and facts["metrics"] == {name: row[name] for name in AP_COLUMNS}
    assert facts["data"]["val"] == record(run)["data"]["val"]


# words, what the answer names
NOT_KEPT = [
    (["--test"], ["leave out --test"]),
    (["--fp16"], ["leave out --fp16"]),
    (["--conf", "0.5"], ["test_conf is 0.5 here and 0.0001 in the run"]),
    (["--tsize", "64"], ["test_size is [64, 64] here and [96, 96]"]),
    (["nmsthre", "0.5"], ["nmsthre is 0.5 here and 0.65", "'nmsthre 0.65'"]),
]


@pytest.mark.slow
@pytest.mark.parametrize("words,answers", NOT_KEPT)
def test_eval_save_refuses_what_the_run_would_not_have_detected(straight, words, answers, monkeypatch, capsys):
    folder = straight[0]
    before = {path: path.read_bytes() for path in predictions_file(run_folder(folder), 4).parent.iterdir()}
    monkeypatch.chdir(folder)
    checkpoint = "YOLOX_outputs/tiny/latest_ckpt.pth"
    assert main(["eval", "-f", "tiny.py", "-b", "8", "--device", "cpu", "--save", "-c", checkpoint, *words]) == 2
    error = capsys.readouterr().err
    assert all(answer in error for answer in answers), error
    assert before == {path: path.read_bytes() for path in predictions_file(run_folder(folder), 4).parent.iterdir()}


@pytest.mark.slow
def test_eval_save_refuses_other_data_and_no_run(straight, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(straight[0])
    words = ["eval", "-f", "tiny.py", "-b", "8", "--device", "cpu", "--save", "-c"]
    latest = run_folder(straight[0]) / "latest_ckpt.pth"
    shutil.copytree(digits, tmp_path / "other")
    annotations = tmp_path / "other" / "annotations" / "instances_val2017.json"
    annotations.write_text(annotations.read_text() + " ")
    assert main([*words, str(latest), "data_dir", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    hashes = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (annotations, digits / "annotations" / annotations.name)
    ]
    assert all(value in error for value in hashes)
    shutil.copy(latest, tmp_path / "weights.pth")
    assert main([*words, str(tmp_path / "weights.pth")]) == 2
    assert "holds no run" in capsys.readouterr().err and not (tmp_path / "predictions").exists()
    shutil.copy(run_folder(straight[0]) / "run.json", tmp_path)
    torch.save({"model": checkpoint(run_folder(straight[0]))["model"]}, tmp_path / "weights.pth")
    assert main([*words, str(tmp_path / "weights.pth")]) == 2
    assert "no 'start_epoch'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(straight, work):
    path = run_folder(straight[0]) / "latest_ckpt.pth"
    for words in (("-c", path), ("-c", path, "--resume")):
        done = cli_here(
            work, *TRAIN[:-2], "--device", "cpu", *words, "-expn", f"x{len(words)}", "width", "0.5", check=False
        )
        assert done.returncode == 2 and "of another model" in done.stderr and "Traceback" not in done.stderr
    (work / "noise.pth").write_bytes(b"not a checkpoint")
    done = cli_here(work, *TRAIN, "-c", "noise.pth", check=False)
    assert done.returncode == 2 and "cannot be read as a checkpoint" in done.stderr
    done = cli_here(work, *TRAIN, "-expn", "new", "--resume", check=False)
    assert done.returncode == 2 and "nothing to resume" in done.stderr
