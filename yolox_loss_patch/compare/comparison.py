"""Runs held against each other so that the answer can be believed: what differs, how sure the difference is, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import RunError
from ..runs.differences import training_sizes
from ..runs.record import AP_COLUMNS, predictions_file
from ..runs.selection import Group, Run, Selection, differing, facts, group, select, surroundings, unknown
from ..specs.knobs import nearest
from ..specs.labels import label_of
from .detections import Truth
from .results import MEANS, Comparison, ImageDifference, Result, Shapes, Summary
from .statistics import BETTER, EFFECT, WORSE, pooled_spread, seed_difference, unrest, verdict
from .tables import as_text, side_by_side

# A share of the first learning rate at which AP hardly moves any more from epoch to epoch; measured in docs/which_loss.md.
_SETTLED = 0.002
# Groups, besides the baseline, of which curves, errors and images are shown: more are not told apart.
_MOST_SHOWN = 6


def compare(
    folders: Sequence[str],
    out: str | None = None,
    baseline: str | None = None,
    by: str = "loss",
    metric: str = "AP",
    per_class: bool = False,
    anyway: bool = False,
) -> str:
    """Compare runs, repeated with several seeds, against a baseline; with --out also a page, pictures and tables.

    Args:
        folders: of runs, or globs; also names of what lies in ``YOLOX_outputs``.
        out: folder for ``comparison.html``, ``.md``, ``.csv`` and ``.png``.
        baseline: a group or a run of it; the default is stock.
        by: ``loss``, or one term (``loss_obj``, ``loss_cls``, ``loss_iou``, ``loss_l1``).
        metric: of the differences, one of `record.AP_COLUMNS`.
        per_class: AP by class as well.
        anyway: compare runs that differ in more than losses and seed.

    Raises:
        RunError: runs that cannot be compared, with the reason.
    """
    comparison = analyse(folders, baseline, by, metric, per_class, anyway)
    text = as_text(comparison)
    if out is not None:
        from .report import write  # matplotlib and jinja2 take a second

        files = write(comparison, Path(out))
        text += f"\n\nWritten to {out}: {', '.join(file.name for file in files)}"
    return text


def analyse(
    folders: Sequence[str],
    baseline: str | None = None,
    by: str = "loss",
    metric: str = "AP",
    per_class: bool = False,
    anyway: bool = False,
) -> Comparison:
    """The comparison itself; for the arguments see `compare`."""
    if metric not in AP_COLUMNS:
        raise RunError(f"--metric is one of {', '.join(AP_COLUMNS)}; got {metric!r}.{nearest(metric, AP_COLUMNS)}")
    selection = select(folders)
    runs = selection.runs
    _check_number(selection)
    differs = differing(runs, facts)
    if differs and not anyway:
        raise RunError(_refusal(runs, differs))
    groups = _with_baseline_first(group(runs, by), baseline)
    results = [_result(one) for one in groups]
    notes: list[str] = []
    truth = _truth(runs, notes)
    if truth is not None:
        _diagnose(results, truth, notes)
    lacks = [name for name in (metric,) if results[0].last[name].mean is None]
    if lacks:
        raise RunError(f"The baseline {results[0].label} has no {metric}; choose another --metric or --baseline.")
    for result in results[1:]:
        _judge(result, results[0], metric, truth)
    bare = [one.label for one in results if one.verdict in (BETTER, WORSE) and one.images is None]
    if bare:
        notes.append(f"The verdict on {', '.join(bare)} rests on seeds alone: of images nothing is known.")
    _note_unrest(runs, results, metric, notes)
    if len(results) > 3:
        tests = len(results) - 1
        notes.append(
            f"{tests} groups are held against the baseline: were none of them different, one would still be called different "
            f"in up to {100 * (1 - 0.95**tests):.0f}% of such comparisons."
        )
    shown = _most_different(results, metric, notes)
    return Comparison(
        results,
        metric,
        _loss_differences(results),
        differs,
        differing(runs, surroundings),
        unknown(runs),
        selection.left_out,
        notes,
        _classes(results) if per_class else [],
        shown,
        _pictures(shown, truth) if truth is not None else [],
        _command(folders, baseline, by, metric, per_class, anyway),
    )


def _command(
    folders: Sequence[str], baseline: str | None, by: str, metric: str, per_class: bool, anyway: bool
) -> list[str]:
    """The words that make the comparison again."""
    words = ["yolox-loss", "compare", *folders]
    words += [] if baseline is None else ["--baseline", baseline]
    words += [] if by == "loss" else ["--by", by]
    words += [] if metric == "AP" else ["--metric", metric]
    return words + ["--per-class"] * per_class + ["--anyway"] * anyway


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
    labels = [one.label for one in groups]
    if wanted is None:
        first = next((one for one in groups if one.label == "stock"), groups[0])
    else:
        name = Path(wanted).name
        found = [one for one in groups if wanted == one.label or name in [run.name for run in one.runs]]
        if not found:
            choices = [*labels, *(run.name for one in groups for run in one.runs)]
            raise RunError(
                f"--baseline is a group ({', '.join(repr(label) for label in labels)}) or the name of a run in it; got "
                f"{wanted!r}.{nearest(wanted, choices)}"
            )
        first = found[0]
    return [first, *(one for one in groups if one is not first)]


def _result(one: Group) -> Result:
    last, best = [run.last() for run in one.runs], [run.best() for run in one.runs]
    return Result(
        one,
        {name: Summary.of([row.get(name) for row in last]) for name in AP_COLUMNS},
        {name: Summary.of([row.get(name) for row in best]) for name in AP_COLUMNS},
        {name: Summary.of([run.rows[-1].get(name) for run in one.runs]) for name in MEANS},
        Summary.of([run.seconds_per_iteration() for run in one.runs]),
        Summary.of([run.peak_memory() for run in one.runs]),
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


def _diagnose(results: list[Result], truth: Truth, notes: list[str]) -> None:
    missing = []
    pairs = [(result, run) for result in results for run in result.group.runs]
    for result, run in tqdm(pairs, desc="errors and calibration", leave=False):
        path = run.predictions()
        if path is None:
            missing.append(run.name)
        else:
            result.diagnoses[run.name] = truth.diagnose(path)
    if missing:
        notes.append(
            f"No detections were kept by {', '.join(missing)}: make them with yolox-loss eval -f EXP -c FOLDER/latest_ckpt.pth "
            "--save. Until then nothing is said about their images, errors and calibration."
        )


def _judge(result: Result, base: Result, metric: str, truth: Truth | None) -> None:
    values, others = _by_unit(result.group, metric), _by_unit(base.group, metric)
    if not values:
        result.verdict = f"{metric} unknown"
        return
    result.difference = seed_difference(values, others)
    if truth is not None:
        ours, theirs = _pairs(result.group, base.group)
        files = [[run.predictions() for run in side] for side in (ours, theirs)]
        known = [[path for path in side if path is not None] for side in files]
        if known == files and ours:
            with tqdm(
                total=1, desc=f"bootstrap over images, {result.label}", leave=False, bar_format="{desc} ... {elapsed}"
            ):
                result.images = truth.image_interval(known[0], known[1], metric)
    result.verdict = verdict(result.difference, result.images)


def _note_unrest(runs: Sequence[Run], results: list[Result], metric: str, notes: list[str]) -> None:
    """Say where AP moves from one of the last epochs to the next about as much as seeds differ."""
    moves = unrest([run.end(metric) for run in runs])
    spread = pooled_spread([list(_by_unit(result.group, metric).values()) for result in results])
    if moves is None or spread is None or moves < max(EFFECT, spread / 2):
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


def _by_unit(one: Group, metric: str) -> dict[str, float]:
    """Repeat -> metric of the last epoch; repeats of unknown seeds are told apart by their runs' names."""
    values = {}
    for run, unit in zip(one.runs, one.units, strict=True):
        value = run.last().get(metric)
        if value is not None and value >= 0:
            values[unit if run.seed is not None else run.name] = value
    return values


def _pairs(ours: Group, theirs: Group) -> tuple[list[Run], list[Run]]:
    """As many runs of both groups, those of the same repeat opposite each other."""
    mine, others = dict(zip(ours.units, ours.runs, strict=True)), dict(zip(theirs.units, theirs.runs, strict=True))
    shared = [unit for unit in mine if unit in others and "unknown" not in unit]
    if shared:
        return [mine[unit] for unit in shared], [others[unit] for unit in shared]
    number = min(len(ours.runs), len(theirs.runs))
    return ours.runs[:number], theirs.runs[:number]


def _loss_differences(results: list[Result]) -> dict[str, list[str]]:
    """The resolved losses side by side, differences only."""
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
        tables.append(table)
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = {key: [table.get(key, "-" if table else "unknown") for table in tables] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _classes(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for one in result.diagnoses.values() for name in one.classes))


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
    distances = [-1.0 if one.difference is None else abs(one.difference.mean) for one in others]
    chosen = sorted(range(len(others)), key=lambda place: -distances[place])[:_MOST_SHOWN]
    return [base, *(others[place] for place in sorted(chosen))]


def _pictures(results: list[Result], truth: Truth, number: int = 3) -> list[ImageDifference]:
    """For each group the images whose AP50 differs most from the baseline's, in the first pair of runs."""
    base, names = results[0], {int(item["id"]): str(item["name"]) for item in truth.categories}
    files = {int(item["id"]): str(item["file_name"]) for item in truth.images}
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
        chosen = [image for image in shared if (truth.image_folder / files[image]).is_file()][:number]
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
                    truth.image_folder / files[image],
                    boxes.get(image, []),
                    [
                        (run.name, diagnosis.images[image], rows.get(image, []))
                        for (run, diagnosis), rows in zip(sides, found, strict=True)
                    ],
                )
            )
    return pictures
