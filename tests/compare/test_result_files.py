"""Any detector's COCO result files, compared as runs are."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_runs import detect, make_data
from pycocotools.coco import COCO

from yolox_loss_patch import cli as command
from yolox_loss_patch.compare.bootstrap.matching import Boxes
from yolox_loss_patch.compare.bootstrap.resampling import class_values, image_weights, mean_over_classes
from yolox_loss_patch.compare.comparison import analyse, compare
from yolox_loss_patch.compare.detections import Truth
from yolox_loss_patch.compare.tables import tables
from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs.result_files import read_results
from yolox_loss_patch.train.evaluator import coco_metrics

FIELDS = {"label", "metric", "mean", "difference", "se_seeds", "se_images", "df", "low", "high", "p", "p_holm", "p_equal",
          "verdict", "seeds", "images"}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Annotations, and three result files each of a baseline, of a detector that is as good and of a better one."""
    folder = tmp_path_factory.mktemp("files")
    data = make_data(folder, images=20)
    truth = Truth(data)
    for name, error in (("a", 0.12), ("same", 0.12), ("b", 0.04)):
        for seed in range(3):
            found = detect(truth, error + 0.002 * seed, seed=100 * seed + len(name) + int(1000 * error))
            (folder / f"{name}{seed}.json").write_text(json.dumps(found))
    return folder


def words(folder, *names, seeds=3):
    return [f"{name}={','.join(str(folder / f'{name}{seed}.json') for seed in range(seeds))}" for name in names]


def run(folder, names, out, *more, seeds=3):
    """The command line; returns comparison.json."""
    truth = str(folder / "truth.json")
    assert (
        command.main(["compare", "--truth", truth, *words(folder, *names, seeds=seeds), "--out", str(out), *more]) == 0
    )
    return json.loads((out / "comparison.json").read_text())


@pytest.fixture(scope="module")
def told(files):
    return run(files, ("a", "same", "b"), files / "out", "--per-class")


@pytest.mark.slow
def test_the_fields_and_the_verdicts(told, files):
    groups = {group["label"]: group for group in told["groups"]}
    assert list(groups) == ["a", "same", "b"] and all(set(group) == FIELDS for group in told["groups"])
    assert groups["a"]["verdict"] == "baseline" and groups["a"]["difference"] is None
    assert groups["b"]["verdict"] == "better" and groups["same"]["verdict"] in ("unclear", "equal")
    for group in (groups["same"], groups["b"]):
        assert group["low"] < group["difference"] < group["high"] and group["seeds"] == 3 and group["images"] == 20
        assert group["p"] <= group["p_holm"] and group["metric"] == "AP" and 2 < group["df"] < 19
    names = {file.name for file in (files / "out").iterdir()}
    assert names == {"comparison.html", "comparison.md", "comparison.csv", "comparison.json", "comparison.png"}
    assert {(entry["label"], entry["class"]) for entry in told["per_class"]} == {
        (label, name) for label in ("same", "b") for name in ("red", "white", "platelet")
    }


def test_the_numbers_are_those_of_pycocotools_and_of_the_bootstrap(told, files):
    data = json.loads((files / "truth.json").read_text())
    coco = COCO(str(files / "truth.json"))
    weights = image_weights(20)
    ap, draws = {}, {}
    for name in ("a", "b"):
        found = [json.loads((files / f"{name}{seed}.json").read_text()) for seed in range(3)]
        ap[name] = np.array([coco_metrics(coco, rows)[0]["AP"] for rows in found])
        boxes = Boxes(data["images"], data["categories"], data["annotations"])
        draws[name] = np.array(
            [mean_over_classes(class_values(boxes.match(Truth.table(rows)), weights)) for rows in found]
        )
    (group,) = [group for group in told["groups"] if group["label"] == "b"]
    pairs = ap["b"] - ap["a"]
    assert group["mean"] == pytest.approx(ap["b"].mean(), abs=1e-9) and group["difference"] == pytest.approx(
        pairs.mean()
    )
    assert group["se_seeds"] == pytest.approx(pairs.std(ddof=1) / 3**0.5)
    assert group["se_images"] == pytest.approx((draws["b"] - draws["a"]).mean(axis=0).std(ddof=1), rel=0.01)


@pytest.mark.slow
def test_one_file_each_is_about_the_images_and_says_so(files, tmp_path, capsys):
    told = run(files, ("a", "b"), tmp_path / "out", seeds=1)
    group = told["groups"][1]
    assert group["se_seeds"] is None and group["seeds"] == 1 and group["se_images"] > 0 and group["verdict"] == "better"
    text = capsys.readouterr().out
    assert "one seed: images only" in text
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "nothing is known about training again" in page and "Best epoch" not in page


def test_ultralytics_and_mmdetection_files(files, tmp_path):
    """Ultralytics names an image by its file's stem, a number where the stem is one; MMDetection writes COCO's ids."""
    data = json.loads((files / "truth.json").read_text())
    found = json.loads((files / "a0.json").read_text())
    names = {}
    for place, image in enumerate(data["images"]):
        names[image["id"]] = image["id"] + 500 if place % 2 else f"shot_{image['id']}"
        stem = f"{image['id'] + 500:012d}" if place % 2 else f"shot_{image['id']}"
        image["file_name"] = f"val/{stem}.jpg"
    other = [{**row, "image_id": names[row["image_id"]], "file_name": "x.jpg"} for row in found]
    (tmp_path / "predictions.json").write_text(json.dumps(other))
    (tmp_path / "a.bbox.json.gz").write_bytes(gzip.compress(json.dumps(found).encode()))
    categories = [item["id"] for item in data["categories"]]
    for name in ("predictions.json", "a.bbox.json.gz"):
        assert read_results(tmp_path / name, data["images"], categories) == found


def test_some_classes_only(files):
    both = analyse(words(files, "a", "b"), truth=str(files / "truth.json"), classes=("red", "platelet"), per_class=True)
    red, _, platelet = both.results[1].class_differences
    assert both.results[1].difference.mean == pytest.approx((red.difference.mean + platelet.difference.mean) / 2)
    assert "AP of red, platelet, difference" in [header for _, headers, _, _ in tables(both) for header in headers]
    with pytest.raises(RunError, match="--classes names classes of the data: red, white, platelet; got 'blue'"):
        analyse(words(files, "a", "b"), truth=str(files / "truth.json"), classes=("blue",))


@pytest.mark.parametrize("metric", ["AP50", "AP90", "AP_large", "AR"])
def test_every_metric_has_an_interval(files, metric):
    found = analyse(words(files, "a", "b"), truth=str(files / "truth.json"), metric=metric).results[1].difference
    assert found.interval.low < found.mean < found.interval.high and found.se_images > 0


def test_the_margin_is_the_users(files):
    def verdict(margin):
        return analyse(words(files, "a", "same"), truth=str(files / "truth.json"), margin=margin).results[1].verdict

    assert verdict(0.3) == "equal" and verdict(0.0001) == "unclear"
    with pytest.raises(RunError, match="--margin is a difference of AP between 0 and 1"):
        verdict(5.0)


def test_the_plan_says_how_many_seeds_and_images(files):
    text = compare(words(files, "a", "same"), plan=True, truth=str(files / "truth.json"))
    assert re.search(
        r"A difference of 0\.5 AP is found in 8 of 10 cases with: (no number of seeds on the 20 images|\d+ seeds)", text
    )
    rows = [
        [float(cell) for cell in line.split("|")[1:-1]] for line in text.splitlines() if re.match(r"\| *\d+ ", line)
    ]
    table = np.array([row[1:] for row in rows])
    assert [row[0] for row in rows] == [3, 5, 8, 12, 20]
    assert (np.diff(table, axis=0) < 0).all() and (np.diff(table, axis=1) < 0).all(), (
        "more seeds and images find smaller ones"
    )
    with pytest.raises(RunError, match="--plan needs the detections of two groups with two seeds"):
        compare(words(files, "a", "same", seeds=1), plan=True, truth=str(files / "truth.json"))


@pytest.mark.parametrize(
    "groups,said",
    [
        (["a=gone.json", "b=a0.json"], "There is no result file 'gone.json'"),
        (["a0.json", "b=b0.json"], "each group is NAME=FILE"),
        (["a=a0.json", "a=b0.json"], "Two groups are called 'a'"),
        (["a=a0.json", "b=a0.json"], "stands twice"),
        (["a=a0.json"], "one group only, a"),
        (["a=a0.json", "b=text.json"], "cannot be read as COCO results"),
        (["a=a0.json", "b=dict.json"], "is no list of COCO results but a dict"),
        (["a=a0.json", "b=short.json"], "entry 1 is no COCO result"),
        (["a=a0.json", "b=image.json"], "detections in image 4711"),
        (
            ["a=a0.json", "b=class.json"],
            "detections of category 0, which the annotations do not list: they have 1 to 3",
        ),
    ],
)
def test_what_is_no_result_file_is_answered(files, monkeypatch, groups, said):
    monkeypatch.chdir(files)
    found = json.loads(Path("a0.json").read_text())
    Path("text.json").write_text("no json")
    Path("dict.json").write_text("{}")
    Path("short.json").write_text('[{"image_id": 1}]')
    Path("image.json").write_text(json.dumps([{**found[0], "image_id": 4711}]))
    Path("logits.json").write_text(json.dumps([{**found[0], "score": 1.5}]))
    Path("nan.json").write_text(json.dumps([{**found[0], "bbox": [1, 2, float("nan"), 3]}]))
    Path("class.json").write_text(json.dumps([{**found[0], "category_id": 0}]))
    with pytest.raises(RunError, match=re.escape(said)):
        analyse(groups, truth="truth.json")


def test_the_annotations_have_to_be_there(files):
    with pytest.raises(RunError, match=r"--truth is the file with the annotations: .* is not there any more"):
        analyse(words(files, "a", "b"), truth="gone.json")


def test_annotations_without_areas_and_with_a_byte_order_mark(files, tmp_path):
    """As some tools write them: an area that is missing is that of the box."""
    data = json.loads((files / "truth.json").read_text())
    data["annotations"] = [
        {key: item[key] for key in ("id", "image_id", "category_id", "bbox")} for item in data["annotations"]
    ]
    (tmp_path / "truth.json").write_text(json.dumps(data), encoding="utf-8-sig")
    bare, full = (analyse(words(files, "a", "b"), truth=str(folder / "truth.json")) for folder in (tmp_path, files))
    assert bare.results[1].difference == full.results[1].difference
    (tmp_path / "broken.json").write_text('{"images": []}')
    with pytest.raises(RunError, match="cannot be read as COCO annotations"):
        analyse(words(files, "a", "b"), truth=str(tmp_path / "broken.json"))
