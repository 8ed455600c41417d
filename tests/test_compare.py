"""Runs side by side."""

import json
import shutil

import pytest
from conftest import EXP, cli

from yolox_loss_patch import cli as command
from yolox_loss_patch.compare import compare, read
from yolox_loss_patch.errors import RunError


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """A stock run and one with other losses, two epochs each."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.py").write_text(EXP.format(data=str(digits)))
    for name, words in (("stock", ()), ("other", ("loss_obj", "varifocal", "loss_iou", "ciou"))):
        cli(folder, "train", "-f", "tiny.py", "-b", "8", "-expn", name, "max_epoch", "2", *words)
    return folder / "YOLOX_outputs"


def test_the_table_says_what_differs_and_what_came_out(runs):
    text = compare([str(runs / "stock"), str(runs / "other")])
    differences, results, losses = text.split("\n\nWhat came out:")[0], text.split("What came out:")[1], text
    for line in ("loss_obj ", "loss_iou ", "varifocal", "ciou"):
        assert line in differences
    assert "max_epoch" not in differences and "Not the losses alone" not in differences
    last = read(runs / "other").rows[-1]
    assert f"{last['AP']:.4f}" in results and f"{last['AP50']:.4f}" in results
    assert f"{last['conf_loss']:.4f}" in losses
    assert "2/2" in results and "finished" in results


def test_a_difference_besides_the_losses_is_named(runs, tmp_path):
    shutil.copytree(runs / "stock", tmp_path / "longer")
    record = json.loads((tmp_path / "longer" / "run.json").read_text())
    record["exp"]["max_epoch"] = 9
    (tmp_path / "longer" / "run.json").write_text(json.dumps(record))
    text = compare([str(runs / "other"), str(tmp_path / "longer")])
    assert "Not the losses alone: max_epoch." in text


def test_one_run_and_an_unfinished_run_are_shown_as_they_are(runs, tmp_path):
    assert "What differs: nothing" in compare([str(runs / "stock")])
    shutil.copytree(runs / "stock", tmp_path / "cut")
    record = json.loads((tmp_path / "cut" / "run.json").read_text())
    (tmp_path / "cut" / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (tmp_path / "cut" / "metrics.csv").unlink()
    text = compare([str(runs / "stock"), str(tmp_path / "cut")])
    assert "running" in text and "0/2" in text


def test_the_figure_is_written(runs, tmp_path):
    import cv2

    text = compare([str(runs / "stock"), str(runs / "other")], str(tmp_path / "out"))
    assert "comparison.png" in text
    image = cv2.imread(str(tmp_path / "out" / "comparison.png"))
    assert image.shape[0] > 1000 and image.std() > 20
    assert "What came out" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize("case", ["missing", "no run", "half written", "twins"])
def test_what_is_no_run_is_answered(runs, tmp_path, case, capsys):
    folder = tmp_path / "stock"
    if case != "missing":
        folder.mkdir()
    if case == "half written":
        (folder / "run.json").write_text('{"status": "runn')
    if case == "twins":
        shutil.copytree(runs / "stock", folder, dirs_exist_ok=True)
    with pytest.raises(RunError):
        compare([str(runs / "stock"), str(folder)])
    assert command.main(["compare", str(runs / "stock"), str(folder)]) == 2
    error = capsys.readouterr().err
    assert (error.startswith("error: ") and "stock" in error) or case == "twins"
