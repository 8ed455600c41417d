"""What comes out of a comparison, before it takes a form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runs.selection import Group, Run
from .detections import Diagnosis
from .statistics import Difference, Interval, mean_interval

MEANS = ("fg_iou", "obj_fg", "obj_bg")
Shapes = list[tuple[tuple[float, ...], str]]


@dataclass(frozen=True)
class Summary:
    """A metric over a group's seeds: the mean of those that have it, and its 95% interval (None below two)."""

    mean: float | None
    interval: Interval | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Summary:
        """The summary of a metric's values; COCO's -1 (no box of that size) counts as none."""
        known = [value for value in values if value is not None and value >= 0]
        return cls(float(np.mean(known)), mean_interval(known)) if known else cls(None, None)


@dataclass(frozen=True)
class ClassDifference:
    """How far a group lies above the baseline in one class; Holm counts every class of every group."""

    name: str
    difference: Difference
    p_holm: float | None
    verdict: str


@dataclass
class Result:
    """What came out of a group.

    Attributes:
        group: the runs.
        last: metric -> summary, of the last epoch (the EMA weights, as YOLOX evaluates them).
        best: metric -> summary, each run at its epoch of the best AP.
        difference: to the baseline; None for the baseline itself.
        p_holm: of the difference, over all losses of the table.
        verdict: better, worse, equal or unclear; baseline for the baseline itself.
        class_differences: the same for each class, where they were asked for.
        resampled: run name -> the metric for the images as they are and for each resample; empty without detections.
        diagnoses: run name -> what its detections tell; empty where they were not kept.
        means: mean foreground IoU and objectness of the last epoch.
        seconds: of training, per iteration.
        memory: peak, in MiB.
    """

    group: Group
    last: dict[str, Summary]
    best: dict[str, Summary]
    means: dict[str, Summary]
    seconds: Summary
    memory: Summary
    difference: Difference | None = None
    p_holm: float | None = None
    verdict: str = "baseline"
    diagnoses: dict[str, Diagnosis] = field(default_factory=dict)
    class_differences: list[ClassDifference] = field(default_factory=list)
    resampled: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The group's name."""
        return self.group.label

    def of_diagnoses(self, value: Any) -> Summary:
        """A number of each diagnosis over the group's runs."""
        return Summary.of([value(diagnosis) for diagnosis in self.diagnoses.values()])


@dataclass(frozen=True)
class ImageDifference:
    """An image in which two runs of one repeat differ, with what each detects above its own best threshold.

    ``Shapes`` are ``((x, y, w, h), label)``.
    """

    path: Path
    truth: Shapes
    sides: list[tuple[str, float, Shapes]]  # run, AP50 of the image, detections


@dataclass
class Comparison:
    """Everything that the forms (text, CSV, pictures, page) show.

    Attributes:
        results: one per group, the baseline first.
        metric: the one that the differences are of.
        margin: differences smaller than this count as equal.
        losses: knob -> its value in each group, for the knobs of the losses in which groups differ.
        differs: fact -> its value in each run, for what differs besides losses and seed (``--anyway``).
        noted: the same for device, versions and the like, which may move the last digits.
        unknown: run of plain YOLOX -> what it cannot tell.
        left_out: runs that failed or are not finished, with the reason.
        notes: what the reader has to know.
        classes: names, when they were asked for.
        shown: the groups with curves, errors and images: all, or of many the baseline and those that differ most.
        pictures: where the groups differ most from the baseline.
        command: the words that make the comparison again, without ``--out``.
        only_classes: the classes that the metric is the mean of, where not all of them are.
        from_files: result files of any detector were compared, which have no trainings.
    """

    results: list[Result]
    metric: str
    margin: float
    losses: dict[str, list[str]]
    differs: dict[str, list[str]]
    noted: dict[str, list[str]]
    unknown: dict[str, list[str]]
    left_out: list[str]
    notes: list[str]
    classes: list[str]
    shown: list[Result]
    pictures: list[ImageDifference]
    command: list[str]
    only_classes: list[str] = field(default_factory=list)
    from_files: bool = False

    @property
    def title(self) -> str:
        """The metric, and the classes where it is not of all of them."""
        return self.metric + (f" of {', '.join(self.only_classes)}" if self.only_classes else "")

    @property
    def tests(self) -> int:
        """The number of losses that are compared with the baseline; at least 1."""
        return max(1, len(self.results) - 1)

    @property
    def runs(self) -> list[Run]:
        """All runs, group by group."""
        return [run for result in self.results for run in result.group.runs]


def best_threshold(results: Sequence[Result], run: str) -> float | None:
    """The score threshold at which a run's F1 is best, None where its detections were not kept."""
    return next((result.diagnoses[run].threshold for result in results if run in result.diagnoses), None)
