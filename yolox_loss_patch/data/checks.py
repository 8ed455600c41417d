"""Checks of a data set that speak before an epoch is lost."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from ..errors import DataError
from .annotations import default_data_dir


def open_data(make: Callable[[], Any], data_dir: str | None, annotation: str, where: str) -> Any:
    """Make a data set or loader, and say in words why that failed.

    Args:
        make: makes it.
        data_dir: the experiment's folder of data, None for YOLOX's own default; looked at when making fails.
        annotation: the experiment's annotation file for it.
        where: the attribute of the experiment that names the file, for the message.

    Raises:
        DataError: the folder or file is missing or unusable.
    """
    try:
        return make()
    except Exception as error:
        # YOLOX's data set deletes its images when it goes, and complains on the screen when it never got that far.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            half_made: Any = frame.f_locals.get("self")
            if hasattr(type(half_made), "__del__") and not hasattr(half_made, "imgs"):
                half_made.imgs = None
        reason = _why(data_dir, annotation, where)
        if reason is None:
            raise
        raise DataError(reason) from error


_NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}


def _why(folder: str | None, annotation: str, where: str) -> str | None:
    if folder is None:
        folder = default_data_dir()
        origin = "self.data_dir is not set, so YOLOX looks there; set it in the experiment file"
    else:
        origin = "it is self.data_dir of the experiment"
    if not os.path.isdir(folder):
        return f"The data folder {folder!r} does not exist ({origin})."
    path = os.path.join(folder, "annotations", annotation)
    if not os.path.isfile(path):
        near = sorted(os.listdir(os.path.dirname(path))) if os.path.isdir(os.path.dirname(path)) else []
        return f"The annotation file {path!r} does not exist (self.{where}). In its folder: {', '.join(near) or 'nothing'}."
    try:
        with open(path, encoding="utf-8") as file:
            coco = json.load(file)
    except (ValueError, OSError) as error:
        return f"The annotation file {path!r} is not readable JSON: {error}."
    for part in ("images", "annotations", "categories"):
        if not isinstance(coco, dict) or part not in coco:
            return f"The annotation file {path!r} is not in COCO format: it has no {part!r}."
    for part, needed in _NEEDED.items():
        for number, item in enumerate(coco[part]):
            which = f"{path!r}: number {number} of {part!r}" + (f" (id {item['id']})" if "id" in item else "")
            for key in needed:
                if key not in item:
                    hint = " Write 0 for a single object, 1 for a crowd." if key == "iscrowd" else ""
                    return f"{which} has no {key!r}.{hint}"
            if not isinstance(item["id"], int):
                return f"{which} has an id that is no whole number; YOLOX's evaluation needs one."
    known = {category["id"] for category in coco["categories"]}
    for item in coco["annotations"]:
        if item["category_id"] not in known:
            return (
                f"{path!r}: annotation {item['id']} is of category {item['category_id']}, which is not among the "
                f"file's categories: {sorted(known)}."
            )
        box = item["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, (int, float)) for side in box):
            return f"{path!r}: the bbox of annotation {item['id']} is [x, y, width, height] in pixels; got {box!r}."
    return None


def coco_dataset(dataset: Any) -> Any | None:
    """The COCO data set inside the wrappers, None where there is none (VOC, a user's own)."""
    while dataset is not None and not hasattr(dataset, "coco"):
        dataset = getattr(dataset, "_dataset", None)
    return dataset


def check_dataset(dataset: Any, num_classes: int, split: str, may_be_empty: bool = False) -> dict[str, Any]:
    """Look at a COCO data set before training on it, and count what is in it.

    Args:
        dataset: a data set of YOLOX, wrapped or not.
        num_classes: of the experiment.
        split: its name in messages.
        may_be_empty: whether a set without any box is fine (it is for evaluation).

    Returns:
        Plain data: file, sha256, counts. Empty for a data set that is not COCO.

    Raises:
        DataError: a missing or unreadable image, more categories than classes, no image, no box.
    """
    import cv2  # comes with YOLOX

    coco_set = coco_dataset(dataset)
    if coco_set is None:
        return {}
    coco = coco_set.coco
    names = [coco.cats[number]["name"] for number in coco_set.class_ids]
    path = Path(coco_set.data_dir) / "annotations" / coco_set.json_file
    if len(names) > num_classes:
        raise DataError(
            f"{path} has {len(names)} categories ({', '.join(names)}) but the experiment has num_classes = {num_classes}. "
            f"Set self.num_classes = {len(names)}."
        )
    if len(names) < num_classes:
        logger.warning(f"{split}: num_classes is {num_classes} but {path} has {len(names)} categories.")
    if not coco_set.ids:
        raise DataError(f"{path} lists no image.")
    folder = Path(coco_set.data_dir) / coco_set.name
    missing, unreadable = [], []
    for annotation in coco_set.annotations:
        file = folder / annotation[3]
        if not file.is_file():
            missing.append(annotation[3])
        elif not cv2.haveImageReader(str(file)):
            unreadable.append(annotation[3])
    for what, files in (("does not exist", missing), ("is not an image that OpenCV can read", unreadable)):
        if files:
            more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
            raise DataError(f"{split}: the image {files[0]!r} in {str(folder)!r} {what}{more}.")
    _check_cache(coco_set, split)
    boxes = zero = outside = 0
    for item in coco.anns.values():
        x, y, w, h = item["bbox"]
        image = coco.imgs.get(item["image_id"])
        boxes += 1
        zero += w <= 0 or h <= 0
        if image is not None:
            outside += not (0 <= x + w / 2 <= image["width"] and 0 <= y + h / 2 <= image["height"])
    empty = sum(len(annotation[0]) == 0 for annotation in coco_set.annotations)
    if empty == len(coco_set.annotations) and not may_be_empty:
        raise DataError(f"{path} has no usable box in any of its {empty} images; there is nothing to learn.")
    facts = {
        "file": str(path.resolve()),
        "image_folder": str(folder.resolve()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "images": len(coco_set.ids),
        "boxes": boxes,
        "images_without_boxes": empty,
        "boxes_of_zero_size": int(zero),
        "boxes_with_centre_outside": int(outside),
        "categories": names,
    }
    logger.info(
        f"{split}: {facts['images']} images ({empty} without boxes), {boxes} boxes "
        f"({zero} of zero size, {outside} with the centre outside the image), {len(names)} categories"
    )
    return facts


def _check_cache(coco_set: Any, split: str) -> None:
    """Look whether ``--cache`` holds these images: YOLOX takes the file that it finds, whatever it was made from.

    The first, the middle and the last are compared; a cache that was not made to its end lacks the last.
    """
    cached = getattr(coco_set, "imgs", None)
    if cached is None:
        return
    count = len(coco_set.ids)
    for index in sorted({0, count // 2, count - 1}):
        image = coco_set.load_resized_img(index)
        if not np.array_equal(np.asarray(cached[index])[: image.shape[0], : image.shape[1]], image):
            where = getattr(cached, "filename", None) or "in memory"
            raise DataError(
                f"{split}: the image cache ({where}) does not hold {coco_set.annotations[index][3]!r} at {coco_set.img_size}: "
                "it was made from other images, for another input_size, or not to its end. Remove it and it is made anew."
            )


def file_names(dataset: Any, ids: list[int]) -> list[str]:
    """The files of these image ids, or the ids where the data set cannot tell."""
    coco_set = coco_dataset(dataset)
    if coco_set is None:
        return [str(number) for number in ids]
    return [str(coco_set.coco.imgs.get(number, {}).get("file_name", number)) for number in ids]
