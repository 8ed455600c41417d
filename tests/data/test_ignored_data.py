"""Ignored regions through YOLOX's own data pipeline: data set, mosaic, mixup, affine, flip, transform, evaluation."""

import copy
import json
import random

import cv2
import numpy as np
import pytest
from conftest import EXP, cli, load_script
from yolox.exp.default.yolox_nano import Exp as NanoExp

import yolox_loss_patch as ylp
from yolox_loss_patch.compare.detections import Truth
from yolox_loss_patch.data.checks import check_dataset
from yolox_loss_patch.data.ignored import IgnoreSettings, RegionsLast
from yolox_loss_patch.errors import ConfigError
from yolox_loss_patch.exp.loading import adapt, load_exp
from yolox_loss_patch.runs.predictions import write_predictions
from yolox_loss_patch.train.evaluator import coco_metrics

SIZE = 128
# (x, y, w, h): two objects, painted green, and two regions, painted red.
OBJECTS = ((6, 8, 30, 22), (80, 90, 26, 30))
REGIONS = ((60, 6, 50, 40), (8, 60, 34, 52))


def box(number, image, bbox, category=1, **more):
    area = bbox[2] * bbox[3]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(bbox),
        "area": area,
        "iscrowd": 0,
        **more,
    }


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A data set whose objects are green and whose crowds are red, and the annotations as plain data."""
    folder = tmp_path_factory.mktemp("painted")
    (folder / "annotations").mkdir()
    images, boxes = [], []
    for number in range(1, 7):
        picture = np.full((SIZE, SIZE, 3), 114, np.uint8)
        flags = (
            {"iscrowd": 1} if number % 2 else {"ignore": 1}
        )  # half of them in the way of LVIS and VisDrone's converters
        for colour, rectangles, more in (((0, 255, 0), OBJECTS, {}), ((0, 0, 255), REGIONS[: 1 + number % 2], flags)):
            for x, y, w, h in rectangles:
                picture[y : y + h, x : x + w] = colour
                boxes.append(box(len(boxes) + 1, number, (x, y, w, h), category=1 + number % 2, **more))
        images.append({"id": number, "file_name": f"{number}.png", "width": SIZE, "height": SIZE})
        for split in ("train2017", "val2017"):
            (folder / split).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / split / f"{number}.png"), picture)
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(coco))
    return folder


def make_exp(folder, num_classes=2, **settings):
    class Exp(ylp.LossExp, NanoExp):
        pass

    exp = Exp()
    exp.data_dir, exp.num_classes, exp.data_num_workers = str(folder), num_classes, 0
    exp.input_size = exp.test_size = (SIZE, SIZE)
    exp.hsv_prob, exp.seed = 0.0, 1
    for key, value in settings.items():
        setattr(exp, key, value)
    return exp


def samples(exp, count=24, mosaic=True):
    """Images and labels as the loader makes them, each under its own seed."""
    dataset = exp.get_data_loader(batch_size=2, is_distributed=False, no_aug=not mosaic).dataset
    for seed in range(count):
        random.seed(seed)
        np.random.seed(seed)
        image, labels = dataset[(mosaic, seed % len(dataset))][:2]
        yield image.transpose(1, 2, 0), labels


def outline(labels):
    """The rows as corners in px, rounded to the pixels that they cover."""
    cx, cy, w, h = labels[:, 1:].T
    return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)


PLAIN = {"mosaic_prob": 0.0, "mixup_prob": 0.0, "flip_prob": 0.0, "degrees": 0.0, "shear": 0.0}
PIPELINES = {
    "alone": {**PLAIN},
    "flip": {**PLAIN, "flip_prob": 1.0},
    "mosaic": {**PLAIN, "mosaic_prob": 1.0},
    "affine": {**PLAIN, "mosaic_prob": 1.0, "degrees": 20.0, "shear": 5.0},
    "mixup": {**PLAIN, "mosaic_prob": 1.0, "mixup_prob": 1.0, "enable_mixup": True},
    "all": {"mosaic_prob": 1.0, "mixup_prob": 1.0, "enable_mixup": True},
}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_region_goes_where_its_pixels_go(painted, pipeline):
    turned = pipeline in ("affine", "all")
    found = []
    for image, labels in samples(make_exp(painted, ignore_crowd=True, **PIPELINES[pipeline])):
        red = (image[..., 2] - image[..., 0] > 70) & (image[..., 2] - image[..., 1] > -30)
        regions = outline(labels[labels[:, 0] == -1])
        inside = np.zeros_like(red)
        for x1, y1, x2, y2 in regions:
            inside[max(round(y1) - 2, 0) : round(y2) + 2, max(round(x1) - 2, 0) : round(x2) + 2] = True
            core = red[max(round(y1) + 2, 0) : round(y2) - 2, max(round(x1) + 2, 0) : round(x2) - 2]
            cut = min(x1, y1, SIZE - x2, SIZE - y2) < 1  # of a turned region a corner without paint may be left
            if min(core.shape) > 3 and not (cut and turned):
                found.append(core.mean())
                assert turned or (core[0].mean() > 0.8 and core[:, -1].mean() > 0.8)
        assert not (red & ~inside)[2:-2, 2:-2].any()  # YOLOX's transform drops boxes of a pixel
    assert len(found) > 5
    if turned:
        # A turned region is the box around its corners, as YOLOX's boxes are; and as with these, mosaic makes a line of one
        # outside its canvas, which turned is a box with nothing in it.
        assert np.quantile(found, 0.2) > 0.35
    else:
        assert min(found) > 0.97


@pytest.mark.parametrize("mosaic", [True, False])
def test_images_and_boxes_are_those_of_stock_bit_for_bit(painted, mosaic):
    stock = samples(make_exp(painted, mixup_prob=0.5, enable_mixup=True), mosaic=mosaic)
    crowd_only = make_exp(painted, mixup_prob=0.5, enable_mixup=True, ignore_crowd=True)
    # `ignore: 1` is a box for YOLOX, so that only crowds are compared
    for (image, labels), (other, rows) in zip(stock, samples(crowd_only, mosaic=mosaic), strict=True):
        assert np.array_equal(image, other)
        kept = rows[rows[:, 0] >= 0]
        kept = kept[kept.sum(1) > 0]
        assert {tuple(row) for row in kept} <= {tuple(row) for row in labels}
        is_region = rows[:, 0] == -1
        count = is_region.sum()
        assert is_region[len(kept) : len(kept) + count].all()  # boxes, then regions, then zeros
        assert not rows[len(kept) + count :].any()


def test_no_region_takes_the_row_of_a_box_and_none_is_cut_off():
    class Transform:
        max_labels = 3

        def __call__(self, image, targets, size):
            labels = np.zeros((self.max_labels, 5), np.float32)
            labels[: len(targets)] = np.roll(targets, 1, axis=1)[: self.max_labels]
            return image, labels

    own = Transform()
    rows = [[0, 0, 5, 5, -1], [1, 1, 5, 5, 0], [2, 2, 5, 5, -1], [3, 3, 5, 5, 1], [4, 4, 5, 5, 1], [5, 5, 6, 6, 1]]
    _, labels = RegionsLast(own, room=4)(None, np.array(rows, float), (8, 8))
    assert labels[:, 0].tolist() == [0, 1, 1, -1, -1, 0, 0]
    assert labels[:, 1].tolist() == [1, 3, 4, 0, 2, 0, 0]
    assert own.max_labels == 3


def test_without_the_setting_nothing_of_the_pipeline_is_touched(painted):
    loader = make_exp(painted).get_data_loader(batch_size=2, is_distributed=False)
    assert not isinstance(loader.dataset.preproc, RegionsLast)
    assert "ignore_crowd" not in vars(make_exp(painted)) and "ignored_regions" not in check_dataset(
        loader.dataset, 2, "train"
    )
    assert (
        check_dataset(
            make_exp(painted, ignore_crowd=True).get_data_loader(batch_size=2, is_distributed=False).dataset, 2, "train"
        )["ignored_regions"]
        == 9
    )


def test_ignored_classes_are_no_classes_and_their_boxes_are_regions(painted):
    exp = make_exp(painted, num_classes=1, ignore_classes=["a"], **PIPELINES["alone"])
    for (_, labels), number in zip(samples(exp, count=6), range(1, 7), strict=True):
        regions, boxes = labels[labels[:, 0] == -1], labels[labels[:, 3] > 0]
        boxes = boxes[boxes[:, 0] >= 0]
        wanted = OBJECTS if number % 2 else ()  # the even images are of the ignored class
        assert np.allclose(sorted(outline(boxes).tolist()), sorted([x, y, x + w, y + h] for x, y, w, h in wanted))
        assert set(boxes[:, 0]) <= {0}
        others = () if number % 2 else (*OBJECTS, REGIONS[0])
        assert np.allclose(sorted(outline(regions).tolist()), sorted([x, y, x + w, y + h] for x, y, w, h in others))
    assert check_dataset(exp.get_data_loader(batch_size=2, is_distributed=False).dataset, 1, "train")["categories"] == [
        "b"
    ]


def test_a_detection_in_a_region_of_an_ignored_class_is_neither_right_nor_wrong(painted, tmp_path):
    exp = make_exp(painted, num_classes=1, ignore_classes=["a"])
    evaluator = exp.get_evaluator(batch_size=2, is_distributed=False)
    dataset = evaluator.dataloader.dataset
    facts = check_dataset(dataset, 1, "val")
    assert facts["ignored_classes"] == ["a"] and facts["categories"] == ["b"]
    found = []
    for item in json.loads((painted / "annotations" / "instances_val2017.json").read_text())["annotations"]:
        if not item["iscrowd"]:
            of_class = item["category_id"] == 2
            # what lies in the ignored class is found first and twice over
            for _ in range(1 if of_class else 2):
                found.append({**item, "category_id": 2, "score": 0.5 if of_class else 0.9})
    assert coco_metrics(dataset.coco, copy.deepcopy(found))[0]["AP"] == pytest.approx(1.0)
    write_predictions(tmp_path / "predictions.json.gz", found)
    truth = Truth(facts)
    table = truth.read(tmp_path / "predictions.json.gz")
    assert truth.diagnose(table).metrics["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ignore_crowd": 1}, r"ignore_crowd is True or False; got 1"),
        ({"ignore_classes": [3]}, r"ignore_classes is a list of names .* got \[3\]"),
        ({"ignore_classes": ["bb"]}, r"no category 'bb'. Did you mean 'b'\? instances_train2017.json has: a, b"),
    ],
)
def test_a_setting_that_cannot_be_is_told(painted, settings, words):
    with pytest.raises(ConfigError, match=words):
        make_exp(painted, **settings).get_data_loader(batch_size=2, is_distributed=False)


def test_an_experiment_without_the_kits_loader_is_told():
    exp = NanoExp()
    exp.ignore_crowd = True
    model = exp.get_model()
    words = r"its data loader puts no regions into the labels and no scores. Write class Exp\(LossExp"
    with pytest.raises(ConfigError, match=words):
        ylp.patch_from_exp(model, exp)
    assert vars(adapt(exp))["ignore_crowd"] is True


def test_a_data_set_that_is_not_cocos_is_told():
    class Loader:
        dataset = ()

    class Base(NanoExp):
        def get_data_loader(self, *args, **kwargs):
            return Loader()

    class Exp(ylp.LossExp, Base):
        ignore_crowd = True

    with pytest.raises(ConfigError, match="work on YOLOX's COCO data set, and this one is a tuple"):
        Exp().get_data_loader(batch_size=2, is_distributed=False)


def test_overrides(painted):
    exp = make_exp(painted)
    exp.merge(["ignore_crowd", "true", "ignore_classes", "['a', 'b']"])
    assert IgnoreSettings.from_exp(exp) == IgnoreSettings(True, ("a", "b"))
    exp.merge(["ignore_classes", "ignored regions"])
    assert IgnoreSettings.from_exp(exp).classes == ("ignored regions",)
    with pytest.raises(ConfigError, match="ignore_crowd is True or False"):
        exp.merge(["ignore_crowd", "maybe"])
    assert "ignore_crowd" in vars(copy.copy(exp))


LATE = """
    def get_data_loader(self, *args, **kwargs):
        return super(ylp.LossExp, self).get_data_loader(*args, **kwargs)
"""


@pytest.mark.slow
def test_a_training_with_ignored_regions_and_its_record(tmp_path):
    load_script("scripts/make_digits").make(tmp_path / "data", train=16, val=4, size=96, seed=5, faults=("crowd",))
    (tmp_path / "tiny.py").write_text(EXP.format(data=str(tmp_path / "data")))
    words = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu", "max_epoch", "1", "ignore_crowd", "True")
    cli(tmp_path, *words)
    record = json.loads((tmp_path / "YOLOX_outputs" / "tiny" / "run.json").read_text())
    crowds = json.loads((tmp_path / "data" / "annotations" / "instances_train2017.json").read_text())["annotations"]
    assert record["exp"]["ignore_crowd"] is True and "ignore_classes" not in record["exp"]
    assert record["data"]["train"]["ignored_regions"] == sum(item["iscrowd"] for item in crowds) > 0
    # an experiment whose loader does not come from the kit would train without a word
    (tmp_path / "late.py").write_text((tmp_path / "tiny.py").read_text() + LATE)
    assert load_exp(str(tmp_path / "late.py")).exp_name == "late"
    done = cli(tmp_path, "train", "-f", "late.py", *words[3:], check=False)
    assert done.returncode == 2 and "does not reach LossExp.get_data_loader" in done.stderr
