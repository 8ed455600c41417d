"""The pictures of a comparison: differences, seeds, curves, errors, scores, cost, and the images that differ most."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, Transform
from PIL import Image, ImageOps

from ..runs.record import AP_COLUMNS
from ..runs.selection import Run
from .detections import ERRORS
from .results import Comparison, ImageDifference, Result, Shapes
from .statistics import EFFECT

_WIDTH = 4.8  # inches of a panel: as wide as a phone shows without making the letters too small
_LINE = 0.165  # inches of a line of small text
_MARKS = 0.4  # inches that the marks of a row take
_SMALL = 8.5
_KEY = 8.0
_SIDE = 480  # pixels of the longer side of an image in the page
_MARKERS = "osD^vPX<"
# With Chinese, Japanese and Korean letters, which matplotlib's own font lacks: of Linux, Windows and macOS.
_CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans",
    "Apple SD Gothic Neo", "Arial Unicode MS",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """The colours of a picture.

    The baseline has the colour of the text, the groups have Okabe and Ito's, which people who see few colours can tell
    apart; each group has a marker besides.
    """

    ink: str
    dim: str
    paper: str
    groups: tuple[str, ...]

    def of(self, place: int | None) -> tuple[str, str]:
        """Colour and marker of a group, by its place among those that are shown; dim where it is not among them."""
        return (self.dim, "o") if place is None else (self.groups[place], _MARKERS[place])


_OKABE_ITO = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
LIGHT = Look("#1b1f24", "#6a737d", "#ffffff", ("#1b1f24", "#0072B2", *_OKABE_ITO, "#7A4B9A"))
DARK = Look("#e6e8eb", "#9aa3ad", "#15181c", ("#e6e8eb", "#2F8FDD", *_OKABE_ITO, "#A98BD0"))


@dataclass(frozen=True)
class Panel:
    """One picture of the page, and a part of ``comparison.png``.

    Attributes:
        section: what it belongs to.
        title: above it.
        alt: the same in words, for those who do not see it.
        height: in inches.
        paint: draws it into axes.
        named: each group has a row with its name.
    """

    section: str
    title: str
    alt: str
    height: float
    paint: Callable[[Axes, Look], None]
    named: bool = False


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
    tall = _key_height(shown)
    found = []
    if len(results) > 1:
        base = results[0].label
        told = "; ".join(f"{one.label}: {_signed(one)}, {one.verdict}" for one in results[1:])
        texts = [[*_lines(one.label, 54), f"{_signed(one)}  {one.verdict}"] for one in results[1:]]
        title, paint = f"{metric}, difference to {base}", partial(_differences, texts=texts, comparison=comparison)
        found.append(
            Panel(ANSWER, title, f"{title}, last epoch. {told}.", _rows_height(texts) + 0.5, paint, named=True)
        )
    rows = partial(_row_panel, comparison=comparison)
    found += rows(ANSWER, f"{metric} of each seed, last epoch", lambda run: run.last().get(metric), digits=4)
    for title, columns in ((f"{metric} over epochs (EMA weights)", (metric,)), *_CURVES):
        ends = [_end(one, columns[0]) for one in shown]
        if any(ends):
            alt = _alt(f"{title}, mean over seeds at the end", shown, ends, 4)
            found.append(Panel(CURVES, title, alt, tall, partial(_curves, results=shown, columns=columns)))
    diagnosed = [one for one in shown if one.diagnoses]
    if diagnosed:
        title = "Errors: AP50 that mending them would win"
        worst = [max(ERRORS, key=lambda kind, one=one: _error(one, kind)) for one in diagnosed]  # type: ignore[misc]
        told = "; ".join(
            f"{one.label}: most by '{ERRORS[kind]}', {_error(one, kind):.4f}"
            for one, kind in zip(diagnosed, worst, strict=True)
        )
        found.append(Panel(WHY, title, f"{title} (TIDE). {told}.", tall, partial(_errors, results=shown)))
        title = "Are the scores honest? Share right by score"
        errors = [one.of_diagnoses(lambda told: told.calibration_error).mean for one in shown]
        alt = _alt(f"{title}, IoU 0.5. Mean distance from the diagonal", shown, errors, 3)
        found.append(Panel(WHY, title, alt, tall, partial(_reliability, results=shown)))
        title = "Best score threshold of each run (F1)"
        found += rows(WHY, title, lambda run: _threshold(results, run.name), digits=3)
    found += rows(COST, "Seconds an iteration", Run.seconds_per_iteration, digits=3, bars=True)
    found += rows(COST, "Peak memory, MiB", Run.peak_memory, digits=0, bars=True)
    return found


def picture(panel: Panel, look: Look) -> bytes:
    """One panel as PNG."""
    with _style(look):
        figure = Figure(figsize=(_WIDTH, panel.height), layout="constrained")
        _paint(figure.subplots(), panel, look)
        return _saved(figure, format="png", dpi=160)


def overview(comparison: Comparison) -> bytes:
    """All panels as one PNG, three in a row."""
    shown = panels(comparison)
    named, others = ([panel for panel in shown if panel.named is wanted] for wanted in (True, False))
    # Rows by group grow with the number of groups, the others do not: kept apart, none is stretched.
    rows = [named[:3], *(others[start : start + 3] for start in range(0, len(others), 3)), named[3:]]
    rows = [row for row in rows if row]
    heights = [max(panel.height for panel in row) for row in rows]
    with _style(LIGHT):
        figure = Figure(figsize=(3 * _WIDTH, sum(heights)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
        # Rows of their own: what stands beside the curves of one need not be left free in the others.
        parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, row in zip(parts, rows, strict=True):
            grid = part.subplots(1, 3, squeeze=False)[0]
            for axes, panel in zip(grid, row, strict=False):
                _paint(axes, panel, LIGHT)
            for axes in grid[len(row) :]:
                axes.set_axis_off()
        return _saved(figure, format="png", dpi=110)


# ---------------------------------------------------------------------------------------------------------------------
# The images that differ most.


@dataclass(frozen=True)
class Picture:
    """An image with boxes: what it shows in a few words, and what it takes to draw it."""

    title: str
    image: Any
    shapes: Shapes
    classes: tuple[str, ...]

    def jpeg(self) -> bytes:
        """The image with its boxes, small enough for a page."""
        height, width = self.image.shape[:2]
        scale = _SIDE / max(height, width)
        with _style(LIGHT):
            figure = Figure(figsize=(width * scale / 150, height * scale / 150))
            _boxes(figure.add_axes((0, 0, 1, 1)), self)
            return _saved(figure, format="jpg", dpi=150, pil_kwargs={"quality": 85})


def image_rows(comparison: Comparison) -> list[tuple[str, list[Picture]]]:
    """File name, and truth, baseline and other; an image that cannot be read is left out."""
    rows = []
    classes = tuple(sorted({label for one in comparison.pictures for label in _classes(one)}))
    for one in comparison.pictures:
        image = _read(one)
        if image is not None:
            rows.append((one.path.name, _sides(one, image, classes, comparison.results)))
    return rows


def _classes(one: ImageDifference) -> set[str]:
    """The classes in an image; a detection's label ends in its score."""
    found = {label for _, label in one.truth}
    return found | {label.rsplit(" ", 1)[0] for *_, shapes in one.sides for _, label in shapes}


def images_overview(rows: Sequence[tuple[str, list[Picture]]]) -> bytes:
    """The same as one PNG, a row an image."""
    with _style(LIGHT):
        columns = max(len(pictures) for _, pictures in rows)
        height = sum(5 * pictures[0].image.shape[0] / pictures[0].image.shape[1] + 0.7 for _, pictures in rows)
        ratios = [pictures[0].image.shape[0] / pictures[0].image.shape[1] + 0.14 for _, pictures in rows]
        figure = Figure(figsize=(5 * columns, height), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=ratios)
        for (name, pictures), line in zip(rows, grid, strict=True):
            for place, (axes, one) in enumerate(zip(line, pictures, strict=True)):
                _boxes(axes, one)
                above = f"{name}: {one.title}" if place == 0 else one.title
                axes.set_title("\n".join(_lines(above, 62)), fontsize=9)
        return _saved(figure, format="png", dpi=100)


def _read(one: ImageDifference) -> Any:
    try:
        with Image.open(one.path) as image:
            # Upright as OpenCV reads it, from which YOLOX and the annotations have their pixels.
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _sides(one: ImageDifference, image: Any, classes: tuple[str, ...], results: Sequence[Result]) -> list[Picture]:
    pictures = [Picture("truth", image, one.truth, classes)]
    for name, value, shapes in one.sides:
        threshold = _threshold(results, name)
        above = "" if threshold is None else f", scores from {threshold:.2f}"
        pictures.append(Picture(f"{name} (AP50 here {value:.2f}{above})", image, shapes, classes))
    return pictures


def _boxes(axes: Axes, picture: Picture) -> None:
    height, width = picture.image.shape[:2]
    axes.imshow(picture.image)
    axes.set_axis_off()
    colours = LIGHT.groups[1:]
    # A detection's label is the class and a score; the longest name first, for 'a b 0.9' is not an 'a'.
    order = sorted(picture.classes, key=len, reverse=True)
    for (x, y, w, h), label in picture.shapes:
        name = next((one for one in order if label == one or label.startswith(f"{one} ")), label)
        colour = colours[picture.classes.index(name) % len(colours)] if name in picture.classes else colours[0]
        axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=1.4))
        x, y = min(max(x, 0), width), max(y, 0.035 * height)  # a name stays inside the image
        axes.text(x, y, _literal(_printable(label)), fontsize=5.5, va="bottom", clip_on=True,
                  color="black" if _luminance(colour) > 0.3 else "white",
                  bbox={"pad": 0.6, "linewidth": 0, "facecolor": colour, "alpha": 0.8})  # fmt: skip
    axes.set(xlim=(0, width), ylim=(height, 0))


def _luminance(colour: str) -> float:
    return sum(weight * part**2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), to_rgb(colour), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# The panels.


def _turns(comparison: Comparison) -> list[int | None]:
    """Each group's place among those that are shown, which decides its colour."""
    return [
        next((turn for turn, one in enumerate(comparison.shown) if one is other), None) for other in comparison.results
    ]


def _differences(axes: Axes, look: Look, texts: list[list[str]], comparison: Comparison) -> None:
    """A forest plot."""
    _rows(axes, look, texts)
    axes.axvspan(-EFFECT, EFFECT, color=look.dim, alpha=0.15, linewidth=0)
    axes.axvline(0, color=look.ink, linewidth=1)
    reach = [-EFFECT, EFFECT]
    for place, (one, turn) in enumerate(zip(comparison.results[1:], _turns(comparison)[1:], strict=True)):
        colour, marker = look.of(turn)
        if one.difference is None:
            continue
        intervals = [interval for interval in (one.images, one.difference.interval) if interval is not None]
        reach += [
            one.difference.mean,
            *one.difference.pairs,
            *(end for one in intervals for end in (one.low, one.high)),
        ]
        if one.images is not None:
            axes.plot([one.images.low, one.images.high], [-place] * 2, color=colour, linewidth=1.3,
                      transform=_raised(axes, axes.transData, -0.09))  # fmt: skip
        if one.difference.interval is not None:
            low, high = one.difference.interval.low, one.difference.interval.high
            axes.plot([low, high], [-place] * 2, color=colour, linewidth=4, alpha=0.75, solid_capstyle="butt")
        pairs = one.difference.pairs
        axes.plot(pairs, [-place] * len(pairs), "o", color=look.ink, markersize=2.6,
                  transform=_raised(axes, axes.transData, 0.08))  # fmt: skip
        axes.plot([one.difference.mean], [-place], marker, color=colour, markeredgecolor=look.paper, markersize=8)
    margin = 0.04 * (max(reach) - min(reach))
    axes.set_xlim(min(reach) - margin, max(reach) + margin)
    handles = [
        Line2D([], [], color=look.dim, marker="o", linestyle="", markersize=7, label="mean"),
        Line2D([], [], color=look.dim, linewidth=4, label="95% over seeds"),
        Line2D([], [], color=look.dim, linewidth=1.3, label="95% over images"),
        Line2D([], [], color=look.ink, marker="o", linestyle="", markersize=2.6, label="a pair of seeds"),
        Rectangle((0, 0), 1, 1, color=look.dim, alpha=0.2, linewidth=0, label=f"less than {100 * EFFECT:g} AP"),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, fontsize=_SMALL, frameon=False,
                bbox_transform=_raised(axes, axes.transAxes, -0.22), handlelength=1.6, columnspacing=1.2)  # fmt: skip


def _row_panel(
    section: str,
    title: str,
    value: Callable[[Run], float | None],
    comparison: Comparison,
    digits: int,
    bars: bool = False,
) -> list[Panel]:
    """A panel with a row a group and a dot a run; none where no run has the value."""
    results = comparison.results
    known = [[value(run) for run in one.group.runs] for one in results]
    values = [[number for number in row if number is not None and number >= 0] for row in known]
    if not any(values):
        return []
    means = [float(np.mean(row)) if row else None for row in values]
    texts = [
        [*_lines(one.label, 54), "unknown" if mean is None else f"mean {mean:.{digits}f}"]
        for one, mean in zip(results, means, strict=True)
    ]
    paint = partial(_dots, texts=texts, values=values, means=means, turns=_turns(comparison), bars=bars)
    return [
        Panel(section, title, _alt(f"{title}, mean", results, means, digits), _rows_height(texts), paint, named=True)
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
    _rows(axes, look, texts)
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
    """A thin line a run and a thick one for their mean."""
    ends: list[tuple[float, int, str]] = []
    for place, one in enumerate(results):
        colour, marker = look.of(place)
        for column, dashes in zip(columns, ("-", "--"), strict=False):
            lines = [line for run in one.group.runs if (line := _line(run, column))]
            if len(lines) > 1:
                for line in lines:
                    axes.plot(
                        list(line), list(line.values()), dashes, color=colour, linewidth=0.7, alpha=_faint(results)
                    )
            shared = sorted(set.intersection(*map(set, lines))) if lines else []
            if not shared:
                continue
            mean = [float(np.mean([line[epoch] for line in lines])) for epoch in shared]
            every = max(1, math.ceil(len(shared) / 7))
            axes.plot(shared, mean, dashes, color=colour, linewidth=1.8, marker=marker, markersize=4,
                      markevery=(place % every, every))  # fmt: skip
            if column == columns[0]:
                ends.append((mean[-1], place, one.label))
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
    _key(axes, look, [(float(to_axes.transform((0, y))[1]), place, label) for y, place, label in ends])


def _errors(axes: Axes, look: Look, results: Sequence[Result]) -> None:
    """A bar a group for each kind of error, a dot a run."""
    width = 0.84 / len(results)
    for place, one in enumerate(results):
        if not one.diagnoses:
            continue
        colour, _ = look.of(place)
        at = np.arange(len(ERRORS)) - 0.42 + width * (place + 0.5)
        axes.bar(at, [_error(one, kind) for kind in ERRORS], width * 0.92, color=colour, alpha=0.75)
        for told in one.diagnoses.values():
            axes.plot(at, list(told.errors.values()), "o", color=look.ink, markersize=1.8, alpha=0.8)
    axes.set_xticks(range(len(ERRORS)), list(ERRORS.values()), rotation=45, ha="right", rotation_mode="anchor")
    axes.grid(axis="y", color=look.dim, alpha=0.25)
    axes.set_axisbelow(True)
    _key(axes, look, [(1.0, place, one.label) for place, one in enumerate(results) if one.diagnoses])


def _reliability(axes: Axes, look: Look, results: Sequence[Result]) -> None:
    """The share of detections that are right against their score: a thin line a run, a thick one for all of a group."""
    axes.plot([0, 1], [0, 1], ":", color=look.dim, linewidth=1.2)
    for place, one in enumerate(results):
        colour, marker = look.of(place)
        tenths: dict[int, list[tuple[float, float, int]]] = {}
        for told in one.diagnoses.values():
            if len(one.diagnoses) > 1 and told.calibration:
                scores, shares, _ = zip(*told.calibration, strict=True)
                axes.plot(scores, shares, color=colour, linewidth=0.7, alpha=_faint(results))
            for score, right, count in told.calibration:
                tenths.setdefault(min(int(score * 10), 9), []).append((score, right, count))
        if not tenths:
            continue
        pooled = []
        for _, bins in sorted(tenths.items()):
            counts = [count for *_, count in bins]
            pooled.append([float(np.average([one[part] for one in bins], weights=counts)) for part in (0, 1)])
        axes.plot(*zip(*pooled, strict=True), color=colour, linewidth=1.8, marker=marker, markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share right (IoU 0.5)")
    axes.grid(color=look.dim, alpha=0.25)
    for x, y, text in ((0.03, 0.96, "too modest"), (0.97, 0.04, "too bold")):
        axes.text(x, y, text, fontsize=_KEY, color=look.dim, ha="left" if x < y else "right", va="center")
    _key(axes, look, [(1.0, place, one.label) for place, one in enumerate(results) if one.diagnoses])


# ---------------------------------------------------------------------------------------------------------------------
# What the panels share.


def _paint(axes: Axes, panel: Panel, look: Look) -> None:
    panel.paint(axes, look)
    axes.set_title("\n".join(_lines(panel.title, 50)), loc="left", fontsize=10.5)


def _rows_height(texts: list[list[str]]) -> float:
    return 0.85 + len(texts) * _pitch(texts)


def _pitch(texts: list[list[str]]) -> float:
    """Inches from a row to the next: as many as the longest text needs above the marks."""
    return _MARKS + _LINE * max(map(len, texts))


def _rows(axes: Axes, look: Look, texts: list[list[str]]) -> None:
    """Rows whose names stand above their marks, so that a long one takes no width from them."""
    pitch = _pitch(texts)
    for place, lines in enumerate(texts):
        axes.annotate("\n".join(lines), (0, -place), (3, 0.17 * 72), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=_SMALL, va="bottom", linespacing=1.15, color=look.ink,
                      bbox={"pad": 0.5, "linewidth": 0, "facecolor": look.paper, "alpha": 0.75})  # fmt: skip
    axes.set_ylim(-len(texts) + 1 - 0.2 / pitch, (pitch - 0.14) / pitch)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=look.dim, alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _raised(axes: Axes, transform: Transform, inches: float) -> Transform:
    """The same places, some inches higher."""
    return transform + ScaledTranslation(0, inches, axes.get_figure(root=True).dpi_scale_trans)  # type: ignore[union-attr]


def _faint(results: Sequence[Result]) -> float:
    """How strong the thin lines of single runs are: the fainter the more there are."""
    return min(0.5, 6 / sum(len(one.group.runs) for one in results))


def _key_lines(label: str) -> list[str]:
    return _lines(label, 19, 5)


def _key_size(lines: list[str]) -> float:
    """Inches that a name takes."""
    return 0.145 * len(lines) + 0.06


def _key_height(results: Sequence[Result]) -> float:
    """Inches of a panel that has all names beside it."""
    return max(3.4, 0.9 + sum(_key_size(_key_lines(one.label)) for one in results))


def _key(axes: Axes, look: Look, entries: list[tuple[float, int, str]]) -> None:
    """Names right of the axes, each as near to its height (0 to 1) as the others leave room."""
    entries = sorted(entries, key=lambda entry: (-entry[0], entry[1]))
    texts = [_key_lines(label) for _, _, label in entries]
    inches = axes.get_window_extent().height / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    sizes = [_key_size(lines) / inches for lines in texts]
    for (_, place, _), lines, middle in zip(entries, texts, _spread([y for y, _, _ in entries], sizes), strict=True):
        colour, marker = look.of(place)
        axes.plot([1.05], [middle], marker, color=colour, markersize=5, transform=axes.transAxes, clip_on=False)
        axes.text(1.09, middle, "\n".join(lines), transform=axes.transAxes, fontsize=_KEY, va="center",
                  linespacing=1.05, color=look.ink)  # fmt: skip


def _spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Middles of boxes in a column from 1 down to 0, in the given order, none on another, near where they are wanted.

    Where they do not fit they go on below 0.
    """
    middles: list[float] = []
    edge = 1.0
    for y, size in zip(wanted, sizes, strict=True):
        middles.append(min(y, edge - size / 2))
        edge = middles[-1] - size / 2
    edge = min(0.0, 1.0 - sum(sizes))
    for place in reversed(range(len(middles))):
        middles[place] = max(middles[place], edge + sizes[place] / 2)
        edge = middles[place] + sizes[place] / 2
    return middles


def _lines(text: str, width: int, most: int = 2) -> list[str]:
    """A name in lines for matplotlib; what is too long loses its middle, for names often differ at the end."""
    text = _printable(text)
    lines, keep = textwrap.wrap(text, width), len(text) // 2
    while len(lines) > most:
        keep -= 1
        lines = textwrap.wrap(f"{text[:keep].rstrip()}…{text[-keep:].lstrip()}", width)
    return [_literal(line) for line in lines] or [""]


def _printable(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _literal(text: str) -> str:
    """For matplotlib, to which dollars mean mathematics."""
    return text.replace("$", r"\$")


def _line(run: Run, column: str) -> dict[float, float]:
    """Epoch -> value, in the order of the epochs; COCO's -1 (no box of that size) is none."""
    pairs = sorted((row.get("epoch") or 0.0, row.get(column)) for row in run.rows if row.get(column) is not None)
    return {
        epoch: value
        for epoch, value in pairs
        if value is not None and math.isfinite(value) and (value >= 0 or column not in AP_COLUMNS)
    }


def _end(one: Result, column: str) -> float | None:
    """The mean of the last values, None where no run has any."""
    lines = [line for run in one.group.runs if (line := _line(run, column))]
    return float(np.mean([line[max(line)] for line in lines])) if lines else None


def _error(one: Result, kind: str) -> float:
    return one.of_diagnoses(lambda told: told.errors[kind]).mean or 0.0


def _threshold(results: Sequence[Result], name: str) -> float | None:
    return next((one.diagnoses[name].threshold for one in results if name in one.diagnoses), None)


def _signed(one: Result) -> str:
    return "" if one.difference is None else f"{one.difference.mean:+.4f}"


def _alt(title: str, results: Sequence[Result], values: Sequence[float | None], digits: int) -> str:
    told = (
        f"{one.label} {'unknown' if value is None else f'{value:.{digits}f}'}"
        for one, value in zip(results, values, strict=True)
    )
    return f"{title}: {', '.join(told)}."


@contextmanager
def _style(look: Look) -> Iterator[None]:
    """Matplotlib's settings of the kit, whatever the user's are."""
    installed = {font.name for font in fontManager.ttflist}
    settings = {
        # A letter is drawn in the first that has it; matplotlib logs a warning for each that is not installed.
        "font.family": ["DejaVu Sans", *(name for name in _CJK_FONTS if name in installed)],
        "font.size": 9,
        "text.color": look.ink,
        "axes.edgecolor": look.dim,
        "axes.labelcolor": look.ink,
        "axes.facecolor": look.paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": look.paper,
        "savefig.facecolor": look.paper,
        "xtick.color": look.ink,
        "ytick.color": look.ink,
    }
    with rc_context(), warnings.catch_warnings():
        rcdefaults()
        rcParams.update(settings)
        warnings.filterwarnings("ignore", message="Glyph")  # a name with a letter that no font has
        yield


def _saved(figure: Figure, **how: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **how)
    return buffer.getvalue()
