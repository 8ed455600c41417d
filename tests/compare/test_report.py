"""The files of a comparison, and the page in a browser."""

import base64
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest
from browser import Browser, find
from made_runs import edit, make_data, make_run
from PIL import Image

from yolox_loss_patch.compare import figures, report
from yolox_loss_patch.compare.answers import answers
from yolox_loss_patch.compare.comparison import analyse, compare
from yolox_loss_patch.compare.pages import sort_value
from yolox_loss_patch.compare.report import write
from yolox_loss_patch.compare.tables import tables
from yolox_loss_patch.errors import RunError

pytestmark = pytest.mark.slow  # the comparison and its pictures take eight seconds of a core

# What a name may hold that a page could take for its own.
HOSTILE = "<img src=x onerror=alert(1)>"
QUOTES = "\" onclick=alert(1) x=' & 🚀"
CLOSING = "</script><script>alert(1)</script>"
VOID = {"meta", "link", "img", "source", "br"}


class Page(HTMLParser):
    """Elements with their attributes, the text of each, tables as rows of cells."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(self.elements[-1])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])

    def handle_endtag(self, tag):
        last = self.open.pop()
        assert last[0] == tag, f"<{last[0]}> closed by </{tag}>"
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(last[2]).strip())

    def handle_data(self, text):
        for element in self.open:
            element[2].append(text)

    def all(self, tag):
        return [("".join(text), attrs) for name, attrs, text in self.elements if name == tag]


def hostile_data(folder):
    """A data set whose classes and files are called what should be text and nothing else."""
    data = make_data(folder, images=6)
    coco = json.loads((folder / "truth.json").read_text())
    for category, name in zip(coco["categories"], ("<b>cell</b>", '$x^2$ & "y"', QUOTES), strict=True):
        category["name"] = name
    for image in coco["images"]:
        (folder / image["file_name"]).rename(folder / f"<i>&'{image['file_name']}")
        image["file_name"] = f"<i>&'{image['file_name']}"
    content = json.dumps(coco).encode()
    (folder / "truth.json").write_bytes(content)
    return {**data, "sha256": hashlib.sha256(content).hexdigest()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder with the runs, and the comparison of stock, a better CIoU and a loss with a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    data = hostile_data(folder / "data")
    for seed in range(3):
        stock = make_run(folder / "runs" / f"stock{seed}", data, 0.12, seed)
        edit(stock, command=["/bin/yolox-loss", "train", "-expn", stock.name])
        make_run(folder / "runs" / f"ciou{QUOTES}{seed}", data, 0.03, seed, {"loss_iou": "ciou"})
        other = make_run(
            folder / "runs" / f"{'very-long-name-' * 8}{HOSTILE}{seed}", data, 0.121, seed, {"loss_iou": "giou"}
        )
        record = (other / "run.json").read_text().replace('"giou"', json.dumps(HOSTILE + QUOTES))
        (other / "run.json").write_text(record)
    failed = make_run(folder / "runs" / "failed", data, seed=9, status="failed")
    edit(failed, error=CLOSING + HOSTILE)
    comparison = analyse([str(folder / "runs" / "*")], per_class=True)
    with pytest.MonkeyPatch.context() as patch:  # a few pictures do; each takes its time
        patch.setattr(report, "panels", lambda comparison: figures.panels(comparison)[:3])
        files = write(comparison, folder / "out")
    return folder, comparison, files


@pytest.fixture(scope="module")
def page(made):
    return Page((made[0] / "out" / "comparison.html").read_text("utf-8"))


def test_the_files_are_there(made):
    names = [
        "comparison.html",
        "comparison.md",
        "comparison.csv",
        "comparison.json",
        "comparison.png",
        "comparison_images.png",
    ]
    assert [file.name for file in made[2]] == names
    for name in names[4:]:
        image = Image.open(made[0] / "out" / name)
        image.load()
        assert min(image.size) > 500
    assert (made[0] / "out" / "comparison.html").stat().st_size < 5_000_000


def test_the_answer_comes_first(made, page):
    first = [text for text, _ in page.all("li")][:2]
    for said, (label, verdict, numbers) in zip(first, answers(made[1]), strict=True):
        assert label in said and verdict in said and numbers in said
    assert any("better than stock" in said and "AP +0." in said for said in first)
    assert any("unclear against stock" in said for said in first)


def test_the_numbers_are_those_of_the_tables(made, page):
    expected = [[[head or "name" for head in header], *rows] for _, header, rows, _ in tables(made[1]) if rows]
    shown = [[[" ".join(cell.split()) for cell in row] for row in table] for table in page.tables]
    assert shown == [[[" ".join(cell.split()) for cell in row] for row in table] for table in expected]


def test_every_name_is_text(page):
    for _, attrs, _ in page.elements:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], attrs
    assert len(page.all("script")) == 1 and not page.all("i") and not page.all("iframe")
    words = page.all("body")[0][0]
    for name in (HOSTILE, QUOTES, CLOSING, "<b>cell</b>", '$x^2$ & "y"', "<i>&'", HOSTILE + QUOTES):
        assert name in words
    assert any(HOSTILE in attrs["alt"] for _, attrs in page.all("img"))


def test_the_page_needs_nothing_but_itself(made, page):
    for tag, attrs, _ in page.elements:
        for name in ("src", "srcset", "href", "data", "action"):
            assert name not in attrs or attrs[name].startswith(("data:", "#")), (tag, attrs)
    policy = next(
        attrs["content"] for _, attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    for tag in ("style", "script"):
        ((text, _),) = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "url(" not in text and "import" not in text
    for _, attrs in page.all("img"):
        assert len(attrs["alt"]) > 15


def test_the_page_says_how_to_make_it_again(made, page):
    commands = [text for text, _ in page.all("pre")]
    assert commands[0] == f"yolox-loss compare '{made[0] / 'runs'}/*' --per-class --out {made[0] / 'out'}"
    assert "yolox-loss train -expn stock0" in commands
    footer = page.all("footer")[0][0]
    assert "9 runs: yolox 0.3.0 (PyPI), torch 2.14.1, on cpu" in footer
    assert re.search(r"yolox-loss-patch \d+\.\d+\.\d+ on \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", footer)


@pytest.mark.parametrize(
    "text,value",
    [
        ("0.3113 ± 0.3188", 0.3113),
        ("[-0.0789, +0.0719]", -0.0035),
        ("+0.0024", 0.0024),
        ("0.3450 (28)", 0.345),
        ("2 pairs", 2.0),
        ("3 without pairs", 3.0),
        ("1000+", 1000.0),
        ("28, 30", 28.0),
        ("baseline", 0.0),
        ("-", None),
        ("", None),
        ("?", None),
        ("8x8", None),
        ("3 blind mice", None),
        ("better", None),
    ],
)
def test_a_cell_sorts_by_its_number(text, value):
    assert sort_value(text) == (None if value is None else pytest.approx(value))


@pytest.mark.skipif(find() is None, reason="no Chromium here (apt install chromium)")
def test_in_a_browser(made, tmp_path):
    """It sorts by mouse and keyboard, runs nobody's script, asks for nothing, and fits a phone."""
    file = made[0] / "out" / "comparison.html"
    with Browser(tmp_path / "desk", file) as browser:
        table = "[...document.querySelectorAll('#tables table')].find(one => one.tHead.innerText.includes('AP last'))"
        column = f"[...{table}.tBodies[0].rows].map(row => row.cells[3].innerText)"
        state = f"{table}.tHead.rows[0].cells[3].getAttribute('aria-sort')"
        before = browser.js(column)
        browser.js(f"{table}.tHead.rows[0].cells[3].querySelector('button').click()")
        assert browser.js(state) == "descending"
        assert browser.js(column) == sorted(before, key=float, reverse=True) != before
        browser.js(f"{table}.tHead.rows[0].cells[3].querySelector('button').focus()")
        browser.press("Enter")
        assert browser.js(state) == "ascending" and browser.js(column) == sorted(before, key=float)
        browser.press(" ")
        assert browser.js(state) == "descending" and browser.js(column) == sorted(before, key=float, reverse=True)
        browser.js(f"{table}.tHead.rows[0].cells[0].querySelector('button').click()")
        names = browser.js(f"[...{table}.tBodies[0].rows].map(row => row.cells[0].innerText[0])")
        assert browser.js(state) is None and names == sorted(names)
        # every table sorts, and keeps its rows
        assert browser.js("""[...document.querySelectorAll('table')].every(table => {
            const rows = () => [...table.tBodies[0].rows].map(row => row.innerText).sort().join();
            const was = rows();
            for (const button of table.querySelectorAll('th button')) {
                button.click(); button.click();
                if (!button.closest('th').hasAttribute('aria-sort')) return false;
                if (table.querySelectorAll('[aria-sort]').length !== 1) return false;
            }
            return rows() === was; })""")
        # the baseline is 0 among the differences, and what is empty comes last both ways
        better = "[...document.querySelectorAll('#tables table')].find(one => one.innerText.includes('verdict'))"
        for falling in (True, False):
            browser.js(f"{better}.querySelectorAll('th button')[1].click()")
            cells = browser.js(f"[...{better}.tBodies[0].rows].map(row => row.cells[1].innerText)")
            values = [sort_value(cell) for cell in cells]
            assert values == sorted(values, reverse=falling) and "baseline" in cells
        for _ in range(2):
            browser.js(f"{better}.querySelectorAll('th button')[2].click()")
            assert browser.js(f"[...{better}.tBodies[0].rows].findIndex(row => row.cells[2].innerText === '')") == 2
        assert browser.js("document.images.length > 10 && [...document.images].every(one => one.naturalWidth > 0)")
        assert browser.js("document.querySelectorAll('img[src=x], [onclick], [onerror]').length") == 0
        assert [one for one in browser.requests if not one.startswith(("data:", file.parent.as_uri()))] == []
        assert browser.complaints == []
    with Browser(tmp_path / "phone", file, 390, 844, dark=True) as browser:
        assert browser.js("document.documentElement.scrollWidth") <= 390
        assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
        assert browser.js(
            "document.querySelector('picture img').currentSrc === document.querySelector('picture source').srcset"
        )
        box = "[...document.querySelectorAll('.scroll')].find(one => one.scrollWidth > one.clientWidth + 100)"
        browser.js(f"{box}.scrollLeft = 100")
        left = f"Math.round({box}.querySelector('tbody th').getBoundingClientRect().left - {box}.getBoundingClientRect().left)"
        assert browser.js(f"{box}.scrollLeft") == 100 and browser.js(left) in (0, 1)


@pytest.fixture
def no_pictures(monkeypatch):
    """The page without pictures, which take most of the time."""
    monkeypatch.setattr(report, "panels", lambda comparison: [])
    monkeypatch.setattr(report, "overview", lambda comparison: b"")


def test_runs_without_detections_and_one_group_alone(tmp_path, no_pictures):
    data = make_data(tmp_path / "data", images=2)
    for seed in range(2):
        shutil.rmtree(make_run(tmp_path / "runs" / f"stock{seed}", data, seed=seed) / "predictions")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison_images.png").write_bytes(b"of another comparison")
    text = compare([str(tmp_path / "runs" / "*")], str(tmp_path / "out"))
    assert "comparison.html" in text and "comparison_images" not in text
    assert not (tmp_path / "out" / "comparison_images.png").exists()
    shown = Page((tmp_path / "out" / "comparison.html").read_text("utf-8"))
    assert "one group only, stock" in shown.all("li")[0][0]
    assert "images" not in [attrs.get("id") for _, attrs in shown.all("section")]


def test_what_differs_anyway_stands_in_the_page(tmp_path, no_pictures):
    data = make_data(tmp_path / "data", images=2)
    for seed, batch in ((0, 8), (1, 16)):
        edit(make_run(tmp_path / "runs" / f"run{seed}", data, seed=seed), args__batch_size=batch)
    compare([str(tmp_path / "runs" / "*")], str(tmp_path / "out"), anyway=True)
    shown = Page((tmp_path / "out" / "comparison.html").read_text("utf-8"))
    assert shown.tables[0] == [["name", "run0", "run1"], ["-b", "8", "16"]]


def test_a_name_that_is_not_utf8(tmp_path, no_pictures):
    data = make_data(tmp_path / "data", images=2)
    for seed, name in enumerate((b"caf\xe9", b"tea")):
        make_run(tmp_path / "runs" / os.fsdecode(name), data, seed=seed)
    try:
        compare([str(tmp_path / "runs" / "*")], str(tmp_path / "out"))
    finally:  # pytest could not print its path
        os.rename(os.fsencode(tmp_path) + b"/runs/caf\xe9", tmp_path / "runs" / "cafe")
    assert "caf?" in (tmp_path / "out" / "comparison.html").read_bytes().decode("utf-8")


def test_a_folder_that_cannot_be_made_is_answered(made, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(RunError, match=r"--out is a folder that can be made and written to; got .*file"):
            write(made[1], out)


def test_a_row_links_to_the_page_of_its_run(tmp_path):
    """Relative, so that the folders can be moved together, and only where there is a page."""
    data = make_data(tmp_path / "data", images=2)
    for seed, losses in ((0, {}), (1, {"loss_iou": "giou"})):
        make_run(tmp_path / "runs" / f"a run #{seed}", data, seed=seed, losses=losses)
    (tmp_path / "runs" / "a run #1" / "report.html").write_text("a page")
    comparison = analyse([str(tmp_path / "runs" / "*")])
    page = Page(report.page(comparison, tmp_path / "out", []))
    links = [(text, attrs["href"]) for text, attrs in page.all("a") if not attrs["href"].startswith("#")]
    assert links == [("a run #1", "../runs/a%20run%20%231/report.html")]


def test_the_verdicts_for_latex(made):
    """Every row whole, and what means something to LaTeX escaped."""
    text = compare([str(made[0] / "runs" / "*")], latex=True)
    rows = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert len(rows) == 3 and all(row.endswith(r" \\") and row.count(" & ") == 5 for row in rows)
    assert rows[0].startswith("stock & ") and r"^{\ast}$" in rows[1] and "\\textless{}img" in text
    signs = re.findall(r"(?<![\\\\])[&#_{}^~](?! )", text.partition(r"\midrule")[2].partition(r"\bottomrule")[0])
    assert set(signs) <= {"^", "{", "}"}, signs  # of the marks and of \\textless{}
    assert text.startswith("% ") and "Holm" in text and "one seed" not in text
