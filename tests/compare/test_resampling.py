"""Resampled AP against pycocotools: with the images as they are, and with each image as often as it was drawn."""

import numpy as np
import pytest
from pycocotools.coco import COCO

from yolox_loss_patch.compare.bootstrap.matching import Boxes
from yolox_loss_patch.compare.bootstrap.resampling import METRICS, class_values, image_weights, mean_over_classes
from yolox_loss_patch.train.evaluator import coco_metrics


def make_case(seed, images=12, classes=3, crowded=False):
    """Annotations and detections with crowds, boxes on the borders between sizes, equal overlaps and empty images."""
    rng = np.random.default_rng(seed)
    data = {
        "images": [{"id": 7 * number + 3} for number in range(images)],
        "categories": [{"id": 5 * number + 2, "name": str(number)} for number in range(classes + 1)],  # one has no box
        "annotations": [],
    }
    found = []
    for image in data["images"][:-1]:
        for _ in range(rng.integers(0, 60 if crowded else 8)):
            x, y, w, h = (float(value) for value in (*rng.uniform(0, 150, 2), *rng.uniform(6, 120, 2)))
            if rng.random() < 0.2:
                w, h = [(32.0, 32.0), (96.0, 96.0), (32.0, 20.0)][rng.integers(3)]  # exactly on a border
            category = data["categories"][rng.integers(classes)]["id"]
            data["annotations"].append(
                {"id": len(data["annotations"]) + 1, "image_id": image["id"], "category_id": category, "bbox": [x, y, w, h],
                 "area": w * h * (1.0 if rng.random() < 0.7 else 0.6), "iscrowd": int(rng.random() < 0.12)}
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                dx, dy, dw, dh = rng.normal(0, rng.choice([0.0, 0.05, 0.15]), 4)
                box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
                guess = category if rng.random() < 0.9 else data["categories"][rng.integers(classes + 1)]["id"]
                found.append((image["id"], guess, box, rng.random()))
        for _ in range(rng.integers(0, 150 if crowded else 4)):
            box = [*rng.uniform(0, 150, 2), *rng.uniform(6, 100, 2)]
            found.append((image["id"], data["categories"][rng.integers(classes + 1)]["id"], box, rng.random()))
    keys = ("image_id", "category_id", "bbox", "score")
    found = [dict(zip(keys, (i, c, [float(v) for v in b], float(s)), strict=True)) for i, c, b, s in found]
    return data, found


def table_of(found):
    return np.array(
        [(d["image_id"], *d["bbox"], d["score"], d["category_id"]) for d in found], dtype=np.float64
    ).reshape(-1, 7)


def repeated(data, found, counts):
    """The data set in which each image stands as often as it was drawn, every copy with an id of its own."""
    copies = {"images": [], "categories": data["categories"], "annotations": []}
    detections = []
    for image, count in zip(data["images"], counts, strict=True):
        for _ in range(count):
            new = len(copies["images"]) + 1
            copies["images"].append({"id": new})
            copies["annotations"] += [
                {**item, "image_id": new, "id": len(copies["annotations"]) + place}
                for place, item in enumerate((a for a in data["annotations"] if a["image_id"] == image["id"]), start=1)
            ]
            detections += [{**item, "image_id": new} for item in found if item["image_id"] == image["id"]]
    return copies, detections


def reference(data, found, classes=None):
    """pycocotools' metrics; of some classes, by leaving the others out of the data."""
    coco = COCO()
    chosen = {item["id"] for item in data["categories"]} if classes is None else set(classes)
    coco.dataset = {
        "images": data["images"],
        "categories": [item for item in data["categories"] if item["id"] in chosen],
        "annotations": [item for item in data["annotations"] if item["category_id"] in chosen],
    }
    coco.createIndex()
    return coco_metrics(coco, [item for item in found if item["category_id"] in chosen])[0]


def resampled(data, found, weights, metric):
    return class_values(
        Boxes(data["images"], data["categories"], data["annotations"]).match(table_of(found)), weights, metric
    )


@pytest.mark.parametrize("seed,crowded", [(0, False), (1, False), (2, True), (3, True)])
def test_with_every_image_once_the_metrics_are_pycocotools(seed, crowded):
    data, found = make_case(seed, crowded=crowded)
    expected = reference(data, found)
    weights = image_weights(len(data["images"]), resamples=0)
    for metric in METRICS:
        assert mean_over_classes(resampled(data, found, weights, metric))[0] == pytest.approx(
            expected[metric], abs=1e-12
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed,crowded", [(4, False), (5, True)])
def test_a_resample_is_the_data_set_with_its_images_repeated(seed, crowded):
    """Every draw, all metrics, all classes and some, against an evaluation of the repeated images by pycocotools."""
    data, found = make_case(seed, images=9, crowded=crowded)
    weights = image_weights(len(data["images"]), resamples=6, seed=seed)
    assert weights.max() > 2 and weights.min() == 0, "the draws repeat images and leave some out"
    ids = sorted(item["id"] for item in data["categories"])
    values = {metric: resampled(data, found, weights, metric) for metric in METRICS}
    for draw in range(weights.shape[1]):
        copies, detections = repeated(data, found, weights[:, draw])
        for classes in (ids, ids[:2], ids[1:2]):
            expected = reference(copies, detections, classes)
            rows = [ids.index(number) for number in classes]
            for metric in METRICS:
                got = mean_over_classes(values[metric][rows])[draw]
                assert got == pytest.approx(expected[metric], abs=1e-12), (draw, classes, metric)


def test_the_draws_are_a_bootstrap():
    """As many images as there are, with their multiplicity; the same seed gives the same draws."""
    weights = image_weights(200, resamples=400)
    assert (weights[:, 0] == 1).all() and (weights.sum(axis=0) == 200).all()
    drawn = weights[:, 1:]
    assert np.mean(drawn == 0) == pytest.approx(np.exp(-1), abs=0.01) and drawn.var() == pytest.approx(1, abs=0.05)
    assert (weights == image_weights(200, resamples=400)).all() and (weights != image_weights(200, 400, seed=1)).any()


def test_nothing_detected_and_nothing_annotated():
    data, _ = make_case(0)
    weights = image_weights(len(data["images"]), resamples=3)
    for metric in METRICS:
        values = resampled(data, [], weights, metric)
        assert np.isnan(values[-1]).all() and set(mean_over_classes(values)) <= {0.0, -1.0}
    bare = {**data, "annotations": []}
    found = [{"image_id": 3, "category_id": 2, "bbox": [0, 0, 9, 9], "score": 0.5}]
    assert (mean_over_classes(resampled(bare, found, weights, "AP")) == -1).all()


def test_detections_of_unknown_classes_count_nowhere():
    data, found = make_case(1)
    stranger = {**found[0], "category_id": 99, "score": 1.0}
    weights = image_weights(len(data["images"]), resamples=2)
    without, with_it = (resampled(data, rows, weights, "AP") for rows in (found, [stranger, *found]))
    np.testing.assert_array_equal(without, with_it)


def test_the_progress_adds_up():
    data, found = make_case(0)
    shares = []
    matches = Boxes(data["images"], data["categories"], data["annotations"]).match(table_of(found))
    class_values(matches, image_weights(len(data["images"]), 2), "AP", shares.append)
    assert sum(shares) == pytest.approx(1) and len(shares) == len(data["categories"])
