"""Confidences of boxes: the key ``score`` or ``weight`` of an annotation, carried through YOLOX's transforms.

These keep a box's class as a number and look at nothing but its corners, so that the confidence travels in the fraction of
the class: ``class + (1 - score) / 2``. A box without the key has score 1 and its plain class.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError, DataError
from .checks import coco_dataset

SCORE_KEYS = ("score", "weight")


def put_scores(dataset: Any) -> None:
    """Put the confidences of the annotations into the labels of a training set, in place.

    Args:
        dataset: a COCO data set of YOLOX, with YOLOX's wrappers or without.

    Raises:
        ConfigError: no COCO data set, or no annotation with a confidence.
        DataError: a confidence outside of [0, 1].
    """
    coco_set = coco_dataset(dataset)
    if coco_set is None:
        raise ConfigError(f"gt_score works on YOLOX's COCO data set, and this one is a {type(dataset).__name__}.")
    if hasattr(coco_set, "scored_boxes"):  # with --cache the experiment may keep its data set
        return
    scored = 0
    for index, image_id in enumerate(coco_set.ids):
        labels = coco_set.annotations[index][0]
        items = coco_set.coco.loadAnns(coco_set.coco.getAnnIds(imgIds=[int(image_id)], iscrowd=False))
        kept = [item for item in items if "clean_bbox" in item]  # YOLOX leaves this mark on the boxes that it keeps
        for row, item in zip(labels, kept, strict=False):  # ignored regions come after the boxes
            key = next((key for key in SCORE_KEYS if key in item), None)
            if key is None:
                continue
            score = item[key]
            if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
                raise DataError(
                    f"{coco_set.json_file}: the {key} of annotation {item['id']} is {score!r}; gt_score asks for a number "
                    "in [0, 1].",
                    "Correct it, or leave gt_score out.",
                )
            row[4] += (1 - score) / 2
            scored += 1
    if not scored:
        raise ConfigError(
            f"gt_score: no annotation of {coco_set.json_file} has a {' or a '.join(SCORE_KEYS)}. Leave gt_score out."
        )
    coco_set.scored_boxes = scored
