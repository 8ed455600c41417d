"""Early stopping: when it acts, what it writes down, and what a comparison says of it."""

import json

import pytest
from conftest import cli_here
from made_runs import edit, make_data, make_run

from yolox_loss_patch import cli
from yolox_loss_patch.compare.comparison import analyse
from yolox_loss_patch.runs.record import read_metrics, read_run
from yolox_loss_patch.train.validation.patience import Patience, since_best

TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu")


@pytest.mark.parametrize(
    "aps,answer",
    [
        ([], (0, 0)),
        ([None, 0.1], (0, 2)),
        ([0.1, None, 0.2, 0.2], (1, 3)),
        ([0.3, 0.2, None, 0.1], (2, 1)),
        ([0.0, 0.0], (1, 1)),
    ],
)
def test_evaluations_since_the_best_are_counted(aps, answer):
    assert since_best([{"epoch": epoch, "AP": ap} for epoch, ap in enumerate(aps, 1)]) == answer


def test_without_patience_nothing_is_read(tmp_path):
    assert Patience(None, tmp_path / "gone", 0, 1).end() is None


@pytest.mark.parametrize(
    "words,answer", [(("--patience", "0"), "got 0"), (("--patience", "3"), "below those of the whole training (3 ")]
)
def test_a_patience_that_never_acts_is_refused(work, monkeypatch, capsys, words, answer):
    monkeypatch.chdir(work)
    assert cli.main([*TRAIN, *words]) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_does_not_get_better_ends_and_says_so(work):
    """A learning rate at which nothing moves; then the resumed run counts on from where it was."""
    still = ("basic_lr_per_img", "1e-12", "max_epoch", "9", "no_aug_epochs", "0", "eval_interval", "1")
    cli_here(work, *TRAIN, "--patience", "2", *still)
    run = work / "YOLOX_outputs" / "tiny"
    record = read_run(run)
    best = record["stopped_early"]["best_epoch"]
    assert record["status"] == "finished" and record["stopped_early"] == {
        "epoch": best + 2,
        "patience": 2,
        "best_epoch": best,
    }
    assert len(read_metrics(run)) == record["epochs_done"] == best + 2 < 9
    assert f"Stopped after epoch {best + 2} of 9: no better AP in 2 evaluations" in (run / "train_log.txt").read_text()


def test_a_comparison_says_which_runs_stopped_early(tmp_path):
    data = make_data(tmp_path / "data", images=3)
    for seed, losses in ((0, {}), (1, {"loss_iou": "giou"})):
        run = make_run(tmp_path / f"run{seed}", data, seed=seed, losses=losses)
        args = json.loads((run / "run.json").read_text())["args"]
        edit(run, args={**args, "patience": 2})
    edit(run, stopped_early={"epoch": 4, "patience": 2, "best_epoch": 2}, epochs_done=4, exp={"max_epoch": 9})
    notes = analyse([str(tmp_path / "run*")], anyway=True).notes
    assert any("Stopped early (--patience): run1 after epoch 4." in note for note in notes)
