"""The paths and module names that documents, scripts and comments give are there."""

import csv
import importlib.util
import json
import re
from collections import Counter

import pytest
from conftest import ROOT, load_script

FOLDERS = "scripts|benchmarks|tests|exps|docs|patches"
END = r"(?:/(?![\w.*{])|\.(?:py|sh|md|csv|png|diff)\b)"
PATH = re.compile(rf"(?<![\w./-])(?:(?:{FOLDERS})/[\w./-]*?{END}|yolox_loss_patch/[\w/]+\.py\b)")
MODULE = re.compile(r"(?<![\w./-])yolox_loss_patch(?:\.[a-z_]+)+")
PLACEHOLDER = re.compile(r"[A-Z]{2,}")  # benchmarks/SET/comparison.csv


def files():
    yield from ROOT.glob("*.md")
    for folder in (*FOLDERS.split("|"), "yolox_loss_patch"):
        if folder != "tests":
            for ending in ("md", "py", "sh"):
                yield from (ROOT / folder).rglob(f"*.{ending}")


def is_there(name):
    """A dotted name is a module, or a public name of the module before its last dot."""
    module, _, attribute = name.rpartition(".")
    if importlib.util.find_spec(module) is None:
        return False
    return hasattr(importlib.import_module(module), attribute) or importlib.util.find_spec(name) is not None


def missing(text):
    """The paths and dotted names in a text that do not exist."""
    paths = {
        path for path in PATH.findall(text) if not path.startswith("exps/default") and not PLACEHOLDER.search(path)
    }
    return sorted(
        [path for path in paths if not (ROOT / path).exists()]
        + [name for name in set(MODULE.findall(text)) if not is_there(name)]
    )


def test_what_is_named_is_there():
    # A benchmark may name the result that it writes, before somebody has run it.
    found = {
        str(path.relative_to(ROOT)): [
            name for name in missing(path.read_text()) if name != f"benchmarks/{path.stem}.csv"
        ]
        for path in files()
    }
    assert len(found) > 100
    assert not {path: names for path, names in found.items() if names}


def test_what_is_gone_is_found():
    text = "`scripts/gone.sh`, docs/losses.md, exps/gone/x.py, "
    text += "yolox_loss_patch.gone.f, yolox_loss_patch.cli.main, benchmarks/gone/"
    assert missing(text) == ["benchmarks/gone/", "exps/gone/x.py", "scripts/gone.sh", "yolox_loss_patch.gone.f"]


def test_the_page_on_speed_has_the_counts_of_launches():
    with (ROOT / "benchmarks" / "launches.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    page = (ROOT / "docs" / "speed.md").read_text()
    for stock in (row for row in rows if row["code"] == "stock"):
        (kit,) = [row for row in rows if row["code"] == "kit" and row["boxes"] == stock["boxes"]]
        name = stock["boxes"] if stock["batch"] == "8" else f"{stock['boxes']} (batch {stock['batch']})"
        numbers = [row[key] for key in ("operators", "waits") for row in (stock, kit)]
        numbers += [f"{float(row['peak_mib']):.0f}" for row in (stock, kit)]
        assert f"| {name} | {' | '.join(numbers)} |" in page


def test_the_page_on_speed_has_the_times_of_the_newest_measurement():
    with (ROOT / "benchmarks" / "stage.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["losses"] == "stock"]
    rows = [row for row in rows if row["commit"] == rows[-1]["commit"]]
    page = (ROOT / "docs" / "speed.md").read_text()
    for row in rows:
        times = f"{float(row['stock_ms']):.0f} | {float(row['ours_ms']):.0f} | {float(row['ratio']):.3f}"
        line = next(line for line in page.splitlines() if line.startswith(f"| {row['boxes']} | ") and times in line)
        assert f"{float(row['memory_ratio']):.2f}" in line


def test_the_readme_counts_what_was_measured():
    verdicts = Counter(
        row["verdict"] for row in json.loads((ROOT / "yolox_loss_patch/specs/measured.json").read_text())
    )
    assert set(verdicts) == {"equal", "unclear"}
    words = f"{verdicts['equal']} are equal within 0.5 AP, and {verdicts['unclear']} are unclear"
    assert f"Of {verdicts.total()} comparisons {words}" in " ".join((ROOT / "README.md").read_text().split())
    for page in ("which_loss", "from_scratch", "swaps"):
        text = " ".join((ROOT / "docs" / f"{page}.md").read_text().replace("> ", "").split())
        assert words in text


def test_the_readme_says_what_the_demos_losses_end_at():
    def last(stem):
        with (ROOT / "benchmarks" / "digits_pair" / f"{stem}.csv").open(newline="") as file:
            return float(list(csv.DictReader(file))[-1]["AP"])

    pair = "digits_pair-obj_varifocal_calibrated_True_target_hard-iou_ciou_by_overlap_True"
    differences = [last(f"{pair}-seed{seed}") - last(f"digits_pair-obj_bce-iou_iou-seed{seed}") for seed in (1, 2)]
    text = " ".join((ROOT / "README.md").read_text().split())
    stock, ours = last("digits_pair-obj_bce-iou_iou-seed0"), last(f"{pair}-seed0")
    assert f"Stock ends at AP {stock:.3f}, varifocal with CIoU (calibrated, by overlap) at {ours:.3f}" in text
    with (ROOT / "benchmarks" / "digits_pair" / "demo.csv").open(newline="") as file:  # of scripts/demo.sh
        verdict = list(csv.DictReader(file))[-1]["AP_verdict"]
    assert f'The verdict is "{verdict}"' in text
    assert f"With seed 1 the same two losses end {differences[0]:.3f} above stock" in text
    assert f"with seed 2 {-differences[1]:.3f} below" in text


def test_the_readme_says_how_fast_the_loss_stage_is():
    with (ROOT / "benchmarks" / "stage.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["losses"] == "stock" and row["boxes"] == "20"]
    newest = [row for row in rows if row["host"].startswith("yolox 0.3.0")][-1]
    assert "a twentieth of stock's time at 20 boxes per image" in (ROOT / "README.md").read_text()
    assert 1 / 22 < float(newest["ratio"]) < 1 / 18


def test_the_page_on_comparing_has_what_a_race_was_measured_to_do():
    with (ROOT / "benchmarks" / "race.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    page = " ".join((ROOT / "docs" / "compare.md").read_text().lower().split())
    most = {name: max(float(row[name]) for row in rows) for name in ("any_false", "false_equal")}
    assert f"at most {100 * most['any_false']:.1f}% of the tables" in page
    assert f"at most {100 * most['false_equal']:.1f}% were called equal" in page
    assert max(most.values()) < 0.05
    ours = [row for row in rows if row["planted"] == "catalogue"]
    for name, words in (
        ("trainings", "a race took {:.0f} to {:.0f}% of"),
        ("agree", "{:.0f} to {:.0f}% were the same"),
    ):
        values = [100 * float(row[name]) for row in ours]
        assert words.format(min(values), max(values)) in page
    assert {row["contradict"] for row in ours} == {"0.0000"}


@pytest.mark.slow
def test_verdicts_follow_from_the_kept_detections():
    """As benchmarks/recompute.sh does it."""
    folder = ROOT / "benchmarks" / "remedies"
    assert load_script("benchmarks/recompute").check(folder / "detections" / "balancing", folder / "balancing.csv") == 0


def test_the_page_on_data_has_the_differences_of_its_files():
    """Each row of its tables, by the place of its setting."""
    labels = {
        "repeat_factor = 0.3": "repeat_factor=0.3",
        '"inverse"': "class_weight='inverse'",
        "effective_number": "effective_number",
        "OHEMSampler": "sampler=",
        "level_weights": "level_weights=",
        "ignore_crowd": "ignore_crowd",
        "loss_weight={1: 1.5": "loss_weight={1: 1.5",
        '"bce", label_smoothing=0.1)': "cls bce(label_smoothing=0.1)",
        "| `gt_score = True`": "gt_score",
        "and `gt_score": "cls bce(label_smoothing=0.1) + gt_score",
    }
    page = (ROOT / "docs" / "data.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    tables = {}
    for name in ("rare", "rare_classes", "crowd", "balancing", "noisy"):
        with (ROOT / "benchmarks" / "remedies" / f"{name}.csv").open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    for line, (setting, label) in zip(lines, labels.items(), strict=True):
        assert setting in line
        alone = {"ignore_crowd": ("crowd",), "loss_weight={1: 1.5": ("balancing",)}
        noisy = ("noisy",) if "label_smoothing" in setting or "gt_score" in setting else ("rare", "rare_classes")
        for name in alone.get(setting, noisy):
            whole = [row for row in tables[name] if row["group"] == label]
            (row,) = whole or [row for row in tables[name] if label in row["group"]]
            difference, low, high = (float(row[f"AP_{key}"]) for key in ("difference", "low", "high"))
            assert f"{difference:+.3f} [{low:+.3f}, {high:+.3f}] | {row['AP_verdict']} |" in line
    readme = (ROOT / "README.md").read_text()
    for label in ("repeat_factor=0.3", "class_weight='inverse'"):
        (row,) = (row for row in tables["rare_classes"] if label in row["group"])
        assert f"{float(row['AP_difference']):+.3f} AP of the rare classes, {row['AP_verdict']}" in readme
