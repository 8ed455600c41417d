"""Runs that plain YOLOX made: real ones of the installed YOLOX, made without the kit, and what is left of them."""

import hashlib
import json
import re
import shutil
import sys
from datetime import datetime, timezone

import numpy as np
import pytest
import torch
from conftest import EXP, ROOT, cli
from loguru import logger
from made_runs import edit as edit_record

from yolox_loss_patch.cli import main
from yolox_loss_patch.compare.comparison import compare
from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs.plain_yolox import read_plain
from yolox_loss_patch.runs.predictions import evaluation_file, predictions_file, read_predictions
from yolox_loss_patch.runs.record import AP_COLUMNS, COLUMNS, LOSS_COLUMNS

# Three epochs of three iterations; the second is the first without mosaic, from which on every epoch is evaluated.
PLAIN = EXP.replace("ylp.LossExp, ", "").replace("import yolox_loss_patch as ylp\n", "").replace("1e-4", "1e-6")
# The ninth iteration is the last one. STOP says in which iteration it ends, and how.
STOP = """
    def preprocess(self, inputs, targets, tsize):
        import os, signal
        self.calls = getattr(self, "calls", 0) + 1
        at, _, how = os.environ.get("STOP", "0 -").partition(" ")
        if self.calls == int(at):
            if how == "error":
                raise ValueError("planted: no such luck")
            os.kill(os.getpid(), getattr(signal, how))
        return super().preprocess(inputs, targets, tsize)
"""


def train(folder, *words, stop="0 -", check=True):
    return cli(
        folder, "yolox.tools.train", "-f", "plain.py", "-expn", "plain", "-b", "8", "-d", "1", *words, "max_epoch", "3",
        python=(ROOT / "tests" / "plain_yolox.py",), check=check, STOP=stop,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory, digits):
    """A finished run."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.py").write_text(PLAIN.format(data=str(digits)) + STOP)
    train(folder)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """The folder of a copy of the finished run, beside the experiment."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "YOLOX_outputs" / "plain"


@pytest.fixture
def stopped(tmp_path, digits):
    """Makes a run that is stopped so; returns its folder."""

    def make(how):
        (tmp_path / "plain.py").write_text(PLAIN.format(data=str(digits)) + STOP)
        train(tmp_path, stop=how, check=False)
        return tmp_path / "YOLOX_outputs" / "plain"

    return make


def edit(run, old, new, count=-1):
    log = run / "train_log.txt"
    text = log.read_text()
    assert old in text
    log.write_text(text.replace(old, new, count))


def print_metrics(run):
    """Other metrics into the log's last summary, as a model that has learned something would have them."""
    text = (run / "train_log.txt").read_text()
    start = text.rindex("Average forward time")
    numbers = iter(
        ["0.357", "0.601", "0.342", "0.111", "0.222", "-1.000", "0.301", "0.402", "0.453", "0.200", "0.300", "-1.000"]
    )
    (run / "train_log.txt").write_text(text[:start] + re.sub(r"(?<=\] = )\S+", lambda _: next(numbers), text[start:]))


def printed(run, epoch, name):
    """The values of a loss in an epoch's lines of the log."""
    return [
        float(value)
        for value in re.findall(rf"epoch: {epoch}/3.*, {name}: ([\d.]+),", (run / "train_log.txt").read_text())
    ]


@pytest.mark.slow
def test_a_finished_run_reads_like_a_record_of_the_kit(made):
    run = made / "YOLOX_outputs" / "plain"
    assert not (run / "run.json").exists()
    record, rows = read_plain(run)
    assert record["status"] == "finished" and record["error"] is None and record["epochs_done"] == 3
    assert record["seed"] == 3 and record["batches_per_epoch"] == 3 and "resumed" not in record
    assert record["args"]["batch_size"] == 8 and record["args"]["fp16"] is False and record["args"]["ckpt"] is None
    assert record["args"]["opts"] == ["max_epoch", "3"]
    # What it cannot tell.
    assert record["losses"] is None and record["device"] is None
    assert record["resolved_losses"] == record["host"] == record["versions"] == record["data"] == {}
    # The log's times are local.
    age = datetime.now(timezone.utc).replace(tzinfo=None) - datetime.fromisoformat(record["ended"])
    assert abs(age.total_seconds()) < 15 * 3600 and record["started"] < record["ended"]

    assert [list(row) for row in rows] == [list(COLUMNS)] * 3
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        for name in LOSS_COLUMNS:
            values = printed(run, int(row["epoch"]), name)
            assert len(values) == 3 and row[name] == pytest.approx(sum(values) / 3, abs=1e-9)
        assert 0.05 < row["seconds"] < 60
    assert rows[0]["l1_loss"] == 0 < rows[1]["l1_loss"]
    assert rows[2]["lr"] == pytest.approx(0.05 * 0.01 / 16 * 8)  # YOLOX ends on min_lr_ratio of its rate
    # Not evaluated, and evaluated; the best of all stands in the checkpoint.
    assert all(rows[0][name] is None for name in AP_COLUMNS)
    best = float(torch.load(run / "last_epoch_ckpt.pth", weights_only=False)["best_ap"])
    assert record["best_ap"] == max(row["AP"] for row in rows[1:]) == pytest.approx(best, rel=1e-6, abs=1e-12)
    assert rows[2]["AP_large"] == -1 and rows[2]["AP90"] is None


@pytest.mark.slow
def test_the_experiment_is_that_of_the_kit(made):
    """The same experiment file, read by the kit, gives the settings that the log told."""
    from yolox_loss_patch.exp.loading import load_exp
    from yolox_loss_patch.exp.settings import settings

    exp = load_exp(str(made / "plain.py"))
    exp.merge(["max_epoch", "3"])
    theirs = read_plain(made / "YOLOX_outputs" / "plain")[0]["exp"]
    ours = json.loads(json.dumps(settings(exp)))
    del ours["loss_assign"]  # the kit's own
    assert {**ours, "exp_name": theirs["exp_name"]} == theirs


@pytest.mark.slow
def test_long_and_odd_settings_are_read(run):
    box = "│ seed              │ 3 "
    width = len(next(line for line in (run / "train_log.txt").read_text().splitlines() if line.startswith(box)))
    rows = [
        "names│('a long name',",
        "│ 'and another')",
        "made│<function f at 0x1>",
        "dataset│None",
        "spec│{'type': 'a│b'}",
    ]
    lines = []
    for row in rows:
        key, _, value = row.partition("│")
        lines.append(f"│ {key:<17} │ {value}".ljust(width - 1) + "│")
    edit(run, box, "\n".join(lines) + "\n" + box)
    exp = read_plain(run)[0]["exp"]
    assert exp["names"] == ["a long name", "and another"] and exp["spec"] == {"type": "a│b"}
    assert exp["made"] == "<function f at 0x1>" and "dataset" not in exp and exp["seed"] == 3


@pytest.mark.slow
def test_a_killed_run_and_its_resumption(stopped, tmp_path):
    run = stopped("8 SIGKILL")
    record, before = read_plain(run)
    assert record["status"] == "interrupted" and "in epoch 3" in record["error"] and record["ended"] is None
    assert [row["epoch"] for row in before] == [1, 2] and record["epochs_done"] == 2
    assert before[1]["AP"] is not None
    # As a power cut may leave it: a line that breaks off, and blocks that were never written.
    with (run / "train_log.txt").open("a") as file:
        file.write(
            "2026-01-01 10:00:00.000 | INFO     | yolox.core.trainer:before_epoch:203 - ---> start train epoch1\0\0\0"
        )
    train(tmp_path, "--resume")
    record, rows = read_plain(run)
    assert record["status"] == "finished" and record["epochs_done"] == 3
    assert record["resumed"] == [{"epoch": 2, "was": "interrupted"}]
    assert rows[:2] == before and rows[2]["epoch"] == 3 and rows[2]["AP"] is not None
    # Epoch 3 was begun twice; what counts is the second time.
    assert len(printed(run, 3, "iou_loss")) == 4
    assert rows[2]["iou_loss"] == pytest.approx(sum(printed(run, 3, "iou_loss")[-3:]) / 3, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how,status,error,epochs",
    [
        ("5 error", "failed", "ValueError: planted: no such luck", 1),
        ("5 SIGINT", "interrupted", "the log ends in epoch 2 at ", 1),
    ],
)
def test_an_end_that_yolox_calls_done(stopped, how, status, error, epochs):
    """YOLOX says "Training of experiment is done" however it ends, and after an exception its exit status is 0."""
    run = stopped(how)
    assert "Training of experiment is done" in (run / "train_log.txt").read_text()
    record, rows = read_plain(run)
    assert record["status"] == status and record["error"].startswith(error)
    assert record["epochs_done"] == len(rows) == epochs


def test_a_restart_forgets_the_run_before(run):
    text = (run / "train_log.txt").read_text()
    cut = text.index("---> start train epoch2")
    (run / "train_log.txt").write_text(text + text[:cut])
    record, rows = read_plain(run)
    assert record["status"] == "interrupted" and [row["epoch"] for row in rows] == [1]
    assert rows[0]["AP"] is None and "resumed" not in record


@pytest.mark.slow
def test_a_log_cut_anywhere_tells_less_but_nothing_else(run):
    shutil.rmtree(run / "tensorboard")
    whole = (run / "train_log.txt").read_bytes()
    record, rows = read_plain(run)
    for end in range(0, len(whole), 331):
        (run / "train_log.txt").write_bytes(whole[:end])
        part, found = read_plain(run)
        if not whole[:end].count(b"args: "):
            assert found == [] and part["epochs_done"] == 3  # the checkpoint tells
            continue
        assert part["status"] == ("finished" if b"is done" in whole[:end] else "interrupted")
        assert part["epochs_done"] == len(found)
        assert [row["epoch"] for row in found] == [1, 2, 3][: len(found)]
        for row, full in zip(found, rows, strict=False):
            assert all(row[name] in (full[name], None) for name in COLUMNS)
            assert all(row[name] == full[name] for name in (*LOSS_COLUMNS, "lr", "seconds"))
        assert part["exp"] == {key: record["exp"][key] for key in part["exp"]} and part["args"] in ({}, record["args"])


def test_a_log_whose_beginning_is_lost(run):
    text = (run / "train_log.txt").read_text()
    full = read_plain(run)[1]
    (run / "train_log.txt").write_text(text[text.index("---> start train epoch1") + 100 :])
    record, rows = read_plain(run)
    assert rows == full[1:] and record["exp"] == record["args"] == {} and record["seed"] is None
    assert record["status"] == "finished"


@pytest.mark.slow
def test_epochs_in_which_no_iteration_is_printed(run):
    """An epoch may be shorter than print_interval. What is saved before epoch 2 is then no sign of its end."""
    log = run / "train_log.txt"
    full = read_plain(run)[1]
    text = re.sub(r".*epoch: \d/3, iter: .*\n", "", log.read_text())
    log.write_text(text)
    record, rows = read_plain(run)
    assert record["status"] == "finished" and rows[1]["iou_loss"] is None and rows[1]["lr"] is None
    assert [row["seconds"] for row in rows] == [row["seconds"] for row in full]
    log.write_text(text[: text.index("Save weights", text.index("start train epoch2")) + 100])
    assert read_plain(run)[0]["epochs_done"] == 1


def test_the_digits_that_the_log_rounds_off_come_from_tensorboard(run):
    """YOLOX's git main writes its losses there too; its lines name the memory otherwise."""
    from torch.utils.tensorboard import SummaryWriter

    edit(run, "mem: 0Mb", "gpu mem: 2312Mb, mem: 4.1Gb", 4)
    print_metrics(run)
    lines = printed(run, 2, "iou_loss")
    with SummaryWriter(run / "tensorboard") as writer:
        for step, value in enumerate(lines, start=3):
            writer.add_scalar("train/iou_loss", value + 0.04, step)
            writer.add_scalar("train/iou_loss", value - 1, step)  # of another start, at the same step
        writer.add_scalar("train/lr", 0.00024996, 5)
        writer.add_scalar("val/COCOAP50_95", 0.35681, 3)
        writer.add_scalar("val/COCOAP50_95", 0.7, 3)  # of another start too: the log says another AP
    record, rows = read_plain(run)
    assert rows[1]["iou_loss"] == pytest.approx(sum(lines) / 3 + 0.04, abs=1e-6)
    assert rows[1]["lr"] == pytest.approx(0.00024996, rel=1e-6)
    assert rows[1]["cls_loss"] == pytest.approx(sum(printed(run, 2, "cls_loss")) / 3)
    assert rows[2]["AP"] == record["best_ap"] == pytest.approx(0.35681) and rows[2]["AP50"] == 0.601
    assert [row["memory_mib"] for row in rows] == [2312, 2312, None] and record["device"] == "cuda"


def test_without_tensorboard_the_log_tells_the_metrics(run, monkeypatch):
    print_metrics(run)
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    record, rows = read_plain(run)
    assert [rows[2][name] for name in AP_COLUMNS] == [0.357, 0.601, 0.342, None, 0.111, 0.222, -1.0, 0.453]
    assert record["best_ap"] == 0.357


def test_an_evaluation_without_detections(run):
    """YOLOX prints no metrics then and writes zeros into TensorBoard."""
    text = (run / "train_log.txt").read_text()
    start = text.rindex(" Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all")
    (run / "train_log.txt").write_text(text[:start] + text[text.index("\n\n", start) + 1 :])
    assert read_plain(run)[1][2]["AP"] is not None
    shutil.rmtree(run / "tensorboard")
    assert read_plain(run)[1][2]["AP"] is None


def test_without_a_log_checkpoints_and_events_tell(run):
    full = read_plain(run)
    (run / "train_log.txt").unlink()
    record, rows = read_plain(run)
    assert record["status"] == "interrupted" and "no train_log.txt" in record["error"] and record["exp"] == {}
    assert [(row["epoch"], row["AP"], row["AP50"]) for row in rows] == [
        (r["epoch"], r["AP"], r["AP50"]) for r in full[1][1:]
    ]
    assert rows[0]["iou_loss"] is None and record["epochs_done"] == 3
    shutil.rmtree(run / "tensorboard")
    record, rows = read_plain(run)
    assert record["epochs_done"] == 3 and rows == []
    torch.save(
        {"start_epoch": 2, "model": {}, "best_ap": np.float64(0.25)}, run / "best_ckpt.pth"
    )  # as YOLOX writes it
    assert read_plain(run)[0]["best_ap"] == 0.25
    latest = run / "latest_ckpt.pth"
    latest.write_bytes(latest.read_bytes()[:1000])  # YOLOX was killed while it wrote it
    assert read_plain(run)[0]["epochs_done"] == 0


def test_what_is_no_run(tmp_path):
    assert read_plain(tmp_path) is None
    assert read_plain(tmp_path / "nowhere") is None
    (tmp_path / "train_log.txt").write_text("epoch: 1, loss 3\n2026-01-01 10:00:00.000 | INFO     | a:b:1 - hello\n")
    (tmp_path / "events.out.tfevents.1.x").write_bytes(b"no events" * 20)
    (tmp_path / "weights.pth").write_bytes(b"")
    assert read_plain(tmp_path) is None


def test_a_log_that_may_not_be_read(run, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(run), "open", refuse)
    with pytest.raises(RunError, match=r"train_log\.txt cannot be read: Permission denied"):
        read_plain(run)


@pytest.fixture
def evaluate(run, monkeypatch):
    """Runs ``eval --save`` beside the experiment; returns the exit status."""
    monkeypatch.chdir(run.parent.parent)
    return lambda *words: main(["eval", "-f", "plain.py", "-b", "8", "--device", "cpu", "--save", *map(str, words)])


@pytest.mark.slow
def test_eval_save_gives_a_plain_run_its_predictions_and_data(run, digits, evaluate, capsys):
    told = read_plain(run)[1][2]
    assert evaluate("-c", "YOLOX_outputs/plain/latest_ckpt.pth") == 0
    assert f"kept as {predictions_file(run, 3).relative_to(run.parent.parent)}" in capsys.readouterr().out
    assert len(read_predictions(predictions_file(run, 3))) > 0
    facts = json.loads(evaluation_file(run, 3).read_text())
    assert facts["checkpoint"] == "latest_ckpt.pth" and facts["test_conf"] == 1e-6 and facts["test_size"] == [96, 96]
    assert facts["exp"]["num_classes"] == 10 and facts["nmsthre"] == 0.65
    record, rows = read_plain(run)
    annotations = digits / "annotations" / "instances_val2017.json"
    assert record["data"]["val"]["file"] == str(annotations) and record["data"]["val"]["images"] == 8
    assert record["data"]["val"]["sha256"] == hashlib.sha256(annotations.read_bytes()).hexdigest()
    assert rows[2]["AP90"] is not None and rows[2]["iou_loss"] == told["iou_loss"]
    assert rows[2]["AP"] == pytest.approx(told["AP"], rel=1e-5, abs=1e-9)
    for name in AP_COLUMNS:
        if name != "AP90":
            assert rows[2][name] == pytest.approx(told[name], abs=6e-4), name
    # Other data than those that it was evaluated on before.
    annotations = run.parent.parent / "other" / "annotations"
    shutil.copytree(digits, annotations.parent)
    (annotations / "instances_val2017.json").write_text((annotations / "instances_val2017.json").read_text() + " ")
    before = predictions_file(run, 3).read_bytes()
    assert evaluate("-c", "YOLOX_outputs/plain/last_epoch_ckpt.pth", "data_dir", annotations.parent) == 2
    error = capsys.readouterr().err
    assert "not those of the run" in error and record["data"]["val"]["sha256"] in error
    assert predictions_file(run, 3).read_bytes() == before
    # A file of the kit that somebody damaged.
    evaluation_file(run, 3).write_text("{")
    with pytest.raises(RunError, match=r"epoch_3\.json cannot be read"):
        read_plain(run)


def test_the_checkpoint_before_the_first_epoch_without_mosaic_is_of_the_epoch_before(run, evaluate):
    """Plain YOLOX writes it before epoch 2 with the number 2; the weights are those after epoch 1."""
    assert torch.load(run / "last_mosaic_epoch_ckpt.pth", weights_only=False)["start_epoch"] == 2
    assert evaluate("-c", "YOLOX_outputs/plain/last_mosaic_epoch_ckpt.pth") == 0
    assert predictions_file(run, 1).is_file() and not predictions_file(run, 2).is_file()
    assert read_plain(run)[1][0]["AP90"] is not None


def test_an_ap_that_is_not_that_of_the_log_is_told(run, evaluate):
    print_metrics(run)
    said = []
    sink = logger.add(said.append, level="WARNING")
    try:
        assert evaluate("-c", "YOLOX_outputs/plain/latest_ckpt.pth") == 0
    finally:
        logger.remove(sink)
    assert "was 0.3570 in the run after epoch 3" in "".join(said)


@pytest.mark.slow
def test_a_run_of_the_kit_and_a_plain_one_are_compared(run, digits, evaluate):
    """The same experiment with and without the kit: nothing known differs, and what is unknown is said."""
    folder = run.parent.parent
    (folder / "tiny.py").write_text(EXP.format(data=str(digits)).replace("1e-4", "1e-6"))
    cli(folder, "train", "-f", "tiny.py", "-expn", "kit", "-b", "8", "-d", "1", "max_epoch", "3")
    text = compare(["kit", "plain"])
    assert "plain (plain YOLOX, losses unknown)" in text and "| stock" in text
    assert "plain was made by plain YOLOX; unknown: losses, " in text and "val annotations" in text
    assert "No detections were kept by plain" in text
    assert evaluate("-c", "YOLOX_outputs/plain/latest_ckpt.pth") == 0
    text = compare(["kit", "plain"])
    assert "No detections" not in text and "Errors (TIDE)" in text
    edit_record(folder / "YOLOX_outputs" / "kit", exp__max_epoch=4)
    with pytest.raises(RunError, match="max_epoch"):
        compare(["kit", "plain"])


SCHEDULED = """
import yolox_loss_patch as ylp

ylp.apply(loss_iou=dict(type="iou", loss_weight={1: 0, 3: 1}))
"""
TELLS_THE_EPOCH = """
    def get_trainer(self, args):
        from yolox.core import Trainer

        class EpochTrainer(Trainer):
            def before_epoch(self):
                super().before_epoch()
                ylp.set_epoch(self.model, self.epoch + 1)

        return EpochTrainer(self, args)
"""


@pytest.mark.slow
def test_a_schedule_in_a_training_by_plain_yolox(tmp_path, digits):
    text = PLAIN.format(data=str(digits))
    (tmp_path / "plain.py").write_text(text + SCHEDULED)
    done = train(tmp_path, check=False)
    folder = tmp_path / "YOLOX_outputs" / "plain"
    assert "this trainer does not tell the epoch" in done.stdout + done.stderr
    assert not list(folder.glob("*_ckpt.pth"))
    shutil.rmtree(folder)
    (tmp_path / "plain.py").write_text(text + TELLS_THE_EPOCH + SCHEDULED)
    train(tmp_path)
    log = (folder / "train_log.txt").read_text()
    losses = re.findall(r"epoch: (\d)/3, iter: \d/3.*?iou_loss: ([\d.]+)", log)
    assert len(losses) == 9
    assert all((float(loss) == 0) == (epoch == "1") for epoch, loss in losses), losses
