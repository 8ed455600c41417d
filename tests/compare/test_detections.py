"""What kept detections tell: pycocotools' numbers, errors, scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import detect, make_data
from pycocotools.coco import COCO

from yolox_loss_patch.compare.detections import ERRORS, Truth
from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs.predictions import write_predictions
from yolox_loss_patch.train.evaluator import coco_metrics


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), images=30)


@pytest.fixture(scope="module")
def truth(data):
    return Truth(data)


def keep(folder, name, found):
    write_predictions(folder / f"{name}.json.gz", found)
    return folder / f"{name}.json.gz"


@pytest.mark.parametrize("error", [0.02, 0.12, 0.4])
def test_the_metrics_are_pycocotools(truth, data, tmp_path, error):
    found = detect(truth, error, seed=1)
    told = truth.diagnose(Truth.table(found))
    reference, _ = coco_metrics(COCO(data["file"]), found)
    assert told.metrics == pytest.approx(reference, abs=1e-9)
    assert np.mean(list(told.classes.values())) == pytest.approx(told.metrics["AP"], abs=1e-9)
    assert set(told.errors) == set(ERRORS) and all(value >= 0 for value in told.errors.values())
    assert len(told.images) == 30


def test_nothing_detected_is_zero_where_there_are_boxes_and_nothing_where_there_are_none(data):
    coco = COCO(data["file"])
    coco.dataset["annotations"] = [item for item in coco.dataset["annotations"] if 32**2 < item["area"] < 96**2]
    coco.createIndex()
    metrics, summary = coco_metrics(coco, [])
    assert metrics == {name: -1.0 if name in ("AP_small", "AP_large") else 0.0 for name in metrics}
    assert "No detection above the score threshold" in summary


def test_annotations_with_gaps_ids_crowds_and_a_class_without_boxes(truth, data, tmp_path):
    coco = json.loads(Path(data["file"]).read_text())
    coco["categories"] = [{"id": 7, "name": "never"}, *({**item, "id": item["id"] * 10} for item in coco["categories"])]
    for number, item in enumerate(coco["annotations"]):
        item.update(
            category_id=item["category_id"] * 10, iscrowd=int(number % 9 == 0), segmentation=[[1, 2, 3, 4, 5, 6]]
        )
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    other = Truth({"file": str(tmp_path / "truth.json")})
    found = detect(other, 0.1, seed=2)
    told = other.diagnose(Truth.table(found))
    assert told.metrics == pytest.approx(coco_metrics(COCO(str(tmp_path / "truth.json")), found)[0], abs=1e-9)
    assert told.classes["never"] == -1


@pytest.mark.slow
def test_the_best_threshold_is_the_one_a_search_finds(truth, tmp_path):
    """Against counting hits and false alarms at every threshold, with torchvision's IoU and greedy matching."""
    import torch
    from torchvision.ops import box_iou

    found = detect(truth, 0.1, seed=3)
    told = truth.diagnose(Truth.table(found))

    def mean_f1(threshold):
        values = []
        for category in (1, 2, 3):
            hits = alarms = boxes = 0
            for image in range(1, 31):
                real = [a["bbox"] for a in truth.annotations if (a["image_id"], a["category_id"]) == (image, category)]
                mine = sorted(
                    (d for d in found if (d["image_id"], d["category_id"]) == (image, category)),
                    key=lambda d: -d["score"],
                )
                mine = [d["bbox"] for d in mine if d["score"] >= threshold]
                boxes += len(real)
                if real and mine:
                    corners = [torch.tensor(side) for side in (mine, real)]
                    iou = box_iou(*(torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], 1) for b in corners))
                    for row in iou:
                        best = int(row.argmax())
                        if row[best] >= 0.5:
                            hits += 1
                            iou[:, best] = 0
                        else:
                            alarms += 1
                else:
                    alarms += len(mine)
            values.append(2 * hits / max(hits + alarms + boxes, 1))
        return float(np.mean(values))

    assert told.f1 == pytest.approx(mean_f1(told.threshold), abs=0.02)
    assert told.f1 >= max(mean_f1(threshold) for threshold in np.arange(0.05, 1, 0.05)) - 0.02


def test_perfect_detections_and_none_at_all(truth, tmp_path):
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
        for a in truth.annotations
    ]
    told = truth.diagnose(Truth.table(perfect))
    assert told.metrics["AP"] == pytest.approx(1.0) and told.f1 == pytest.approx(1.0) and told.calibration_error < 1e-9
    assert all(value == pytest.approx(0, abs=1e-9) for value in told.errors.values())
    nothing = truth.diagnose(Truth.table([]))
    assert nothing.metrics["AP"] == 0 and nothing.f1 == 0 and nothing.errors["Miss"] >= 0


def test_the_calibration_error_is_the_distance_from_score_to_share(truth, tmp_path):
    """All scores alike: the error is how far that score is from the share of detections that are right."""
    found = detect(truth, 0.1, seed=3)

    def told(score):
        return truth.diagnose(Truth.table([{**row, "score": score} for row in found]))

    ((score, share, number),) = told(0.5).calibration
    assert score == pytest.approx(0.5) and 0.3 < share < 0.95 and number == len(found)
    assert told(share).calibration_error < 0.01
    assert told(0.99).calibration_error == pytest.approx(0.99 - share, abs=0.01)


@pytest.mark.slow
def test_files_that_are_gone_or_changed_or_of_other_images(truth, data, tmp_path):
    with pytest.raises(RunError, match="is not there any more"):
        Truth({"file": str(tmp_path / "gone.json")})
    with pytest.raises(RunError, match="was changed"):
        Truth({**data, "sha256": "0" * 64})
    stranger = [{**detect(truth, 0.1, seed=1)[0], "image_id": 4711}]
    with pytest.raises(RunError, match="image 4711"):
        truth.read(keep(tmp_path, "stranger", stranger))
    (tmp_path / "broken.json.gz").write_bytes(b"no gzip")
    with pytest.raises(RunError, match="eval --save"):
        truth.read(tmp_path / "broken.json.gz")
