"""What a run's files tell about the training and about its last evaluation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RunError
from ...runs.predictions import predictions_file
from ...runs.selection import Run
from ..detections import ERRORS, METRICS, Truth

_IMAGES = 6  # shown of the best and of the worst
_MOST_CANDIDATES = 2000  # thresholds at which the curves over the score are drawn
_BINS = 10
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ClassFacts:
    """What the last evaluation tells of a class.

    Attributes:
        name: of the category.
        boxes: in the validation images, without crowds.
        ap, ap50, small, medium, large: in [0, 1]; -1 where there is no box of that size.
        threshold: the score at which the F1 of this class is best (IoU .5); None without a right detection.
        precision, recall, f1: at that threshold.
    """

    name: str
    boxes: int
    ap: float
    ap50: float
    small: float
    medium: float
    large: float
    threshold: float | None
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ScoreCurves:
    """Precision, recall and F1 (IoU .5) over the score threshold.

    Attributes:
        thresholds: ascending, ``(T,)``.
        precision, recall, f1: ``(K, T)``, a row per class that has boxes.
        classes: their places among all classes, ``(K,)``.
        best: the threshold at which F1, averaged over these classes, is best; None when nothing right was detected.
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    classes: list[int]
    best: float | None

    @property
    def best_f1(self) -> float:
        """F1 at the best threshold, averaged over the classes."""
        return float(self.f1.mean(axis=0).max()) if self.best is not None else 0.0


@dataclass(frozen=True)
class ShownBox:
    """A box in a shown image: ``x, y, w, h`` in pixels, its class with the score where it was detected, and its kind.

    ``kind`` is ``right`` or ``wrong`` for a detection, ``found`` or ``missed`` for an annotated box.
    """

    box: Box
    label: str
    kind: str


@dataclass(frozen=True)
class ShownImage:
    """A validation image with truth and detections above the best threshold."""

    path: Path
    name: str
    f1: float
    right: int
    wrong: int
    missed: int
    boxes: list[ShownBox]


@dataclass(frozen=True)
class Evaluated:
    """What the detections of the last evaluation tell.

    Attributes:
        epoch: after which it was made.
        metrics: the AP family by the names of `runs.record.AP_COLUMNS`.
        classes: a row per category, in the order of the evaluation.
        curves: over the score; None when the truth has no box.
        recalls: ``(R,)``, and the precision of each class with boxes at them, ``(K, R)``, at IoU .5.
        precisions: see ``recalls``.
        confusion: counts at the best threshold, ``(K + 1, K + 1)``: row truth, column detection, last: nothing.
        errors: TIDE's types -> the AP50 that would be won without them.
        calibration: (mean score, share that is right, detections) of each tenth of the scores that is in use.
        calibration_error: the mean distance of the two.
        images: in all, and those that are shown.
        worst, best: by F1 at the best threshold; images that cannot be found are not among them.
        images_missing: why no image is shown, if so.
    """

    epoch: int
    metrics: dict[str, float]
    classes: list[ClassFacts]
    curves: ScoreCurves | None
    recalls: NDArray[np.float64]
    precisions: NDArray[np.float64]
    confusion: NDArray[np.int64]
    errors: dict[str, float]
    calibration: list[tuple[float, float, int]]
    calibration_error: float
    worst: list[ShownImage] = field(default_factory=list)
    best: list[ShownImage] = field(default_factory=list)
    images_missing: str | None = None


@dataclass(frozen=True)
class Training:
    """A run and what its last evaluation tells.

    Attributes:
        run: the run.
        evaluated: None where annotations or detections are missing.
        missing: what the page cannot show, and why, in sentences.
    """

    run: Run
    evaluated: Evaluated | None
    missing: list[str]


def examine(run: Run) -> Training:
    """Everything that the page of a run shows.

    Args:
        run: of the kit or of plain YOLOX, in any state.
    """
    missing: list[str] = []
    if not run.rows:
        return Training(run, None, ["No epoch was finished, so there is neither a curve nor an evaluation."])
    evaluated = None
    if not run.evaluated():
        missing.append("No evaluation was made, so there is no AP and no detection to show.")
    else:
        try:
            evaluated = _evaluated(run)
        except RunError as error:
            missing.append(f"Nothing is shown of the detections: {str(error).rstrip('.')}.")
    if evaluated is not None and evaluated.images_missing is not None:
        missing.append(evaluated.images_missing)
    return Training(run, evaluated, missing)


def _evaluated(run: Run) -> Evaluated:
    """The last evaluation whose detections were kept.

    Raises:
        RunError: its annotations or its detections are missing.
    """
    again = "make them with yolox-loss eval -f EXP -c FOLDER/latest_ckpt.pth --save"
    epochs = [int(row["epoch"] or 0) for row in run.evaluated()]
    kept = [epoch for epoch in epochs if predictions_file(run.folder, epoch).is_file()]
    if not kept:
        raise RunError(f"no detections were kept; {again}")
    data = (run.record.get("data") or {}).get("val") or {}
    if not data.get("file"):
        raise RunError(f"the run does not tell its annotation file; {again}")
    truth = Truth(data)
    path = predictions_file(run.folder, kept[-1])
    table = truth.read(path)
    evaluation = truth.evaluation(table)
    precision = evaluation.eval["precision"][:, :, :, :, -1]  # IoU x recall x class x size, 100 detections
    found = evaluation.get_results()
    names = {int(item["id"]): str(item["name"]) for item in truth.categories}
    order = [int(number) for number in evaluation.params.cat_ids]
    counted = [item for item in truth.annotations if not item.get("iscrowd")]
    boxes = Counter(int(item["category_id"]) for item in counted)
    # Rows of the table have the numbers 1, 2, ... as detections.
    matching = evaluation.image_diagnostics(iou_thr=0.5)
    status = matching["dt_status"]
    right = np.array([status.get(number) == "tp" for number in range(1, len(table) + 1)], dtype=bool)
    wrong = np.array([status.get(number) == "fp" for number in range(1, len(table) + 1)], dtype=bool)
    curves, at_best = score_curves(table, right, wrong, order, boxes)
    threshold = curves.best if curves is not None else None
    confusion = evaluation.confusion_matrix(iou_thr=0.5, min_score=threshold)["matrix"].astype(np.int64)
    calibration = evaluation.calibration(n_bins=_BINS)
    errors = evaluation.tide_errors()["delta_ap"]
    metrics = {name: float(found[key]) for name, key in METRICS.items()}
    with_boxes = curves.classes if curves is not None else []
    worst, best, images_missing = _images(truth, table, right, wrong, matching["dt_match"], names, threshold or 0.0)
    return Evaluated(
        kept[-1],
        metrics,
        [
            ClassFacts(
                names[number],
                boxes[number],
                _known(precision[:, :, place, 0]),
                _known(precision[0, :, place, 0]),
                _known(precision[:, :, place, 1]),
                _known(precision[:, :, place, 2]),
                _known(precision[:, :, place, 3]),
                *at_best[number],
            )
            for place, number in enumerate(order)
        ],
        curves,
        np.asarray(evaluation.params.rec_thrs, dtype=np.float64),
        precision[0, :, :, 0].T[with_boxes].clip(0, 1),
        confusion,
        {kind: float(errors[kind]) for kind in ERRORS},
        [
            (part["avg_confidence"], part["avg_accuracy"], part["count"])
            for part in calibration["bins"]
            if part["count"]
        ],
        float(calibration["ece"]),
        worst,
        best,
        images_missing,
    )


def _known(precision: NDArray[np.float64]) -> float:
    """The mean; -1 where COCO has no box."""
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else -1.0


def score_curves(
    table: NDArray[np.float64],
    right: NDArray[np.bool_],
    wrong: NDArray[np.bool_],
    order: list[int],
    boxes: dict[int, int],
) -> tuple[ScoreCurves | None, dict[int, tuple[float | None, float, float, float]]]:
    """Precision, recall and F1 of each class over the score.

    Args:
        table: detections as `Truth.read` gives them, ``(D, 7)``.
        right, wrong: what the matching at IoU .5 says of each, ``(D,)``; neither for one that is ignored.
        order: ids of the classes.
        boxes: class id -> annotated boxes.

    Returns:
        The curves of the classes that have boxes (None where no class has any), and for each class the best threshold with
        precision, recall and F1 there.
    """
    at_best: dict[int, tuple[float | None, float, float, float]] = dict.fromkeys(order, (None, 0.0, 0.0, 0.0))
    with_boxes = [place for place, number in enumerate(order) if boxes.get(number, 0)]
    if not with_boxes:
        return None, at_best
    scores = np.unique(table[right, 5])  # F1 can only be best at the score of a right detection
    if len(scores) > _MOST_CANDIDATES:
        scores = scores[np.linspace(0, len(scores) - 1, _MOST_CANDIDATES).astype(int)]
    thresholds = scores if len(scores) else np.array([0.0, 1.0])
    rows = []
    for place in with_boxes:
        number = order[place]
        mine = (table[:, 6] == number) & (right | wrong)
        falling = np.argsort(-table[mine, 5], kind="stable")
        ordered = table[mine, 5][falling]
        hits = np.concatenate([[0], np.cumsum(right[mine][falling])])
        alarms = np.concatenate([[0], np.cumsum(wrong[mine][falling])])
        rows.append(_rates(hits, alarms, np.searchsorted(-ordered, -thresholds, side="right"), boxes[number]))
        if hits[-1]:
            scores_of_hits = np.unique(ordered[right[mine][falling]])
            precision, recall, f1 = _rates(
                hits, alarms, np.searchsorted(-ordered, -scores_of_hits, side="right"), boxes[number]
            )
            top = int(f1.argmax())
            at_best[number] = (float(scores_of_hits[top]), float(precision[top]), float(recall[top]), float(f1[top]))
    precision, recall, f1 = (np.stack([row[part] for row in rows]) for part in range(3))
    best = float(thresholds[int(f1.mean(axis=0).argmax())]) if len(scores) else None
    return ScoreCurves(thresholds, precision, recall, f1, with_boxes, best), at_best


def _rates(
    hits: NDArray[np.int64], alarms: NDArray[np.int64], kept: NDArray[np.int64], boxes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 of the first ``kept`` detections; nothing detected is a precision of 1."""
    found, detected = hits[kept], hits[kept] + alarms[kept]
    precision = np.where(detected > 0, found / np.maximum(detected, 1), 1.0)
    return precision, found / boxes, 2 * found / (detected + boxes)


def _images(
    truth: Truth,
    table: NDArray[np.float64],
    right: NDArray[np.bool_],
    wrong: NDArray[np.bool_],
    matched: dict[int, int],
    names: dict[int, str],
    threshold: float,
) -> tuple[list[ShownImage], list[ShownImage], str | None]:
    """The worst and the best validation images by F1 at the threshold, and why there are none.

    ``matched`` leads from the number of a detection to that of its box; both count from 1.
    """
    boxes: dict[int, list[int]] = {}  # image -> places of its boxes among all annotations
    for place, item in enumerate(truth.annotations):
        if not item.get("iscrowd"):
            boxes.setdefault(int(item["image_id"]), []).append(place)
    if not boxes:
        return [], [], "No validation image has a box, so none is shown."
    kept = (table[:, 5] >= threshold) & (right | wrong)
    ids = table[:, 0].astype(int)
    hits, alarms = Counter(ids[kept & right].tolist()), Counter(ids[kept & wrong].tolist())
    counts = {number: (hits[number], alarms[number], len(places) - hits[number]) for number, places in boxes.items()}
    f1 = {number: 2 * h / (2 * h + a + m) for number, (h, a, m) in counts.items()}
    files = {int(item["id"]): str(item["file_name"]) for item in truth.images}
    # Of equals the images with most mistakes are the worst, and those with most boxes the best.
    ranked = sorted(f1, key=lambda number: (f1[number], -counts[number][1] - counts[number][2], number))
    paths = {number: path for number in ranked if (path := truth.image_file(number)) is not None}
    there = list(paths)
    if not there:
        return [], [], f"No image is shown: they are not in {str(truth.image_folder)!r} (any more)."
    half = min(_IMAGES, (len(there) + 1) // 2)
    worst = there[:half]
    best = sorted(there[half:], key=lambda number: (-f1[number], -counts[number][0], number))[:half]

    def shown(number: int) -> ShownImage:
        here = np.flatnonzero((ids == number) & kept)
        hit = {matched[int(place) + 1] - 1 for place in here if right[place]}
        real = [
            ShownBox(_box(item["bbox"]), names[int(item["category_id"])], "found" if place in hit else "missed")
            for place, item in ((place, truth.annotations[place]) for place in boxes[number])
        ]
        found = [
            ShownBox(_box(row[1:5]), f"{names[int(row[6])]} {row[5]:.2f}", "right" if right[place] else "wrong")
            for place, row in zip(here, table[here], strict=True)
        ]
        return ShownImage(paths[number], files[number], f1[number], *counts[number], [*real, *found])

    return [shown(number) for number in worst], [shown(number) for number in best], None


def _box(values: Any) -> Box:
    x, y, w, h = (float(value) for value in values)
    return x, y, w, h
