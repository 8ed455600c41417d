"""``compare --by data``: several data sets in one table."""

import csv
import hashlib
import json
import shutil

import pytest
from made_runs import edit, make_data, make_run

from yolox_loss_patch import cli
from yolox_loss_patch.compare.comparison import analyse
from yolox_loss_patch.compare.datasets.table import by_data, over_sets, sets_of
from yolox_loss_patch.compare.statistics import MARGIN, difference
from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs.selection import select


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two data sets, stock and CIoU with three seeds on both, GIoU on the first only."""
    folder = tmp_path_factory.mktemp("sets")
    for name, images in (("cells", 9), ("digits", 12)):
        data = make_data(folder / name, images=images)
        if name == "digits":  # other annotations, or both would be one set
            coco = json.loads((folder / name / "truth.json").read_text())
            coco["annotations"] = coco["annotations"][1:]
            (folder / name / "truth.json").write_text(json.dumps(coco))
            data["sha256"] = hashlib.sha256((folder / name / "truth.json").read_bytes()).hexdigest()
        for seed in range(3):
            make_run(folder / "runs" / f"{name}-stock-{seed}", data, 0.12, seed)
            make_run(folder / "runs" / f"{name}-ciou-{seed}", data, 0.05, seed, {"loss_iou": "ciou"})
        for run in (folder / "runs").glob(f"{name}-*"):
            edit(run, exp={**json.loads((run / "run.json").read_text())["exp"], "data_dir": str(folder / name)})
    giou = make_run(
        folder / "runs" / "cells-giou-0", make_data(folder / "cells", images=9), 0.12, 0, {"loss_iou": "giou"}
    )
    edit(giou, exp={**json.loads((giou / "run.json").read_text())["exp"], "data_dir": str(folder / "cells")})
    return folder / "runs"


def test_each_set_is_compared_by_itself_and_their_mean_has_a_verdict(runs, tmp_path, capsys):
    assert cli.main(["compare", str(runs / "*"), "--by", "data", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "datasets.csv").open(newline="")))
    for name in ("cells", "digits"):
        (alone,) = [result for result in analyse([str(runs / f"{name}-*")]).results if result.label == "iou ciou"]
        (row,) = [row for row in rows if (row["group"], row["set"]) == ("iou ciou", name)]
        assert float(row["difference"]) == alone.difference.mean and row["verdict"] == alone.verdict
        assert (tmp_path / "out" / name / "comparison.html").is_file()
    (mean,) = [row for row in rows if row["set"] == "mean of the sets"]  # GIoU lacks on a set
    values = [
        float(row["difference"]) for row in rows if row["group"] == "iou ciou" and row["set"] != "mean of the sets"
    ]
    assert float(mean["difference"]) == pytest.approx(sum(values) / 2) and mean["verdict"] == "better"
    (line,) = [line for line in text.splitlines() if line.startswith("| iou giou")]
    assert line.count("| -") >= 3 and "on 2 data sets" in text


def test_the_variances_of_the_sets_add_up():
    """Two sets of the same spread: the mean is known better than each, and a set without an interval leaves it open."""
    sides = [{str(seed): 0.5 + 0.01 * (seed % 3) + shift for seed in range(6)} for shift in (0.02, 0.03)]
    base = {str(seed): 0.5 for seed in range(6)}
    found = [difference(side, base) for side in sides]
    together = over_sets(found, MARGIN)
    assert together.mean == pytest.approx((found[0].mean + found[1].mean) / 2)
    assert together.se_seeds == pytest.approx(found[0].se_seeds / 2**0.5)
    assert together.p < min(each.p for each in found)
    assert over_sets([found[0], difference({"0": 0.5}, {"0": 0.4})], MARGIN) is None
    assert over_sets([found[0], difference(sides[1], base, looks=3)], MARGIN) is None  # a race


def test_runs_that_are_left_out_are_named_and_different_baselines_have_no_mean(runs, tmp_path):
    for name in ("cells-stock-0", "cells-ciou-0", "digits-ciou-0"):
        shutil.copytree(runs / name, tmp_path / name)
    edit(shutil.copytree(runs / "digits-stock-0", tmp_path / "digits-stock-0"), status="failed")
    losses = json.loads((runs / "cells-giou-0" / "run.json").read_text())["resolved_losses"]
    edit(shutil.copytree(runs / "digits-stock-1", tmp_path / "digits-giou-1"), resolved_losses=losses)
    text = by_data([str(tmp_path / "*")])
    assert "Left out: digits-stock-0: failed" in text and "(cells)" in text and "(digits)" in text
    assert all(line.count("| -") >= 3 for line in text.splitlines() if line.startswith("| iou"))


def test_one_data_set_is_answered(runs):
    with pytest.raises(RunError, match="all of these were evaluated on one"):
        by_data([str(runs / "cells-*")])


def test_sets_are_called_by_their_folders(runs, tmp_path):
    """Two folders of one name get numbers, and no name leads out of --out."""
    for name, data_dir in (("cells-stock-0", "/a/.."), ("digits-stock-0", "/b/..")):
        shutil.copytree(runs / name, tmp_path / name)
        edit(tmp_path / name, exp={"max_epoch": 4, "data_dir": data_dir})
    assert list(sets_of(select([str(tmp_path / "*")]).runs)) == ["data", "data-2"]


def test_flags_that_do_not_fit_are_answered(runs, capsys):
    assert cli.main(["compare", str(runs / "*"), "--by", "data", "--latex", "--per-class"]) == 2
    assert "leave out --latex, --per-class" in capsys.readouterr().err
