"""The tables of a comparison, for the terminal, Markdown, CSV and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from ..runs.record import AP_COLUMNS
from .detections import ERRORS
from .results import MEANS, Comparison, Summary
from .statistics import BETTER, EFFECT, MOST_SEEDS, NO_DIFFERENCE, WORSE, Interval, SeedDifference

FLATTERED = "The best of many evaluations on the same data is flattered, the more so the noisier the curve: read the last epoch."
_SENTENCES = {
    BETTER: "better than {base}",
    WORSE: "worse than {base}",
    NO_DIFFERENCE: "no detectable difference to {base}",
}
# Beyond so many groups a column each is wider than any screen.
_MOST_COLUMNS = 7
# Title, header, rows, note.
Table = tuple[str, list[str], list[list[str]], str]


def tables(comparison: Comparison) -> list[Table]:
    """Every table of a comparison, as text."""
    found = [_head(comparison), _differences_table(comparison), _last_table(comparison), _best_table(comparison)]
    if any(result.diagnoses for result in comparison.results):
        found += [_errors_table(comparison), _scores_table(comparison)]
    if comparison.classes:
        found.append(_classes_table(comparison))
    return [*found, _training_table(comparison), _runs_table(comparison)]


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
    base, metric = comparison.results[0], comparison.metric
    header = [
        "",
        f"{metric}, difference",
        "95% over seeds",
        "95% over images",
        "verdict",
        "seeds",
        "more seeds for 0.5 AP",
    ]
    rows = [[base.label, "baseline", "", "", "", str(len(base.group.runs)), ""]]
    for result in comparison.results[1:]:
        difference = result.difference
        if difference is None:
            rows.append([result.label, "-", "-", "-", result.verdict, str(len(result.group.runs)), "-"])
            continue
        pairs = "pair" if difference.seeds == 1 else "pairs"
        seeds = f"{difference.seeds} {pairs if difference.paired else 'without pairs'}"
        rows.append([result.label, _signed(difference.mean), _range(difference.interval), _range(result.images),
                     result.verdict, seeds, _missing(difference)])  # fmt: skip
    note = (
        f"Last epoch against {base.label!r}. Over seeds: had the trainings been repeated with other seeds (Student's t"
        " on pairs of the same seed); over images: had other images of the kind been at hand (paired bootstrap). 'better' and"
        f" 'worse' need both on one side of 0. More seeds: until a difference of {EFFECT} would be found in 8 of 10 cases."
    )
    return "Is it better?", header, rows, note


def _missing(difference: SeedDifference) -> str:
    """The seeds that a difference of `EFFECT` would still need."""
    more = difference.more_seeds
    return "?" if more is None else f"{MOST_SEEDS}+" if more >= MOST_SEEDS - difference.seeds else str(more)


def answers(comparison: Comparison) -> list[tuple[str, str, str]]:
    """The answer in words for each group but the baseline: its name, the verdict, what the verdict stands on."""
    base, metric = comparison.results[0].label, comparison.metric
    told = []
    for result in comparison.results[1:]:
        difference = result.difference
        verdict = _SENTENCES.get(result.verdict, result.verdict).format(base=base)
        if difference is None:
            told.append((result.label, verdict, ""))
            continue
        parts = [f"{metric} {_signed(difference.mean)}"]
        parts += [f"95% over seeds {_range(difference.interval)}"] if difference.interval else []
        parts += [f"over images {_range(result.images)}"] if result.images else []
        number = difference.seeds
        parts.append(f"{number} seed{'s' * (number != 1)}" + ("" if difference.paired else " a group, not paired"))
        if result.verdict == NO_DIFFERENCE and difference.interval and difference.interval.sign:
            parts.append("the seeds agree, but other images might not: it takes more images")
        elif result.verdict == NO_DIFFERENCE and _missing(difference) != "0":
            parts.append(f"{_missing(difference)} more would show a difference of {EFFECT}")
        told.append((result.label, verdict, ", ".join(parts)))
    return told


def _last_table(comparison: Comparison) -> Table:
    header = ["", "n", *AP_COLUMNS]
    rows = [
        [result.label, str(len(result.group.runs)), *(_mean(result.last[name]) for name in AP_COLUMNS)]
        for result in comparison.results
    ]
    return "Last epoch (EMA weights)", header, rows, "Mean over seeds ± half of its 95% interval."


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
        [result.label, *(_mean(result.of_diagnoses(lambda one, kind=kind: one.errors[kind])) for kind in ERRORS)]
        for result in comparison.results
    ]
    return "Errors (TIDE)", header, rows, "The AP50 that would be won if errors of this kind were mended."


def _scores_table(comparison: Comparison) -> Table:
    header = ["", "best threshold", "F1 there", "calibration error"]
    rows = []
    for result in comparison.results:
        values = [lambda one: one.threshold, lambda one: one.f1, lambda one: one.calibration_error]
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
            *(_mean(result.of_diagnoses(lambda one, name=name: one.classes.get(name))) for name in comparison.classes),
        ]
        for result in comparison.results
    ]
    return "AP by class", header, rows, "Last epoch."


def _training_table(comparison: Comparison) -> Table:
    header = ["", "foreground IoU", "objectness, foreground", "objectness, background", "s an iteration", "peak MiB"]
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
    header = ["run", "group", "seed", "AP last", "AP50 last", "AP75 last", "AP best (epoch)"]
    rows = []
    for result in comparison.results:
        for run in result.group.runs:
            last, best = run.last(), run.best()
            seed = "unknown" if run.seed is None else str(run.seed)
            rows.append([run.name, result.label, seed, *(_number(last.get(name)) for name in ("AP", "AP50", "AP75")),
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
    """A row a group: means and intervals of every metric in [0, 1], the difference and its intervals, the verdict."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{name}_{part}" for name in AP_COLUMNS for part in ("last", "last_low", "last_high", "best")]
    differences = ["difference", "seeds_low", "seeds_high", "images_low", "images_high", "verdict", "more_seeds"]
    writer.writerow(["group", "runs", "seeds", *names, *(f"{comparison.metric}_{name}" for name in differences)])
    for result in comparison.results:
        row: list[Any] = [result.label, len(result.group.runs), " ".join(str(run.seed) for run in result.group.runs)]
        for name in AP_COLUMNS:
            last = result.last[name]
            row += [last.mean, *_ends(last.interval), result.best[name].mean]
        one = result.difference
        row += [None, None, None] if one is None else [one.mean, *_ends(one.interval)]
        row += [*_ends(result.images), result.verdict, None if one is None else one.more_seeds]
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)
