"""The page of a training: its facts, its warnings, its files, and the page in a browser."""

import gzip
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find
from conftest import cli
from made_runs import edit, make_data, make_run
from matplotlib.figure import Figure
from PIL import Image
from test_report import CLOSING, HOSTILE, QUOTES, Page, hostile_data

from yolox_loss_patch.compare import training
from yolox_loss_patch.compare.drawing import LIGHT, style
from yolox_loss_patch.compare.training import page as page_module
from yolox_loss_patch.compare.training.facts import examine, score_curves
from yolox_loss_patch.compare.training.figures import panels
from yolox_loss_patch.compare.training.page import report
from yolox_loss_patch.compare.training.warnings import warnings
from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs.selection import read

CHINESE = "红细胞" * 9


def set_column(folder, **columns):
    """Replace columns of metrics.csv; a column that is not there is added."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    for name, values in columns.items():
        if name not in lines[0]:
            lines = [[*line, name if place == 0 else ""] for place, line in enumerate(lines)]
        at = lines[0].index(name)
        for line, value in zip(lines[1:], values, strict=True):
            line[at] = "" if value is None else repr(float(value))
    (folder / "metrics.csv").write_text("\n".join(map(",".join, lines)) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on data with hostile names, and its page, with a few of its pictures."""
    folder = tmp_path_factory.mktemp("page")
    data = hostile_data(folder / "data")
    run = make_run(
        folder / f"run {HOSTILE.replace('/', '')}", data, 0.08, losses={"loss_obj": "focal", "loss_iou": "ciou"}
    )
    edit(run, command=["/bin/yolox-loss", "train", "-expn", CLOSING + QUOTES])
    with pytest.MonkeyPatch.context() as patch:  # a few pictures do; each takes its time
        patch.setattr(page_module, "panels", lambda training: panels(training)[::5])
        files = report(run)
    return run, files


@pytest.fixture(scope="module")
def page(made):
    return Page(made[1][0].read_text("utf-8"))


# ---------------------------------------------------------------------------------------------------------------------
# Facts.


@pytest.mark.parametrize("boxes", [{1: 40, 2: 25, 3: 0}, {1: 40, 2: 25, 3: 7}])
def test_curves_over_the_score_are_what_counting_gives(boxes):
    """At every threshold and class: hits, false alarms and missed boxes counted one by one."""
    rng = np.random.default_rng(1)
    table = np.zeros((200, 7))
    table[:, 5], table[:, 6] = (
        rng.random(200).round(2),
        rng.integers(1, 3, 200),
    )  # equal scores too, and none of class 3
    right = (rng.random(200) < 0.25) & (table[:, 5] > 0.1)
    wrong = ~right & (rng.random(200) < 0.9)  # the rest is ignored, as what lies in a crowd
    curves, at_best = score_curves(table, right, wrong, [1, 2, 3], boxes)
    for row, place in enumerate(curves.classes):
        number = place + 1
        mine = table[:, 6] == number
        best = 0.0
        for column, threshold in enumerate(curves.thresholds):
            kept = mine & (table[:, 5] >= threshold)
            hits, alarms = int((kept & right).sum()), int((kept & wrong).sum())
            f1 = 2 * hits / (2 * hits + alarms + boxes[number] - hits)
            assert curves.recall[row, column] == pytest.approx(hits / boxes[number])
            assert curves.precision[row, column] == pytest.approx(hits / (hits + alarms) if hits + alarms else 1)
            assert curves.f1[row, column] == pytest.approx(f1)
            best = max(best, f1)
        assert at_best[number][3] == pytest.approx(best)
    assert curves.classes == [place for place, number in enumerate(boxes) if boxes[number]]
    assert curves.best_f1 == pytest.approx(curves.f1.mean(axis=0).max())
    assert at_best[3] == (None, 0.0, 0.0, 0.0)


def test_the_last_evaluation_told_by_pycocotools_and_by_class(tmp_path):
    data = make_data(tmp_path / "data")
    run = read(make_run(tmp_path / "run", data, 0.06))
    facts = examine(run)
    assert facts.missing == [] and facts.evaluated.epoch == 4
    for name, value in facts.evaluated.metrics.items():
        assert value == pytest.approx(run.last()[name], abs=1e-9), name
    rows = facts.evaluated.classes
    assert np.mean([row.ap for row in rows]) == pytest.approx(run.last()["AP"])
    assert sum(row.boxes for row in rows) == 72
    # Each annotated box is detected as some class or as nothing.
    assert facts.evaluated.confusion[:-1].sum(axis=1).tolist() == [row.boxes for row in rows]
    shown = [*facts.evaluated.worst, *facts.evaluated.best]
    assert len({image.name for image in shown}) == len(shown) == 12
    assert min(image.f1 for image in facts.evaluated.best) >= max(image.f1 for image in facts.evaluated.worst)
    for image in shown:
        kinds = [box.kind for box in image.boxes]
        assert kinds.count("found") == kinds.count("right") == image.right
        assert (kinds.count("missed"), kinds.count("wrong")) == (image.missed, image.wrong)
        assert image.right + image.missed == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run, data: shutil.rmtree(run / "predictions"), "no detections were kept; make them with yolox-loss eval"),
        (lambda run, data: Path(data["file"]).unlink(), "truth.json' is not there any more"),
        (lambda run, data: Path(data["file"]).write_text("{}"), "was changed after the runs were evaluated on it"),
        (lambda run, data: edit(run, data={}), "the run does not tell its annotation file"),
        (lambda run, data: [f.unlink() for f in Path(data["image_folder"]).glob("*.png")], "No image is shown: they are not in"),
        (lambda run, data: set_column(run, AP=[None] * 4), "No evaluation was made"),
        (lambda run, data: (run / "metrics.csv").unlink(), "No epoch was finished"),
        (lambda run, data: (run / "predictions" / "epoch_4.json.gz").write_bytes(b"cut off"), "epoch_4.json.gz cannot be read"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(tmp_path, monkeypatch, spoil, said):
    data = make_data(tmp_path / "data", images=4)
    run = make_run(tmp_path / "run", data)
    spoil(run, data)
    monkeypatch.setattr(page_module, "panels", lambda training: panels(training)[:1])
    shown = Page(report(run)[0].read_text("utf-8"))
    assert said in " ".join(shown.all("body")[0][0].split())


@pytest.mark.slow
def test_a_run_without_detections_or_boxes(tmp_path):
    """Nothing is detected; then nothing is annotated either."""
    data = make_data(tmp_path / "data", images=3)
    run = make_run(tmp_path / "run", data)
    (run / "predictions" / "epoch_4.json.gz").write_bytes(gzip.compress(b"[]"))
    facts = examine(read(run))
    assert facts.evaluated.curves.best is None and facts.evaluated.worst[0].missed == 6
    assert any("No class is found at all" in text for text in warnings(facts))
    assert all(panel.alt for panel in panels(facts))
    coco = json.loads(Path(data["file"]).read_text())
    Path(data["file"]).write_text(json.dumps({**coco, "annotations": []}))
    record = json.loads((run / "run.json").read_text())
    record["data"]["val"].pop("sha256")
    (run / "run.json").write_text(json.dumps(record))
    facts = examine(read(run))
    assert facts.evaluated.curves is None and facts.missing == ["No validation image has a box, so none is shown."]
    report(run)


def test_a_schedule_of_weights_has_its_picture(tmp_path):
    """From stock to CIoU over the four epochs, as the epochs were trained."""
    data = make_data(tmp_path / "data", images=3)
    fade = [dict(type="iou", loss_weight={1: 1, 3: 0}), dict(type="ciou", loss_weight={1: 0, 3: 2})]
    run = make_run(tmp_path / "run", data, losses={"loss_iou": fade})
    (panel,) = (panel for panel in panels(examine(read(run))) if panel.title.startswith("Weights of the losses"))
    assert panel.alt.endswith("epoch 1 to 4: iou iou 1 to 0, iou ciou 0 to 2.")
    figure = Figure()
    with style(LIGHT):
        panel.paint(figure.add_subplot(), LIGHT)
    first, second = (line.get_ydata() for line in figure.axes[0].lines[:2])
    assert list(first) == [1, 0.5, 0, 0] and list(second) == [0, 1, 2, 2]
    constant = make_run(tmp_path / "constant", data)
    assert not any("Weights" in panel.title for panel in panels(examine(read(constant))))


# ---------------------------------------------------------------------------------------------------------------------
# Warnings.

RISING = [0.05 * epoch for epoch in range(1, 11)]
SETTLED = [0.3, 0.4, 0.45, 0.5, 0.52, 0.53, 0.531, 0.532, 0.532, 0.532]
FALLING = [0.3, 0.4, 0.45, 0.5, 0.52, 0.5, 0.48, 0.46, 0.45, 0.44]
DOWN = [5 / epoch for epoch in range(1, 11)]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"AP": SETTLED}, None),
        ({"AP": RISING}, "AP was still rising at the end, by 0.1"),
        ({"AP": FALLING, "total_loss": DOWN}, "epoch 5 with 0.520 and is 0.440 after epoch 10, while the training loss"),
        ({"AP": FALLING, "total_loss": [1.0] * 10}, "is 0.440 after epoch 10. best_ckpt.pth"),
        ({"AP": [0.0] * 10}, "AP is 0 in every evaluation"),
        ({"AP": SETTLED, "cls_loss": [0.0] * 10}, "The cls term (cls_loss) is 0 in every epoch"),
        ({"AP": SETTLED, "conf_loss": [0.7001, *[0.7] * 9]}, "The obj term (conf_loss) stayed at 0.7"),
        ({"AP": SETTLED, "l1_loss": [0.0] * 10}, None),
        ({"AP": SETTLED, "total_loss": DOWN, "val_total_loss": [3, 2, 1, 1.02, 1.04, 1.1, 1.2, 1.3, 1.4, 1.5]},
         "(val_total_loss) was lowest after epoch 3 with 1.000 and is 1.500 now"),
        ({"AP": SETTLED, "total_loss": DOWN, "val_total_loss": DOWN}, None),
    ],
)  # fmt: skip
def test_warnings_in_words(tmp_path, columns, said):
    data = make_data(tmp_path / "data", images=2)
    run = make_run(tmp_path / "run", data, epochs=10)
    shutil.rmtree(run / "predictions")
    set_column(run, **columns)
    found = warnings(examine(read(run)))
    assert found == [] if said is None else len(found) == 1 and said in found[0], found


def test_a_term_that_is_switched_off_is_not_called_dead(tmp_path):
    data = make_data(tmp_path / "data", images=2)
    run = make_run(tmp_path / "run", data, epochs=10, losses={"loss_cls": {"type": "bce", "loss_weight": 0.0}})
    set_column(run, AP=SETTLED, cls_loss=[0.0] * 10)
    assert not [text for text in warnings(examine(read(run))) if "cls_loss" in text]


def test_classes_that_are_never_found_and_runs_that_failed(tmp_path):
    data = make_data(tmp_path / "data")
    run = make_run(tmp_path / "run", data, status="failed")
    path = run / "predictions" / "epoch_4.json.gz"
    rows = [row for row in json.loads(gzip.decompress(path.read_bytes())) if row["category_id"] != 2]
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    found = warnings(examine(read(run)))
    assert found[0] == "The training is failed after epoch 4 of 4: RunError: the loss is not finite."
    never = [text for text in found if text.startswith("Never found right")]
    assert len(never) == 1 and "white (" in never[0] and "red" not in never[0]


# ---------------------------------------------------------------------------------------------------------------------
# The page.


@pytest.mark.slow
def test_the_files_are_there(made):
    run, files = made
    assert files == [run / "report.html", run / "results.png"]
    image = Image.open(files[1])
    image.load()
    assert min(image.size) > 300
    assert files[0].stat().st_size < 5_000_000


def test_every_name_is_text_and_the_page_needs_nothing_but_itself(made, page):
    assert len(page.all("script")) == 1 and not page.all("i") and not page.all("iframe")
    for tag, attrs, _ in page.elements:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], attrs
        for name in ("src", "srcset", "href", "data", "action"):
            assert name not in attrs or attrs[name].startswith(("data:", "#")), (tag, attrs)
    words = page.all("body")[0][0]
    for name in (made[0].name, "<b>cell</b>", '$x^2$ & "y"', QUOTES, CLOSING, "<i>&'"):
        assert name in words


def test_the_page_says_what_was_trained(page):
    facts = [text for text, _ in page.all("dd")]
    assert "obj focal + iou ciou; all others are YOLOX's own" in facts
    lines = [text for text, _ in page.all("dt")]
    assert lines[-5:] == ["Losses", "Training", "Model", "Data", "Versions"]
    assert any("yolox 0.3.0 (PyPI), torch 2.14.1, on cpu" in text for text in facts)
    commands = [text for text, _ in page.all("pre")]
    assert commands[0].startswith("yolox-loss report ") and commands[1].startswith("yolox-loss train -expn ")


def test_it_is_made_for_those_who_do_not_see_it(page):
    levels = [int(tag[1]) for tag, _, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= level + 1 for level, later in itertools.pairwise(levels))
    for _, attrs in page.all("img"):
        assert len(attrs["alt"]) > 15
    for _, attrs in page.all("th"):
        assert attrs["scope"] in ("row", "col")
    for tag, attrs, _ in page.elements:
        if attrs.get("role") == "region":
            assert attrs["aria-label"] and attrs["tabindex"] == "0", tag
    assert page.all("html")[0][1]["lang"] == "en" and len(page.all("main")) == 1


@pytest.mark.slow
def test_names_in_other_scripts_and_of_any_length(tmp_path):
    data = make_data(tmp_path / "data", images=3)
    coco = json.loads(Path(data["file"]).read_text())
    for category, name in zip(coco["categories"], (CHINESE, "long " * 40, ""), strict=True):
        category["name"] = name
    Path(data["file"]).write_text(json.dumps(coco))
    run = make_run(tmp_path / "run", {**data, "sha256": None})
    files = report(run)
    assert CHINESE in files[0].read_text("utf-8")


def test_the_verb_finds_runs_by_name_and_by_glob(tmp_path, monkeypatch, capsys):
    from yolox_loss_patch.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page_module, "panels", lambda training: [])
    data = make_data(tmp_path / "data", images=2)
    for name in ("a1", "a2"):
        make_run(tmp_path / "YOLOX_outputs" / name, data)
    (tmp_path / "YOLOX_outputs" / "a3").mkdir()
    capsys.readouterr()
    assert main(["report", "a1"]) == 0
    assert capsys.readouterr().out == "Written: YOLOX_outputs/a1/report.html\n"
    assert main(["report", "a*"]) == 0
    assert capsys.readouterr().out.count("Written: ") == 2
    assert main(["report", "a3"]) == 2
    assert "'YOLOX_outputs/a3' is no run" in capsys.readouterr().err
    with pytest.raises(RunError, match="is no run"):
        report(tmp_path)


def test_after_a_training_a_failure_is_a_warning(tmp_path, monkeypatch):
    from loguru import logger

    said = []
    training.after_training(tmp_path)  # switched off in conftest.py
    monkeypatch.delenv("YOLOX_LOSS_REPORT")
    sink = logger.add(said.append, format="{level} {message}")
    try:
        training.after_training(tmp_path)

        def broken(folder):
            raise ValueError("no such font")

        monkeypatch.setattr(page_module, "report", broken)
        training.after_training(tmp_path)

        def lacking(folder):
            raise ModuleNotFoundError("No module named 'hotcoco'", name="hotcoco")

        monkeypatch.setattr(page_module, "report", lacking)
        training.after_training(tmp_path)
    finally:
        logger.remove(sink)
    assert said[0].startswith("WARNING report.html and results.png were not made: ") and "is no run" in said[0]
    assert said[1] == "WARNING report.html and results.png were not made: ValueError: no such font\n"
    assert said[2].startswith("INFO ") and "pip install 'yolox-loss-patch[compare]'" in said[2]


@pytest.mark.slow
@pytest.mark.parametrize("python", [("-m", "yolox_loss_patch", "train"), ("-m", "yolox.tools.train")])
def test_every_training_ends_with_its_page(work, python):
    """The kit's command line, and YOLOX's own tool with an experiment of the kit."""
    done = cli(
        work,
        "-f",
        "tiny.py",
        "-b",
        "8",
        "-d",
        "1",
        "-expn",
        "tiny",
        "max_epoch",
        "2",
        python=python,
        YOLOX_LOSS_REPORT="on",
    )
    run = work / "YOLOX_outputs" / "tiny"
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert "The training in pictures: " in (run / "train_log.txt").read_text(), done.stderr
    assert (run / "results.png").is_file()
    shown = Page((run / "report.html").read_text("utf-8"))
    assert "YOLOX's own (stock)" in [text for text, _ in shown.all("dd")]
    assert "epoch 2 of 2" in shown.all("body")[0][0]


@pytest.mark.slow
@pytest.mark.skipif(find() is None, reason="no Chromium here (apt install chromium)")
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(made, tmp_path, dark):
    """It asks for nothing, says nothing on the console, fits a phone, and its text can be read."""
    with Browser(tmp_path / "profile", made[1][0], 380, 800, dark=dark) as browser:
        assert browser.js("document.documentElement.scrollWidth") <= 380
        assert browser.js("document.images.length > 8 && [...document.images].every(image => image.naturalWidth > 0)")
        assert browser.js("document.querySelectorAll('img[src=x], [onclick], [onerror]').length") == 0
        assert (
            browser.js("Math.min(...[...document.querySelectorAll('.grid img')].map(image => image.clientWidth))") > 300
        )
        browser.js("document.querySelectorAll('#tables th button')[2].click()")
        head = "document.querySelectorAll('#tables th')[2].getAttribute('aria-sort')"
        assert browser.js(head) == "descending"
        assert contrasts(browser) == []
        assert [address for address in browser.requests if not address.startswith(("data:", "file:"))] == []
        assert browser.complaints == []


def contrasts(browser):
    """Elements with text whose contrast is below 4.5 to 1, with the number (WCAG 2 AA)."""
    return browser.js("""(() => {
        const light = (colour) => {
            const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255);
            const line = parts.map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
            return 0.2126 * line[0] + 0.7152 * line[1] + 0.0722 * line[2];
        };
        const behind = (element) => {
            for (let at = element; at; at = at.parentElement) {
                const colour = getComputedStyle(at).backgroundColor;
                if (!/, 0\\)$/.test(colour)) return colour;
            }
            return "rgb(255, 255, 255)";
        };
        return [...document.querySelectorAll("body *")].filter((element) =>
            [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())
            && !element.closest("script")
        ).map((element) => {
            const pair = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
            return [element.textContent.trim().slice(0, 40), (pair[0] + 0.05) / (pair[1] + 0.05)];
        }).filter(([, contrast]) => contrast < 4.5);
    })()""")
