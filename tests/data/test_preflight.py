"""The checks of the data before the first epoch: a row per mistake, through the verbs that a user types."""

import copy
import json
import shutil
import time

import cv2
import numpy as np
import pytest
import torch
from conftest import EXP
from PIL import Image

from yolox_loss_patch import cli
from yolox_loss_patch.data.annotations import check_annotations
from yolox_loss_patch.data.preflight import check_split
from yolox_loss_patch.exp.loading import load_exp

SIZE = (96, 96)


def a_set(images=2, boxes=3):
    """A small annotation file: images of 100x80, boxes of 10x12."""
    return {
        "images": [{"id": n + 1, "file_name": f"{n + 1}.jpg", "width": 100, "height": 80} for n in range(images)],
        "annotations": [
            {"id": n + 1, "image_id": n % images + 1, "category_id": n % 2 + 1, "bbox": [5.0 * (n % 9), 4, 10, 12],
             "area": 120.0, "iscrowd": 0}
            for n in range(boxes)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }  # fmt: skip


def first(part, **values):
    return lambda coco: coco[part][0].update(values)


def boxes(function):
    def change(coco):
        for item in coco["annotations"]:
            item["bbox"] = function(*item["bbox"])

    return change


# what is changed, level, words of the finding
CONTENT = {
    "image ids repeat": (lambda coco: coco["images"].append(coco["images"][1]), "error", "1 ids of images repeat (2)"),
    "annotation ids repeat": (first("annotations", id=2), "error", "1 ids of annotations repeat (2)"),
    "category ids repeat": (lambda coco: coco["categories"].append({"id": 2, "name": "c"}), "error", "1 ids of categories"),
    "names repeat": (first("categories", name="dog"), "warning", "1 names of categories repeat (dog)"),
    "image id is text": (first("images", id="1"), "error", "has an id that is no whole number"),
    "image id is a float": (first("images", id=1.0), "error", "has an id that is no whole number"),
    "image id is true": (first("images", id=True), "error", "has an id that is no whole number"),
    "image_id is text": (first("annotations", image_id="1"), "error", "has an image_id that is no whole number"),
    "category_id is text": (first("annotations", category_id="1"), "error", "has a category_id that is no whole number"),
    "an image is lost": (first("annotations", image_id=9), "error", "images that are not present in 'images'"),
    "a category is lost": (first("annotations", category_id=9), "error", "of category 9, which is not among"),
    "width 0": (first("images", width=0), "error", "image 1 (1.jpg) has width 0 and height 80"),
    "height is text": (first("images", height="80"), "error", "has width 100 and height '80'"),
    "width is null": (first("images", width=None), "error", "has width None"),
    "height is NaN": (first("images", height=float("nan")), "error", "height nan"),
    "no image": (lambda coco: coco.update(images=[], annotations=[]), "error", "lists no image"),
    "a number in place of images": (lambda coco: coco.update(images=3), "error", "no list of 'images'"),
    "an image is a number": (lambda coco: coco["images"].insert(0, 3), "error", "number 0 of 'images' is 3"),
    "no file name": (first("images", file_name=""), "error", "has the file_name ''"),
    "NaN": (first("annotations", bbox=[1, 2, float("nan"), 4]), "error", "all finite; got [1, 2, nan, 4]"),
    "infinity": (first("annotations", bbox=[1, float("inf"), 3, 4]), "error", "all finite; got [1, inf, 3, 4]"),
    "negative width": (first("annotations", bbox=[9, 2, -3, 4]), "error", "no side is negative; got [9, 2, -3, 4]"),
    "text in a box": (first("annotations", bbox=["1", 2, 3, 4]), "error", "got ['1', 2, 3, 4]"),
    "a box of three": (first("annotations", bbox=[1, 2, 3]), "error", "[x, y, width, height]"),
    "area NaN": (first("annotations", area=float("nan")), "error", "the area of annotation 1 is nan"),
    "iscrowd is text": (first("annotations", iscrowd="no"), "error", "the iscrowd of annotation 1 is 'no'"),
    "in 0..1": (boxes(lambda x, y, w, h: [x / 100, y / 80, w / 100, h / 80]), "error", "between 0 and 1"),
    "x1 y1 x2 y2": (boxes(lambda x, y, w, h: [x + 45, y + 30, x + 45 + w, y + 30 + h]), "error", "look like x1 y1 x2 y2"),
    "of other images": (boxes(lambda x, y, w, h: [9 * x + 99, 9 * y, 9 * w, 9 * h]), "error", "reach beyond their image"),
    "a crowd": (first("annotations", iscrowd=1), "warning", "1 are crowds, which YOLOX takes for background"),
    "area 0": (first("annotations", area=0), "warning", "1 of 80 boxes are not trained on: 1 have an area of 0 (ids 1)"),
    "side 0": (first("annotations", bbox=[1, 2, 0, 4]), "warning", "1 have a side of 0"),
    "outside": (first("annotations", bbox=[120, 2, 9, 4]), "warning", "1 lie outside their image"),
    "tiny": (first("annotations", bbox=[1, 2, 0.9, 4]), "warning", "1 are not wider or higher than a pixel at 96x96"),
    "over the border": (first("annotations", bbox=[95, 2, 20, 9]), "warning", "1 boxes reach outside the image boundary"),
}  # fmt: skip


def test_a_sound_set_has_no_finding_and_is_counted():
    findings, facts = check_annotations(a_set(4, 80), "train", SIZE)
    assert findings == []
    assert facts["images"] == 4 and facts["boxes"] == facts["boxes_kept"] == 80 and facts["category_ids"] == [1, 2]
    assert facts["boxes_per_category"] == [40, 40] and facts["boxes_per_image"] == {"20": 4}


@pytest.mark.parametrize("case", CONTENT)
def test_what_is_wrong_with_an_annotation_file(case):
    change, level, words = CONTENT[case]
    coco = a_set(2, 80)  # fewer boxes per class are told as rare
    change(coco)
    findings, facts = check_annotations(coco, "train", SIZE)
    assert [finding.level for finding in findings] == [level] and words in findings[0].text, findings
    assert findings[0].remedy and bool(facts) == (level == "warning")


def test_a_hundred_thousand_annotations_take_at_most_two_seconds():
    coco = a_set(10_000, 100_000)
    started = time.process_time()
    findings, facts = check_annotations(coco, "train", SIZE)
    assert time.process_time() - started < 2 and not findings and facts["boxes"] == 100_000


# ---------------------------------------------------------------------------------------------------------------------
# Through the verbs.


def annotations(data, split="train"):
    return data / "annotations" / f"instances_{split}2017.json"


def edit(change, split="train"):
    """A function of the annotation file's content as damage of the data folder."""

    def damage(data):
        coco = json.loads(annotations(data, split).read_text())
        change(coco)
        annotations(data, split).write_text(json.dumps(coco))

    return damage


def images(data, split="train"):
    return sorted((data / f"{split}2017").glob("*.jpg"))


def cut(data):
    path = images(data)[1]
    path.write_bytes(path.read_bytes()[:-200])


def turn(data):
    """A picture of 96x48 with the tag that has it shown as 48x96, annotated as it lies in the file."""
    path = images(data)[0]
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.full((48, 96, 3), 90, np.uint8)).save(path, exif=exif)
    edit(
        lambda coco: next(image for image in coco["images"] if image["file_name"] == path.name).update(
            width=96, height=48
        )
    )(data)


def spoil(data):
    """The middle of an image: header and end are whole, so that only decoding tells."""
    path = images(data)[2].with_suffix(".png")
    ok, text = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    assert ok
    text = bytearray(text.tobytes())
    text[200:20000] = bytes(19800)
    path.write_bytes(bytes(text))
    name = path.with_suffix(".jpg").name
    edit(
        lambda coco: next(image for image in coco["images"] if image["file_name"] == name).update(file_name=path.name)
    )(data)


def crowded(count):
    def change(coco):
        item, images = coco["annotations"][0], [image["id"] for image in coco["images"]]
        for number in range(count):
            coco["annotations"].append({**item, "id": 10_000 + number, "image_id": images[0]})

    return edit(change)


TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu", "max_epoch", "1", "no_aug_epochs", "0")
EVAL = ("eval", "-f", "tiny.py", "-b", "8", "--device", "cpu", "-c", "weights.pth")
SWEEP = ("sweep", "-f", "tiny.py", "-b", "8", "--device", "cpu", "--seeds", "0")
CALIBRATE = ("calibrate", "-f", "tiny.py", "--steps", "4", "--device", "cpu", "loss_iou", "ciou")
VERIFY = ("verify", "-f", "tiny.py", "--steps", "1", "--device", "cpu")
DOCTOR = ("doctor", "-f", "tiny.py")
IDS = edit(first("annotations", id=2))


def shift_categories(coco):
    for category in coco["categories"]:
        category["id"] += 1
    for item in coco["annotations"]:
        item["category_id"] += 1


def nine_times(coco):
    """Every box nine times."""
    items = list(coco["annotations"])
    coco["annotations"] += [{**item, "id": 1000 * n + item["id"]} for item in items for n in range(1, 9)]


def mark(data):
    annotations(data).write_bytes(b"\xef\xbb\xbf" + annotations(data).read_bytes())


def without_class(coco):
    coco["annotations"] = [item for item in coco["annotations"] if item["category_id"] != coco["categories"][3]["id"]]


OTHER_IDS = edit(shift_categories, "val")
NO_IMAGE = edit(lambda coco: coco.update(images=[], annotations=[]), "val")
NO_BOX = edit(lambda coco: coco.update(annotations=[]), "val")
# what is done to the data, the verb, exit status, words that the user reads
VERBS = {
    "train: ids repeat": (IDS, TRAIN, 2, ["error: train: 1 ids of annotations repeat (2)", "Number the annotations anew"]),
    "eval: ids repeat": (edit(first("images", id=100002), "val"), EVAL, 2, ["error: val: 1 ids of images repeat (100002)"]),
    "sweep: ids repeat": (IDS, SWEEP, 2, ["error: train: 1 ids of annotations repeat (2)"]),
    "calibrate: ids repeat": (IDS, CALIBRATE, 2, ["error: train: 1 ids of annotations repeat (2)"]),
    "verify: ids repeat": (IDS, VERIFY, 2, ["1 ids of annotations repeat (2)", "error found"]),
    "train: category ids": (OTHER_IDS, TRAIN, 2, ["those of train and val differ", "0 (id 1) in train only"]),
    "eval: category ids": (OTHER_IDS, EVAL, 2, ["those of train and val differ", "same categories with the same ids"]),
    "sweep: category names": (edit(first("categories", name="x"), "val"), SWEEP, 2, ["x (id 1) in val only"]),
    "calibrate: category ids": (OTHER_IDS, CALIBRATE, 2, ["those of train and val differ"]),
    "doctor: category ids": (OTHER_IDS, DOCTOR, 2, ["those of train and val differ"]),
    "sweep: classes": (None, (*SWEEP, "num_classes", "3"), 2, ["has 10 categories", "Set self.num_classes = 10."]),
    "train: a class too many": (None, (*TRAIN, "num_classes", "11"), 2, ["num_classes = 11", "Set self.num_classes = 10."]),
    "train: val is empty": (NO_IMAGE, TRAIN, 2, ["val: the annotation file lists no image"]),
    "train: val has no box": (NO_BOX, TRAIN, 0,
                              ["val: ", "has no box, so AP cannot be measured and no best_ckpt.pth is written"]),
    "train: sizes": (edit(first("images", width=64, height=128)), TRAIN, 2, ["is 96x96, annotated 64x128", "Correct"]),
    "train: turned": (turn, TRAIN, 2, ["is turned by its EXIF orientation", "orientation 6, shown as 48x96"]),
    "train: cut off": (cut, TRAIN, 2, ["000000000002.jpg", "is cut off", "Copy it anew"]),
    "train: cut off, cached": (cut, (*TRAIN[:7], "--cache", *TRAIN[7:]), 2, ["000000000002.jpg", "is cut off"]),
    "train: max_labels": (crowded(200), TRAIN, 0, ["have more boxes than the 120 labels", "boxes are lost in every epoch"]),
    "doctor: train lacks a class": (edit(without_class), DOCTOR, 0, ["1 of 10 classes have no box and are never learned: 3"]),
    "doctor: val lacks a class": (edit(without_class, "val"), DOCTOR, 0, ["1 of 10 classes have no box and are not measured: 3"]),
    "doctor: mosaics": (edit(nine_times), DOCTOR, 0, ["a mosaic of four images has", "keeps 120 labels: up to"]),
    "doctor: a byte-order mark": (mark, DOCTOR, 0, ["24 images"]),
    "doctor: decoded": (spoil, (*DOCTOR, "--images"), 2, ["000000000003.png", "all 8 images"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", VERBS)
def test_a_verb_stops_or_warns_before_the_first_epoch(case, work, digits, monkeypatch, capsys):
    damage, words, status, answers = VERBS[case]
    shutil.copytree(digits, work / "data")
    if damage is not None:
        damage(work / "data")
    monkeypatch.chdir(work)
    (work / "tiny.py").write_text(EXP.format(data="data"))
    if words[0] == "eval":
        torch.save({"model": load_exp("tiny.py").get_model().state_dict()}, "weights.pth")
    started = time.process_time()
    assert cli.main(list(words)) == status, capsys.readouterr()
    assert time.process_time() - started < 20
    output = capsys.readouterr()
    for answer in answers:
        assert answer in output.out + output.err, output
    assert "Traceback" not in output.err
    if status == 0 and words[0] == "train":
        assert "best AP is 0.00" not in output.err or "has no box" not in output.err


def test_the_result_is_kept_until_the_file_or_an_image_changes(digits, tmp_path, monkeypatch):
    from yolox_loss_patch.data import preflight

    shutil.copytree(digits, tmp_path / "data")
    path, folder = annotations(tmp_path / "data"), tmp_path / "data" / "train2017"
    calls = []
    inner = preflight.check_annotations
    monkeypatch.setattr(preflight, "check_annotations", lambda *args: calls.append(1) or inner(*args))
    before = check_split(path, folder, "train", SIZE)
    assert check_split(path, folder, "train", SIZE) == before and len(calls) == 1
    image = images(tmp_path / "data")[0]
    whole = image.read_bytes()
    image.unlink()
    assert any("does not exist" in finding.text for finding in check_split(path, folder, "train", SIZE)[0])
    image.write_bytes(whole)
    assert check_split(path, folder, "train", SIZE)[0] == before[0]
    edit(first("annotations", id=2))(tmp_path / "data")
    assert any("repeat" in finding.text for finding in check_split(path, folder, "train", SIZE)[0])
    assert len(calls) == 4


def test_a_home_that_cannot_be_written_costs_no_more_than_the_check(digits, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    findings, facts = check_split(annotations(digits), digits / "train2017", "train", SIZE)
    assert facts["images"] == 24 and copy.copy(findings) == findings
