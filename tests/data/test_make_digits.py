"""The data sets that `scripts/make_digits.py` makes with a fault in them."""

import json

import cv2
import numpy as np
import pytest
from conftest import load_script

FAULTY = 40  # images


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """The digits without a fault and with each: fault -> (folder, annotations of train)."""
    script, made = load_script("scripts/make_digits"), {}
    for fault in (None, *script.FAULTS):
        folder = tmp_path_factory.mktemp("faulty") / str(fault)
        script.make(folder, train=FAULTY, val=4, size=160, seed=2, faults=(fault,) if fault else ())
        made[fault] = folder, json.loads((folder / "annotations/instances_train2017.json").read_text())["annotations"]
    return made


def per_class(annotations):
    return [sum(item["category_id"] == label + 1 for item in annotations) for label in range(10)]


@pytest.mark.slow
def test_two_digits_are_fifty_times_rarer(faulty):
    plain, rare = per_class(faulty[None][1]), per_class(faulty["rare"][1])
    wanted = [count / 50 if label in (0, 7) else count for label, count in enumerate(plain)]
    for label in range(10):
        expected = wanted[label] * sum(plain) / sum(wanted)
        assert rare[label] == pytest.approx(expected, abs=0.05 * expected + 1), label
    assert min(rare[0], rare[7]) >= 1


def test_heaps_stand_under_crowd_boxes_and_on_no_label(faulty):
    crowds = [item for item in faulty["crowd"][1] if item["iscrowd"]]
    labelled = [item for item in faulty["crowd"][1] if not item["iscrowd"]]
    keys = ("image_id", "category_id", "bbox")
    assert [[item[key] for key in keys] for item in labelled] == [
        [item[key] for key in keys] for item in faulty[None][1]
    ]
    assert FAULTY / 4 < len(crowds) <= FAULTY  # half of them, where a full picture leaves room
    for crowd in crowds:
        x, y, w, h = crowd["bbox"]
        for item in labelled:
            if item["image_id"] == crowd["image_id"]:
                left, top, wide, high = item["bbox"]
                assert left >= x + w or left + wide <= x or top >= y + h or top + high <= y
        name = f"train2017/{crowd['image_id']:012d}.jpg"
        heap, ground = (cv2.imread(str(faulty[fault][0] / name)).astype(float) for fault in ("crowd", None))
        change = abs(heap - ground).max(2)
        assert (change[y : y + h, x : x + w] > 50).sum() > 5 * 12  # several digits
        change[max(y - 8, 0) : y + h + 8, max(x - 8, 0) : x + w + 8] = 0  # what JPEG spreads within its blocks
        assert change.max() < 50


def test_a_tenth_of_the_labels_is_wrong_and_the_score_knows_more_than_nothing(faulty):
    plain, noisy = faulty[None][1], faulty["noisy"][1]
    wrong = [old["category_id"] != new["category_id"] for old, new in zip(plain, noisy, strict=True)]
    assert sum(wrong) == round(0.1 * len(plain))
    assert [item["bbox"] for item in plain] == [item["bbox"] for item in noisy]
    scores = [item["score"] for item in noisy]
    assert all(0 < score <= 1 for score in scores)
    of_wrong = [score for score, is_wrong in zip(scores, wrong, strict=True) if is_wrong]
    of_right = [score for score, is_wrong in zip(scores, wrong, strict=True) if not is_wrong]
    assert np.mean(of_wrong) < np.mean(of_right) - 0.1 and max(of_wrong) > min(of_right)
    assert {item["category_id"] for item in noisy} == set(range(1, 11))


def test_the_faults_leave_val_and_the_record_of_the_plain_set_as_they_were(faulty):
    plain = faulty[None][0]
    assert json.loads((plain / "digits.json").read_text()).keys() == {"recipe", "train", "val", "size", "seed"}
    files = sorted(path.relative_to(plain) for path in plain.rglob("*") if path.is_file() and "val2017" in str(path))
    assert len(files) == 5
    for fault in ("rare", "crowd", "noisy"):
        for file in files:
            assert (faulty[fault][0] / file).read_bytes() == (plain / file).read_bytes(), (fault, file)


def test_faults_are_flags_that_add_up_and_another_set_is_made_anew(tmp_path, capsys):
    digits = load_script("scripts/make_digits")
    words = ["--out", str(tmp_path / "set"), "--train", "6", "--val", "2", "--size", "96"]
    for flags, answer in (([], "made"), (["--noisy", "--crowd"], "made"), (["--crowd", "--noisy"], "there already")):
        assert digits.main([*words, *flags]) == 0
        assert capsys.readouterr().out.strip().endswith(answer)
    annotations = json.loads((tmp_path / "set/annotations/instances_train2017.json").read_text())["annotations"]
    assert all(("score" in item) != bool(item["iscrowd"]) for item in annotations)
    with pytest.raises(ValueError, match=r"rare, crowd, noisy; got 'blurred'"):
        digits.make(tmp_path / "other", faults=("blurred",))
