"""The pictures: what they show is what came out, whatever things are called."""

import io
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from made_runs import make_data, make_run
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

from yolox_loss_patch.compare.comparison import analyse
from yolox_loss_patch.compare.drawing import DARK, LIGHT, picture, spread, wrapped
from yolox_loss_patch.compare.figures import overview, panels
from yolox_loss_patch.compare.images import Picture, image_rows
from yolox_loss_patch.compare.results import Result
from yolox_loss_patch.compare.statistics import Interval


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Stock and a better CIoU, two seeds each, with detections."""
    folder = tmp_path_factory.mktemp("figures")
    data = make_data(folder / "data")
    for seed in range(2):
        make_run(folder / "runs" / f"stock{seed}", data, 0.12 + 0.01 * seed, seed)
        make_run(folder / "runs" / f"ciou{seed}", data, 0.05 + 0.012 * seed, seed, {"loss_iou": "ciou"})
    return analyse([str(folder / "runs" / "*")])


def drawn(panel):
    """The axes of a panel."""
    axes = Figure(figsize=(4.8, panel.height)).subplots()
    panel.paint(axes, LIGHT)
    return axes


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"))


def test_each_part_is_there_and_drawn(comparison):
    titles = " | ".join(panel.title for panel in panels(comparison))
    for words in ("AP, difference to stock", "AP of each seed", "AP over epochs", "IoU of the foreground", "Objectness (",
                  "Box loss", "Objectness loss", "Class loss", "Errors", "scores honest", "threshold", "Seconds",
                  "memory"):  # fmt: skip
        assert words in titles
    assert all("loss (not comparable between losses)" in title for title in titles.split(" | ") if " loss" in title)
    whole = pixels(overview(comparison))
    assert whole.shape[0] > 1000 and whole.std() > 20


@pytest.mark.parametrize("reach", [0.001, 0.9])  # narrower than the pairs of seeds, and far wider
def test_the_forest_shows_mean_intervals_and_every_pair(comparison, reach, monkeypatch):
    result = comparison.results[1]
    found = replace(result.difference, interval=Interval(-reach, reach), interval90=Interval(-reach / 2, reach / 2))
    monkeypatch.setattr(result, "difference", found)
    axes = drawn(panels(comparison)[0])
    shown = [value for line in axes.lines for value in np.ravel(line.get_xdata())]
    expected = [found.mean, *found.pairs, -reach, reach, -reach / 2, reach / 2]
    assert len(found.pairs) == 2
    low, high = axes.get_xlim()
    for value in expected:
        assert value in shown and low < value < high
    assert result.verdict in axes.texts[0].get_text()


def test_each_seed_has_its_dot_and_each_run_its_line(comparison):
    shown = {panel.title: panel for panel in panels(comparison)}
    dots = [list(line.get_xdata()) for line in drawn(shown["AP of each seed, last epoch"]).lines]
    for one in comparison.results:
        assert [run.last()["AP"] for run in one.group.runs] in dots
    lines = [list(line.get_ydata()) for line in drawn(shown["AP over epochs (EMA weights)"]).lines]
    for seed in comparison.runs:
        assert [row["AP"] for row in seed.evaluated()] in lines
    stock = [[row["AP"] for row in run.evaluated()] for run in comparison.results[0].group.runs]
    assert pytest.approx(np.mean(stock, axis=0)) in lines


def test_of_many_groups_those_that_differ_most_have_curves_and_colours(tmp_path):
    data = make_data(tmp_path / "data", images=2)
    for place, name in enumerate(("iou", "giou", "diou", "ciou", "eiou", "siou", "wiou", "piou", "nwd")):
        make_run(tmp_path / "runs" / name, data, 0.1 + 0.01 * place, 0, {"loss_iou": name})
    many = analyse([str(tmp_path / "runs" / "*")])
    labels = [one.label for one in many.results]
    shown = [one.label for one in many.shown]
    assert len(labels) == 9 and len(shown) == 7
    of = {panel.title: drawn(panel) for panel in panels(many)}
    seeds = of["AP of each seed, last epoch"]
    assert [text.get_text().split("\n")[0] for text in seeds.texts] == labels, "every group has a row"
    colours = [line.get_color() for line in seeds.lines if line.get_marker() == "|"]
    by_label = dict(zip(labels, colours, strict=True))
    assert {label for label in labels if by_label[label] == LIGHT.dim} == set(labels) - set(shown)
    assert len({by_label[label] for label in shown}) == 7
    curves = of["AP over epochs (EMA weights)"]
    assert sorted(text.get_text().replace("\n", " ") for text in curves.texts) == sorted(shown)
    for line in curves.lines[:7]:
        assert line.get_color() in {by_label[label] for label in shown}
    bars = of["Errors: AP50 that mending them would win"]
    assert len(bars.containers) == 7


def test_what_runs_do_not_tell_has_no_picture(tmp_path):
    data = make_data(tmp_path / "data", images=2)
    for seed, losses in ((0, {}), (1, {"loss_iou": "giou"})):
        folder = make_run(tmp_path / "runs" / f"run{seed}", data, seed=seed, losses=losses)
        shutil.rmtree(folder / "predictions")
        lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
        for place, name in enumerate(lines[0]):
            for line in lines[1:]:
                line[place] = "" if name in ("fg_iou", "memory_mib", "seconds") else line[place]
        (folder / "metrics.csv").write_text("\n".join(map(",".join, lines)) + "\n")
    shown = analyse([str(tmp_path / "runs" / "*")])
    titles = " | ".join(panel.title for panel in panels(shown))
    for words in ("IoU of the foreground", "Errors", "honest", "threshold", "memory", "Seconds"):
        assert words not in titles
    assert "Box loss" in titles and not image_rows(shown)


@pytest.mark.parametrize(
    "label", ["$x$ <b>&amp;", r"\$a$b$" * 12 + "a_{b}^2 % \\frac", "é 🚀 \u202e \n\t", "n" * 300, ""]
)
def test_any_name_can_be_drawn(comparison, label, monkeypatch):
    monkeypatch.setattr(Result, "label", label)
    forest, _, curves, *_ = panels(comparison)
    for panel in (forest, curves):
        assert pixels(picture(panel, DARK)).std() > 5


def test_a_chinese_class_name_is_drawn_where_a_font_for_it_is_installed(tmp_path, monkeypatch):
    """Without one every letter is the same square, so names of one length look the same."""
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if font.name == "DejaVu Sans"])

    def shown(name):
        return Picture("truth", np.zeros((60, 80, 3), np.uint8), (((20.0, 20.0, 30.0, 30.0), name),), (name,)).jpeg()

    assert shown("红细胞") == shown("白血球")
    make_font(tmp_path / "font.ttf", "Noto Sans CJK SC", "红细胞白血球")
    fontManager.addfont(tmp_path / "font.ttf")
    assert shown("红细胞") != shown("白血球")


def make_font(path, name, letters):
    """A letter is a box, each higher than the one before."""
    builder = FontBuilder(1000)
    names = {ord(letter): f"letter{place}" for place, letter in enumerate(letters)}
    glyphs = {".notdef": box(1)} | {glyph: box(100 * (place + 1)) for place, glyph in enumerate(names.values())}
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap(names)
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def box(height):
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, height), (900, height), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


@pytest.mark.parametrize("width,most", [(19, 5), (54, 2)])
def test_a_long_name_keeps_both_ends_and_fits(width, most):
    text = "obj varifocal (alpha=0.75, gamma=1.5) + " * 6 + "iou ciou (gate=True)"
    lines = wrapped(text, width, most)
    assert len(lines) <= most and max(map(len, lines)) <= width
    assert lines[0].startswith("obj") and lines[-1].endswith("e)") and "…" in "".join(lines)


@pytest.mark.parametrize("wanted", [[0.5] * 4, [1.0, 1.0, 0.0, 0.0], [0.9, 0.5, 0.1], [0.0] * 5, [1.0] * 12])
def test_names_in_a_column_do_not_overlap(wanted):
    middles, size = spread(wanted, [0.1] * len(wanted)), 0.1
    gaps = [above - below for above, below in pairwise(middles)]
    assert min(gaps) >= size - 1e-9 and middles[0] <= 1 - size / 2 + 1e-9
    if len(wanted) * size <= 1:
        assert middles[-1] >= size / 2 - 1e-9
    assert spread([0.9, 0.5, 0.1], [0.1] * 3) == pytest.approx([0.9, 0.5, 0.1])


def test_the_images_show_truth_and_both_runs(comparison):
    rows = image_rows(comparison)
    assert len(rows) == len(comparison.pictures) > 0
    for (name, sides), one in zip(rows, comparison.pictures, strict=True):
        assert name == one.path.name and [side.title.split(" ")[0] for side in sides] == ["truth", "stock0", "ciou0"]
        for side, (_, value, shapes) in zip(sides[1:], one.sides, strict=True):
            assert f"AP50 here {value:.2f}, scores from 0." in side.title and side.shapes == shapes
        assert pixels(sides[0].jpeg()).shape == (480, 480)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken", None], ids=["empty", "cut off", "gone"])
def test_an_image_that_cannot_be_read_is_left_out(comparison, content):
    path = comparison.pictures[0].path
    before = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        assert path.name not in [name for name, _ in image_rows(comparison)]
    finally:
        path.write_bytes(before)
