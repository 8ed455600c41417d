"""The tables of a comparison, for the terminal, Markdown, CSV and the page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from ..printing import in_csv, in_latex, in_markdown, printable
from ..runs.record import AP_COLUMNS
from .answers import interval_text, markdown, p_text, points, signed, takes
from .detections import ERRORS
from .results import MEANS, Comparison, Result, Summary
from .statistics import Difference, Interval

FLATTERED = "The best of many evaluations on the same data is flattered, the more so the noisier the curve: read the last epoch."
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
    base, margin = comparison.results[0], points(comparison.margin)
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
            [result.label, signed(found.mean), interval_text(found.interval), p_text(found.p),
             *([p_text(result.p_holm)] if several else []), p_text(found.p_equal), f"{result.verdict}{found.limits}",
             f"{found.seeds} {pairs if found.paired else 'without pairs'}",
             "-" if found.images is None else str(found.images), takes(found, comparison)]
        )  # fmt: skip
    note = (
        f"{'Last epoch a' if not comparison.from_files else 'A'}gainst {base.label!r}. The interval holds what other seeds and "
        "other images of the kind would change, both at once. 'better' and 'worse': chance is ruled out at 5%"
        f"{f' over all {comparison.tests} groups of the table (Holm)' if several else ''}. 'equal': the 90% interval lies "
        f"within {margin}. 'unclear': neither is shown. It takes: seeds and images with which a difference of {margin} is "
        "found in 8 of 10 cases."
    )
    return "Is it better?", header, rows, note


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
        [result.label, found.name, signed(found.difference.mean), interval_text(found.difference.interval), p_text(found.p_holm),
         f"{found.verdict}{found.difference.limits}"]
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
    return markdown(header, rows)


def as_text(comparison: Comparison) -> str:
    """The comparison as Markdown, which a terminal shows as well."""
    told = [in_markdown(printable(line)) for line in remarks(comparison)]
    parts = ["\n".join(told)] if told else []
    if comparison.differs:
        parts.append(side_by_side(comparison.differs, [run.name for run in comparison.runs]))
    for title, header, rows, note in tables(comparison):
        text = [f"{in_markdown(printable(title))}:"]
        if rows:
            text.append(markdown(header, rows))
        if note:
            text.append(in_markdown(printable(note)))
        parts.append("\n\n".join(text))
    return "\n\n".join(parts)


def as_csv(comparison: Comparison) -> str:
    """A row per group: means and intervals of every metric in [0, 1], the difference, its interval, the verdict."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{name}_{part}" for name in AP_COLUMNS for part in ("last", "last_low", "last_high", "best")]
    found = ["difference", "low", "high", "p_holm", "p_equal", "verdict", "looks"]
    writer.writerow(["group", "runs", "seeds", *names, *(f"{comparison.metric}_{name}" for name in found)])
    for result in comparison.results:
        row: list[Any] = [
            in_csv(result.label),
            len(result.group.runs),
            " ".join(str(run.seed) for run in result.group.runs),
        ]
        for name in AP_COLUMNS:
            last = result.last[name]
            row += [last.mean, *_ends(last.interval), result.best[name].mean]
        told = result.difference
        row += [None] * 3 if told is None else [told.mean, *_ends(told.interval)]
        row += [
            result.p_holm,
            *(
                [None, result.verdict, None]
                if told is None
                else [told.p_equal, result.verdict + told.limits, told.looks]
            ),
        ]
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


# A mark behind the difference: better, worse, equal; none for what is unclear.
_MARKS = {"better": r"^{\ast}", "worse": r"^{\ast}", "equal": "^{=}"}


def as_latex(comparison: Comparison) -> str:
    """The verdicts as a table for LaTeX with booktabs: mean, difference in points with its interval, p, and a mark."""
    base, several = comparison.results[0], comparison.tests > 1
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lrrlrr}",
        r"\toprule",
        rf"& {in_latex(comparison.title)} & $\Delta$ & 95\% interval & $p${' (Holm)' if several else ''} & seeds \\",
        r"\midrule",
    ]
    for result in comparison.results:
        mean, found = result.last[comparison.metric].mean, result.difference
        cells = [in_latex(result.label), "--" if mean is None else f"{100 * mean:.1f}"]
        if found is None:
            cells += ["--", "--", "--", str(len(result.group.runs))]
        else:
            ends = found.interval
            interval = "--" if ends is None else f"$[{100 * ends.low:+.2f}, {100 * ends.high:+.2f}]$"
            mean_and_mark = f"${100 * found.mean:+.2f}{_MARKS.get(result.verdict, '')}$"
            cells += [mean_and_mark, interval, in_latex(p_text(result.p_holm)), f"{found.seeds}{found.limits}"]
        lines.append(" & ".join(cells) + r" \\")
    note = (
        f"Against {base.label}, in points. The interval holds other seeds and other images; $\\ast$: chance is ruled out at 5\\%"
        f"{' over all rows (Holm)' if several else ''}; $=$: equal within {100 * comparison.margin:g}."
    )
    note = " ".join([note.replace(base.label, in_latex(base.label), 1), *_race_note(comparison)])
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {note}"])


def _race_note(comparison: Comparison) -> list[str]:
    looks = _looks(comparison)
    return [f"{looks} planned looks share the error."] if looks > 1 else []


def _looks(comparison: Comparison) -> int:
    """How many planned looks share the error: of a race several."""
    return max((found.looks for result in comparison.results if (found := result.difference)), default=1)


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
    looks = _looks(comparison)
    told |= {"looks": looks} if looks > 1 else {}
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
