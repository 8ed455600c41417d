"""The image cache of --cache: it is used for the images that it was made from, and made where there is room for it."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from conftest import EXP

from yolox_loss_patch import cli
from yolox_loss_patch.data import cache

TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu", "--cache", "max_epoch", "1", "no_aug_epochs", "0")
FIRST = "000000000001.jpg"


@pytest.fixture
def cached(work, digits, monkeypatch):
    """The folder of a data set, and the file of its cache, which a training made."""
    shutil.copytree(digits, work / "data")
    (work / "tiny.py").write_text(EXP.format(data="data"))
    monkeypatch.chdir(work)
    assert cli.main(list(TRAIN)) == 0
    (file,) = (work / "data").glob("*.array")
    return work / "data", file


def another_time(images):
    os.utime(images / FIRST, ns=(0, 0))


def another_size(images):
    os.truncate(images / FIRST, (images / FIRST).stat().st_size + 1)


def another_list(images):
    """One image less, as after an annotation file was edited."""
    path = images.parent / "annotations" / "instances_train2017.json"
    coco = json.loads(path.read_text())
    dropped = coco["images"].pop()["id"]
    coco["annotations"] = [item for item in coco["annotations"] if item["image_id"] != dropped]
    path.write_text(json.dumps(coco))


@pytest.mark.slow
@pytest.mark.parametrize("change", [another_time, another_size, another_list])
def test_a_cache_of_other_images_is_refused(cached, change, capsys):
    folder, file = cached
    assert cli.main(list(TRAIN)) == 0  # nothing was changed
    change(folder / "train2017")
    assert cli.main(list(TRAIN)) == 2
    error = capsys.readouterr().err
    assert f"{file.name}' does not fit: " in error and "Remove it" in error


@pytest.mark.slow
def test_a_cache_for_which_the_disk_has_no_room_is_not_begun(cached, monkeypatch, capsys):
    folder, file = cached
    file.unlink()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**19))
    assert cli.main(list(TRAIN)) == 2
    error = capsys.readouterr().err
    assert f"{file.name}' takes 1 MiB, and its disk has 0 MiB free. Free space there" in error
    assert not list(folder.glob("*.array"))
