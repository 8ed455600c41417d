"""The comparison as a whole: refusals, the verdict, what is said and what is not, and its text and CSV."""

import csv
import io
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import EXP, cli
from made_runs import edit, make_data, make_run

from yolox_loss_patch import cli as command
from yolox_loss_patch.compare.answers import answers
from yolox_loss_patch.compare.comparison import analyse, compare
from yolox_loss_patch.compare.detections import Truth
from yolox_loss_patch.compare.figures import panels
from yolox_loss_patch.compare.judging import resample
from yolox_loss_patch.compare.results import Result, Summary
from yolox_loss_patch.compare.tables import as_csv, as_text, side_by_side, tables
from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs.record import read_metrics
from yolox_loss_patch.runs.selection import Group, Run
from yolox_loss_patch.specs.config import LossConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, data):
    """Three seeds of stock, of one loss that is as good, and of one that is clearly better."""
    folder = tmp_path_factory.mktemp("outputs")
    rng = np.random.default_rng(0)
    for name, losses, gain in (
        ("stock", {}, 0),
        ("giou", {"loss_iou": "giou"}, 0),
        ("ciou", {"loss_iou": "ciou"}, 0.08),
    ):
        for seed in range(3):
            make_run(folder / f"{name}-{seed}", data, 0.12 - gain + rng.normal(0, 0.01), seed, losses)
    return folder


@pytest.fixture(scope="module")
def comparison(outputs):
    return analyse([str(outputs / "*")], per_class=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory, data):
    """Two seeds of stock and of two swaps whose detections were not kept, so that nothing takes time."""
    folder = tmp_path_factory.mktemp("bare")
    for name, losses in (("stock", {}), ("giou", {"loss_iou": "giou"}), ("ciou", {"loss_iou": "ciou"})):
        for seed in range(2):
            make_run(folder / f"{name}-{seed}", data, 0.1, seed, losses)
            shutil.rmtree(folder / f"{name}-{seed}" / "predictions")
    return folder


def table(comparison, title):
    """Rows of a table by their first cell."""
    _, header, rows, _ = next(one for one in tables(comparison) if one[0] == title)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.slow
def test_the_better_loss_is_found_and_the_equal_one_is_not_called_better(outputs, comparison):
    said = {result.label: result.verdict for result in comparison.results}
    assert said == {"stock": "baseline", "iou ciou": "better", "iou giou": "unclear"}
    rows = table(comparison, "Is it better?")
    values = {
        name: [read_metrics(outputs / f"{name}-{seed}")[-1]["AP"] for seed in range(3)] for name in ("stock", "ciou")
    }
    assert float(rows["iou ciou"]["AP, difference"]) == pytest.approx(
        np.mean(values["ciou"]) - np.mean(values["stock"]), abs=1e-4
    )
    assert rows["iou ciou"]["seeds"] == "3 pairs"
    last = table(comparison, "Last epoch (EMA weights)")["iou ciou"]
    assert float(last["AP"].split(" ±")[0]) == pytest.approx(np.mean(values["ciou"]), abs=1e-4)


def test_the_numbers_of_every_form_are_the_records(outputs, comparison):
    text, rows = as_text(comparison), list(csv.DictReader(io.StringIO(as_csv(comparison))))
    by_group = {row["group"]: row for row in rows}
    for name, label in (("stock", "stock"), ("giou", "iou giou")):
        last = [read_metrics(outputs / f"{name}-{seed}")[-1] for seed in range(3)]
        for metric in ("AP", "AP75", "AP90", "AP_small", "AR"):
            known = [row[metric] for row in last if row[metric] >= 0]
            assert float(by_group[label][f"{metric}_last"]) == pytest.approx(np.mean(known), abs=1e-12)
        for row in last:
            assert f"{row['AP']:.4f}" in text
    assert by_group["iou ciou"]["AP_verdict"] == "better" and by_group["stock"]["seeds"] == "0 1 2"


def test_why_is_told_from_the_detections(comparison):
    errors = table(comparison, "Errors (TIDE)")
    placed = {name: float(row["badly placed"].split(" ±")[0]) for name, row in errors.items()}
    assert placed["iou ciou"] < placed["stock"]  # its boxes were made closer
    assert set(table(comparison, "AP by class")["stock"]) == {"red", "white", "platelet"}
    assert 0 < float(table(comparison, "Scores")["stock"]["best threshold"].split(" ±")[0]) < 1
    training = table(comparison, "Training")["stock"]
    assert training["s per iteration"] == "0.500" and training["peak MiB"] == "904"
    assert not [key for _, header, _, _ in tables(comparison) for key in header if "loss" in key.lower()]
    picture = comparison.pictures[0]
    assert picture.path.is_file() and len(picture.sides) == 2 and picture.truth
    gaps = [abs(one.sides[0][1] - one.sides[1][1]) for one in comparison.pictures[:3]]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0


def test_a_bar_in_a_name_stays_in_its_cell():
    text = side_by_side({"classes": ["red|white", "red"], "seed": ["0", "1"]}, ["a|b", "c"])
    assert "red\\|white" in text and {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()} == {4}


def test_best_and_last_are_kept_apart(comparison):
    text = as_text(comparison)
    assert text.index("Last epoch (EMA weights):") < text.index("Best epoch:") and "is flattered" in text


def test_of_one_seed_only_the_images_are_known_and_it_is_said(outputs):
    comparison = analyse([str(outputs / "stock-0"), str(outputs / "ciou-0")])
    found = comparison.results[1].difference
    assert found.se_seeds is None and found.se_images > 0 and found.df == pytest.approx(11)
    assert "(one seed: images only)" in table(comparison, "Is it better?")["iou ciou"]["verdict"]
    assert (
        "one seed" in answers(comparison)[0][2] and "nothing is known about training again" in answers(comparison)[0][2]
    )


def test_baseline_metric_and_by_are_the_users(bare):
    folders = [str(bare / "*")]
    assert analyse(folders, baseline="iou giou").results[0].label == "iou giou"
    assert analyse(folders, baseline=str(bare / "giou-1")).results[0].label == "iou giou"
    for metric in ("AP75", "AP90", "AP_small"):
        assert f"{metric}, difference" in as_text(analyse(folders, metric=metric))
    assert [result.label for result in analyse(folders, by="loss_obj", baseline="stock").results] == ["stock"]
    with pytest.raises(RunError, match=r"--baseline is a group .* got 'gious'. Did you mean"):
        analyse(folders, baseline="gious")
    with pytest.raises(RunError, match=r"--metric is one of AP, .* got 'AP51'"):
        analyse(folders, metric="AP51")


def test_runs_that_differ_in_more_are_refused_and_compared_anyway(data, tmp_path):
    make_run(tmp_path / "short", data, 0.1, 3, mosaic_prob=1.0)
    make_run(tmp_path / "longer", data, 0.05, 3, {"loss_iou": "ciou"}, epochs=6, mosaic_prob=0.1)
    with pytest.raises(RunError) as refused:
        compare([str(tmp_path / "*")])
    for word in ("max_epoch", "mosaic_prob", "| 4", "| 6", "--anyway"):
        assert word in str(refused.value)
    text = compare([str(tmp_path / "*")], anyway=True)
    assert "differ in more than losses and seed: max_epoch, mosaic_prob" in text and "Is it better?" in text


def test_another_data_set_is_refused_and_not_bootstrapped_anyway(outputs, tmp_path):
    other = make_run(tmp_path / "other", make_data(tmp_path / "d", images=5), 0.1, 3, {"loss_iou": "ciou"})
    with pytest.raises(RunError, match="val annotations"):
        compare([str(outputs / "stock-0"), str(other)])
    comparison = analyse([str(outputs / "stock-0"), str(other)], anyway=True)
    assert comparison.results[1].difference is None or comparison.results[1].difference.images is None
    assert "different annotations" in as_text(comparison)


def test_runs_without_detections_or_annotations_are_compared_by_their_seeds(bare, tmp_path):
    text = compare([str(bare / "*")])
    assert "No detections were kept by" in text and "eval" in text and "2 pairs" in text and "TIDE" not in text
    for name in ("stock-0", "ciou-0"):
        shutil.copytree(bare / name, tmp_path / name)
        edit(tmp_path / name, data={"val": {"file": str(tmp_path / "gone.json"), "sha256": "ab"}})
    assert "is not there any more" in compare([str(tmp_path / "*")])


def test_a_verdict_without_an_interval_over_images_says_so(outputs, comparison, tmp_path):
    assert not any("seeds only" in note for note in comparison.notes)
    shutil.copytree(outputs, tmp_path / "bare", ignore=shutil.ignore_patterns("predictions"))
    seeds_only = analyse([str(tmp_path / "bare" / "*")])
    assert table(seeds_only, "Is it better?")["iou ciou"]["verdict"] == "better (seeds only)"
    assert [note for note in seeds_only.notes if "seeds only" in note] == [
        "The verdict on iou ciou is about seeds only: without detections nothing is known about other images."
    ]


def test_among_many_losses_chance_counts_less(bare, tmp_path):
    """A difference that would count alone is explained by chance among ten losses, and the report says so."""
    names = ["giou", "diou", "ciou", "eiou", "siou", "wiou", "piou", "nwd", "mpdiou", "shape_iou"]
    alone = [0.012, 0.013, 0.0135]
    folders = {}
    for place, name in enumerate(["iou", *names]):
        for seed in range(3):
            folder = tmp_path / "many" / f"{name}-{seed}"
            shutil.copytree(bare / "stock-0", folder)
            config = LossConfig(loss_iou=name)
            edit(folder, seed=seed, exp__seed=seed, losses=config.to_dict(), resolved_losses=config.resolved())
            ends(folder, [0.3 + (0 if name == "iou" else alone[seed] if place == 1 else 0.01 * (-1) ** seed)])
            folders.setdefault(name, []).append(str(folder))
    pair = analyse([*folders["iou"], *folders["giou"]])
    assert pair.results[1].verdict == "better" and pair.results[1].p_holm == pair.results[1].difference.p
    every = analyse([str(tmp_path / "many" / "*")])
    (giou,) = [result for result in every.results if "giou" in result.label]
    assert giou.p_holm == pytest.approx(10 * giou.difference.p)


@pytest.mark.slow
def test_many_groups_stay_readable(data, tmp_path):
    """A sweep through the catalogue: a line a group instead of a column, and pictures of those that differ most only."""
    names = ["iou", "giou", "diou", "ciou", "eiou", "siou", "wiou", "piou"]
    for place, name in enumerate(names):
        make_run(tmp_path / name, data, 0.1 + 0.01 * place, 0, {"loss_iou": name})
    comparison = analyse([str(tmp_path / "*")])
    rows = table(comparison, "What differs")
    assert rows["iou giou"] == {"other than stock's": "loss_iou giou, loss_iou.power 1.0"}
    assert rows["iou siou"] == {"other than stock's": "loss_iou siou, loss_iou.power 1.0, loss_iou.theta 4.0"}
    assert list(rows) == [result.label for result in comparison.results[1:]]
    shown = {side[0] for one in comparison.pictures for side in one.sides}
    gaps = {one.group.runs[0].name: abs(one.difference.mean) for one in comparison.results[1:]}
    assert shown == {"iou", *sorted(gaps, key=gaps.get)[-6:]}
    assert {one.group.runs[0].name for one in comparison.shown} == shown and comparison.shown[0] is comparison.results[
        0
    ]
    assert "Curves, errors and images are shown of stock and of the 6 groups whose AP differs most from it" in " ".join(
        comparison.notes
    )
    few = analyse([str(tmp_path / name) for name in names[:7]])
    assert few.shown == few.results and len({side[0] for one in few.pictures for side in one.sides}) == 7
    assert not [note for note in few.notes if "are shown of" in note]
    assert table(few, "What differs")["loss_iou.theta"]["iou siou"] == "4.0"
    shutil.rmtree(tmp_path / "siou" / "predictions")
    lacking = analyse([str(tmp_path / "*")])
    assert len(lacking.shown) == 7 and len({side[0] for one in lacking.pictures for side in one.sides}) == 6


def test_a_restless_end_is_told_and_how_to_settle_it(bare, tmp_path):
    for folder in sorted(bare.iterdir()):
        if not folder.name.startswith("ciou"):
            shutil.copytree(folder, tmp_path / folder.name)
            edit(tmp_path / folder.name, exp__min_lr_ratio=0.05)
            ends(tmp_path / folder.name, [0.30, 0.36, 0.30, 0.36])
    text = compare([str(tmp_path / "*")])
    assert (
        "AP moves by 0.042 from one to the next" in text
        and "min_lr_ratio = 0.002" in text
        and "which is 0.05 here" in text
    )
    for folder in tmp_path.iterdir():
        edit(folder, exp__min_lr_ratio=0.002)
    assert "from one to the next" in compare([str(tmp_path / "*")]) and "min_lr_ratio" not in compare(
        [str(tmp_path / "*")]
    )
    assert "batch norm" not in compare([str(tmp_path / "*")]), "the sizes are not told"
    for folder in tmp_path.iterdir():
        edit(folder, exp__multiscale_range=1, exp__test_size=[96, 96])
    assert "sizes of the last batches, here of 64 to 128 px: self.random_size = (3, 3)" in compare(
        [str(tmp_path / "*")]
    )
    for folder in tmp_path.iterdir():
        edit(folder, exp__random_size=[3, 3])
    assert "batch norm" not in compare([str(tmp_path / "*")])
    for folder in tmp_path.iterdir():
        ends(folder, [0.300, 0.306, 0.300, 0.306])
    assert "from one to the next" not in compare([str(tmp_path / "*")]), "less than a difference worth finding"
    for number, folder in enumerate(sorted(tmp_path.iterdir())):
        ends(folder, [0.30 + number / 5, 0.31 + number / 5, 0.30 + number / 5, 0.31 + number / 5])
    assert "from one to the next" not in compare([str(tmp_path / "*")]), "the seeds differ by far more"


def ends(folder, values):
    """Give the last epochs these values of AP."""
    rows = (folder / "metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("AP")
    for number, value in enumerate(values, len(rows) - len(values)):
        cells = rows[number].split(",")
        cells[place] = repr(value)
        rows[number] = ",".join(cells)
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")


def test_one_run_or_none_is_said_in_words(outputs, data, tmp_path, capsys):
    make_run(tmp_path / "failed", data, status="failed")
    with pytest.raises(RunError, match=r"one run only, stock-0.*Left out: failed: failed after epoch 4"):
        compare([str(outputs / "stock-0"), str(tmp_path / "failed")])
    with pytest.raises(RunError, match="None of these is a finished run"):
        compare([str(tmp_path / "failed")])
    assert command.main(["compare", str(tmp_path / "failed")]) == 2
    assert capsys.readouterr().err.startswith("error: None of these")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_runs(data):
    """Ten runs more cost less than the detections of a single one: each run's are let go before the next one's are read."""
    truth = Truth(data)
    ids = [item["id"] for item in truth.images]

    def detections(run):
        rng = np.random.default_rng(run.seed)
        number = 20_000
        corners, sides = rng.uniform(0, 150, (number, 2)), rng.uniform(10, 100, (number, 2))
        return np.column_stack(
            [rng.choice(ids, number), corners, sides, rng.random(number), rng.integers(1, 4, number)]
        )

    def peak(number):
        runs = [Run(Path(f"run{seed}"), {"seed": seed, "losses": {}}, []) for seed in range(number)]
        repeats = Group("stock", runs, [f"seed {seed}" for seed in range(number)])
        result = Result(repeats, {}, {}, {}, Summary.of([]), Summary.of([]))
        tracemalloc.start()
        try:
            resample([result], detections, truth, "AP", [], per_class=False)
            return tracemalloc.get_traced_memory()[1], result
        finally:
            tracemalloc.stop()

    peak(1)  # what is loaded once
    few, many = peak(2)[0], peak(12)
    assert len(many[1].resampled) == 12 and detections(many[1].group.runs[0]).nbytes == 1_120_000
    assert many[0] - few < 1_120_000


def test_every_form_says_that_one_seed_tells_of_images_only(tmp_path):
    data = make_data(tmp_path / "data", images=12)
    make_run(tmp_path / "stock", data, error=0.05)
    make_run(tmp_path / "other", data, error=0.3, losses={"loss_iou": "giou"})
    comparison = analyse([str(tmp_path / "stock"), str(tmp_path / "other")])
    said = "worse (one seed: images only)"
    row = list(csv.DictReader(io.StringIO(as_csv(comparison))))[-1]
    assert said in as_text(comparison) and row["AP_verdict"] == said
    assert said in next(panel.alt for panel in panels(comparison) if "difference to stock" in panel.title)


def test_settings_for_faulty_data_stand_in_what_differs(tmp_path):
    data = make_data(tmp_path / "data", images=3)
    for seed in (0, 1):
        make_run(tmp_path / f"stock-seed{seed}", data, seed=seed)
        make_run(tmp_path / f"crowd-seed{seed}", data, seed=seed, ignore_crowd=True)
    text = compare([str(tmp_path / "*-seed*")])
    assert re.search(r"\| ignore_crowd +\| - +\| True +\|", text) and "the same losses" not in text


@pytest.mark.slow
def test_real_runs_from_training_to_csv(tmp_path, digits):
    """Two trainings by the command line, then the comparison by the command line."""
    (tmp_path / "tiny.py").write_text(EXP.format(data=str(digits)))
    for name, words in (("stock", ()), ("other", ("loss_obj", "varifocal", "loss_iou", "ciou"))):
        cli(tmp_path, "train", "-f", "tiny.py", "-b", "8", "-expn", name, "max_epoch", "2", *words)
    done = cli(tmp_path, "compare", "stock", "YOLOX_outputs/other", "--out", "out", "--per-class")
    text = done.stdout
    last = read_metrics(tmp_path / "YOLOX_outputs" / "other")[-1]
    assert "obj varifocal + iou ciou" in text and f"{last['AP']:.4f}" in text and "one seed: images only" in text
    assert "loss_obj.gamma" in text and "max_epoch" not in text
    assert (tmp_path / "out" / "comparison.md").read_text().startswith("What differs:")
    assert (tmp_path / "out" / "comparison.csv").read_text().startswith("group,runs,seeds,AP_last")
