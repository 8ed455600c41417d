"""Runs with several seeds, or any detector's result files, compared with a baseline: what differs, how surely, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..runs.differences import training_sizes
from ..runs.predictions import predictions_file
from ..runs.race import Race, find_race
from ..runs.record import AP_COLUMNS
from ..runs.result_files import file_groups, read_results
from ..runs.selection import Group, Run, Selection, differing, facts, group, remedies, select, surroundings, unknown
from ..specs.knobs import nearest
from ..specs.labels import label_of
from .answers import plan_text
from .detections import Truth
from .judging import by_unit, class_places, judge, judge_classes, resample
from .results import MEANS, Comparison, ImageDifference, Result, Shapes, Summary
from .statistics import BETTER, EQUAL, MARGIN, WORSE, evaluation_noise, pooled_spread
from .tables import as_latex, as_text, side_by_side

# A share of the first learning rate at which AP hardly moves any more from epoch to epoch; measured in docs/which_loss.md.
_SETTLED = 0.002
# Groups, without the baseline, of which curves, errors and images are shown: more could not be told apart.
_MOST_SHOWN = 6


@dataclass(frozen=True)
class Options:
    """What is compared, and how.

    Attributes:
        words: folders of runs, globs, or names of what lies in ``YOLOX_outputs``; with ``truth`` groups of result files,
            ``name=file,file``, a file per seed, the first group being the baseline.
        baseline: a group or a run of it; the default is stock.
        by: ``loss``, or one term (``loss_obj``, ``loss_cls``, ``loss_iou``, ``loss_l1``).
        metric: of the differences, one of `record.AP_COLUMNS`.
        per_class: AP and a verdict for each class as well.
        anyway: compare runs that differ in more than losses and seed.
        margin: differences smaller than this count as equal.
        classes: names of the classes that the metric is the mean of; empty for all.
        truth: the annotation file of result files; None for runs, whose records name it.
    """

    words: Sequence[str]
    baseline: str | None = None
    by: str = "loss"
    metric: str = "AP"
    per_class: bool = False
    anyway: bool = False
    margin: float = MARGIN
    classes: Sequence[str] = ()
    truth: str | None = None

    def command(self) -> list[str]:
        """The words that make the comparison again."""
        words = ["yolox-loss", "compare", *self.words]
        for flag, value, default in (
            ("--truth", self.truth, None), ("--baseline", self.baseline, None), ("--by", self.by, "loss"),
            ("--metric", self.metric, "AP"), ("--margin", str(self.margin), str(MARGIN)),
            ("--classes", ",".join(self.classes), ""),
        ):  # fmt: skip
            if value != default:
                words += [flag, str(value)]
        return words + ["--per-class"] * self.per_class + ["--anyway"] * self.anyway


def compare(
    words: Sequence[str], out: str | None = None, plan: bool = False, latex: bool = False, **options: Any
) -> str:
    """Compare runs, repeated with several seeds, against a baseline; with --out also a page, pictures and tables.

    Args:
        words: see `Options`.
        out: folder for ``comparison.html``, ``.md``, ``.csv``, ``.json`` and ``.png``.
        plan: say instead how many seeds and images would find which difference.
        latex: give instead the verdicts as a table for LaTeX.
        **options: those of `Options`.

    Raises:
        RunError: runs that cannot be compared, with the reason.
    """
    comparison = analyse(words, **options)
    if plan:
        return plan_text(comparison)
    text = as_latex(comparison) if latex else as_text(comparison)
    if out is not None:
        from .report import write  # matplotlib and jinja2 take a second

        files = write(comparison, Path(out))
        if not latex:  # what is printed then is a table and nothing else
            text += f"\n\nWritten to {out}: {', '.join(file.name for file in files)}"
    return text


def analyse(words: Sequence[str], **options: Any) -> Comparison:
    """The comparison itself; for the arguments see `Options`."""
    chosen = Options(words, **options)
    _check(chosen)
    return _of_runs(chosen) if chosen.truth is None else _of_files(chosen, chosen.truth)


def _check(chosen: Options) -> None:
    metric = chosen.metric
    if metric not in AP_COLUMNS:
        raise RunError(f"--metric is one of {', '.join(AP_COLUMNS)}; got {metric!r}.{nearest(metric, AP_COLUMNS)}")
    if not 0 < chosen.margin < 1:
        raise RunError(f"--margin is a difference of AP between 0 and 1, such as {MARGIN}; got {chosen.margin}.")


def _of_runs(chosen: Options) -> Comparison:
    selection = select(chosen.words)
    runs = selection.runs
    _check_number(selection)
    differs = differing(runs, facts)
    if differs and not chosen.anyway:
        raise RunError(_refusal(runs, differs))
    results = [_result(repeats) for repeats in _with_baseline_first(group(runs, chosen.by), chosen.baseline)]
    notes: list[str] = []
    truth = _truth(runs, notes)
    if truth is None and chosen.classes:
        raise RunError(f"--classes needs the detections of the runs. {' '.join(notes)}")
    if truth is not None:
        annotations = truth

        def detections(run: Run) -> NDArray[np.float64] | None:
            path = run.predictions()
            return None if path is None else annotations.read(path)

        of_classes = resample(results, detections, truth, chosen.metric, chosen.classes, chosen.per_class)
        missing = [run.name for result in results for run in result.group.runs if run.name not in result.diagnoses]
        if missing:
            notes.append(
                f"No detections were kept by {', '.join(missing)}: make them with yolox-loss eval -f EXP -c "
                "FOLDER/latest_ckpt.pth --save. Until then nothing is said about their images, errors and calibration."
            )
            if chosen.classes:
                raise RunError(f"--classes needs the detections of every run. {notes[-1]}")
    if results[0].last[chosen.metric].mean is None:
        raise RunError(
            f"The baseline {results[0].label} has no {chosen.metric}; choose another --metric or --baseline."
        )
    images = None if truth is None else len(truth.boxes.image_ids)
    race = _race(chosen, results, notes)
    judge(results, chosen.metric, chosen.margin, images, from_detections=bool(chosen.classes), race=race)
    if truth is not None and chosen.per_class:
        judge_classes(results, truth, of_classes, chosen.margin, race)
    without = [
        result.label
        for result in results
        if result.verdict in (BETTER, WORSE, EQUAL) and result.difference and result.difference.se_images is None
    ]
    if without:
        notes.append(
            f"The verdict on {', '.join(without)} is about seeds only: without detections nothing is known about other images."
        )
    _note_early_stops(runs, notes)
    _note_evaluation_noise(runs, results, chosen.metric, chosen.margin, notes)
    shown = _most_different(results, chosen.metric, notes)
    return Comparison(
        results,
        chosen.metric,
        chosen.margin,
        _loss_differences(results),
        differs,
        differing(runs, surroundings),
        unknown(runs),
        selection.left_out,
        notes,
        _classes(results) if chosen.per_class else [],
        shown,
        _pictures(shown, truth) if truth is not None else [],
        chosen.command(),
        list(chosen.classes),
    )


def _race(chosen: Options, results: Sequence[Result], notes: list[str]) -> Race | None:
    """The plan that the runs were trained by, where it is for this comparison; a note says what it means."""
    runs = [run for result in results for run in result.group.runs]
    race = find_race([run.folder for run in runs])
    if race is None:
        return None
    strangers = race.unplanned([run.name for run in runs])
    groups = [race.setting_of_group([run.name for run in result.group.runs]) for result in results]
    if None in groups or len({*groups}) < len(groups):
        notes.append(
            f"Some of these runs were trained as a race ({race.path}), whose plan is not for these groups. Its looks are not "
            "counted."
        )
        return None
    if chosen.metric != race.metric or chosen.margin != race.margin or chosen.classes:
        notes.append(
            f"These runs were trained as a race for {race.metric} with a margin of {race.margin}; its looks decided by that, not "
            "by what is asked for here."
        )
    if strangers:
        notes.append(
            f"Added after the plan of the race, and not counted in the verdicts: {', '.join(strangers)}. Seeds that are added "
            "because the first looked good are no evidence."
        )
    looks = ", ".join(map(str, race.looks))
    notes.append(
        f"These runs are a race: {len(race.looks)} looks were planned, after {looks} seeds, and share the error. p is multiplied "
        f"by {len(race.looks)}, and the intervals are as much wider."
    )
    return race


def _of_files(chosen: Options, annotations: str) -> Comparison:
    """The comparison of result files: the same, without what only a training tells."""
    groups = file_groups(chosen.words)
    if len(groups) < 2:
        raise RunError(f"There is one group only, {groups[0].label}: name a second one, such as other=b0.json,b1.json.")
    if chosen.baseline is not None:
        groups = _with_baseline_first(groups, chosen.baseline)
    try:
        truth = Truth({"file": annotations})
    except RunError as error:
        raise RunError(f"--truth is the file with the annotations: {error}.") from error
    class_places(truth, chosen.classes)
    categories = [int(item["id"]) for item in truth.categories]

    def detections(run: Run) -> NDArray[np.float64]:
        return truth.table(read_results(run.folder, truth.images, categories))

    empty = [Result(repeats, {}, {}, {}, Summary.of([]), Summary.of([])) for repeats in groups]
    of_classes = resample(empty, detections, truth, chosen.metric, chosen.classes, chosen.per_class)
    results = []
    for result in empty:
        for run in result.group.runs:
            run.rows.append({"epoch": 0.0, **result.diagnoses[run.name].metrics})
        filled = _result(result.group)
        filled.diagnoses, filled.resampled = result.diagnoses, result.resampled
        results.append(filled)
    judge(results, chosen.metric, chosen.margin, len(truth.boxes.image_ids), from_detections=True)
    if chosen.per_class:
        judge_classes(results, truth, of_classes, chosen.margin)
    notes: list[str] = []
    numbers = {len(result.group.runs) for result in results}
    if numbers != {1}:
        notes.append(
            "The first files of all groups are taken as trainings with one seed, the second ones with another, and so on."
        )
    shown = _most_different(results, chosen.metric, notes)
    classes = _classes(results) if chosen.per_class else []
    return Comparison(
        results, chosen.metric, chosen.margin, {}, {}, {}, {}, [], notes, classes, shown, [], chosen.command(),
        list(chosen.classes), from_files=True,
    )  # fmt: skip


def _check_number(selection: Selection) -> None:
    if len(selection.runs) >= 2:
        return
    left = f" Left out: {'; '.join(selection.left_out)}." if selection.left_out else ""
    if not selection.runs:
        raise RunError(f"None of these is a finished run that could be compared.{left}")
    raise RunError(
        f"There is one run only, {selection.runs[0].name}: nothing to compare it with. Name a second one, best of all the same "
        f"with stock's losses (loss_obj bce loss_iou iou).{left}"
    )


def _refusal(runs: Sequence[Run], differs: dict[str, list[str]]) -> str:
    return (
        "These runs differ in more than losses and seed, so a difference in AP would not be the losses':\n\n"
        f"{side_by_side(differs, [run.name for run in runs])}\n\n"
        "Compare runs that are alike, or say --anyway to see them side by side all the same."
    )


def _with_baseline_first(groups: list[Group], wanted: str | None) -> list[Group]:
    """The groups with the baseline in front: the one asked for, else stock, else the first."""
    labels = [repeats.label for repeats in groups]
    if wanted is None:
        first = next((repeats for repeats in groups if repeats.label == "stock"), groups[0])
    else:
        name = Path(wanted).name
        found = [repeats for repeats in groups if wanted == repeats.label or name in [run.name for run in repeats.runs]]
        if not found:
            choices = [*labels, *(run.name for repeats in groups for run in repeats.runs)]
            raise RunError(
                f"--baseline is a group ({', '.join(repr(label) for label in labels)}) or the name of a run in it; got "
                f"{wanted!r}.{nearest(wanted, choices)}"
            )
        first = found[0]
    return [first, *(repeats for repeats in groups if repeats is not first)]


def _result(repeats: Group) -> Result:
    last, best = [run.last() for run in repeats.runs], [run.best() for run in repeats.runs]
    return Result(
        repeats,
        {name: Summary.of([row.get(name) for row in last]) for name in AP_COLUMNS},
        {name: Summary.of([row.get(name) for row in best]) for name in AP_COLUMNS},
        {name: Summary.of([run.rows[-1].get(name) for run in repeats.runs]) for name in MEANS},
        Summary.of([run.seconds_per_iteration() for run in repeats.runs]),
        Summary.of([run.peak_memory() for run in repeats.runs]),
    )


def _truth(runs: Sequence[Run], notes: list[str]) -> Truth | None:
    """The annotations that all runs were evaluated on, if they can be had."""
    told = [run.record["data"]["val"] for run in runs if (run.record.get("data") or {}).get("val")]
    if len({data.get("sha256") for data in told}) > 1:
        notes.append(
            "The runs were evaluated on different annotations: nothing is said about images, errors and calibration."
        )
        return None
    why = "no run tells its annotation file"
    for data in told:
        try:
            return Truth(data)
        except RunError as error:
            why = str(error)
    notes.append(f"Nothing is said about images, errors and calibration: {why}.")
    return None


def _note_early_stops(runs: Sequence[Run], notes: list[str]) -> None:
    """Say which runs ended before their last epoch: their last evaluation is one of many that were looked at."""
    early = [(run.name, run.record["stopped_early"]) for run in runs if run.record.get("stopped_early")]
    if early:
        told = ", ".join(f"{name} after epoch {facts.get('epoch')}" for name, facts in early)
        notes.append(
            f"Stopped early (--patience): {told}. Compared is the last evaluation of each run, for these one that lies behind "
            "their best, without the last epochs' training on plain images."
        )


def _note_evaluation_noise(
    runs: Sequence[Run], results: list[Result], metric: str, margin: float, notes: list[str]
) -> None:
    """Say where AP moves from one of the last epochs to the next about as much as seeds differ."""
    moves = evaluation_noise([run.end(metric) for run in runs])
    spread = pooled_spread([list(by_unit(result.group, metric).values()) for result in results])
    if moves is None or spread is None or moves < max(margin, spread / 2):
        return
    exp = runs[0].record.get("exp", {})
    ratio, sizes, height = exp.get("min_lr_ratio"), training_sizes(exp), (exp.get("test_size") or [None])[0]
    how = ""
    if isinstance(ratio, (int, float)) and ratio > _SETTLED:
        how = f" A smaller last learning rate settles that part: self.min_lr_ratio = {_SETTLED}, which is {ratio} here."
    elif ratio is not None and sizes is not None and sizes[0] != sizes[1] and isinstance(height, int):
        how = (
            " The last learning rate is near zero; what can still move is batch norm, which follows the sizes of the last "
            f"batches, here of {32 * sizes[0]} to {32 * sizes[1]} px: self.random_size = "
            f"({height // 32}, {height // 32}) holds it still."
        )
    notes.append(
        f"In the last epochs {metric} moves by {moves:.3f} from one to the next (standard deviation), in the last one it differs "
        f"by {spread:.3f} between seeds: a part of the noise is where a training happens to stop.{how}"
    )


def _pairs(ours: Group, theirs: Group) -> tuple[list[Run], list[Run]]:
    """As many runs of both groups, those of the same repeat opposite each other."""
    mine, others = dict(zip(ours.units, ours.runs, strict=True)), dict(zip(theirs.units, theirs.runs, strict=True))
    shared = [unit for unit in mine if unit in others and "unknown" not in unit]
    if shared:
        return [mine[unit] for unit in shared], [others[unit] for unit in shared]
    number = min(len(ours.runs), len(theirs.runs))
    return ours.runs[:number], theirs.runs[:number]


def _loss_differences(results: list[Result]) -> dict[str, list[str]]:
    """The resolved losses and the settings for faulty data side by side, differences only."""
    tables = []
    for result in results:
        resolved = result.group.runs[0].record.get("resolved_losses") or {}
        table: dict[str, str] = {}
        for term, spec in resolved.items():
            if isinstance(spec, list):
                table[f"loss_{term}"] = label_of(term, spec)
                continue
            table[f"loss_{term}"] = str(spec.get("type"))
            table.update({f"loss_{term}.{key}": str(value) for key, value in spec.items() if key != "type"})
        if table:
            table.update({key: str(value) for key, value in remedies(result.group.runs[0].record).items()})
        tables.append(table)
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = {key: [table.get(key, "-" if table else "unknown") for table in tables] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _classes(results: list[Result]) -> list[str]:
    return list(
        dict.fromkeys(name for result in results for found in result.diagnoses.values() for name in found.classes)
    )


def _both_diagnosed(result: Result, base: Result) -> bool:
    """Whether the first pair of runs kept its detections."""
    ours, theirs = _pairs(result.group, base.group)
    return bool(ours) and ours[0].name in result.diagnoses and theirs[0].name in base.diagnoses


def _most_different(results: list[Result], metric: str, notes: list[str]) -> list[Result]:
    """The baseline and the groups of which curves, errors and images are shown."""
    base, *others = results
    if len(others) <= _MOST_SHOWN:
        return results
    notes.append(
        f"Curves, errors and images are shown of {base.label} and of the {_MOST_SHOWN} groups whose {metric} differs most "
        "from it; the tables have all."
    )
    distances = [-1.0 if result.difference is None else abs(result.difference.mean) for result in others]
    chosen = sorted(range(len(others)), key=lambda place: -distances[place])[:_MOST_SHOWN]
    return [base, *(others[place] for place in sorted(chosen))]


def _pictures(results: list[Result], truth: Truth, number: int = 3) -> list[ImageDifference]:
    """For each group the images whose AP50 differs most from the baseline's, in the first pair of runs."""
    base, names = results[0], {int(item["id"]): str(item["name"]) for item in truth.categories}
    boxes: dict[int, Shapes] = {}
    for item in truth.annotations:
        boxes.setdefault(int(item["image_id"]), []).append((tuple(item["bbox"]), names[int(item["category_id"])]))
    pictures = []
    for result in results[1:]:
        if not _both_diagnosed(result, base):
            continue
        ours, theirs = _pairs(result.group, base.group)
        sides = ((theirs[0], base.diagnoses[theirs[0].name]), (ours[0], result.diagnoses[ours[0].name]))
        values = [diagnosis.images for _, diagnosis in sides]
        shared = [image for image in values[0] if image in values[1]]
        shared.sort(key=lambda image: (-abs(values[1][image] - values[0][image]), image))
        paths = {image: path for image in shared if (path := truth.image_file(image)) is not None}
        chosen = list(paths)[:number]
        found: list[dict[int, Shapes]] = []
        for run, diagnosis in sides:
            table = truth.read(predictions_file(run.folder, int(run.last()["epoch"] or 0)))
            kept = table[(table[:, 5] >= diagnosis.threshold) & np.isin(table[:, 0], chosen)]
            rows: dict[int, Shapes] = {}
            for image, x, y, w, h, score, category in kept:
                rows.setdefault(int(image), []).append(((x, y, w, h), f"{names[int(category)]} {score:.2f}"))
            found.append(rows)
        for image in chosen:
            pictures.append(
                ImageDifference(
                    paths[image],
                    boxes.get(image, []),
                    [
                        (run.name, diagnosis.images[image], rows.get(image, []))
                        for (run, diagnosis), rows in zip(sides, found, strict=True)
                    ],
                )
            )
    return pictures
