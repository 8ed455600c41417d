"""What kept detections tell without the model: metrics, error types, calibration, images that differ.

The sums are hotcoco's (its metrics are pycocotools' to the last digits); a run's detections are read, evaluated and let go
before those of the next run, so that memory does not grow with the number of runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..runs.predictions import read_predictions
from .bootstrap.matching import Boxes

# The record's names of COCO's metrics, and hotcoco's; AP90 is read from the precision table.
METRICS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP_small": "APs",
    "AP_medium": "APm",
    "AP_large": "APl",
    "AR": "AR100",
}
ERRORS = {
    "Cls": "wrong class", "Loc": "badly placed", "Both": "both", "Dupe": "duplicate", "Bkg": "background", "Miss": "missed",
}  # fmt: skip
_AT50, _AT90 = 0, 8  # places of IoU .50 and .90 among .50, .55, ... .95


@dataclass(frozen=True)
class Diagnosis:
    """What one evaluation's detections tell.

    Attributes:
        metrics: the AP family by the names of `record.AP_COLUMNS`, in [0, 1]; -1 where no box is of that size.
        classes: class name -> AP.
        errors: TIDE's error types (2008.08115) -> the AP50 that would be won without them.
        calibration_error: how far the scores are from the share of detections that are right (IoU .5), on average.
        calibration: (mean score, share that is right, detections) of each tenth of the scores that is in use.
        threshold: the score at which F1, averaged over the classes, is best (IoU .5), and that F1.
        images: image id -> AP50 of that image.
    """

    metrics: dict[str, float]
    classes: dict[str, float]
    errors: dict[str, float]
    calibration_error: float
    calibration: list[tuple[float, float, int]]
    threshold: float
    f1: float
    images: dict[int, float]


class Truth:
    """The annotations that runs were evaluated on.

    Args:
        data: ``data.val`` of a run record: file, hash, image folder.

    Raises:
        RunError: the file is gone or is another one by now.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        path = Path(data.get("file", ""))
        if not path.is_file():
            raise RunError(f"the annotation file {str(path)!r} is not there any more")
        content = path.read_bytes()
        if data.get("sha256") not in (None, hashlib.sha256(content).hexdigest()):
            raise RunError(f"the annotation file {str(path)!r} was changed after the runs were evaluated on it")
        self.image_folder = Path(data.get("image_folder", ""))
        try:
            coco = json.loads(content.decode("utf-8-sig"))
            # Boxes are compared; masks would only take memory.
            boxes = [
                {"area": item["bbox"][2] * item["bbox"][3], "iscrowd": 0}
                | {key: value for key, value in item.items() if key != "segmentation"}
                for item in coco["annotations"]
            ]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RunError(
                f"the annotation file {str(path)!r} cannot be read as COCO annotations ({error!r})"
            ) from error
        self.images: list[dict[str, Any]] = coco["images"]
        self._files = {int(item["id"]): str(item.get("file_name", "")) for item in self.images}
        # What the runs ignored is a crowd of every class, in which a detection is neither right nor wrong.
        ignored = [item["id"] for item in coco["categories"] if item["name"] in data.get("ignored_classes", ())]
        self.categories: list[dict[str, Any]] = [item for item in coco["categories"] if item["id"] not in ignored]
        self.annotations: list[dict[str, Any]] = [item for item in boxes if item["category_id"] not in ignored] + [
            {**item, "category_id": category["id"], "iscrowd": 1}
            for item in boxes
            if item["category_id"] in ignored
            for category in self.categories
        ]
        numbered = [{**item, "id": number} for number, item in enumerate(self.annotations, start=1)]
        self._coco = hotcoco.COCO({"images": self.images, "categories": self.categories, "annotations": numbered})

    @cached_property
    def boxes(self) -> Boxes:
        """The boxes, ready to be matched for a bootstrap over images."""
        return Boxes(self.images, self.categories, self.annotations)

    @property
    def class_names(self) -> list[str]:
        """The names in the order of the ids, which is that of `boxes`."""
        names = {int(item["id"]): str(item["name"]) for item in self.categories}
        return [names[number] for number in sorted(names)]

    def image_file(self, number: int) -> Path | None:
        """The file of an image; None where it is not there, or lies elsewhere than below the folder of the images.

        The annotations may be a stranger's: no other picture of this machine gets into a page.
        """
        folder = self.image_folder.resolve()
        path = (folder / self._files[number]).resolve()
        return path if path.is_relative_to(folder) and path.is_file() else None

    def read(self, path: Path) -> NDArray[np.float64]:
        """Kept detections as rows of ``image_id, x, y, w, h, score, category_id``.

        Raises:
            RunError: the file cannot be read, or is of other images.
        """
        table = self.table(read_predictions(path))
        strangers = set(table[:, 0].astype(int)) - {int(item["id"]) for item in self.images}
        if strangers:
            raise RunError(f"{path} has detections in image {min(strangers)}, which the annotations do not list")
        return table

    @staticmethod
    def table(detections: list[dict[str, Any]]) -> NDArray[np.float64]:
        """COCO results as rows of ``image_id, x, y, w, h, score, category_id``."""
        rows = [(row["image_id"], *row["bbox"], row["score"], row["category_id"]) for row in detections]
        return np.array(rows, dtype=np.float64).reshape(-1, 7)

    def evaluation(self, table: NDArray[np.float64]) -> Any:
        """A ``hotcoco.COCOeval`` of these detections that has been evaluated.

        Args:
            table: detections as `read` gives them, ``(D, 7)``; the evaluation numbers them 1, 2, ... in this order, and the
                boxes of ``annotations`` likewise.
        """
        return _evaluate(self._coco, table)

    def diagnose(self, table: NDArray[np.float64]) -> Diagnosis:
        """Everything that the detections of a run tell, which are rows as `read` gives them."""
        evaluation = self.evaluation(table)
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU x recall x class, all sizes, 100 detections
        found = evaluation.get_results()
        metrics = {name: float(found[key]) for name, key in METRICS.items()}
        metrics["AP90"] = _mean_known(precision[_AT90])
        names = {int(item["id"]): str(item["name"]) for item in self.categories}
        order = [names[number] for number in evaluation.params.cat_ids]
        calibration, errors = evaluation.calibration(), evaluation.tide_errors()["delta_ap"]
        threshold, f1 = _best_threshold(evaluation)
        images = evaluation.image_diagnostics(iou_thr=0.5, score_thr=threshold)["img_summary"]
        return Diagnosis(
            metrics,
            {name: _mean_known(precision[:, :, place]) for place, name in enumerate(order)},
            {kind: float(errors[kind]) for kind in ERRORS},
            float(calibration["ece"]),
            [(b["avg_confidence"], b["avg_accuracy"], b["count"]) for b in calibration["bins"] if b["count"]],
            threshold,
            f1,
            {int(number): float(row["ap"]) for number, row in images.items()},
        )


def _evaluate(coco: Any, table: NDArray[np.float64]) -> Any:
    evaluation = hotcoco.COCOeval(coco, coco.load_res(table), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return evaluation


def _mean_known(precision: NDArray[np.float64]) -> float:
    """Mean over everything but the classes without a box, which COCO marks -1."""
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else -1.0


def _best_threshold(evaluation: Any) -> tuple[float, float]:
    """The score at which the classes' mean F1 at IoU .5 is best, and that F1."""
    recall = np.asarray(evaluation.params.rec_thrs)
    precision = evaluation.eval["precision"][_AT50, :, :, 0, -1]
    scores = evaluation.eval["scores"][_AT50, :, :, 0, -1]
    with_boxes = [place for place in range(precision.shape[1]) if (precision[:, place] > -1).any()]
    if not with_boxes:
        return 0.0, 0.0
    candidates = np.unique(scores[:, with_boxes][precision[:, with_boxes] > 0])
    if not len(candidates):
        return 0.0, 0.0
    total = np.zeros(len(candidates))
    for place in with_boxes:
        p, s = precision[:, place], scores[:, place]
        f1 = np.where(p > 0, 2 * p * recall / np.maximum(p + recall, 1e-12), 0.0)
        # At a threshold the class is at the highest recall whose score still reaches it; scores fall along the recalls.
        reached = (s[None, :] >= candidates[:, None]) & (p > 0)[None, :]
        last = reached.shape[1] - 1 - reached[:, ::-1].argmax(axis=1)
        total += np.where(reached.any(axis=1), f1[last], 0.0)
    best = int(total.argmax())
    return float(candidates[best]), float(total[best] / len(with_boxes))
