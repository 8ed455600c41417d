"""Annotation files: where they are, reading them, and what is wrong with what they say."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .findings import ERROR, WARNING, Finding, some

#: A class with fewer boxes is told.
FEW_BOXES = 20
# Part of a COCO file -> the keys that each of the entries needs. Images may lack a file_name in YOLOX; then it takes the id.
_NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}
_NOUNS = {"images": "image", "annotations": "annotation", "categories": "category"}
_BOX = "the bbox of {} is [x, y, width, height] in pixels"


def default_data_dir() -> str:
    """Where YOLOX looks for data when an experiment does not say: its own ``datasets/COCO``."""
    return os.path.join(importlib.import_module("yolox.data.dataloading").get_yolox_datadir(), "COCO")


def annotation_path(data_dir: str | None, annotation: str) -> Path:
    """The path at which YOLOX looks for an annotation file of an experiment."""
    return Path(data_dir if data_dir is not None else default_data_dir()) / "annotations" / str(annotation)


def read_annotations(path: str | Path) -> Any:
    """The content of an annotation file; a byte-order mark in front of it is skipped.

    Raises:
        DataError: no JSON, or not readable.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(
            f"The annotation file {str(path)!r} is not readable JSON: {error}.", "Write the file anew."
        ) from error


@contextlib.contextmanager
def utf8_annotations() -> Iterator[None]:
    """Let pycocotools read UTF-8 with or without a byte-order mark, whatever the system's encoding is."""
    module: Any = importlib.import_module("pycocotools.coco")

    def open_text(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "r" and not args:
            kwargs.setdefault("encoding", "utf-8-sig")
        return builtins.open(file, mode, *args, **kwargs)

    module.open = open_text
    try:
        yield
    finally:
        del module.open


@functools.lru_cache(maxsize=4)
def read_categories(path: str, changed: float) -> list[tuple[int, str]]:
    """Id and name of each category, by ascending ids as YOLOX numbers the classes.

    Read once, as the annotations of a large set take seconds.

    Args:
        path: of the annotation file.
        changed: time of the file, so that a changed file is read anew.
    """
    return sorted((category["id"], category["name"]) for category in read_annotations(path)["categories"])


def read_class_names(path: str, changed: float) -> list[str]:
    """The names of `read_categories`."""
    return [name for _, name in read_categories(path, changed)]


def check_annotations(coco: Any, split: str, input_size: tuple[int, int]) -> tuple[list[Finding], dict[str, Any]]:
    """What is wrong with the content of an annotation file in COCO's format, and what is in it.

    Args:
        coco: the content.
        split: ``train`` or ``val``, for the findings.
        input_size: height and width that images are scaled to; boxes that shrink to a pixel are not trained on.

    Returns:
        Findings (errors and warnings), and facts as plain data: ``images``, ``boxes``, ``images_without_boxes``,
        ``crowd_boxes``, ``boxes_by_size`` (small, medium, large), ``boxes_of_zero_size``, ``boxes_with_centre_outside``,
        ``categories`` (names by ascending ids), ``category_ids``, ``boxes_per_category`` (by id), ``boxes_per_image``
        (number of boxes -> number of images).
        The facts are empty where the structure is broken.
    """
    broken = list(_check_structure(coco, split))
    if broken:
        return broken, {}
    findings = [*_check_ids(coco, split), *_check_sizes(coco["images"], split)]
    if any(finding.level == ERROR for finding in findings):
        return findings, {}
    more, facts = _check_boxes(coco, split, input_size)
    return [*findings, *more], facts


def _error(split: str, text: str, remedy: str) -> Finding:
    return Finding(ERROR, split, text, remedy)


def _check_structure(coco: Any, split: str) -> Iterator[Finding]:
    """The first part, entry or value that is not in COCO's format."""
    for part, needed in _NEEDED.items():
        entries = coco.get(part) if isinstance(coco, dict) else None
        if not isinstance(entries, list):
            there = "has no" if not isinstance(coco, dict) or part not in coco else "has no list of"
            yield _error(
                split, f"the annotation file is not in COCO format: it {there} {part!r}", "Write it in COCO's format."
            )
            return
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                yield _error(
                    split, f"number {number} of {part!r} is {entry!r}, not an object", "Write it in COCO's format."
                )
                return
            label = f"number {number} of {part!r}" + (f" (id {entry['id']})" if "id" in entry else "")
            for key in needed:
                if key not in entry:
                    hint = "Write 0 for a single object, 1 for a crowd." if key == "iscrowd" else f"Add {key!r}."
                    yield _error(split, f"{label} has no {key!r}", hint)
                    return
            for key in ("id", "image_id", "category_id"):
                value = entry.get(key, 0)
                if not isinstance(value, int) or isinstance(value, bool):
                    noun = "an id" if key == "id" else f"an {key}" if key == "image_id" else f"a {key}"
                    yield _error(
                        split,
                        f"{label} has {noun} that is no whole number; YOLOX's evaluation needs one: got {value!r}",
                        "Number images, annotations and categories with whole numbers.",
                    )
                    return
    for image in coco["images"]:
        if not isinstance(image["file_name"], str) or not image["file_name"]:
            yield _error(
                split, f"image {image['id']} has the file_name {image['file_name']!r}", "Write the file's name."
            )
            return
    for category in coco["categories"]:
        if not isinstance(category["name"], str):
            yield _error(
                split, f"category {category['id']} has the name {category['name']!r}", "Write the name as text."
            )
            return
    for item in coco["annotations"]:
        box, label = item["bbox"], f"annotation {item['id']}"
        if not isinstance(box, list) or len(box) != 4 or not all(_is_real(side) for side in box):
            yield _error(split, f"{_BOX.format(label)}; got {box!r}", "Correct it.")
            return
        if not all(map(math.isfinite, box)):
            yield _error(
                split, f"{_BOX.format(label)}, all finite; got {box!r}", "Correct it or take the annotation out."
            )
            return
        if box[2] < 0 or box[3] < 0:
            yield _error(split, f"{_BOX.format(label)}, and no side is negative; got {box!r}", "Correct it.")
            return
        if not _is_real(item["area"]) or not math.isfinite(item["area"]):
            yield _error(split, f"the area of {label} is {item['area']!r}, not a number", "Write width x height.")
            return
        if item["iscrowd"] not in (0, 1):
            yield _error(
                split, f"the iscrowd of {label} is {item['iscrowd']!r}", "Write 0 for a single object, 1 for a crowd."
            )
            return


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_ids(coco: dict[str, Any], split: str) -> Iterator[Finding]:
    """Ids that repeat, or that name what is not there."""
    spoils = {
        "images": "YOLOX keeps the last image of an id only",
        "annotations": "YOLOX takes the last one's box for all annotations of one id",
        "categories": "YOLOX keeps the last category of an id only",
    }
    for part, harm in spoils.items():
        counts = Counter(entry["id"] for entry in coco[part])
        if len(counts) < len(coco[part]):
            twice = [number for number, count in counts.items() if count > 1]
            yield _error(
                split,
                f"{len(twice)} ids of {part} repeat ({some(twice)}); {harm}",
                f"Number the {part} anew, so that each {_NOUNS[part]} has an id of its own.",
            )
    images = {image["id"] for image in coco["images"]}
    categories = {category["id"] for category in coco["categories"]}
    lost = [item["id"] for item in coco["annotations"] if item["image_id"] not in images]
    if lost and images:  # without any image that is what has to be said
        yield _error(
            split,
            f"{len(lost)} annotations are of images that are not present in 'images' (ids of the annotations: {some(lost)})",
            "Add the images or take the annotations out; YOLOX ignores them.",
        )
    for item in coco["annotations"]:
        if item["category_id"] not in categories:
            yield _error(
                split,
                f"annotation {item['id']} is of category {item['category_id']}, which is not among the file's categories: "
                f"{sorted(categories)}",
                "Add the category or correct the annotation.",
            )
            break
    names = Counter(category["name"] for category in coco["categories"])
    same = [name for name, count in names.items() if count > 1]
    if same:
        yield Finding(
            WARNING,
            split,
            f"{len(same)} names of categories repeat ({some(same)}); each is a class of its own",
            "Give one thing one category.",
        )


def _check_sizes(images: list[dict[str, Any]], split: str) -> Iterator[Finding]:
    if not images:
        yield _error(split, "the annotation file lists no image", "Write the file anew.")
    for image in images:
        size = [image["width"], image["height"]]
        if not all(_is_real(side) and math.isfinite(side) and side > 0 for side in size):
            yield _error(
                split,
                f"image {image['id']} ({image['file_name']}) has width {size[0]!r} and height {size[1]!r}; YOLOX scales the "
                "boxes by them",
                "Write each image's width and height in pixels, both above 0.",
            )
            return


def _check_boxes(coco: dict[str, Any], split: str, input_size: tuple[int, int]) -> tuple[list[Finding], dict[str, Any]]:
    """Boxes in a wrong format, and those that are not trained on."""
    images, items = coco["images"], coco["annotations"]
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    place = {image["id"]: number for number, image in enumerate(images)}
    sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64)
    owner = np.array([place[item["image_id"]] for item in items], dtype=np.int64)
    boxes = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    area = np.array([item["area"] for item in items], dtype=np.float64)
    crowd = np.array([item["iscrowd"] for item in items], dtype=bool)
    number = np.array([item["id"] for item in items], dtype=object)
    size = sizes[owner].reshape(-1, 2)
    findings = list(_check_format(boxes, size, split))
    if findings:
        return findings, {}
    low, high = boxes[:, :2].clip(min=0), np.minimum(size, boxes[:, :2].clip(min=0) + boxes[:, 2:])
    scale = np.minimum(input_size[0] / size[:, 1], input_size[1] / size[:, 0]) if len(size) else np.zeros(0)
    clipped = high - low
    reasons: dict[str, Any] = {
        "are crowds, which YOLOX takes for background without ignore_crowd": crowd,
        "have an area of 0": area <= 0,
        "have a side of 0": (boxes[:, 2:] <= 0).any(1),
        "lie outside their image": (clipped < 0).any(1),
        f"are not wider or higher than a pixel at {input_size[0]}x{input_size[1]}": (
            (clipped * scale[:, None]).min(1, initial=np.inf) <= 1
        ),
    }
    dropped = np.zeros(len(items), dtype=bool)
    lines = []
    for reason, found in reasons.items():
        new = found & ~dropped
        dropped |= new
        if new.any():
            lines.append(f"{int(new.sum())} {reason} (ids {some(number[new].tolist(), 3)})")
    if lines:
        findings.append(
            Finding(
                WARNING,
                split,
                f"{int(dropped.sum())} of {len(items)} boxes are not trained on: {'; '.join(lines)}",
                "Correct them or take them out, where that is not meant.",
            )
        )
    over = ((boxes[:, :2] < -1).any(1) | (boxes[:, :2] + boxes[:, 2:] > size + 1).any(1)) & ~(clipped < 0).any(1)
    if over.any():
        findings.append(
            Finding(
                WARNING,
                split,
                f"{int(over.sum())} boxes reach outside the image boundary (ids {some(number[over].tolist())})",
                "Correct them if they are wrong; YOLOX cuts them at the border in training, not in evaluation.",
            )
        )
    if split == "train":
        findings += _check_rare(categories, Counter(item["category_id"] for item in np.array(items, object)[~dropped]))
    kept = np.bincount(owner[~dropped], minlength=len(images))
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    per_category = Counter(item["category_id"] for item, gone in zip(items, dropped, strict=True) if not gone)
    empty = int((kept == 0).sum())
    if empty and empty < len(images):
        findings.append(
            Finding(
                WARNING,
                split,
                f"{empty} of {len(images)} images have no annotation that is trained on; YOLOX takes them as background",
                "Nothing, if they really show no object; else annotate them or take them out.",
            )
        )
    facts = {
        "images": len(images),
        "boxes": len(items),
        "boxes_kept": int((~dropped).sum()),
        "crowd_boxes": int(crowd.sum()),
        "boxes_by_size": _by_size(area[~dropped]),
        "images_without_boxes": empty,
        "boxes_of_zero_size": int((boxes[:, 2:] <= 0).any(1).sum()),
        "boxes_with_centre_outside": int(((centres < 0) | (centres > size)).any(1).sum()),
        "categories": [category["name"] for category in categories],
        "category_ids": [category["id"] for category in categories],
        "boxes_per_category": [per_category[category["id"]] for category in categories],
        "boxes_per_image": {str(boxes): count for boxes, count in sorted(Counter(kept.tolist()).items())},
    }
    return findings, facts


def _by_size(area: np.ndarray) -> dict[str, int]:
    """How many boxes are small, medium and large, by the areas of COCO's evaluation."""
    small, large = area < 32**2, area >= 96**2
    return {"small": int(small.sum()), "medium": int((~small & ~large).sum()), "large": int(large.sum())}


def _check_rare(categories: list[dict[str, Any]], counts: Counter[int]) -> Iterator[Finding]:
    """Classes with so few boxes that they are hardly learned, and that their AP is mostly chance."""
    rare = [f"{item['name']} {counts[item['id']]}" for item in categories if 0 < counts[item["id"]] < FEW_BOXES]
    if rare:
        yield Finding(
            WARNING,
            "train",
            f"{len(rare)} of {len(categories)} classes have fewer than {FEW_BOXES} boxes: {some(rare, 10)}",
            "Annotate more. Until then loss_cls.class_weight inverse lets their boxes count more, and repeat_factor 0.01 "
            "shows their images more often.",
        )


def _check_format(boxes: np.ndarray, size: np.ndarray, split: str) -> Iterator[Finding]:
    """Boxes that are no pixels, or corners instead of a corner and sides."""
    if not len(boxes):
        return
    if boxes.max() <= 1 and (size > 1).all():
        yield _error(
            split,
            f"every box lies between 0 and 1, the first at {boxes[0].tolist()}; {_BOX.format('an annotation')}",
            "Multiply x and width by the image's width, y and height by its height.",
        )
        return
    over = (boxes[:, :2] + boxes[:, 2:] > size + 1).any(1)
    corners = (boxes[:, 2:] > boxes[:, :2]).all()
    if over.mean() > 0.5 or (corners and over.mean() > 0.2 and len(boxes) >= 10):
        as_corners = "; they look like x1 y1 x2 y2" if corners else ""
        first = boxes[over][0].tolist()
        yield _error(
            split,
            f"{int(over.sum())} of {len(boxes)} boxes reach beyond their image, the first at {first}{as_corners}; "
            f"{_BOX.format('an annotation')}",
            "Write x1, y1, x2 - x1, y2 - y1."
            if corners
            else "Look whether the boxes belong to these images and are in pixels.",
        )
