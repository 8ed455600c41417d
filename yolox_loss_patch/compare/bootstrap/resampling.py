"""AP of resampled images: a bootstrap that draws whole images and counts an image twice that was drawn twice.

Each image has a weight, the number of times it was drawn. Detections were matched before (`matching`); a resample weighs the
matches anew, which gives exactly the AP of the data set in which each image stands as often as it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .matching import AREAS, THRESHOLDS, ClassMatches, Events, Floats

# Metric -> range of sizes, places among the IoU thresholds.
_EVERY = tuple(range(len(THRESHOLDS)))
METRICS: dict[str, tuple[str, tuple[int, ...]]] = {
    "AP": ("all", _EVERY),
    "AP50": ("all", (0,)),
    "AP75": ("all", (5,)),
    "AP90": ("all", (8,)),
    "AP_small": ("small", _EVERY),
    "AP_medium": ("medium", _EVERY),
    "AP_large": ("large", _EVERY),
    "AR": ("all", _EVERY),
}
RESAMPLES = 1000
_RECALLS = np.linspace(0.0, 1.0, 101)  # at which COCO reads precision
_MOST_CELLS = 4_000_000  # detections of a class times resamples, held in memory at a time

Weights = NDArray[np.uint16]


def image_weights(images: int, resamples: int = RESAMPLES, seed: int = 0) -> Weights:
    """How often each image was drawn in each resample.

    Args:
        images: of the data set; each resample draws as many, with replacement.
        resamples: the number of draws.
        seed: the same seed gives the same draws, so that runs are resampled in pairs.

    Returns:
        ``(images, 1 + resamples)``: the first column is 1 throughout, the data set itself.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((images, 1 + resamples), dtype=np.uint16)
    for column in range(1, 1 + resamples):
        weights[:, column] = np.bincount(rng.integers(0, images, images), minlength=images)
    return weights


def class_values(
    matches: Sequence[ClassMatches],
    weights: Weights,
    metric: str = "AP",
    advance: Callable[[float], object] = lambda share: None,
) -> Floats:
    """A metric of each class under each weighting of the images.

    Args:
        matches: of a run, from `matching.Boxes.match`.
        weights: ``(images, weightings)``, whole numbers, from `image_weights`.
        metric: of `METRICS`.
        advance: called with the share of the work that was done since the last call, for a progress bar.

    Returns:
        ``(classes, weightings)`` in [0, 1]; NaN where a class has no box that counts.
    """
    area, thresholds = METRICS[metric]
    size = AREAS.index(area)
    total = sum(len(found.images) for found in matches) + len(matches)
    values = np.full((len(matches), weights.shape[1]), np.nan)
    for place, found in enumerate(matches):
        if len(found.box_images[size]):
            step = max(1, _MOST_CELLS // (len(found.images) + 1))
            for start in range(0, weights.shape[1], step):
                part = weights[:, start : start + step]
                values[place, start : start + step] = _class_value(found, part, size, thresholds, metric == "AR")
        advance((len(found.images) + 1) / total)
    return values


def mean_over_classes(values: Floats) -> Floats:
    """The mean of a metric over the classes that have a box, -1 where none has, for each weighting."""
    known = ~np.isnan(values)
    number = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), -1.0)


def _class_value(found: ClassMatches, weights: Weights, size: int, thresholds: Sequence[int], recall: bool) -> Floats:
    """The mean over IoU thresholds of one class's AP, or of its highest recall, for each weighting."""
    boxes = weights[found.box_images[size]].sum(axis=0, dtype=np.int64)
    in_area = found.in_area[size]
    # Detections of this size up to each place, were none of them matched; a leading row of zeros.
    upto = np.concatenate(([0], np.cumsum(in_area)))
    counted = np.zeros((int(upto[-1]) + 1, weights.shape[1]), dtype=np.int32)
    if not recall:
        np.cumsum(weights[found.images[in_area]], axis=0, dtype=np.int32, out=counted[1:])
    total = np.zeros(weights.shape[1])
    for at in thresholds:
        events = found.events[size][at]
        drawn = weights[found.images[events.place]].astype(np.int32)
        right = np.cumsum(drawn[events.right], axis=0, dtype=np.int32)
        if not len(right):
            continue
        if recall:
            total += right[-1] / np.maximum(boxes, 1)
            continue
        positions = counted[upto[events.place[events.right] + 1]]
        precision = right / (positions + _corrections(events, drawn, in_area) + np.spacing(1))
        total += _average_precision(precision, right / np.maximum(boxes, 1))
    return np.where(boxes > 0, total / len(thresholds), np.nan)


def _corrections(events: Events, drawn: NDArray[np.int32], in_area: NDArray[np.bool_]) -> NDArray[np.int32] | int:
    """What matching changes in the number of detections that count, at each right one.

    A detection of this size that was matched with an ignored box counts no more; one of another size that was matched with
    a box of this size counts.
    """
    change = events.right.astype(np.int32) - in_area[events.place]
    if not change.any():
        return 0
    changed = np.cumsum(drawn * change[:, None], axis=0, dtype=np.int32)
    return changed[events.right]


def _average_precision(precision: Floats, recall: Floats) -> Floats:
    """COCO's mean of precision at 101 recalls, from precision and recall at each right detection, best score first."""
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    nearest = np.rint(recall * 100).astype(np.intp)
    reached = nearest + (_RECALLS[nearest] <= recall)  # the number of recalls that were reached so far
    newly = np.diff(reached, axis=0, prepend=0)
    return np.einsum("ij,ij->j", envelope, newly) / len(_RECALLS)
