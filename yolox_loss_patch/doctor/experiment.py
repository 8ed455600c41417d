"""The experiment, its model and its data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.annotations import default_data_dir
from ..data.checks import check_dataset, coco_dataset, open_data
from ..data.findings import ERROR, OK, WARNING, Finding, some
from ..errors import DataError, KitError, in_words
from ..exp.loading import load_exp
from ..head.patch import stage_with
from ..specs.config import LossConfig
from .report import guarded, quiet

#: Images decoded to compare their size with the annotation's; a full read of a large set takes minutes.
_SAMPLE = 50


def check_experiment(exp_file: str | None, name: str | None, opts: Sequence[str]) -> Iterator[Finding]:
    """What an experiment resolves to, its losses, its model and its data."""
    try:
        exp = load_exp(exp_file, name)
        exp.merge(list(opts))
    except KitError as error:
        yield Finding(ERROR, "experiment", str(error))
        return
    keys = ("num_classes", "input_size", "test_size", "max_epoch", "basic_lr_per_img", "ema", "seed", "data_dir")
    named = ", ".join(f"{key}={getattr(exp, key)!r}" for key in keys if hasattr(exp, key))
    yield Finding(OK, "experiment", f"{exp_file or name} as {exp.exp_name}: {named}")
    yield from guarded("losses", lambda: [Finding(OK, "losses", str(LossConfig.from_exp(exp)))])
    yield from guarded("model", lambda: _model(exp))
    classes: dict[str, list[str]] = {}
    for split, annotation, make in (
        ("train", "train_ann", lambda: exp.get_data_loader(batch_size=1, is_distributed=False, no_aug=True).dataset),
        ("val", "val_ann", lambda: exp.get_evaluator(batch_size=1, is_distributed=False).dataloader.dataset),
    ):
        yield from guarded(split, functools.partial(_data, exp, split, annotation, make, classes))
    if len(classes) == 2 and classes["train"] != classes["val"]:
        yield Finding(
            ERROR,
            "classes",
            f"YOLOX numbers the categories of each file by their ids, and that gives train {classes['train']} but val "
            f"{classes['val']}",
            "Give both annotation files the same categories with the same ids.",
        )


def _model(exp: Any) -> Iterator[Finding]:
    with quiet():
        model = exp.get_model()
    stage_with(model, LossConfig.from_exp(exp))
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    yield Finding(OK, "model", f"{type(model).__name__} with {size:.2f} M parameters, has the losses of the experiment")
    head_classes = getattr(model.head, "num_classes", exp.num_classes)
    if head_classes != exp.num_classes:
        yield Finding(
            ERROR,
            "model",
            f"its head has {head_classes} classes, and the experiment has num_classes = {exp.num_classes}",
            "Build the head with self.num_classes.",
        )
    for key in ("input_size", "test_size"):
        if any(side % 32 for side in getattr(exp, key)):
            yield Finding(
                ERROR,
                "model",
                f"{key} = {getattr(exp, key)!r} is not in multiples of 32, the largest stride",
                f"Set self.{key} to multiples of 32.",
            )


def _data(
    exp: Any, split: str, annotation: str, make: Callable[[], Any], classes: dict[str, list[str]]
) -> Iterator[Finding]:
    layout = (
        f"YOLOX expects DATA_DIR/annotations/{exp.train_ann} and {exp.val_ann}, and the images in DATA_DIR/train2017 and "
        "DATA_DIR/val2017; set self.data_dir, self.train_ann and self.val_ann in the experiment."
    )
    try:
        with quiet():
            dataset = coco_dataset(open_data(make, exp.data_dir, getattr(exp, annotation), annotation))
    except DataError as error:
        yield Finding(ERROR, split, str(error), layout)
        return
    except Exception as error:  # whatever YOLOX stumbles over in a file that is JSON and not quite COCO
        path = Path(exp.data_dir or default_data_dir()) / "annotations" / str(getattr(exp, annotation))
        yield Finding(
            ERROR,
            split,
            f"YOLOX cannot make a data set of {path}: {in_words(error)}",
            "Bring the file into COCO's format, or mend what the experiment does with it.",
        )
        if path.is_file():
            yield from _health(path, split)
        return
    if dataset is None:
        yield Finding(WARNING, split, "is not a COCO data set of YOLOX's, so it was not looked at")
        return
    names = [dataset.coco.cats[number]["name"] for number in dataset.class_ids]
    classes[split] = names
    path = Path(dataset.data_dir) / "annotations" / dataset.json_file
    if len(names) != exp.num_classes:
        too_many = len(names) > exp.num_classes
        yield Finding(
            ERROR if too_many else WARNING,
            split,
            f"{path} has {len(names)} categories ({some(names, 20)}), and the experiment has num_classes = {exp.num_classes}"
            + ("" if too_many else "; the classes without a category are never learned"),
            f"Set self.num_classes = {len(names)}.",
        )
    yield from _images(dataset, split, max(len(names), exp.num_classes), layout)
    yield from _health(path, split)


def _images(dataset: Any, split: str, num_classes: int, layout: str) -> Iterator[Finding]:
    """The images: there, readable, and of the size that the annotations say."""
    import cv2  # comes with YOLOX

    folder = Path(dataset.data_dir) / dataset.name
    if not folder.is_dir():
        yield Finding(ERROR, split, f"the image folder {str(folder)!r} does not exist", layout)
        return
    try:
        with quiet():
            facts = check_dataset(dataset, num_classes, split, may_be_empty=split != "train")
    except DataError as error:
        yield Finding(
            ERROR,
            split,
            str(error),
            "Put the images there under the names in the annotation file, or take them out of it.",
        )
        return
    yield Finding(
        OK,
        split,
        f"{facts['images']} images in {facts['image_folder']}, {facts['boxes']} boxes of {len(facts['categories'])} categories",
    )
    other = []
    for entry in dataset.annotations[:: max(1, len(dataset.annotations) // _SAMPLE)]:
        picture = cv2.imread(str(folder / entry[3]))
        if picture is not None and picture.shape[:2] != tuple(entry[1]):
            other.append(f"{entry[3]} (is {picture.shape[:2]}, annotated {tuple(entry[1])})")
    if other:
        yield Finding(
            ERROR,
            split,
            f"images are not of the (height, width) in the annotation file, so their boxes are off: {some(other, 3)}",
            "Correct width and height there, or the images (OpenCV turns them as their EXIF data says).",
        )


# What YOLOX does with what hotcoco's health check finds, and what to do about it.
_HEALTH = {
    "duplicate_image_id": "Give every image an id of its own; YOLOX sees the last one only.",
    "duplicate_ann_id": "Number the annotations anew; YOLOX takes the last one's box for all of one id.",
    "duplicate_category_id": "Give every category an id of its own.",
    "orphan_image_id": "Add the images or take the annotations out; YOLOX ignores them.",
    "orphan_category_id": "Add the categories or take the annotations out.",
    "missing_geometry": "Give every annotation a bbox [x, y, width, height].",
    "zero_dimensions": "Write each image's width and height in pixels; YOLOX scales the boxes by them.",
    "degenerate_bbox": "Correct them or take them out; YOLOX does not train on them.",
    "zero_area": "Write the area (width x height); YOLOX does not train on boxes whose area is 0.",
    "bbox_out_of_bounds": "Correct them if they are wrong; YOLOX cuts them at the image's border in training, not in evaluation.",
    "extreme_aspect_ratio": "Look whether they are drawn right.",
    "near_duplicate": "Take the doubles out; one object is counted twice.",
    "near_duplicate_check_skipped": "Nothing, if crowded images are what you have.",
    "zero_instance_category": "Take the categories out or annotate them; a class without boxes is never learned.",
    "low_instance_category": "Annotate more; the AP of these classes is mostly chance.",
}


def _health(path: Path, split: str) -> Iterator[Finding]:
    """Hotcoco's health check of an annotation file."""
    try:
        import hotcoco
    except ImportError as error:
        yield Finding(WARNING, split, f"no health check of {path}: {error}", "pip install hotcoco")
        return
    try:
        found = hotcoco.COCO(str(path)).healthcheck()
    except ValueError as error:
        yield Finding(
            WARNING,
            split,
            f"{path} is not in COCO format to the letter: {error}",
            "Correct what stands at that place of the file; ids are whole numbers from 0 on.",
        )
        return
    if not found["summary"]["num_images"]:
        yield Finding(ERROR, split, f"{path} lists no image", "Write the file anew.")
    for level, part in ((ERROR, "errors"), (WARNING, "warnings")):
        for entry in found[part]:
            ids = f" Ids: {some(entry['affected_ids'])}." if entry["affected_ids"] else ""
            yield Finding(level, split, f"{entry['message']}{ids}", _HEALTH.get(entry["code"], ""))
    empty = found["summary"]["images_without_annotations"]
    if empty:
        yield Finding(
            WARNING,
            split,
            f"{empty} of {found['summary']['num_images']} images have no annotation; YOLOX takes them as background",
            "Nothing, if they really show no object; else annotate them or take them out.",
        )
