"""calibrate: what it measures, the knobs it finds, what it warns of, and its words and files."""

import csv

import pytest
import torch
from conftest import EXP, cli
from PIL import Image

from yolox_loss_patch.doctor.calibrate import CALIBRATED, CHOSEN, STOCK, calibrate
from yolox_loss_patch.errors import ConfigError, RunError


@pytest.fixture
def found(work, tmp_path):
    """Calibrate the small experiment with these overrides."""

    def run(*opts, steps=8, **options):
        return calibrate(
            str(work / "tiny.py"),
            opts=list(opts),
            steps=steps,
            batch_size=4,
            device="cpu",
            out=str(tmp_path),
            **options,
        )

    return run


@pytest.mark.slow
def test_the_papers_focal_pulls_less_and_the_calibrated_as_stock(found, tmp_path):
    result = found("loss_obj.type", "focal")
    stock, chosen, last = result.trials
    assert [trial.name for trial in result.trials] == [STOCK, CHOSEN, CALIBRATED]
    assert all(len(trial.rows) == 8 for trial in result.trials)
    # The same weights and the same images: what the first step sees does not depend on the losses.
    for column in ("fg_iou", "obj_fg", "obj_bg", "grad_box", "grad_cls"):
        assert chosen.rows[0][column] == last.rows[0][column] == stock.rows[0][column]
    # BCE pulls 1 - p on each anchor of the foreground; focal's own pull at p = 0.01 is 0.27.
    assert stock.rows[0]["grad_obj_fg"] == pytest.approx(1 - stock.rows[0]["obj_fg"], rel=1e-4)
    assert chosen.rows[0]["grad_obj_fg"] == pytest.approx(0.27, rel=0.05)
    assert chosen.rows[0]["grad_obj_bg"] < stock.rows[0]["grad_obj_bg"] / 100
    assert 0.8 < last.pull("obj") / stock.pull("obj") < 1.25
    assert result.lines == ["    self.loss_obj = {'type': 'focal', 'calibrated': True}"]
    assert "self.loss_obj = {'type': 'focal', 'calibrated': True}" in str(result) and "x0.2" in str(result)
    with (tmp_path / "calibration.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["losses"] for row in rows] == [STOCK] * 8 + [CHOSEN] * 8 + [CALIBRATED] * 8
    assert float(rows[8]["grad_obj_fg"]) == chosen.rows[0]["grad_obj_fg"]
    with Image.open(tmp_path / "calibration.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1 << 20)) > 10


@pytest.mark.slow
def test_a_weight_that_is_off_is_found(found):
    """The box loss times a quarter, with a knob that changes nothing else: four times the weight is stock again."""
    result = found("loss_iou.type", "iou", "loss_iou.loss_weight", "0.25")
    stock, chosen, last = result.trials
    assert chosen.rows[0]["grad_box"] == pytest.approx(stock.rows[0]["grad_box"] / 4, rel=1e-5)
    weight = last.config.resolved()["iou"]["loss_weight"]
    assert weight == pytest.approx(1, rel=0.3)  # 8 steps from random weights round to 1.2 on some machines
    assert result.lines == [f"    self.loss_iou = {{'type': 'iou', 'loss_weight': {weight}}}"]


@pytest.mark.slow
def test_a_bare_box_loss_is_calibrated(found):
    result = found("loss_iou.type", "giou")
    _, chosen, last = result.trials
    assert last.rows[0]["grad_box"] < chosen.rows[0]["grad_box"]  # at the start, where boxes are bad
    assert result.lines == ["    self.loss_iou = {'type': 'giou', 'by_overlap': True}"]
    (bare,) = (text for text in result.warnings if "loss_iou giou" in text)
    assert "IoU 0.2 2.5 times" in bare and "IoU 0.9 0.56 times" in bare


@pytest.mark.slow
def test_losses_that_fit_are_left_alone(found):
    result = found("loss_obj.type", "focal", "loss_obj.calibrated", "True")
    assert [trial.name for trial in result.trials] == [STOCK, CHOSEN] and not result.lines
    assert "nothing to change" in str(result)


@pytest.mark.slow
def test_what_is_known_to_go_wrong_is_said(found):
    told = found("loss_obj.type", "bce", "loss_obj.target", "iou", "loss_iou", "piou").warnings
    assert any("IoU squared" in text for text in told)
    # The slopes over those of 1 - IoU**2, 2 IoU; PIoU v2 as published.
    power = next(text for text in told if "piou" in text)
    assert "IoU 0.2 5.5 times" in power and "IoU 0.9 0.46 times" in power
    assert not any("test_conf" in text for text in told)
    papers = ("loss_obj.type", "focal", "loss_obj.alpha", "0.9")
    told = found(*papers, "test_conf", "0.01", "basic_lr_per_img", "0.004", steps=24).warnings
    assert any("chosen losses leave the background" in text and "test_conf = 0.01" in text for text in told)


@pytest.mark.slow
def test_it_starts_from_a_checkpoint(found, work, tmp_path):
    cli(work, "train", "-f", "tiny.py", "-b", "8", "--device", "cpu", "max_epoch", "1", "no_aug_epochs", "0")
    path = work / "YOLOX_outputs" / "tiny" / "latest_ckpt.pth"
    result = found("loss_iou", "giou", ckpt=str(path))
    assert str(path) in result.where
    fresh = found("loss_iou", "giou")
    assert result.trials[0].rows[0]["grad_cls"] != fresh.trials[0].rows[0]["grad_cls"]


@pytest.mark.slow
def test_a_loss_that_explodes_is_said(found):
    with pytest.raises(RunError, match=r"not finite in step [0-9]+ with the stock losses.*basic_lr_per_img"):
        found("loss_iou", "ciou", "basic_lr_per_img", "1e6")


@pytest.mark.parametrize(
    "opts,steps,words",
    [
        ((), 8, "losses of this experiment are stock's"),
        (("loss_iou", "ciou"), 3, "--steps is at least 4; got 3"),
        (("loss_obj", "fokal"), 8, "Did you mean 'focal'"),
    ],
)
def test_what_cannot_be_is_answered(found, opts, steps, words):
    with pytest.raises(ConfigError, match=words):
        found(*opts, steps=steps)


@pytest.mark.slow
def test_on_the_command_line(work, digits):
    (work / "own.py").write_text(
        EXP.format(data=str(digits)) + "        self.loss_obj = dict(type='varifocal', target='iou')\n"
    )
    words = ("calibrate", "-f", "own.py", "--steps", "4", "-b", "2", "--device", "cpu")
    done = cli(work, *words)
    assert "objectness, background" in done.stdout and "warning: the objectness target is the IoU" in done.stdout
    assert (work / "YOLOX_outputs" / "own" / "calibration.png").is_file()
    assert cli(work, "calibrate", "-f", "tiny.py", check=False).returncode == 2
    lost = cli(work, *words, "-c", "nowhere.pth", check=False)  # as train takes it; it trained from random weights once
    assert lost.returncode == 2 and "no checkpoint 'nowhere.pth'" in lost.stderr
    named = cli(work, "calibrate", "-c", "yolox_nan", "loss_iou", "giou", check=False)  # as pixeltable-yolox takes it
    assert named.returncode == 2 and "Did you mean 'yolox_nano'" in named.stderr


@pytest.mark.slow
def test_the_experiments_element_weights_are_for_the_chosen_losses(found, work):
    with (work / "tiny.py").open("a") as file:
        file.write(
            "\n    def loss_weights(self, found):\n        return {'label_weights': 3 * (found.classes >= 0).float()}\n"
        )
    stock, chosen = found("loss_iou", "giou").trials[:2]
    assert chosen.rows[0]["grad_cls"] == pytest.approx(3 * stock.rows[0]["grad_cls"], rel=1e-5)
    assert torch.isfinite(torch.tensor(chosen.rows[-1]["grad_cls"]))
