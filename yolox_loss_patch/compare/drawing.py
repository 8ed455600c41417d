"""What every picture of a comparison shares: colours, fonts, rows with names, names beside the axes, text that fits."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform

from ..printing import printable

SMALL = 8.5  # size of small text, in points
_WIDTH = 4.8  # inches of a panel: as wide as a phone shows without making the letters too small
KEY = 8.0  # size of the names beside the axes, in points
_LINE = 0.165  # inches of a line of small text
_MARKS = 0.4  # inches that the marks of a row take
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
    """A picture of a page, and a part of the PNG that has all of them.

    Attributes:
        section: the part of the page in which it stands.
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


def picture(panel: Panel, look: Look) -> bytes:
    """A panel as PNG."""
    with style(look):
        figure = Figure(figsize=(_WIDTH, panel.height), layout="constrained")
        _paint(figure.subplots(), panel, look)
        return rendered(figure, format="png", dpi=160)


def sheet(panels: Sequence[Panel]) -> bytes:
    """All panels in a single PNG, three in a row."""
    named, others = ([panel for panel in panels if panel.named is wanted] for wanted in (True, False))
    # Rows by group grow with the number of groups, the others do not: kept apart, none is stretched.
    rows = [named[:3], *(others[start : start + 3] for start in range(0, len(others), 3)), named[3:]]
    rows = [row for row in rows if row]
    heights = [max(panel.height for panel in row) for row in rows]
    with style(LIGHT):
        figure = Figure(figsize=(3 * _WIDTH, sum(heights)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
        # A subfigure per row: the space for names beside the curves is then kept free in that row only.
        parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, row in zip(parts, rows, strict=True):
            grid = part.subplots(1, 3, squeeze=False)[0]
            for axes, panel in zip(grid, row, strict=False):
                _paint(axes, panel, LIGHT)
            for axes in grid[len(row) :]:
                axes.set_axis_off()
        return rendered(figure, format="png", dpi=110)


def _paint(axes: Axes, panel: Panel, look: Look) -> None:
    panel.paint(axes, look)
    axes.set_title("\n".join(wrapped(panel.title, 50)), loc="left", fontsize=10.5)


def rows_height(texts: list[list[str]]) -> float:
    """Inches of a panel whose rows have these lines of text above their marks."""
    return 0.85 + len(texts) * _row_pitch(texts)


def _row_pitch(texts: list[list[str]]) -> float:
    """Inches from a row to the next: as many as the longest text needs above the marks."""
    return _MARKS + _LINE * max(map(len, texts))


def label_rows(axes: Axes, look: Look, texts: list[list[str]]) -> None:
    """Rows whose names stand above their marks, so that a long name takes no width from the marks."""
    pitch = _row_pitch(texts)
    for place, lines in enumerate(texts):
        axes.annotate("\n".join(lines), (0, -place), (3, 0.17 * 72), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=SMALL, va="bottom", linespacing=1.15, color=look.ink,
                      bbox={"pad": 0.5, "linewidth": 0, "facecolor": look.paper, "alpha": 0.75})  # fmt: skip
    axes.set_ylim(-len(texts) + 1 - 0.2 / pitch, (pitch - 0.14) / pitch)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=look.dim, alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def raised(axes: Axes, transform: Transform, inches: float) -> Transform:
    """The same places, some inches higher."""
    return transform + ScaledTranslation(0, inches, axes.get_figure(root=True).dpi_scale_trans)  # type: ignore[union-attr]


def _name_lines(label: str) -> list[str]:
    return wrapped(label, 19, 5)


def _name_height(lines: list[str]) -> float:
    """Inches that a name takes."""
    return 0.145 * len(lines) + 0.06


def names_height(labels: Sequence[str]) -> float:
    """Inches of a panel that has all names beside it."""
    return max(3.4, 0.9 + sum(_name_height(_name_lines(label)) for label in labels))


def names_beside_axes(axes: Axes, look: Look, entries: list[tuple[float, int, str]]) -> None:
    """Names right of the axes, each as near to its height (0 to 1) as the others leave room."""
    entries = sorted(entries, key=lambda entry: (-entry[0], entry[1]))
    texts = [_name_lines(label) for _, _, label in entries]
    inches = axes.get_window_extent().height / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    sizes = [_name_height(lines) / inches for lines in texts]
    for (_, place, _), lines, middle in zip(entries, texts, spread([y for y, _, _ in entries], sizes), strict=True):
        colour, marker = look.of(place)
        axes.plot([1.05], [middle], marker, color=colour, markersize=5, transform=axes.transAxes, clip_on=False)
        axes.text(1.09, middle, "\n".join(lines), transform=axes.transAxes, fontsize=KEY, va="center",
                  linespacing=1.05, color=look.ink)  # fmt: skip


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Middles of boxes in a column from 1 down to 0: in the given order, near where they are wanted, without overlaps.

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


def wrapped(text: str, width: int, most: int = 2) -> list[str]:
    """A name in lines for matplotlib; what is too long loses its middle, for names often differ at the end."""
    text = printable(text)
    lines, keep = textwrap.wrap(text, width), len(text) // 2
    while len(lines) > most:
        keep -= 1
        lines = textwrap.wrap(f"{text[:keep].rstrip()}…{text[-keep:].lstrip()}", width)
    return [escape_math(line) for line in lines] or [""]


def escape_math(text: str) -> str:
    """For matplotlib, to which dollars mean mathematics."""
    return text.replace("$", r"\$")


@contextmanager
def style(look: Look) -> Iterator[None]:
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


def rendered(figure: Figure, **how: Any) -> bytes:
    """The figure as the content of a file; ``how`` goes to ``savefig``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, **how)
    return buffer.getvalue()
