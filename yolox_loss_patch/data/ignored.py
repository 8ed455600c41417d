"""Ignored regions: crowds and other marked areas that a detector learns nothing from.

YOLOX's data set drops ``iscrowd`` boxes, so what they cover is trained as background. Here they stay in the labels, as
rows with class -1 after the real boxes, and go through mosaic, mixup, affine and flip with their images.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .checks import coco_dataset

IGNORED_CLASS = -1.0
IGNORE_KEYS = ("ignore_crowd", "ignore_classes")
_IMAGES_PER_MIX = 5  # four tiles of a mosaic, and the image that mixup lays over them


@dataclass(frozen=True)
class IgnoreSettings:
    """What an experiment wants ignored.

    Attributes:
        crowd: annotations with ``iscrowd: 1`` or ``ignore: 1`` are regions.
        classes: names of categories whose annotations are regions; they are no classes of the detector.
    """

    crowd: bool = False
    classes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.crowd or bool(self.classes)

    @classmethod
    def from_exp(cls, exp: Any) -> IgnoreSettings:
        """The settings ``ignore_crowd`` and ``ignore_classes`` of an experiment, off where it has none.

        Raises:
            ConfigError: ``ignore_crowd`` is no bool, ``ignore_classes`` no name and no list of names.
        """
        crowd, classes = getattr(exp, "ignore_crowd", False), getattr(exp, "ignore_classes", None)
        if not isinstance(crowd, bool):
            raise ConfigError(f"ignore_crowd is True or False; got {crowd!r}.")
        names = [classes] if isinstance(classes, str) else list(classes or ())
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"ignore_classes is a list of names of categories, such as ['ignored regions']; got {classes!r}."
            )
        return cls(crowd, tuple(names))


def ignore_in_training(dataset: Any, settings: IgnoreSettings) -> None:
    """Put the ignored regions of a training set into its labels, in place.

    Args:
        dataset: a COCO data set of YOLOX, with YOLOX's wrappers or without.
        settings: what is ignored.

    Raises:
        ConfigError: no COCO data set, no category of that name, or a transform that is not like YOLOX's.
    """
    coco_set = _coco_dataset(dataset)
    if not hasattr(coco_set, "ignored_regions"):  # with --cache the experiment may keep its data set
        _leave_out(coco_set, settings)
        coco_set.ignored_regions = []
        for index, image_id in enumerate(coco_set.ids):
            boxes, size, resized, name = coco_set.load_anno_from_ids(image_id)
            regions = _regions(coco_set, image_id, size)
            coco_set.annotations[index] = np.concatenate([boxes, regions]), size, resized, name
            coco_set.ignored_regions.append(len(regions))
    room = _IMAGES_PER_MIX * max(coco_set.ignored_regions, default=0)
    for layer in _layers(dataset):
        if getattr(layer, "preproc", None) is not None and not isinstance(layer.preproc, RegionsLast):
            layer.preproc = RegionsLast(layer.preproc, room)


def ignore_in_evaluation(dataset: Any, settings: IgnoreSettings) -> None:
    """Take ``ignore_classes`` out of the classes of a validation set, in place.

    Their annotations become crowds of every class, so that a detection inside is neither right nor wrong. Everything else
    is evaluated as the file says: COCO's evaluation leaves ``iscrowd`` boxes out by itself.

    Raises:
        ConfigError: no COCO data set, or no category of that name.
    """
    if not settings.classes:
        return
    coco_set = _coco_dataset(dataset)
    _leave_out(coco_set, IgnoreSettings(classes=settings.classes))
    coco = coco_set.coco
    kept = [item for item in coco.dataset["annotations"] if item["category_id"] in coco_set.class_ids]
    crowds = [
        {**item, "category_id": number, "iscrowd": 1}
        for item in coco.dataset["annotations"]
        if item["category_id"] not in coco_set.class_ids
        for number in coco_set.class_ids
    ]
    first = 1 + max((item["id"] for item in coco.dataset["annotations"]), default=0)
    coco.dataset["annotations"] = kept + [{**item, "id": first + number} for number, item in enumerate(crowds)]
    coco.dataset["categories"] = [item for item in coco.dataset["categories"] if item["id"] in coco_set.class_ids]
    coco.cats, coco.anns, coco.imgToAnns, coco.catToImgs = {}, {}, {}, {}
    coco.createIndex()


def _coco_dataset(dataset: Any) -> Any:
    """YOLOX's COCO data set inside the wrappers."""
    coco_set = coco_dataset(dataset)
    if coco_set is None or not hasattr(coco_set, "load_anno_from_ids"):
        raise ConfigError(
            f"{' and '.join(IGNORE_KEYS)} work on YOLOX's COCO data set, and this one is a {type(dataset).__name__}. Leave "
            "them out, or let the data set put the regions into its labels, as rows with class -1 after the real boxes."
        )
    return coco_set


def _leave_out(coco_set: Any, settings: IgnoreSettings) -> None:
    """Mark the annotations that are regions, and take the ignored classes out of the classes."""
    coco = coco_set.coco
    numbers = {category["name"]: category["id"] for category in coco.dataset["categories"]}
    for name in settings.classes:
        if name not in numbers:
            near = difflib.get_close_matches(name, numbers, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"ignore_classes: there is no category {name!r}.{hint} {coco_set.json_file} has: {', '.join(numbers)}."
            )
    ignored = {numbers[name] for name in settings.classes}
    coco_set.ignored_classes = settings.classes
    coco_set.class_ids = [number for number in coco_set.class_ids if number not in ignored]
    coco_set._classes = tuple(coco.cats[number]["name"] for number in coco_set.class_ids)
    if hasattr(coco_set, "cats"):  # in YOLOX's later versions
        coco_set.cats = coco.loadCats(coco_set.class_ids)
    for item in coco.dataset["annotations"]:
        # YOLOX's data set leaves these out of the boxes.
        if item["category_id"] in ignored or (settings.crowd and item.get("ignore")):
            item["iscrowd"] = 1
        item["is_region"] = item["category_id"] in ignored or bool(settings.crowd and item["iscrowd"])


def _regions(coco_set: Any, image_id: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """The regions of an image as rows of YOLOX's labels, ``(N, 5)``: two corners in px of the resized image, class -1."""
    height, width = size
    rows = []
    for item in coco_set.coco.imgToAnns[image_id]:
        if not item["is_region"]:
            continue
        x, y, w, h = item["bbox"]
        row = [max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h), IGNORED_CLASS]
        if row[2] > row[0] and row[3] > row[1]:
            rows.append(row)
    found = np.array(rows, dtype=np.float64).reshape(-1, 5)
    found[:, :4] *= min(coco_set.img_size[0] / height, coco_set.img_size[1] / width)
    return found


def _layers(dataset: Any) -> Iterator[Any]:
    """The data set and those that it wraps."""
    while dataset is not None:
        yield dataset
        dataset = getattr(dataset, "_dataset", None)


class RegionsLast:
    """A training transform of YOLOX for labels with ignored regions: it keeps room for them, after the real boxes.

    YOLOX's own cuts the labels off after ``max_labels`` rows; here no region takes the row of a box, and none is cut off.

    Args:
        transform: YOLOX's ``TrainTransform``, called as ``transform(image, targets, input_dim)``; it stays as it is.
        room: how many regions an image can have at most.

    Raises:
        ConfigError: the transform has no ``max_labels``.
    """

    def __init__(self, transform: Any, room: int) -> None:
        if not hasattr(transform, "max_labels"):
            raise ConfigError(
                f"Ignored regions need a transform of the training images with max_labels, as YOLOX's TrainTransform has; "
                f"this one is a {type(transform).__name__}."
            )
        self.transform = copy.copy(transform)
        self.max_labels = transform.max_labels
        self.room = room

    def __call__(self, image: Any, targets: NDArray[Any], input_dim: tuple[int, int]) -> tuple[Any, NDArray[Any]]:
        """The image, and labels ``(max_labels + room, 5)``: class, cx, cy, w, h; boxes, then regions, then zeros."""
        self.transform.max_labels = max(len(targets), 1)
        image, labels = self.transform(image, targets, input_dim)
        is_region = labels[:, 0] == IGNORED_CLASS
        is_box = (labels.sum(1) > 0) & ~is_region  # as YOLOX's head counts them
        rows = np.concatenate([labels[is_box][: self.max_labels], labels[is_region][: self.room]])
        padded = np.zeros((self.max_labels + self.room, 5), dtype=np.float32)
        padded[: len(rows)] = rows
        return image, padded
