"""The differences of a comparison and what may be said of them: detections resampled, intervals, Holm, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import RunError
from ..runs.race import Race
from ..runs.selection import Group
from .bootstrap.resampling import class_values, image_weights, mean_over_classes
from .detections import Truth
from .results import ClassDifference, Result
from .statistics import Difference, difference, holm, over_looks, verdict

Draws = dict[str, NDArray[np.float64]]


def resample(
    results: Sequence[Result],
    tables: Any,
    truth: Truth,
    metric: str,
    classes: Sequence[str],
    per_class: bool,
) -> dict[str, NDArray[np.float64]]:
    """Diagnose every run and resample its images, one run after the other.

    Args:
        results: filled: ``diagnoses`` and ``resampled``.
        tables: a function from a run to its detections, None where they were not kept.
        truth: the annotations.
        metric: of `resampling.METRICS`.
        classes: names of those that count; empty for all.
        per_class: each class's values are returned too.

    Returns:
        Run name -> classes x (1 + resamples), where ``per_class`` asks for it.
    """
    runs = [(result, run) for result in results for run in result.group.runs]
    weights = image_weights(len(truth.boxes.image_ids))
    rows = class_places(truth, classes)
    of_classes = {}
    with tqdm(
        total=len(runs), desc="errors and resampled images", leave=False, bar_format="{l_bar}{bar}| {elapsed}"
    ) as bar:
        for result, run in runs:
            table = tables(run)
            if table is None:
                bar.update(1)
                continue
            result.diagnoses[run.name] = truth.diagnose(table)
            values = class_values(
                truth.boxes.match(table), weights, metric, lambda share: bar.update(min(share, len(runs) - bar.n))
            )
            result.resampled[run.name] = mean_over_classes(values[rows])
            if per_class:
                of_classes[run.name] = values
    return of_classes


def class_places(truth: Truth, classes: Sequence[str]) -> list[int]:
    """The places of these classes; of all where none is named.

    Raises:
        RunError: no such class.
    """
    names = truth.class_names
    strangers = [name for name in classes if name not in names]
    if strangers:
        raise RunError(f"--classes names classes of the data: {', '.join(names)}; got {strangers[0]!r}.")
    return [place for place, name in enumerate(names) if not classes or name in classes]


def judge(
    results: Sequence[Result],
    metric: str,
    margin: float,
    images: int | None,
    from_detections: bool,
    race: Race | None = None,
) -> None:
    """Hold every group against the baseline: fills ``difference``, ``p_holm`` and ``verdict``.

    Args:
        results: the baseline first.
        metric: of the last epoch.
        margin: differences smaller than this count as equal.
        images: the number of images that were resampled, None where there are no detections.
        from_detections: the metric is taken from the detections, not from the records: of some classes, or of result files.
        race: the plan that the runs were trained by, if any: its looks share the error, and its settings count in Holm's table
            whether they are shown or not.
    """
    base, *others = results
    draws = {id(result): _by_repeat(result) for result in results}
    for result in others:
        sides = [
            {unit: float(values[0]) for unit, values in draws[id(side)].items()}
            if from_detections
            else by_unit(side.group, metric)
            for side in (result, base)
        ]
        if not all(sides):
            continue
        known = [draws[id(side)] for side in (result, base)]
        complete = images is not None and all(set(side) <= set(found) for side, found in zip(sides, known, strict=True))
        ours, theirs = known if complete else (None, None)
        if race is None:
            result.difference = difference(sides[0], sides[1], ours, theirs, images, margin)
            continue
        taken = [
            difference(
                {unit: sides[0][unit] for unit in units},
                {unit: sides[1][unit] for unit in units},
                ours,
                theirs,
                images,
                margin,
                len(race.looks),
            )
            for units in _looks(race, result, base)
        ]
        if taken:
            result.difference = over_looks(taken)
    p_values = [None if result.difference is None else result.difference.p for result in others]
    unseen = 0 if race is None else max(0, len(race.settings) - len(results))
    adjusted = holm([*p_values, *[1.0] * unseen])
    for result, p in zip(others, adjusted, strict=False):
        result.p_holm = p
        result.verdict = f"{metric} unknown" if result.difference is None else verdict(result.difference, p, margin)


def _looks(race: Race, result: Result, base: Result) -> list[list[str]]:
    """The repeats of each look that was reached: of the planned seeds the first so many, in both groups."""
    names = [{run: unit for unit, run in _units(side.group)} for side in (result, base)]
    settings = [race.setting_of_group([run.name for run in side.group.runs]) for side in (result, base)]
    planned = [
        [found.get(run) for run in race.settings[setting]] if setting is not None else []
        for found, setting in zip(names, settings, strict=True)
    ]
    shared = [ours for ours, theirs in zip(*planned, strict=False) if ours is not None and ours == theirs]
    return [shared[:look] for look in race.looks if len(shared) >= look]


def judge_classes(
    results: Sequence[Result],
    truth: Truth,
    of_classes: dict[str, NDArray[np.float64]],
    margin: float,
    race: Race | None = None,
) -> None:
    """The same for each class; fills ``class_differences``. Holm counts every class of every group.

    Of a race the seeds of the latest look count, with its share of the error.
    """
    base, *others = results
    looks = 1 if race is None else len(race.looks)
    found: list[tuple[Result, str, Difference]] = []
    images = len(truth.boxes.image_ids)
    for result in others:
        for place, name in enumerate(truth.class_names):
            sides = [_of_class(side, of_classes, place) for side in (result, base)]
            if race is not None:
                latest = (_looks(race, result, base) or [[]])[-1]
                sides = [{unit: side[unit] for unit in latest if unit in side} for side in sides]
            if not all(sides):
                continue
            values = [{unit: float(draws[0]) for unit, draws in side.items()} for side in sides]
            found.append((result, name, difference(values[0], values[1], sides[0], sides[1], images, margin, looks)))
    adjusted = holm([told.p for _, _, told in found])
    for (result, name, told), p in zip(found, adjusted, strict=True):
        result.class_differences.append(ClassDifference(name, told, p, verdict(told, p, margin)))


def _of_class(result: Result, of_classes: dict[str, NDArray[np.float64]], place: int) -> Draws:
    """Repeat -> draws of a class; none where it has no box. A resample that drew none of its boxes counts as unchanged."""
    found = {}
    for unit, run in _units(result.group):
        if run in of_classes and not np.isnan(of_classes[run][place, 0]):
            draws = of_classes[run][place]
            found[unit] = np.where(np.isnan(draws), draws[0], draws)
    return found


def _units(group: Group) -> list[tuple[str, str]]:
    """Repeat and run name; repeats of unknown seeds are told apart by their runs' names."""
    return [
        (unit if run.seed is not None else run.name, run.name)
        for run, unit in zip(group.runs, group.units, strict=True)
    ]


def _by_repeat(result: Result) -> Draws:
    return {unit: result.resampled[run] for unit, run in _units(result.group) if run in result.resampled}


def by_unit(group: Group, metric: str) -> dict[str, float]:
    """Repeat -> metric of the last epoch, for the runs that have it."""
    values = {}
    for run, (unit, _) in zip(group.runs, _units(group), strict=True):
        value = run.last().get(metric)
        if value is not None and value >= 0:
            values[unit] = value
    return values
