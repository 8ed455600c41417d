"""The pictures of a training: curves over epochs, scores, confusion, errors, and validation images with their boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ...runs.record import LOSS_COLUMNS
from ...runs.selection import Run
from ..detections import ERRORS
from ..drawing import KEY, LIGHT, SMALL, Look, Panel, names_beside_axes, names_height, rendered, style, wrapped
from ..images import draw_box, read_image
from .facts import Evaluated, ShownImage, Training

CURVES, SCORES, MISTAKES = "Training", "Scores", "Mistakes"
_LOSS_NAMES = {
    "total_loss": "total", "iou_loss": "box (iou)", "conf_loss": "objectness (obj)", "cls_loss": "class (cls)", "l1_loss": "L1",
}  # fmt: skip
_MOST_LINES = 20  # classes with a thin line each
_MOST_CELLS = 25  # classes of a confusion matrix that can be read
_WRITTEN = 12  # classes of a confusion matrix with numbers in it
_MOST_BARS = 30  # classes with a bar each
_IMAGE = 460  # pixels of the longer side of an image in the page
_COLOURS = {"right": "#0072B2", "wrong": "#D55E00", "found": "#ffffff", "missed": "#F0E442"}


def panels(training: Training) -> list[Panel]:
    """The pictures for which the run has the numbers."""
    found = _training_panels(training.run)
    if training.evaluated is not None:
        found += [*_score_panels(training.evaluated), *_mistake_panels(training.evaluated)]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Over epochs.


@dataclass(frozen=True)
class _Curve:
    """A line of a picture over epochs: its name, its epochs and its values."""

    name: str
    epochs: list[float]
    values: list[float]


def _curve(run: Run, column: str, name: str, log: bool) -> _Curve | None:
    """A column over the epochs; on a logarithmic axis without zeros, such as L1's before it is switched on."""
    pairs = [(row["epoch"] or 0.0, row.get(column)) for row in run.rows]
    known = [(epoch, value) for epoch, value in pairs if value is not None and math.isfinite(value) and value >= 0]
    if not any(value for _, value in known):
        return None
    epochs, values = zip(*(pair for pair in known if pair[1] or not log), strict=True)
    return _Curve(name, list(epochs), list(values))


def _training_panels(run: Run) -> list[Panel]:
    losses = list(_LOSS_NAMES.items())
    terms = {
        "AP of the EMA weights": [("AP50", "AP50"), ("AP75", "AP75"), ("AP", "AP")],
        "Losses in training, mean of each epoch": losses,
        "Losses on the validation images, as trained": [(f"val_{column}", name) for column, name in losses],
        "Losses on the validation images, YOLOX's own": [(f"val_stock_{column}", name) for column, name in losses],
        "Parts of the losses in training": _part_columns(run),
        "Boxes and scores of the foreground": [("fg_iou", "mean IoU"), ("obj_fg", "mean objectness")],
        "Learning rate at the end of each epoch": [("lr", "lr")],
    }
    found = []
    for title, columns in terms.items():
        log = columns[0][0].endswith("_loss") if columns else False
        curves = [curve for column, name in columns if (curve := _curve(run, column, name, log)) is not None]
        if curves:
            found.append(_curves_panel(title, curves, log))
    weights = _weight_curves(run)
    if weights:
        found.append(_curves_panel("Weights of the losses (loss_weight)", weights, log=False))
    return found


def _part_columns(run: Run) -> list[tuple[str, str]]:
    """Columns of the parts of a sum, such as ``conf_loss.bce``, which stand beside the term's total."""
    known = dict.fromkeys(column for row in run.rows for column in row)
    return [(column, column) for column in known if "." in column and column.split(".")[0] in LOSS_COLUMNS]


def _weight_curves(run: Run) -> list[_Curve]:
    """The weights that change over epochs: ``loss_weight={epoch: value}``, straight lines between."""
    last = max((row["epoch"] or 0.0 for row in run.rows), default=0.0)
    epochs = [float(epoch) for epoch in range(1, int(last) + 1)]
    found = []
    for term, spec in (run.record.get("resolved_losses") or {}).items():
        for part in spec if isinstance(spec, list) else [spec]:
            weight = part.get("loss_weight") if isinstance(part, dict) else None
            if isinstance(weight, Mapping) and weight and epochs:
                places = sorted((float(epoch), float(value)) for epoch, value in weight.items())
                at, given = np.array(places).T
                values = np.interp(epochs, at, given)
                found.append(_Curve(f"{term} {part.get('type')}", epochs, [float(value) for value in values]))
    return found


def _curves_panel(title: str, curves: list[_Curve], log: bool) -> Panel:
    told = ", ".join(f"{curve.name} {curve.values[0]:.4g} to {curve.values[-1]:.4g}" for curve in curves)
    ends = f"epoch {curves[0].epochs[0]:.0f} to {curves[0].epochs[-1]:.0f}"
    height = max(3.2, names_height([curve.name for curve in curves]))
    return Panel(CURVES, title, f"{title}, {ends}: {told}.", height, partial(_paint_curves, curves=curves, log=log))


def _paint_curves(axes: Axes, look: Look, curves: list[_Curve], log: bool) -> None:
    ends = []
    for place, curve in enumerate(curves):
        colour, marker = look.of(place % len(look.groups))
        every = max(1, math.ceil(len(curve.epochs) / 8))
        axes.plot(curve.epochs, curve.values, color=colour, linewidth=1.8, marker=marker, markersize=4, markevery=every)
        ends.append((curve.values[-1], place % len(look.groups), curve.name))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(color=look.dim, alpha=0.25)
    to_axes = axes.transData + axes.transAxes.inverted()
    axes.get_ylim()
    entries = [(float(to_axes.transform((0, end))[1]), place, name) for end, place, name in ends]
    if len(entries) > 1:
        names_beside_axes(axes, look, entries)


# ---------------------------------------------------------------------------------------------------------------------
# Of the last evaluation.


def _score_panels(evaluated: Evaluated) -> list[Panel]:
    found = []
    curves = evaluated.curves
    if curves is not None:
        ap50 = evaluated.metrics["AP50"]
        thin = f", a thin line per class ({len(curves.classes)})" if 1 < len(curves.classes) <= _MOST_LINES else ""
        title = "Precision over recall (IoU 0.5)"
        alt = f"{title}: the mean over classes, whose area is AP50 {ap50:.3f}{thin}."
        found.append(Panel(SCORES, title, alt, 3.4, partial(_paint_precision_recall, evaluated=evaluated)))
        if curves.best is not None:
            title = f"F1 over the score threshold: best {curves.best_f1:.3f} at {curves.best:.3g}"
            alt = (
                f"F1 over the score threshold, mean over classes{thin}: best {curves.best_f1:.3f} at {curves.best:.3g}."
            )
            found.append(Panel(SCORES, title, alt, 3.4, partial(_paint_f1, evaluated=evaluated)))
            at = int(np.searchsorted(curves.thresholds, curves.best))
            precision, recall = curves.precision[:, at].mean(), curves.recall[:, at].mean()
            title = "Precision and recall over the score threshold"
            rates = f"precision {precision:.3f}, recall {recall:.3f}"
            alt = f"{title}, means over classes: {rates} at the best threshold {curves.best:.3g}."
            found.append(Panel(SCORES, title, alt, 3.4, partial(_paint_precision_and_recall, evaluated=evaluated)))
    if evaluated.calibration:
        title = f"Are the scores honest? Off by {evaluated.calibration_error:.3f} on average"
        told = ", ".join(f"{score:.2f}: {right:.2f}" for score, right, _ in evaluated.calibration)
        alt = f"Share of right detections (IoU 0.5) over the score; score and share {told}."
        found.append(Panel(SCORES, title, alt, 3.4, partial(_paint_calibration, evaluated=evaluated)))
    return found


def _mistake_panels(evaluated: Evaluated) -> list[Panel]:
    found = []
    present = [facts for facts in evaluated.classes if facts.boxes]
    if present:
        shown = sorted(present, key=lambda facts: facts.ap)
        which = "" if len(shown) <= _MOST_BARS else f", the {_MOST_BARS // 2} worst and the {_MOST_BARS // 2} best"
        if which:
            shown = [*shown[: _MOST_BARS // 2], *shown[-_MOST_BARS // 2 :]]
        title = f"AP of each class{which}"
        alt = f"{title}: {', '.join(f'{facts.name} {facts.ap:.3f}' for facts in shown)}."
        pairs = [(facts.name, max(facts.ap, 0.0)) for facts in shown]
        found.append(Panel(MISTAKES, title, alt, 0.9 + 0.2 * len(pairs), partial(_paint_bars, pairs=pairs)))
        sizes = [("small", "AP_small"), ("medium", "AP_medium"), ("large", "AP_large")]
        sized = [(name, evaluated.metrics[key]) for name, key in sizes if evaluated.metrics[key] >= 0]
        if sized:
            title = "AP by size of the boxes (32 and 96 px apart)"
            alt = f"{title}: {', '.join(f'{name} {value:.3f}' for name, value in sized)}."
            found.append(Panel(MISTAKES, title, alt, 0.9 + 0.28 * len(sized), partial(_paint_bars, pairs=sized[::-1])))
    errors = [(ERRORS[kind], value) for kind, value in sorted(evaluated.errors.items(), key=lambda item: item[1])]
    title = "Errors: AP50 that mending them would win (TIDE)"
    alt = f"{title}: {', '.join(f'{name} {value:.3f}' for name, value in reversed(errors))}."
    found.append(Panel(MISTAKES, title, alt, 0.9 + 0.28 * len(errors), partial(_paint_bars, pairs=errors)))
    if evaluated.confusion[:-1].sum() and len(evaluated.classes) > 1:
        places = _confused_places(evaluated)
        which = "" if len(places) == len(evaluated.classes) else f", the {len(places)} classes most confused"
        title = f"Confusion at the best threshold (IoU 0.5){which}"
        alt = f"{title}: rows truth, columns detections, shares of each row; the most frequent ones stand in a table below."
        height = min(max(1.6 + 0.22 * (len(places) + 1), 4.4), 5.6)
        paint = partial(_paint_confusion, evaluated=evaluated, places=places)
        found.append(Panel(MISTAKES, title, alt, height, paint))
    return found


def _paint_precision_recall(axes: Axes, look: Look, evaluated: Evaluated) -> None:
    colour, _ = look.of(1)
    if len(evaluated.precisions) <= _MOST_LINES:
        for precision in evaluated.precisions:
            axes.plot(evaluated.recalls, precision, color=look.dim, linewidth=0.7, alpha=0.6)
    axes.plot(evaluated.recalls, evaluated.precisions.mean(axis=0), color=colour, linewidth=2.2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color=look.dim, alpha=0.25)


def _paint_f1(axes: Axes, look: Look, evaluated: Evaluated) -> None:
    curves = evaluated.curves
    if curves is None or curves.best is None:
        return
    colour, _ = look.of(1)
    if len(curves.f1) <= _MOST_LINES:
        for f1 in curves.f1:
            axes.plot(curves.thresholds, f1, color=look.dim, linewidth=0.7, alpha=0.6)
    axes.plot(curves.thresholds, curves.f1.mean(axis=0), color=colour, linewidth=2.2)
    axes.axvline(curves.best, color=look.ink, linestyle=":", linewidth=1.2)
    axes.plot([curves.best], [curves.best_f1], "o", color=colour, markeredgecolor=look.paper, markersize=7)
    _over_scores(axes, look, curves.thresholds, "F1")


def _paint_precision_and_recall(axes: Axes, look: Look, evaluated: Evaluated) -> None:
    curves = evaluated.curves
    if curves is None or curves.best is None:
        return
    for place, (values, name) in enumerate(((curves.precision, "precision"), (curves.recall, "recall")), start=1):
        colour, _ = look.of(place)
        axes.plot(
            curves.thresholds, values.mean(axis=0), "-" if place == 1 else "--", color=colour, linewidth=2.2, label=name
        )
    axes.axvline(curves.best, color=look.ink, linestyle=":", linewidth=1.2)
    _over_scores(axes, look, curves.thresholds, "")
    axes.legend(fontsize=SMALL, frameon=False, loc="lower center")


def _over_scores(axes: Axes, look: Look, thresholds: Any, name: str) -> None:
    highest = float(thresholds[-1])
    axes.set(xlim=(0, 1 if highest > 0.5 else 1.05 * highest), ylim=(0, 1.02), xlabel="score threshold", ylabel=name)
    axes.grid(color=look.dim, alpha=0.25)


def _paint_calibration(axes: Axes, look: Look, evaluated: Evaluated) -> None:
    colour, marker = look.of(1)
    scores, shares, counts = zip(*evaluated.calibration, strict=True)
    places = [min(int(score * 10), 9) / 10 + 0.05 for score in scores]
    axes.bar(places, np.array(counts) / max(counts) * 0.25, width=0.09, color=look.dim, alpha=0.3)
    axes.plot([0, 1], [0, 1], ":", color=look.dim, linewidth=1.2)
    axes.plot(scores, shares, color=colour, linewidth=2.2, marker=marker, markersize=5)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score (bars: number of detections)", ylabel="share right (IoU 0.5)")
    axes.grid(color=look.dim, alpha=0.25)
    for x, y, text in ((0.03, 0.96, "too modest"), (0.97, 0.3, "too bold")):
        axes.text(x, y, text, fontsize=KEY, color=look.dim, ha="left" if x < y else "right", va="center")


def _paint_bars(axes: Axes, look: Look, pairs: Sequence[tuple[str, float]]) -> None:
    """Bars from the left, the last one on top, each with its name and its value."""
    colour, _ = look.of(1)
    values = [value for _, value in pairs]
    axes.barh(range(len(pairs)), values, height=0.7, color=colour, alpha=0.75)
    reach = max(values, default=0.0) or 1.0
    for place, value in enumerate(values):
        axes.text(value + 0.01 * reach, place, f"{value:.3f}", va="center", fontsize=KEY, color=look.ink)
    axes.set_yticks(range(len(pairs)), [wrapped(name, 22, 1)[0] for name, _ in pairs], fontsize=SMALL)
    axes.set(xlim=(0, 1.12 * reach), ylim=(-0.6, len(pairs) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=look.dim, alpha=0.25)
    axes.set_axisbelow(True)


def _confused_places(evaluated: Evaluated) -> list[int]:
    """The classes in the confusion matrix: all, or of many those with most confusions among classes."""
    number = len(evaluated.classes)
    if number <= _MOST_CELLS:
        return list(range(number))
    between = evaluated.confusion[:-1, :-1] * (1 - np.eye(number, dtype=np.int64))
    order = np.argsort(-(between.sum(axis=0) + between.sum(axis=1)), kind="stable")[:_MOST_CELLS]
    return sorted(int(place) for place in order)


def _paint_confusion(axes: Axes, look: Look, evaluated: Evaluated, places: list[int]) -> None:
    rows = [*places, len(evaluated.classes)]
    counts = evaluated.confusion[np.ix_(rows, rows)]
    shares = counts / np.maximum(evaluated.confusion[rows].sum(axis=1, keepdims=True), 1)
    colours = LinearSegmentedColormap.from_list("shares", [look.paper, look.of(1)[0]])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
    names = [wrapped(evaluated.classes[place].name, 16, 1)[0] for place in places]
    size = SMALL if len(rows) <= _WRITTEN else 6.5
    axes.set_xticks(range(len(rows)), [*names, "nothing"], rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), [*names, "nothing"], fontsize=size)
    axes.set(xlabel="detected as", ylabel="truth")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(rows) <= _WRITTEN + 1:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                light = shares[row, column] > 0.55
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=7, color="white" if light else look.ink
                )


# ---------------------------------------------------------------------------------------------------------------------
# Images.


def image_picture(shown: ShownImage) -> bytes | None:
    """A validation image with truth and detections as JPEG; None where it cannot be read.

    Detections have solid lines, blue where they are right and orange where they are wrong; annotated boxes have dashed
    lines, white where they were found and yellow where they were missed.
    """
    image = read_image(shown.path)
    if image is None:
        return None
    height, width = image.shape[:2]
    scale = _IMAGE / max(height, width)
    with style(LIGHT):
        figure = Figure(figsize=(width * scale / 150, height * scale / 150))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(image)
        axes.set_axis_off()
        for box in shown.boxes:
            annotated = box.kind in ("found", "missed")
            label = "" if box.kind == "found" else box.label
            draw_box(axes, box.box, label, _COLOURS[box.kind], (height, width), dashed=annotated)
        axes.set(xlim=(0, width), ylim=(height, 0))
        return rendered(figure, format="jpg", dpi=150, pil_kwargs={"quality": 85})
