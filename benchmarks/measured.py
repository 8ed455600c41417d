#!/usr/bin/env python3
"""What each loss was measured to do, in one file that is shipped with the package: from benchmarks/*/comparison.csv.

    python benchmarks/measured.py      # writes yolox_loss_patch/specs/measured.json

`yolox-loss list NAME` prints it, and a training with a loss that was worse says so before its first epoch. The verdicts are
by the rules of `compare`: one interval over seeds and images, Holm over the losses of a set. The comparisons were made before
those rules, and their intervals over images come from a bootstrap that dropped repeated images. Such an interval is 0.76 of the
right one, so it is divided by that.
"""

import csv
import json
from pathlib import Path

from scipy import stats

from yolox_loss_patch.compare.statistics import MARGIN, Difference, Interval, Part, half_width, holm, p_value, verdict
from yolox_loss_patch.specs.labels import label_of
from yolox_loss_patch.specs.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "yolox_loss_patch" / "specs" / "measured.json"
# Set -> data, start, number of validation images.
SETS = {
    "bccd": ("blood cells (BCCD)", "from scratch", 87),
    "bccd_scratch": ("blood cells (BCCD)", "from scratch", 87),
    "digits": ("digits", "from scratch", 80),
    "digits_scratch": ("digits", "from scratch", 80),
    "bccd_finetune": ("blood cells (BCCD)", "from a trained network", 87),
    "bccd_catalogue": ("blood cells (BCCD)", "from a trained network", 87),
    "bccd_scores": ("blood cells (BCCD)", "from a trained network", 87),
    "digits_finetune": ("digits", "from a trained network", 80),
    "digits_catalogue": ("digits", "from a trained network", 80),
    "digits_scores": ("digits", "from a trained network", 80),
    "digits_newcls": ("digits, classes anew", "from a trained network", 80),
}
TOO_NARROW = 0.76


def found(row, stock_seeds, images):
    """The difference of a row with its interval, as `compare` gives it today; None where one seed was trained."""
    pairs = len(set(row["seeds"].split()) & set(stock_seeds))
    if pairs < 2 or not row["AP_seeds_low"] or not row["AP_images_low"]:
        return None
    mean = float(row["AP_difference"])
    se_seeds = (float(row["AP_seeds_high"]) - float(row["AP_seeds_low"])) / 2 / stats.t.ppf(0.975, pairs - 1)
    se_images = (float(row["AP_images_high"]) - float(row["AP_images_low"])) / 2 / stats.norm.ppf(0.975) / TOO_NARROW
    parts = [Part(se_seeds**2, pairs - 1), Part(se_images**2, images - 1)]
    reach, reach90 = half_width(parts, 0.95), half_width(parts, 0.9)
    return Difference(
        mean, pairs, True, images, se_seeds, se_images, Interval(mean - reach, mean + reach),
        Interval(mean - reach90, mean + reach90), None, p_value(abs(mean), parts), None,
    )  # fmt: skip


def rows():
    """The rows of the file, set by set."""
    for folder, (data, start, images) in SETS.items():
        with (ROOT / "benchmarks" / folder / "comparison.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        stock = next(row for row in table if row["group"] == "stock")
        others = [row for row in table if row is not stock and row["group"].count(" + ") == 0]
        differences = [found(row, stock["seeds"].split(), images) for row in others]
        adjusted = holm([None if each is None else each.p for each in differences])
        for row, each, p in zip(others, differences, adjusted, strict=True):
            if each is None:
                continue
            term, _, label = row["group"].partition(" ")
            yield {
                "term": term,
                "spec": label_of(term, resolve(term, label)),
                "data": data,
                "start": start,
                "seeds": each.seeds,
                "difference": round(each.mean, 4),
                "low": round(each.interval.low, 4),
                "high": round(each.interval.high, 4),
                "verdict": verdict(each, p, MARGIN),
                "set": folder,
            }


def main():
    lines = [json.dumps(row) for row in rows()]
    OUT.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(lines)} rows in {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
