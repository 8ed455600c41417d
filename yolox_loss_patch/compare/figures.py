"""The pictures of a comparison: differences, seeds, curves, errors, scores, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ..runs.record import AP_COLUMNS
from ..runs.selection import Run
from .detections import ERRORS
from .drawing import (
    KEY,
    SMALL,
    Look,
    Panel,
    label_rows,
    names_beside_axes,
    names_height,
    raised,
    rows_height,
    sheet,
    wrapped,
)
from .results import Comparison, Result, best_threshold

ANSWER, CURVES, WHY, COST = "Answer", "Training curves", "Errors and scores", "Cost"
_CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("IoU of the foreground", ("fg_iou",)),
    ("Objectness (solid: foreground, dashed: background)", ("obj_fg", "obj_bg")),
    ("Pull of objectness (solid: foreground, dashed: background)", ("grad_obj_fg", "grad_obj_bg")),
    ("Pull of the boxes (L1 norm of the gradient)", ("grad_box",)),
    ("Box loss (not comparable between losses)", ("iou_loss",)),
    ("Objectness loss (not comparable between losses)", ("conf_loss",)),
    ("Class loss (not comparable between losses)", ("cls_loss",)),
    ("L1 loss (not comparable between losses)", ("l1_loss",)),
)


def panels(comparison: Comparison) -> list[Panel]:
    """The pictures for which the runs have the numbers."""
    results, shown, metric = comparison.results, comparison.shown, comparison.metric
    tall = names_height([result.label for result in shown])
    found = []
    if len(results) > 1:
        base = results[0].label
        told = "; ".join(f"{result.label}: {_signed(result)}, {_verdict(result)}" for result in results[1:])
        texts = [[*wrapped(result.label, 54), f"{_signed(result)}  {_verdict(result)}"] for result in results[1:]]
        title, paint = f"{metric}, difference to {base}", partial(_differences, texts=texts, comparison=comparison)
        found.append(Panel(ANSWER, title, f"{title}, last epoch. {told}.", rows_height(texts) + 0.5, paint, named=True))
    rows = partial(_row_panel, comparison=comparison)
    found += rows(ANSWER, f"{metric} of each seed, last epoch", lambda run: run.last().get(metric), digits=4)
    for title, columns in ((f"{metric} over epochs (EMA weights)", (metric,)), *_CURVES):
        ends = [_end(result, columns[0]) for result in shown]
        if any(ends):
            alt = _alt(f"{title}, mean over seeds at the end", shown, ends, 4)
            found.append(Panel(CURVES, title, alt, tall, partial(_curves, results=shown, columns=columns)))
    diagnosed = [result for result in shown if result.diagnoses]
    if diagnosed:
        title = "Errors: AP50 that mending them would win"
        worst = [max(ERRORS, key=lambda kind, result=result: _error(result, kind)) for result in diagnosed]  # type: ignore[misc]
        told = "; ".join(
            f"{result.label}: most by '{ERRORS[kind]}', {_error(result, kind):.4f}"
            for result, kind in zip(diagnosed, worst, strict=True)
        )
        found.append(Panel(WHY, title, f"{title} (TIDE). {told}.", tall, partial(_errors, results=shown)))
        title = "Are the scores honest? Share right by score"
        errors = [result.of_diagnoses(lambda told: told.calibration_error).mean for result in shown]
        alt = _alt(f"{title}, IoU 0.5. Mean distance from the diagonal", shown, errors, 3)
        found.append(Panel(WHY, title, alt, tall, partial(_reliability, results=shown)))
        title = "Best score threshold of each run (F1)"
        found += rows(WHY, title, lambda run: best_threshold(results, run.name), digits=3)
    found += rows(COST, "Seconds per iteration", Run.seconds_per_iteration, digits=3, bars=True)
    found += rows(COST, "Peak memory, MiB", Run.peak_memory, digits=0, bars=True)
    return found


def overview(comparison: Comparison) -> bytes:
    """All panels in a single PNG, three in a row."""
    return sheet(panels(comparison))


# ---------------------------------------------------------------------------------------------------------------------
# The panels.


def _turns(comparison: Comparison) -> list[int | None]:
    """Each group's place among those that are shown, which decides its colour."""
    return [
        next((turn for turn, result in enumerate(comparison.shown) if result is other), None)
        for other in comparison.results
    ]


def _differences(axes: Axes, look: Look, texts: list[list[str]], comparison: Comparison) -> None:
    """A forest plot."""
    label_rows(axes, look, texts)
    margin = comparison.margin
    axes.axvspan(-margin, margin, color=look.dim, alpha=0.15, linewidth=0)
    axes.axvline(0, color=look.ink, linewidth=1)
    reach = [-margin, margin]
    for place, (result, turn) in enumerate(zip(comparison.results[1:], _turns(comparison)[1:], strict=True)):
        colour, marker = look.of(turn)
        found = result.difference
        if found is None:
            continue
        reach += [found.mean, *found.pairs]
        for interval, width in ((found.interval, 1.6), (found.interval90, 4)):
            if interval is not None:
                reach += [interval.low, interval.high]
                axes.plot([interval.low, interval.high], [-place] * 2, color=colour, linewidth=width, alpha=0.75,
                          solid_capstyle="butt")  # fmt: skip
        axes.plot(found.pairs, [-place] * len(found.pairs), "o", color=look.ink, markersize=2.6,
                  transform=raised(axes, axes.transData, 0.08))  # fmt: skip
        axes.plot([found.mean], [-place], marker, color=colour, markeredgecolor=look.paper, markersize=8)
    edge = 0.04 * (max(reach) - min(reach))
    axes.set_xlim(min(reach) - edge, max(reach) + edge)
    handles = [
        Line2D([], [], color=look.dim, marker="o", linestyle="", markersize=7, label="mean"),
        Line2D([], [], color=look.dim, linewidth=1.6, label="95% interval"),
        Line2D([], [], color=look.dim, linewidth=4, label="90%: equal if inside"),
        Line2D([], [], color=look.ink, marker="o", linestyle="", markersize=2.6, label="a pair of seeds"),
        Rectangle((0, 0), 1, 1, color=look.dim, alpha=0.2, linewidth=0, label=f"less than {100 * margin:g} AP"),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, fontsize=SMALL, frameon=False,
                bbox_transform=raised(axes, axes.transAxes, -0.22), handlelength=1.6, columnspacing=1.2)  # fmt: skip


def _row_panel(
    section: str,
    title: str,
    value: Callable[[Run], float | None],
    comparison: Comparison,
    digits: int,
    bars: bool = False,
) -> list[Panel]:
    """A panel with a row per group and a dot per run; no panel where no run has the value."""
    results = comparison.results
    known = [[value(run) for run in result.group.runs] for result in results]
    values = [[number for number in row if number is not None and number >= 0] for row in known]
    if not any(values):
        return []
    means = [float(np.mean(row)) if row else None for row in values]
    texts = [
        [*wrapped(result.label, 54), "unknown" if mean is None else f"mean {mean:.{digits}f}"]
        for result, mean in zip(results, means, strict=True)
    ]
    paint = partial(_dots, texts=texts, values=values, means=means, turns=_turns(comparison), bars=bars)
    return [
        Panel(section, title, _alt(f"{title}, mean", results, means, digits), rows_height(texts), paint, named=True)
    ]


def _dots(
    axes: Axes,
    look: Look,
    texts: list[list[str]],
    values: list[list[float]],
    means: list[float | None],
    turns: list[int | None],
    bars: bool,
) -> None:
    label_rows(axes, look, texts)
    for place, (row, mean, turn) in enumerate(zip(values, means, turns, strict=True)):
        colour, marker = look.of(turn)
        if mean is None:
            continue
        if bars:
            axes.barh([-place], [mean], height=0.2, color=colour, alpha=0.45)
            axes.plot(row, [-place] * len(row), marker, color=colour, markersize=4, linestyle="")
            continue
        axes.plot([mean], [-place], "|", color=colour, markersize=16, markeredgewidth=2.5)
        axes.plot(row, [-place] * len(row), marker, color=colour, markersize=6, linestyle="",
                  markeredgecolor=look.paper, alpha=0.75)  # fmt: skip
    if bars:
        axes.set_xlim(left=0)


def _curves(axes: Axes, look: Look, results: Sequence[Result], columns: tuple[str, ...]) -> None:
    """A thin line per run and a thick line for their mean."""
    ends: list[tuple[float, int, str]] = []
    for place, result in enumerate(results):
        colour, marker = look.of(place)
        for column, dashes in zip(columns, ("-", "--"), strict=False):
            lines = [line for run in result.group.runs if (line := _line(run, column))]
            if len(lines) > 1:
                for line in lines:
                    axes.plot(
                        list(line), list(line.values()), dashes, color=colour, linewidth=0.7, alpha=_faintness(results)
                    )
            shared = sorted(set.intersection(*map(set, lines))) if lines else []
            if not shared:
                continue
            mean = [float(np.mean([line[epoch] for line in lines])) for epoch in shared]
            every = max(1, math.ceil(len(shared) / 7))
            axes.plot(shared, mean, dashes, color=colour, linewidth=1.8, marker=marker, markersize=4,
                      markevery=(place % every, every))  # fmt: skip
            if column == columns[0]:
                ends.append((mean[-1], place, result.label))
    if len(columns) > 1:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.01)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(color=look.dim, alpha=0.25)
    to_axes = axes.transData + axes.transAxes.inverted()
    axes.get_ylim()
    names_beside_axes(axes, look, [(float(to_axes.transform((0, y))[1]), place, label) for y, place, label in ends])


def _errors(axes: Axes, look: Look, results: Sequence[Result]) -> None:
    """A bar per group and kind of error, a dot per run."""
    width = 0.84 / len(results)
    for place, result in enumerate(results):
        if not result.diagnoses:
            continue
        colour, _ = look.of(place)
        at = np.arange(len(ERRORS)) - 0.42 + width * (place + 0.5)
        axes.bar(at, [_error(result, kind) for kind in ERRORS], width * 0.92, color=colour, alpha=0.75)
        for told in result.diagnoses.values():
            axes.plot(at, list(told.errors.values()), "o", color=look.ink, markersize=1.8, alpha=0.8)
    axes.set_xticks(range(len(ERRORS)), list(ERRORS.values()), rotation=45, ha="right", rotation_mode="anchor")
    axes.grid(axis="y", color=look.dim, alpha=0.25)
    axes.set_axisbelow(True)
    names_beside_axes(
        axes, look, [(1.0, place, result.label) for place, result in enumerate(results) if result.diagnoses]
    )


def _reliability(axes: Axes, look: Look, results: Sequence[Result]) -> None:
    """The share of detections that are right against their score: a thin line per run, a thick line for all runs of a group."""
    axes.plot([0, 1], [0, 1], ":", color=look.dim, linewidth=1.2)
    for place, result in enumerate(results):
        colour, marker = look.of(place)
        tenths: dict[int, list[tuple[float, float, int]]] = {}
        for told in result.diagnoses.values():
            if len(result.diagnoses) > 1 and told.calibration:
                scores, shares, _ = zip(*told.calibration, strict=True)
                axes.plot(scores, shares, color=colour, linewidth=0.7, alpha=_faintness(results))
            for score, right, count in told.calibration:
                tenths.setdefault(min(int(score * 10), 9), []).append((score, right, count))
        if not tenths:
            continue
        pooled = []
        for _, bins in sorted(tenths.items()):
            counts = [count for *_, count in bins]
            pooled.append([float(np.average([tenth[part] for tenth in bins], weights=counts)) for part in (0, 1)])
        axes.plot(*zip(*pooled, strict=True), color=colour, linewidth=1.8, marker=marker, markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share right (IoU 0.5)")
    axes.grid(color=look.dim, alpha=0.25)
    for x, y, text in ((0.03, 0.96, "too modest"), (0.97, 0.04, "too bold")):
        axes.text(x, y, text, fontsize=KEY, color=look.dim, ha="left" if x < y else "right", va="center")
    names_beside_axes(
        axes, look, [(1.0, place, result.label) for place, result in enumerate(results) if result.diagnoses]
    )


# ---------------------------------------------------------------------------------------------------------------------
# What the panels share.


def _faintness(results: Sequence[Result]) -> float:
    """How strong the thin lines of single runs are: the fainter the more there are."""
    return min(0.5, 6 / sum(len(result.group.runs) for result in results))


def _line(run: Run, column: str) -> dict[float, float]:
    """Epoch -> value, in the order of the epochs; COCO's -1 (no box of that size) is none."""
    pairs = sorted((row.get("epoch") or 0.0, row.get(column)) for row in run.rows if row.get(column) is not None)
    return {
        epoch: value
        for epoch, value in pairs
        if value is not None and math.isfinite(value) and (value >= 0 or column not in AP_COLUMNS)
    }


def _end(result: Result, column: str) -> float | None:
    """The mean of the last values, None where no run has any."""
    lines = [line for run in result.group.runs if (line := _line(run, column))]
    return float(np.mean([line[max(line)] for line in lines])) if lines else None


def _error(result: Result, kind: str) -> float:
    return result.of_diagnoses(lambda told: told.errors[kind]).mean or 0.0


def _verdict(result: Result) -> str:
    return result.verdict + (result.difference.limits if result.difference is not None else "")


def _signed(result: Result) -> str:
    return "" if result.difference is None else f"{result.difference.mean:+.4f}"


def _alt(title: str, results: Sequence[Result], values: Sequence[float | None], digits: int) -> str:
    told = (
        f"{result.label} {'unknown' if value is None else f'{value:.{digits}f}'}"
        for result, value in zip(results, values, strict=True)
    )
    return f"{title}: {', '.join(told)}."
