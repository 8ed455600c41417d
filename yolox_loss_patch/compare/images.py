"""The images in which two groups differ most, with the boxes of the truth and of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from ..printing import printable
from .drawing import LIGHT, escape_math, rendered, style, wrapped
from .results import Comparison, ImageDifference, Result, Shapes, best_threshold

_SIDE = 480  # pixels of the longer side of an image in the page


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
        with style(LIGHT):
            figure = Figure(figsize=(width * scale / 150, height * scale / 150))
            _boxes(figure.add_axes((0, 0, 1, 1)), self)
            return rendered(figure, format="jpg", dpi=150, pil_kwargs={"quality": 85})


def image_rows(comparison: Comparison) -> list[tuple[str, list[Picture]]]:
    """File name, and truth, baseline and other; an image that cannot be read is left out."""
    rows = []
    classes = tuple(sorted({label for found in comparison.pictures for label in _classes(found)}))
    for difference in comparison.pictures:
        image = read_image(difference.path)
        if image is not None:
            rows.append((difference.path.name, _sides(difference, image, classes, comparison.results)))
    return rows


def _classes(difference: ImageDifference) -> set[str]:
    """The classes in an image; a detection's label ends in its score."""
    found = {label for _, label in difference.truth}
    return found | {label.rsplit(" ", 1)[0] for *_, shapes in difference.sides for _, label in shapes}


def images_overview(rows: Sequence[tuple[str, list[Picture]]]) -> bytes:
    """The same in a single PNG, a row per image."""
    with style(LIGHT):
        columns = max(len(pictures) for _, pictures in rows)
        height = sum(5 * pictures[0].image.shape[0] / pictures[0].image.shape[1] + 0.7 for _, pictures in rows)
        ratios = [pictures[0].image.shape[0] / pictures[0].image.shape[1] + 0.14 for _, pictures in rows]
        figure = Figure(figsize=(5 * columns, height), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=ratios)
        for (name, pictures), line in zip(rows, grid, strict=True):
            for place, (axes, picture) in enumerate(zip(line, pictures, strict=True)):
                _boxes(axes, picture)
                above = f"{name}: {picture.title}" if place == 0 else picture.title
                axes.set_title("\n".join(wrapped(above, 62)), fontsize=9)
        return rendered(figure, format="png", dpi=100)


def read_image(path: Path) -> Any:
    """The pixels of an image, ``(height, width, 3)``; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            # Upright as OpenCV reads it, from which YOLOX and the annotations have their pixels.
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _sides(
    difference: ImageDifference, image: Any, classes: tuple[str, ...], results: Sequence[Result]
) -> list[Picture]:
    pictures = [Picture("truth", image, difference.truth, classes)]
    for name, value, shapes in difference.sides:
        threshold = best_threshold(results, name)
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
        name = next((known for known in order if label == known or label.startswith(f"{known} ")), label)
        colour = colours[picture.classes.index(name) % len(colours)] if name in picture.classes else colours[0]
        draw_box(axes, (x, y, w, h), label, colour, (height, width))
    axes.set(xlim=(0, width), ylim=(height, 0))


def draw_box(
    axes: Axes,
    box: Sequence[float],
    label: str,
    colour: str,
    size: tuple[int, int],
    dashed: bool = False,
) -> None:
    """A box with its label, which stays inside the image.

    Args:
        axes: with the image, in pixels.
        box: ``x, y, w, h``.
        label: a class, or a class and a score; none where it is empty.
        colour: of both.
        size: height and width of the image.
        dashed: with a dashed line, and the label below the box instead of above.
    """
    x, y, w, h = box
    height, width = size
    axes.add_patch(
        Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=1.4, linestyle="--" if dashed else "-")
    )
    if not label:
        return
    at_the_right = x > 0.7 * width  # there the label ends with the box, or it would leave the image
    x = min(max(x + w if at_the_right else x, 0), width)
    y = min(y + h, 0.965 * height) if dashed else max(y, 0.035 * height)
    axes.text(x, y, escape_math(printable(label)), fontsize=5.5, va="top" if dashed else "bottom",
              ha="right" if at_the_right else "left", clip_on=True,
              color="black" if _luminance(colour) > 0.3 else "white",
              bbox={"pad": 0.6, "linewidth": 0, "facecolor": colour, "alpha": 0.8})  # fmt: skip


def _luminance(colour: str) -> float:
    return sum(weight * part**2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), to_rgb(colour), strict=True))
