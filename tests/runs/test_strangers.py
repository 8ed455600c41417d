"""Run folders from somebody else: nothing is written outside of them, and nothing else of this machine is shown."""

import csv
import json
import re

import numpy as np
import pytest
from conftest import cli_here
from made_runs import edit, make_data, make_run
from PIL import Image

from yolox_loss_patch.compare.comparison import analyse, compare
from yolox_loss_patch.compare.detections import Truth
from yolox_loss_patch.compare.training.facts import examine
from yolox_loss_patch.errors import RunError
from yolox_loss_patch.printing import in_csv, in_markdown, printable, printable_lines
from yolox_loss_patch.runs.selection import read

TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu", "max_epoch", "1", "no_aug_epochs", "0")
NAME = "x\x1b]0;owned\x07\x1b[31m\u202e\n| <img src=x onerror=alert(1)> | [a](javascript:alert(1))"


@pytest.mark.parametrize(
    "name",
    ["latest_ckpt.pth", "train_log.txt", "metrics.csv", "predictions", "predictions/epoch_1.json.gz", "tensorboard"],
)
def test_a_training_does_not_follow_a_link_out_of_its_folder(work, name):
    run = work / "YOLOX_outputs" / "tiny"
    (run / name).parent.mkdir(parents=True)
    (work / "mine").mkdir()
    (work / "mine" / "file").write_text("kept")
    is_folder = "." not in name
    (run / name).symlink_to(work / "mine" if is_folder else work / "mine" / "file")
    done = cli_here(work, *TRAIN[:7], "--resume", *TRAIN[7:], check=False)
    assert done.returncode == 2 and f"{name}' is a link to" in done.stderr and "Remove the link" in done.stderr
    assert [path.read_text() for path in (work / "mine").iterdir()] == ["kept"]
    assert not list(run.glob(".claim*"))


@pytest.mark.slow
def test_the_folder_itself_may_be_on_another_disk(work):
    (work / "disk").mkdir()
    (work / "YOLOX_outputs").symlink_to(work / "disk")
    cli_here(work, *TRAIN)
    assert (work / "disk" / "tiny" / "latest_ckpt.pth").is_file()


def test_a_comparison_replaces_a_link_and_does_not_follow_it(tmp_path):
    data = make_data(tmp_path / "data", images=3)
    for seed, losses in ((0, {}), (1, {"loss_iou": "giou"})):
        make_run(tmp_path / f"run{seed}", data, seed=seed, losses=losses)
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "out").mkdir()
    for name in ("comparison.csv", "comparison.html", "comparison.png"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "mine")
    compare([str(tmp_path / "run*")], out=str(tmp_path / "out"))
    assert (tmp_path / "mine").read_text() == "kept" and not (tmp_path / "out" / "comparison.csv").is_symlink()


@pytest.fixture
def lead_out(tmp_path):
    """Two runs on annotations whose first image is a private one, and whose second is reached through a link."""
    private = tmp_path / "private.png"
    Image.fromarray(np.full((256, 256, 3), 255, np.uint8)).save(private)
    data = make_data(tmp_path / "data", images=3)
    truth = tmp_path / "data" / "truth.json"
    coco = json.loads(truth.read_text())
    coco["images"][0]["file_name"] = "../private.png"
    (tmp_path / "data" / coco["images"][1]["file_name"]).unlink()
    (tmp_path / "data" / coco["images"][1]["file_name"]).symlink_to(private)
    coco["images"][2]["file_name"] = str(private)
    truth.write_text(json.dumps(coco))
    data.pop("sha256")
    for seed, losses in ((0, {}), (1, {"loss_iou": "giou"})):
        run = make_run(tmp_path / f"run{seed}", data, error=0.1 + 0.1 * seed, seed=seed, losses=losses)
        edit(run, data={"train": {}, "val": {**data, "image_folder": str(tmp_path / "data")}})
    return tmp_path


def test_no_picture_from_outside_the_data_set_gets_into_a_page(lead_out):
    truth = Truth(read(lead_out / "run0").record["data"]["val"])
    assert [truth.image_file(number) for number in (1, 2, 3)] == [None] * 3
    assert analyse([str(lead_out / "run*")]).pictures == []
    facts = examine(read(lead_out / "run0"))
    assert facts.evaluated.worst == facts.evaluated.best == [] and any(
        "No image is shown" in why for why in facts.missing
    )


def test_names_reach_terminal_markdown_and_csv_as_text(tmp_path):
    data = make_data(tmp_path / "data", images=3)
    coco = json.loads((tmp_path / "data" / "truth.json").read_text())
    coco["categories"][0]["name"] = NAME
    (tmp_path / "data" / "truth.json").write_text(json.dumps(coco))
    data.pop("sha256")
    make_run(tmp_path / "run0", data)
    other = make_run(tmp_path / "run1", data, losses={"loss_iou": "giou"})
    losses = json.loads((other / "run.json").read_text())["resolved_losses"]
    edit(other, resolved_losses={**losses, "iou": {**losses["iou"], "type": f"={NAME}"}})
    failed = make_run(tmp_path / "run2", data, seed=3, status="failed")
    edit(failed, error=NAME)
    text = compare([str(tmp_path / "run*")], out=str(tmp_path / "out"), per_class=True)
    for shown in (text, (tmp_path / "out" / "comparison.md").read_text()):
        assert not set(shown) & set("\x1b\x07\u202e") and "onerror" in shown
        assert "<img" not in shown.replace("\\<img", "") and "](" not in shown
        lines = [re.sub(r"\\\|", "", line) for line in shown.splitlines() if line.startswith("|")]
        heads = [place - 1 for place, line in enumerate(lines) if line.startswith("|-")]
        for first, last in zip(heads, [*heads[1:], len(lines)], strict=True):
            assert len({line.count("|") for line in lines[first:last]}) == 1, lines[first:last]
    rows = list(csv.reader((tmp_path / "out" / "comparison.csv").open(newline="")))
    assert len(rows) == 3 and all(row[0][0] not in "=+-@" and row[0].isprintable() for row in rows)
    with pytest.raises(RunError) as error:
        compare([str(tmp_path / "run2")])
    assert "onerror" in printable_lines(str(error.value)) and "\x1b" not in printable_lines(str(error.value))


@pytest.mark.parametrize(
    "text,cell",
    [("=1+1", "'=1+1"), ("+cmd", "'+cmd"), ("-2", "-2"), ("-2.5e-3", "-2.5e-3"), ("@x", "'@x"), ("-", "-"), ("a=b", "a=b"),
     ("\t=1", "'=1"), ("-1+1", "'-1+1")],
)  # fmt: skip
def test_no_cell_is_a_formula(text, cell):
    assert in_csv(text) == cell


def test_what_is_printed():
    assert printable("a\x1b[31m\nb") == "a [31m b" and printable_lines("a\x1b\n b") == "a \n b"
    assert (
        in_markdown("a <b> [x](y) 1 < 2 bce(loss_weight={1: [2]})")
        == "a \\<b> [x]\\(y) 1 < 2 bce(loss_weight={1: [2]})"
    )
