"""The tables of a comparison, for the terminal, Markdown, CSV and the page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from ..errors import RunError
from ..runs.record import AP_COLUMNS
from .detections import ERRORS
from .results import MEANS, Comparison, Result, Summary
from .statistics import (
    BETTER,
    EQUAL,
    UNCLEAR,
    WORSE,
    Components,
    Difference,
    Interval,
    detectable,
    images_needed,
    power,
    seeds_needed,
)

FLATTERED = "The best of many evaluations on the same data is flattered, the more so the noisier the curve: read the last epoch."
_SENTENCES = {
    BETTER: "better than {base}",
    WORSE: "worse than {base}",
    EQUAL: "equal to {base}",
    UNCLEAR: "unclear against {base}",
}
# With more groups, a column for each is wider than any screen.
_MOST_COLUMNS = 7
# Title, header, rows, note.
Table = tuple[str, list[str], list[list[str]], str]


def tables(comparison: Comparison) -> list[Table]:
    """Every table of a comparison, as text."""
    found = [_differences_table(comparison), _last_table(comparison)]
    if not comparison.from_files:
        found = [_head(comparison), *found, _best_table(comparison)]
    if any(result.diagnoses for result in comparison.results):
        found += [_errors_table(comparison), _scores_table(comparison)]
    if comparison.classes:
        found += [_classes_table(comparison), _class_differences_table(comparison)]
    if not comparison.from_files:
        found.append(_training_table(comparison))
    return [*found, _runs_table(comparison)]


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _range(interval: Interval | None) -> str:
    return "-" if interval is None else f"[{_signed(interval.low)}, {_signed(interval.high)}]"


def _mean(summary: Summary, digits: int = 4) -> str:
    """A mean with half the width of its interval."""
    if summary.mean is None:
        return "-"
    if summary.interval is None:
        return _number(summary.mean, digits)
    return f"{summary.mean:.{digits}f} ± {(summary.interval.high - summary.interval.low) / 2:.{digits}f}"


def _head(comparison: Comparison) -> Table:
    header = ["", *(result.label for result in comparison.results)]
    rows = [[key, *values] for key, values in comparison.losses.items()]
    note = "" if rows else "The groups have the same losses."
    if rows and len(comparison.results) > _MOST_COLUMNS:
        header = ["", f"other than {comparison.results[0].label}'s"]
        rows = [
            [result.label, ", ".join(f"{row[0]} {row[place]}" for row in rows if row[place] not in ("-", row[1]))]
            for place, result in enumerate(comparison.results[1:], start=2)
        ]
    return "What differs", header, rows, note


def _differences_table(comparison: Comparison) -> Table:
    base, margin = comparison.results[0], _points(comparison.margin)
    several = comparison.tests > 1
    header = [
        "",
        f"{comparison.title}, difference",
        "95% interval",
        "p",
        *(["p (Holm)"] if several else []),
        "p equal",
        "verdict",
        "seeds",
        "images",
        f"for {margin} it takes",
    ]
    rows = [[base.label, "baseline", *[""] * (len(header) - 5), str(len(base.group.runs)), "", ""]]
    for result in comparison.results[1:]:
        found = result.difference
        if found is None:
            rows.append(
                [result.label, *["-"] * (len(header) - 5), result.verdict, str(len(result.group.runs)), "-", "-"]
            )
            continue
        pairs = "pair" if found.seeds == 1 else "pairs"
        rows.append(
            [result.label, _signed(found.mean), _range(found.interval), _p(found.p),
             *([_p(result.p_holm)] if several else []), _p(found.p_equal), f"{result.verdict}{_limits(found)}",
             f"{found.seeds} {pairs if found.paired else 'without pairs'}",
             "-" if found.images is None else str(found.images), _takes(found, comparison)]
        )  # fmt: skip
    note = (
        f"{'Last epoch a' if not comparison.from_files else 'A'}gainst {base.label!r}. The interval holds what other seeds and "
        "other images of the kind would change, both at once. 'better' and 'worse': chance is ruled out at 5%"
        f"{f' over all {comparison.tests} groups of the table (Holm)' if several else ''}. 'equal': the 90% interval lies "
        f"within {margin}. 'unclear': neither is shown. It takes: seeds and images with which a difference of {margin} is "
        "found in 8 of 10 cases."
    )
    return "Is it better?", header, rows, note


def _limits(found: Difference) -> str:
    """What an interval does not know."""
    if found.interval is None:
        return ""
    return " (one seed: images only)" if found.se_seeds is None else " (seeds only)" if found.se_images is None else ""


def _points(margin: float) -> str:
    return f"{100 * margin:g} AP"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _components(found: Difference) -> Components | None:
    """What a difference varies by; without detections the seeds alone."""
    if found.components is not None:
        return found.components
    if found.se_seeds is not None and found.se_images is None:
        return Components(found.se_seeds**2 * found.seeds, 0.0, 0.0, 1)
    return None


def _takes(found: Difference, comparison: Comparison) -> str:
    """The seeds and images with which a difference of the margin would be found, in a cell."""
    components = _components(found)
    if components is None:
        return "?"
    seeds = seeds_needed(components, components.number, comparison.margin, comparison.tests)
    if found.images is None:
        return "?" if seeds is None else f"{seeds} seeds"
    if seeds is None:
        images = images_needed(components, max(found.seeds, 10), comparison.margin, comparison.tests)
        return f"{max(found.seeds, 10)} seeds, {_round(images)} images"
    return f"{seeds} seeds"


def _round(images: int | None) -> str:
    """Two digits are as many as a forecast has."""
    if images is None:
        return "over 10 million"
    return str(int(float(f"{images:.2g}")))


def missing(found: Difference, comparison: Comparison) -> str:
    """What is missing for a verdict, as a sentence part: seeds, images, or that the images alone rule it out."""
    margin = _points(comparison.margin)
    if found.interval is None:
        return "one seed and no detections: nothing is known about other seeds or images"
    if found.se_seeds is None:
        return "one seed: the interval holds other images only, nothing is known about training again; train three seeds or more"
    components = _components(found)
    if components is None:
        return ""
    tests = comparison.tests
    seeds = seeds_needed(components, components.number, comparison.margin, tests)
    if found.images is None:
        return f"{_more(seeds, found)} show a difference of {margin}; without detections nothing is known about other images"
    if seeds is not None and seeds <= found.seeds:
        return f"these seeds and images find a difference of {margin} in 8 of 10 cases; this one lies near the margin"
    images = images_needed(components, found.seeds, comparison.margin, tests)
    on_more = "" if images is None else f", or these seeds on about {_round(images)} images"
    if seeds is None:
        many = max(found.seeds, 10)
        return (
            f"the {found.images} images alone rule it out: no number of seeds shows a difference of {margin} on them; it takes "
            f"about {_round(images_needed(components, many, comparison.margin, tests))} images with {many} seeds"
        )
    return f"{_more(seeds, found)} on these images show a difference of {margin} in 8 of 10 cases{on_more}"


def _more(seeds: int | None, found: Difference) -> str:
    if seeds is None:
        return "no number of seeds would"
    more = seeds - found.seeds
    return f"{more} more seed{'s' * (more != 1)}" if more > 0 else "as many seeds"


def answers(comparison: Comparison) -> list[tuple[str, str, str]]:
    """The answer in words for each group but the baseline: its name, the verdict, what the verdict stands on."""
    base = comparison.results[0].label
    return [(result.label, *_answer(result, base, comparison)) for result in comparison.results[1:]]


def _answer(result: Result, base: str, comparison: Comparison) -> tuple[str, str]:
    found = result.difference
    words = _SENTENCES.get(result.verdict, result.verdict).format(base=base)
    if found is None:
        return words, ""
    parts = [f"{comparison.title} {_signed(found.mean)}"]
    parts += [f"95% {_range(found.interval)}"] if found.interval else []
    parts += (
        [f"p {_p(result.p_holm)}" + (f" (Holm, {comparison.tests} groups)" if comparison.tests > 1 else "")]
        if found.p is not None
        else []
    )
    parts.append(f"{found.seeds} seed{'s' * (found.seeds != 1)}" + ("" if found.paired else " per group, not paired"))
    parts += [f"{found.images} images"] if found.images else []
    if result.verdict == EQUAL and found.interval90:
        parts.append(f"the 90% interval {_range(found.interval90)} lies within {_points(comparison.margin)}")
    elif result.verdict == UNCLEAR:
        if found.p is not None and found.p < 0.05:
            parts.append(
                f"alone it would count as a difference, but among {comparison.tests} groups chance explains it"
            )
        parts.append(missing(found, comparison))
    elif result.verdict in (BETTER, WORSE) and abs(found.mean) < comparison.margin:
        parts.append(f"less than {_points(comparison.margin)}")
    if result.verdict != UNCLEAR and found.se_seeds is None:
        parts.append(
            "one seed: this holds for these two trainings on other images; nothing is known about training again"
        )
    if result.verdict != UNCLEAR and found.se_images is None and found.se_seeds is not None:
        parts.append("seeds only: nothing is known about other images")
    return words, ", ".join(part for part in parts if part)


def plan_text(comparison: Comparison) -> str:
    """How many seeds and images find which difference, from what the runs at hand vary by."""
    known = [result.difference.components for result in comparison.results[1:]
             if result.difference is not None and result.difference.components is not None]  # fmt: skip
    if not known:
        raise RunError(
            "--plan needs the detections of two groups with two seeds or more each, from which it takes how seeds and images "
            "vary; train two seeds of stock and of another loss, or make detections with yolox-loss eval --save."
        )
    number, tests = known[0].number, comparison.tests
    seeds_part, images_part, both = (
        sum(getattr(part, name) for part in known) / len(known) for name in ("seeds", "images", "both")
    )
    pooled = Components(seeds_part, images_part, both, number)
    margin, sizes = comparison.margin, [round(number * times) for times in (1, 2, 5, 10)]
    images = _round(images_needed(pooled, 10, margin, tests))
    seeds = seeds_needed(pooled, number, margin, tests)
    answer = (
        f"{seeds} seeds on the {number} images at hand."
        if seeds is not None
        else f"no number of seeds on the {number} images at hand; 10 seeds on about {images} images."
    )
    rows = [
        [str(count), *(f"{detectable(pooled, count, size, tests):.4f}" for size in sizes)]
        for count in (3, 5, 8, 12, 20)
    ]
    spread = [f"{name} {value**0.5:.4f}" for name, value in
              (("seeds", pooled.seeds), ("images", pooled.images), ("both together", pooled.both))]  # fmt: skip
    return "\n\n".join(
        [
            f"A difference of {_points(margin)} in {comparison.title} is found in 8 of 10 cases with: {answer}",
            f"The smallest difference that is found in 8 of 10 cases, among {tests} {'losses' if tests > 1 else 'loss'}:",
            _markdown(["seeds", *(f"{size} images" for size in sizes)], rows),
            f"Equal losses are found equal in {_chance_equal(pooled, 3, margin):.0%} of cases with 3 seeds and in "
            f"{_chance_equal(pooled, 10, margin):.0%} with 10 on the images at hand.",
            f"From {len(known)} difference{'s' * (len(known) != 1)} of the runs at hand; standard deviation of a difference by "
            f"{', '.join(spread)}. Few runs give a rough plan.",
        ]
    )


def _chance_equal(components: Components, seeds: int, margin: float) -> float:
    """The chance that the 90% interval of two equal losses lies within the margin."""
    # Both ends have to lie inside: what is left of a one-sided test of 5% on either side.
    return max(0.0, 2 * power(components, seeds, components.number, margin, tests=1, level=0.05) - 1)


def _last_table(comparison: Comparison) -> Table:
    header = ["", "n", *AP_COLUMNS]
    rows = [
        [result.label, str(len(result.group.runs)), *(_mean(result.last[name]) for name in AP_COLUMNS)]
        for result in comparison.results
    ]
    title = "Metrics" if comparison.from_files else "Last epoch (EMA weights)"
    return title, header, rows, "Mean over seeds ± half of its 95% interval over seeds."


def _best_table(comparison: Comparison) -> Table:
    header = ["", "AP", "AP50", "AP75", "epochs"]
    rows = []
    for result in comparison.results:
        epochs = ", ".join(f"{run.best()['epoch']:.0f}" for run in result.group.runs)
        rows.append([result.label, *(_mean(result.best[name]) for name in ("AP", "AP50", "AP75")), epochs])
    return "Best epoch", header, rows, FLATTERED


def _errors_table(comparison: Comparison) -> Table:
    header = ["", *ERRORS.values()]
    rows = [
        [result.label, *(_mean(result.of_diagnoses(lambda found, kind=kind: found.errors[kind])) for kind in ERRORS)]
        for result in comparison.results
    ]
    return "Errors (TIDE)", header, rows, "The AP50 that would be won if errors of this kind were mended."


def _scores_table(comparison: Comparison) -> Table:
    header = ["", "best threshold", "F1 there", "calibration error"]
    rows = []
    for result in comparison.results:
        values = [lambda found: found.threshold, lambda found: found.f1, lambda found: found.calibration_error]
        rows.append([result.label, *(_mean(result.of_diagnoses(value), 3) for value in values)])
    note = (
        "Scores mean something else under another loss: a fixed threshold (a demo's --conf) has to move with them. Calibration "
        "error: how far a detection's score is from its chance to be right, at IoU 0.5."
    )
    return "Scores", header, rows, note


def _classes_table(comparison: Comparison) -> Table:
    header = ["", *comparison.classes]
    rows = [
        [
            result.label,
            *(
                _mean(result.of_diagnoses(lambda found, name=name: found.classes.get(name)))
                for name in comparison.classes
            ),
        ]
        for result in comparison.results
    ]
    return "AP by class", header, rows, "" if comparison.from_files else "Last epoch."


def _class_differences_table(comparison: Comparison) -> Table:
    header = ["", "class", f"{comparison.metric}, difference", "95% interval", "p (Holm)", "verdict"]
    rows = [
        [result.label, found.name, _signed(found.difference.mean), _range(found.difference.interval), _p(found.p_holm),
         f"{found.verdict}{_limits(found.difference)}"]
        for result in comparison.results[1:]
        for found in result.class_differences
    ]  # fmt: skip
    note = f"Against {comparison.results[0].label!r}. Holm over all {len(rows)} differences of this table."
    return "Is it better, by class?", header, rows, note


def _training_table(comparison: Comparison) -> Table:
    header = ["", "foreground IoU", "objectness, foreground", "objectness, background", "s per iteration", "peak MiB"]
    rows = [
        [
            result.label,
            *(_mean(result.means[name]) for name in MEANS),
            _number(result.seconds.mean, 3),
            _number(result.memory.mean, 0),
        ]
        for result in comparison.results
    ]
    note = (
        "Last epoch's training batches. The losses' own values are left out: those of different losses do not compare."
    )
    return "Training", header, rows, note


def _runs_table(comparison: Comparison) -> Table:
    names = ("AP", "AP50", "AP75")
    if comparison.from_files:
        rows = [
            [run.name, result.label, *(_number(run.last().get(name)) for name in names)]
            for result in comparison.results
            for run in result.group.runs
        ]
        return "Files", ["file", "group", *names], rows, ""
    header = ["run", "group", "seed", *(f"{name} last" for name in names), "AP best (epoch)"]
    rows = []
    for result in comparison.results:
        for run in result.group.runs:
            last, best = run.last(), run.best()
            seed = "unknown" if run.seed is None else str(run.seed)
            rows.append([run.name, result.label, seed, *(_number(last.get(name)) for name in names),
                         f"{_number(best['AP'])} ({best['epoch']:.0f})"])  # fmt: skip
    return "Runs", header, rows, ""


def remarks(comparison: Comparison) -> list[str]:
    """What has to be said before the tables."""
    found = [f"Left out: {text}." for text in comparison.left_out]
    if comparison.differs:
        found.append(f"These runs differ in more than losses and seed: {', '.join(comparison.differs)}. (--anyway)")
    if comparison.noted:
        found.append(f"The runs also differ in what may move the last digits: {', '.join(comparison.noted)}.")
    found += [
        f"{name} was made by plain YOLOX; unknown: {', '.join(keys)}." for name, keys in comparison.unknown.items()
    ]
    return found + comparison.notes


def shared_columns(values: dict[str, list[str]], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of facts by run; runs that agree in all of them share a column."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for place, name in enumerate(names):
        columns.setdefault(tuple(row[place] for row in values.values()), []).append(name)
    header = [
        ", ".join(members) if len(members) < 4 else f"{members[0]} and {len(members) - 1} more"
        for members in columns.values()
    ]
    return ["", *header], [[key, *(column[place] for column in columns)] for place, key in enumerate(values)]


def side_by_side(values: dict[str, list[str]], names: Sequence[str]) -> str:
    """The same as text."""
    header, rows = shared_columns(values, names)
    return _markdown(header, rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells may hold a bar, as names of classes and settings do."""
    header, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def as_text(comparison: Comparison) -> str:
    """The comparison as Markdown, which a terminal shows as well."""
    parts = ["\n".join(remarks(comparison))] if remarks(comparison) else []
    if comparison.differs:
        parts.append(side_by_side(comparison.differs, [run.name for run in comparison.runs]))
    for title, header, rows, note in tables(comparison):
        text = [f"{title}:"]
        if rows:
            text.append(_markdown(header, rows))
        if note:
            text.append(note)
        parts.append("\n\n".join(text))
    return "\n\n".join(parts)


def as_csv(comparison: Comparison) -> str:
    """A row per group: means and intervals of every metric in [0, 1], the difference, its interval, the verdict."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{name}_{part}" for name in AP_COLUMNS for part in ("last", "last_low", "last_high", "best")]
    found = ["difference", "low", "high", "p_holm", "p_equal", "verdict"]
    writer.writerow(["group", "runs", "seeds", *names, *(f"{comparison.metric}_{name}" for name in found)])
    for result in comparison.results:
        row: list[Any] = [result.label, len(result.group.runs), " ".join(str(run.seed) for run in result.group.runs)]
        for name in AP_COLUMNS:
            last = result.last[name]
            row += [last.mean, *_ends(last.interval), result.best[name].mean]
        told = result.difference
        row += [None] * 3 if told is None else [told.mean, *_ends(told.interval)]
        row += [result.p_holm, None if told is None else told.p_equal, result.verdict]
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    """The differences for programs: one entry per group, the baseline first; null for what is not known."""
    groups = []
    for result in comparison.results:
        mean = result.last[comparison.metric].mean
        if comparison.only_classes and result.resampled:
            mean = sum(float(draws[0]) for draws in result.resampled.values()) / len(result.resampled)
        entry = {"label": result.label, "metric": comparison.metric, "mean": mean}
        groups.append({**entry, **_difference_fields(result.difference, result.p_holm), "verdict": result.verdict,
                       "seeds": len(result.group.runs) if result.difference is None else result.difference.seeds,
                       "images": _images(result, comparison)})  # fmt: skip
    classes = [
        {"label": result.label, "class": found.name, "metric": comparison.metric,
         **_difference_fields(found.difference, found.p_holm), "verdict": found.verdict,
         "seeds": found.difference.seeds, "images": found.difference.images}
        for result in comparison.results
        for found in result.class_differences
    ]  # fmt: skip
    told: dict[str, Any] = {
        "baseline": comparison.results[0].label,
        "metric": comparison.metric,
        "margin": comparison.margin,
    }
    told |= {"classes": comparison.only_classes} if comparison.only_classes else {}
    told |= {"groups": groups} | ({"per_class": classes} if classes else {})
    return json.dumps(told, indent=2, ensure_ascii=False)


def _images(result: Result, comparison: Comparison) -> int | None:
    """The images of a difference; of the baseline those of the others."""
    told = [other.difference for other in comparison.results if other.difference is not None]
    found = result.difference or next((other for other in told if other.images is not None), None)
    return None if found is None else found.images


def _difference_fields(found: Difference | None, p_holm: float | None) -> dict[str, float | None]:
    if found is None:
        return dict.fromkeys(("difference", "se_seeds", "se_images", "df", "low", "high", "p", "p_holm", "p_equal"))
    low, high = _ends(found.interval)
    return {"difference": found.mean, "se_seeds": found.se_seeds, "se_images": found.se_images, "df": found.df, "low": low,
            "high": high, "p": found.p, "p_holm": p_holm, "p_equal": found.p_equal}  # fmt: skip


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)
