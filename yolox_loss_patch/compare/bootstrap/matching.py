"""Detections matched with annotated boxes by COCO's rules: once per run, for every IoU threshold and size of boxes.

The result holds what precision and recall are made of, image by image, so that `resampling` can weigh the images anew without
matching again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU; as COCO's code makes them, to the last bit
AREAS = ("all", "small", "medium", "large")
_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # square pixels, both ends included
_MOST_DETECTIONS = 100  # per image and class
_MOST_PAIRS = 2_000_000  # of a detection and a box, held in memory at a time

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Events:
    """The matched detections of a class at an IoU threshold and a size, best score first.

    Attributes:
        place: of each among all detections of the class.
        right: the box counts; False where it is ignored (a crowd, or of another size), and the detection with it.
    """

    place: Ints
    right: Bools


@dataclass(frozen=True)
class ClassMatches:
    """What one class's detections came to.

    Attributes:
        images: of each detection, best score first: the place of its image.
        in_area: ``(4, detections)``: the detection's own size is in that range, so it counts where nothing matches it.
        box_images: for each range of sizes, the image of each box that counts.
        events: for each range of sizes and IoU threshold, the matched detections.
    """

    images: Ints
    in_area: Bools
    box_images: tuple[Ints, ...]
    events: tuple[tuple[Events, ...], ...]


class Boxes:
    """The annotated boxes of a data set, ready to be matched.

    Args:
        images: COCO's list; their ids may be any whole numbers.
        categories: COCO's list.
        annotations: COCO's list of boxes; ``iscrowd`` ones are ignored as COCO ignores them.
    """

    def __init__(
        self,
        images: Sequence[Mapping[str, Any]],
        categories: Sequence[Mapping[str, Any]],
        annotations: Sequence[Mapping[str, Any]],
    ) -> None:
        self.image_ids = np.unique(np.array([int(item["id"]) for item in images], dtype=np.int64))
        self.category_ids = np.unique(np.array([int(item["id"]) for item in categories], dtype=np.int64))
        rows = [
            (*item["bbox"], item["area"], bool(item.get("iscrowd")), item["category_id"], item["image_id"])
            for item in annotations
        ]
        table: Floats = np.array(rows, dtype=np.float64).reshape(-1, 8)
        keys, known = self._keys(table[:, 6], table[:, 7])
        table, keys = table[known], keys[known]
        order = np.argsort(keys, kind="stable")
        table = table[order]
        self._keys_of_boxes = keys[order]
        self._boxes: Floats = table[:, :4]
        self._crowd = table[:, 5] > 0
        outside = (table[:, 4] < _RANGES[:, :1]) | (table[:, 4] > _RANGES[:, 1:])
        self._ignored: Bools = (outside | self._crowd).T  # boxes x sizes

    def match(self, table: Floats) -> list[ClassMatches]:
        """Match the detections of a run.

        Args:
            table: rows of ``image_id, x, y, w, h, score, category_id``; those of unknown classes count nowhere.

        Returns:
            The matches of each class, in the order of ``category_ids``.
        """
        keys, known = self._keys(table[:, 6], table[:, 0])
        table, keys = table[known], keys[known]
        # By class and image, in it by score; of equal scores the first one in the file comes first.
        order = np.lexsort((-table[:, 5], keys))
        table, keys = table[order], keys[order]
        rank = np.arange(len(keys)) - np.searchsorted(keys, keys, side="left")
        table, keys = table[rank < _MOST_DETECTIONS], keys[rank < _MOST_DETECTIONS]
        matched = self._matched(table[:, 1:5], keys)
        area = table[:, 3] * table[:, 4]
        in_area = ~((area < _RANGES[:, :1]) | (area > _RANGES[:, 1:]))
        class_of, image_of = np.divmod(keys, max(len(self.image_ids), 1))
        box_class, box_image = np.divmod(self._keys_of_boxes, max(len(self.image_ids), 1))
        by_score = np.lexsort((-table[:, 5], class_of))
        ends = np.searchsorted(class_of[by_score], np.arange(len(self.category_ids) + 1))
        found = []
        for place in range(len(self.category_ids)):
            rows = by_score[ends[place] : ends[place + 1]]
            of_class = box_class == place
            events = []
            for size in range(len(AREAS)):
                at_size = []
                for at in range(len(THRESHOLDS)):
                    box = matched[rows, at, size]
                    spots = np.flatnonzero(box >= 0)
                    right = ~self._ignored[box[spots], size]
                    # Neither the box nor the detection is of this size: it changes nothing.
                    counts = right | in_area[size, rows[spots]]
                    at_size.append(Events(spots[counts], right[counts]))
                events.append(tuple(at_size))
            boxes = tuple(box_image[of_class & ~self._ignored[:, size]] for size in range(len(AREAS)))
            found.append(ClassMatches(image_of[rows], in_area[:, rows], boxes, tuple(events)))
        return found

    def _keys(self, category: Floats, image: Floats) -> tuple[Ints, Bools]:
        """A number for each pair of class and image, in order, and which of the pairs are of this data set."""
        places = []
        known = np.ones(len(category), dtype=bool)
        for ids, values in ((self.category_ids, category), (self.image_ids, image)):
            place = np.searchsorted(ids, values)
            place[place == len(ids)] = 0
            known &= ids[place] == values if len(ids) else False
            places.append(place)
        return places[0] * max(len(self.image_ids), 1) + places[1], known

    def _matched(self, boxes: Floats, keys: Ints) -> NDArray[np.int32]:
        """The box that each detection is matched with: detections x thresholds x sizes, -1 for none."""
        found = np.full((len(boxes), len(THRESHOLDS), len(AREAS)), -1, dtype=np.int32)
        taken = np.zeros((len(self._boxes), len(THRESHOLDS), len(AREAS)), dtype=bool)
        detection, box, overlap = (
            np.concatenate(parts) for parts in zip(*self._overlaps(boxes, keys), strict=True)
        )  # pairs with IoU from the lowest threshold on
        if not len(detection):
            return found
        # A detection chooses before those of lower scores in its image. The n-th to choose of all images choose together.
        chooses = np.unique(detection)
        turn = np.arange(len(chooses)) - np.searchsorted(keys[chooses], keys[chooses], side="left")
        first = np.searchsorted(detection, chooses)
        number = np.diff(np.append(first, len(detection)))
        levels = np.minimum(THRESHOLDS, 1 - 1e-10)[None, :, None]
        for now in range(int(turn.max()) + 1):
            group = np.flatnonzero(turn == now)
            best = np.full(
                (2, len(group), len(THRESHOLDS), len(AREAS)), -1, dtype=np.int32
            )  # boxes that count, ignored ones
            value = np.zeros(best.shape)
            for offset in range(int(number[group].max())):
                rows = np.flatnonzero(number[group] > offset)
                pair = first[group[rows]] + offset
                candidate, iou = box[pair], overlap[pair][:, None, None]
                free = (iou >= levels) & (~taken[candidate] | self._crowd[candidate][:, None, None])
                ignored = self._ignored[candidate][:, None, :]
                for kind, fits in enumerate((free & ~ignored, free & ignored)):
                    better = fits & (iou >= value[kind, rows])  # of equal ones the last, as COCO takes it
                    best[kind, rows] = np.where(better, candidate[:, None, None], best[kind, rows])
                    value[kind, rows] = np.where(better, iou, value[kind, rows])
            chosen = np.where(best[0] >= 0, best[0], best[1])
            found[chooses[group]] = chosen
            row, at, size = np.nonzero(chosen >= 0)
            taken[chosen[row, at, size], at, size] = True
        return found

    def _overlaps(self, boxes: Floats, keys: Ints) -> Iterator[tuple[Ints, Ints, Floats]]:
        """Detection, box and IoU of the pairs in one image and class that overlap enough to match."""
        low = np.searchsorted(self._keys_of_boxes, keys, side="left")
        number = np.searchsorted(self._keys_of_boxes, keys, side="right") - low
        before = np.cumsum(number) - number
        start = 0
        yield np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        while start < len(keys):
            end = max(start + 1, int(np.searchsorted(before, before[start] + _MOST_PAIRS)))
            many = number[start:end]
            detection = np.repeat(np.arange(start, end), many)
            within = np.arange(int(many.sum())) - np.repeat(before[start:end] - before[start], many)
            box = np.repeat(low[start:end], many) + within
            (x, y, w, h), (bx, by, bw, bh) = boxes[detection].T, self._boxes[box].T
            wide = np.minimum(x + w, bx + bw) - np.maximum(x, bx)
            high = np.minimum(y + h, by + bh) - np.maximum(y, by)
            shared = np.where((wide > 0) & (high > 0), wide * high, 0.0)
            whole = np.where(self._crowd[box], w * h, w * h + bw * bh - shared)
            iou = np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)
            near = iou >= THRESHOLDS[0]
            yield detection[near], box[near], iou[near]
            start = end
