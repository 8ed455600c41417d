"""Settings that void a run, through the verbs that a user types: a row per mistake."""

import time

import pytest
from conftest import EXP

from yolox_loss_patch import cli

TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu")
EVAL = ("eval", "-f", "tiny.py", "-b", "8", "--device", "cpu", "-c", "weights.pth")
SWEEP = ("sweep", "-f", "tiny.py", "-b", "8", "--device", "cpu", "--seeds", "0")
CALIBRATE = ("calibrate", "-f", "tiny.py", "--steps", "4", "--device", "cpu", "loss_iou", "ciou")
VERIFY = ("verify", "-f", "tiny.py", "--steps", "1", "--device", "cpu")
DOCTOR = ("doctor", "-f", "tiny.py")
LINE = "        self.max_epochs = 3\n"
READ = LINE + "\n    def get_lr_scheduler(self, *args):\n        return self.max_epochs\n"

# words of the command, what is added to the experiment file, words of the answer
REFUSED = {
    "negative warm-up": ((*TRAIN, "warmup_epochs", "-1"), "", "warmup_epochs is a number of epochs, at least 0; got -1"),
    "negative learning rate": ((*SWEEP, "basic_lr_per_img", "-0.1"), "", "basic_lr_per_img is a learning rate above 0"),
    "learning rate 0": ((*CALIBRATE, "basic_lr_per_img", "0"), "", "above 0; got 0"),
    "a rate that is no number": ((*VERIFY, "basic_lr_per_img", "1e999"), "", "above 0; got inf"),
    "negative start of the warm-up": ((*TRAIN, "warmup_lr", "-1"), "", "warmup_lr is a learning rate, at least 0; got -1"),
    "min_lr_ratio": ((*TRAIN, "min_lr_ratio", "5"), "", "from 0 to 1; got 5"),
    "scheduler": ((*TRAIN, "scheduler", "yoloxwarmcosine"), "", "scheduler is one of yoloxwarmcos, warmcos, cos"),
    "scheduler, doctor": ((*DOCTOR, "scheduler", "linear"), "", "scheduler is one of yoloxwarmcos, warmcos, cos; got 'linear'"),
    "max_epoch": ((*CALIBRATE, "max_epoch", "0"), "", "max_epoch is a whole number, at least 1; got 0"),
    "max_epoch, doctor": ((*DOCTOR, "max_epoch", "0"), "", "max_epoch is a whole number, at least 1; got 0"),
    "-e 0": ((*TRAIN, "--resume", "-e", "0"), "", "-e is the epoch to go on with, from 1 to max_epoch (4); got 0"),
    "-e -3": ((*TRAIN, "--resume", "-e", "-3"), "", "from 1 to max_epoch (4); got -3"),
    "-e 9": ((*TRAIN, "--resume", "-e", "9"), "", "from 1 to max_epoch (4); got 9"),
    "--tsize": ((*EVAL, "--tsize", "100"), "", "test_size is (height, width) in multiples of 32; got (100, 100)"),
    "eval -b": ((*EVAL[:3], "-b", "0", *EVAL[5:]), "", "-b is at least 1; got 0"),
    "--conf": ((*EVAL, "--conf", "1.5"), "", "test_conf is a score from 0 to 1; got 1.5"),
    "--nms": ((*EVAL, "--nms", "-0.1"), "", "nmsthre is an IoU from 0 to 1; got -0.1"),
    "mistyped": (TRAIN, LINE, "sets self.max_epochs, which nothing reads. Did you mean 'max_epoch'"),
    "mistyped, eval": (EVAL, LINE, "sets self.max_epochs, which nothing reads"),
    "mistyped loss": (SWEEP, "        self.loss_ojb = 'focal'\n", "loss_ojb, which is no setting. Did you mean 'loss_obj'"),
    "sys.exit in the file": (TRAIN, "\nimport sys\nsys.exit()\n", "cannot be loaded: SystemExit"),
    "sys.exit in __init__": (SWEEP, "        import sys; sys.exit(0)\n", "cannot be loaded: SystemExit: 0 (line "),
    "no super": (TRAIN, "\nclass Exp(ylp.LossExp, BaseExp):\n    def __init__(self):\n        self.x = 1\n",
                 "does not call that of its base. Write super().__init__()"),
    "order of the bases": (CALIBRATE, "\nclass Exp(BaseExp, ylp.LossExp):\n    pass\n", "before LossExp, so YOLOX's methods"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_that_cannot_be_is_refused(case, work, digits, monkeypatch, capsys):
    words, more, answer = REFUSED[case]
    monkeypatch.chdir(work)
    (work / "tiny.py").write_text(EXP.format(data=str(digits)) + more)
    (work / "weights.pth").touch()
    started = time.process_time()
    assert cli.main(list(words)) == 2, capsys.readouterr()
    assert time.process_time() - started < 10
    output = capsys.readouterr()
    assert answer in output.out + output.err and "Traceback" not in output.err, output
    assert not (work / "YOLOX_outputs").exists()


# overrides, words of the warning
WARNED = {
    "everyday": (("max_epoch", "10", "no_aug_epochs", "15", "warmup_epochs", "5"),
                 ["no_aug_epochs (15) is not below max_epoch (10)", "at the smallest learning rate, 0.00025 instead of 0.005"]),
    "warm-up": (("max_epoch", "3", "warmup_epochs", "3"),
                ["warm-up lasts the whole training (warmup_epochs 3, max_epoch 3)", "to 0.005 in the last step"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNED)
@pytest.mark.parametrize("verb", [(*SWEEP, "--dry-run"), DOCTOR], ids=["sweep", "doctor"])
def test_a_schedule_that_voids_a_run_is_told(case, verb, work, monkeypatch, capsys, log_lines):
    opts, answers = WARNED[case]
    monkeypatch.chdir(work)
    assert cli.main([*verb, *opts]) == 0
    text = capsys.readouterr().out + "".join(log_lines)
    for answer in answers[: 1 if verb is DOCTOR else None]:
        assert answer in text


def test_a_usual_schedule_is_not_warned_of(work, monkeypatch, log_lines):
    monkeypatch.chdir(work)
    assert cli.main([*SWEEP, "--dry-run"]) == 0
    text = "".join(log_lines)
    assert "warm-up" not in text and "no_aug_epochs" not in text


def test_an_attribute_that_the_experiment_reads_is_no_mistake(work, digits, monkeypatch, capsys):
    monkeypatch.chdir(work)
    (work / "tiny.py").write_text(EXP.format(data=str(digits)) + READ)
    assert cli.main([*SWEEP, "--dry-run"]) == 0
