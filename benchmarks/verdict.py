"""How often the verdict of `compare` is wrong, and which differences it finds: seeds and images are drawn anew in every trial.

    python benchmarks/verdict.py [--trials 2000] [--whole 200] [--out benchmarks/verdict.csv]

Two parts. "variances": the AP of a run is drawn from a model with three variances: between seeds, between sets of images, and of
what a seed does to one set of images and not to another. `SETS` holds them, as fitted to the kit's own runs. All of a table's
losses share one baseline; one of them has the planted difference, the others have none. "whole": made detectors with new seeds
find the boxes of new images; their detections go through matching, bootstrap and verdict.

A rate that should be 5% may be above it by the noise of the trials, two standard errors of which stand in ``noise``. The picture
beside the table (``verdict.png``) answers: how many seeds and images find which difference?
"""

import argparse
import csv
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

from yolox_loss_patch.compare.bootstrap.resampling import class_values, image_weights, mean_over_classes
from yolox_loss_patch.compare.detections import Truth
from yolox_loss_patch.compare.statistics import MARGIN, Components, difference, verdict

# Variances of a paired difference on so many images, from the comparison.csv of digits_finetune (33 losses, 3 to 10 seeds),
# bccd_catalogue (31 losses, 3 and 5 seeds) and digits (4 swaps from scratch): the variance between seeds; that over images for
# different numbers of seeds gives both others. The images' widths of those files were too narrow by sqrt(1 - 1/e): mended here.
SETS = {
    "digits, trained start": Components(seeds=2e-6, images=6e-6, both=14e-6, number=80),
    "cells, trained start": Components(seeds=3.9e-6, images=1.5e-6, both=5.1e-6, number=87),
    "digits, from scratch": Components(seeds=4.9e-3, images=1e-5, both=4.4e-4, number=80),
    "no interaction": Components(seeds=9e-6, images=1e-6, both=0.0, number=80),  # the hardest case for one interval
}
SEEDS, IMAGES, LOSSES, EFFECTS = (3, 5, 8, 12, 20), (80, 300, 1000, 5000), (1, 10, 40), (0.0, 0.0025, 0.005, 0.01, 0.02)
KURTOSIS = 6.0  # of what single images contribute: most contribute nothing, a few much; a normal distribution has 3
_LEVELS = np.exp(np.linspace(0.0, np.log(1e-9), 4000))  # of p, falling


def make_truth(folder, images=30, boxes=6, size=256, classes=3, seed=0):
    """COCO annotations of random boxes; returns what a run record says of them."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images + 1):
        for _ in range(boxes):
            w, h = rng.uniform(12, 110, 2)
            x, y = rng.uniform(0, size - w), rng.uniform(0, size - h)
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": int(rng.integers(1, classes + 1)),
                                "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})  # fmt: skip
    names = ("red", "white", "platelet", "other")
    data = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": size, "height": size} for k in range(1, images + 1)],
        "categories": [{"id": k, "name": names[k - 1]} for k in range(1, classes + 1)],
        "annotations": annotations,
    }
    file = Path(folder) / "truth.json"
    file.write_text(json.dumps(data))
    return {"file": str(file), "image_folder": str(folder)}


def detect(truth, error, seed):
    """COCO results of a detector whose boxes are off by ``error`` of their sides."""
    rng = np.random.default_rng(seed)
    found = []
    for item in truth.annotations:
        x, y, w, h = item["bbox"]
        if rng.random() < 0.9:
            dx, dy, dw, dh = rng.normal(0, error, 4)
            box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
            found.append((item["image_id"], item["category_id"], box, float(np.clip(rng.normal(0.6, 0.2), 0.01, 0.99))))
        if rng.random() < 0.5:
            box = [*rng.uniform(0, 150, 2), *rng.uniform(10, 100, 2)]
            found.append((item["image_id"], item["category_id"], box, float(rng.beta(1, 4))))
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, (i, c, [float(v) for v in b], s), strict=True)) for i, c, b, s in found]


def p_values(distance, seeds_part, images_part, seeds_df, images_df):
    """`statistics.p_value` for arrays, to the next of 4,000 levels above."""
    first, second = (stats.t.isf(_LEVELS / 2, df) ** 2 for df in (seeds_df, images_df))
    low, high = np.zeros(distance.shape, dtype=int), np.full(distance.shape, len(_LEVELS) - 1)
    while (high - low > 1).any():  # the interval of this level still holds zero: p is larger
        middle = (low + high) // 2
        outside = first[middle] * seeds_part + second[middle] * images_part < distance**2
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return _LEVELS[low]


def holm(p):
    """Holm's p values along the last axis."""
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps, axis=-1), 1)
    found = np.empty_like(p)
    np.put_along_axis(found, order, adjusted, -1)
    return found


def draw(rng, trials, components, seeds, images, losses, effect):
    """Differences, and both parts of their variances as they would be estimated: trials x losses each."""
    ratio = components.number / images
    # Half of each variance is the loss's and half the baseline's, which all losses share.
    of_seeds = rng.normal(0, (components.seeds / 2) ** 0.5, (trials, losses + 1, seeds))
    of_both = rng.normal(0, (components.both * ratio / 2) ** 0.5, (trials, losses + 1, seeds))
    of_images = rng.normal(0, (components.images * ratio / 2) ** 0.5, (trials, losses + 1, 1))
    runs = of_seeds + of_both + of_images
    apart = runs[:, 1:] - runs[:, :1]
    apart[:, 0] += effect
    within = (components.images + components.both / seeds) * ratio / 2
    df = 2 * (images - 1) / (KURTOSIS - 1)
    resampled = within * rng.chisquare(df, (trials, losses + 1)) / df
    return apart.mean(axis=2), apart.var(axis=2, ddof=1) / seeds, resampled[:, 1:] + resampled[:, :1]


def rates(rng, trials, components, seeds, images, losses, effect):
    """The shares of trials in which the planted loss is called this or that, and any other one is called different."""
    mean, by_seeds, by_images = draw(rng, trials, components, seeds, images, losses, effect)
    p = holm(p_values(np.abs(mean), by_seeds, by_images, seeds - 1, images - 1))
    called = (p < 0.05) * np.sign(mean)
    level = [stats.t.isf(0.05, df) ** 2 for df in (seeds - 1, images - 1)]
    inside = np.abs(mean) + np.sqrt(level[0] * by_seeds + level[1] * by_images) < MARGIN
    others = called if effect == 0 else called[:, 1:]
    return {
        "better": (called[:, 0] > 0).mean(),
        "worse": (called[:, 0] < 0).mean(),
        "equal": ((called[:, 0] == 0) & inside[:, 0]).mean(),
        "interval90_within_margin": inside[:, 0].mean(),
        "any_false": (others != 0).any(axis=1).mean() if others.size else 0.0,
    }


def whole(trials, images, seeds, shift, seed=0):
    """The same rates of made detectors, on new images and with new seeds in every trial; one loss."""
    rng = np.random.default_rng(seed)
    weights = image_weights(images, resamples=200)
    said, means = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in tqdm(range(trials), desc=f"{images} images, {seeds} seeds, shift {shift}", file=sys.stderr):
            truth = Truth(make_truth(folder, images=images, seed=rng.integers(2**32)))
            values, draws = ({}, {}), ({}, {})
            for group, number in itertools.product((0, 1), range(seeds)):
                error = max(0.12 + rng.normal(0, 0.006) - group * shift, 0.01)
                found = Truth.table(detect(truth, error, rng.integers(2**32)))
                ap = mean_over_classes(class_values(truth.boxes.match(found), weights))
                values[group][number], draws[group][number] = float(ap[0]), ap
            told = difference(values[1], values[0], draws[1], draws[0], images)
            means.append(told.mean)
            said.append((verdict(told, told.p), told.interval90.low > -MARGIN and told.interval90.high < MARGIN))
    words = [word for word, _ in said]
    found = {word: words.count(word) / trials for word in ("better", "worse", "equal")}
    found["interval90_within_margin"] = float(np.mean([inside for _, inside in said]))
    found["any_false"] = found["better"] + found["worse"] if shift == 0 else 0.0
    return float(np.mean(means)), found


def row(part, name, seeds, images, losses, effect, trials, found):
    """A line of the table."""
    return {"part": part, "set": name, "seeds": seeds, "images": images, "losses": losses, "planted": f"{effect:.4g}",
            "trials": trials, **{key: f"{value:.4f}" for key, value in found.items()},
            "noise": f"{2 * (0.05 * 0.95 / trials) ** 0.5:.4f}"}  # fmt: skip


def faults(rows):
    """The rows in which a rate that should be at most 5% is above that by more than chance allows over so many rows."""
    found = []
    for line in rows:
        checked = [float(line["any_false"])]
        if float(line["planted"]) >= MARGIN and line["part"] == "variances":
            checked.append(float(line["interval90_within_margin"]))
        bar = stats.binom.isf(0.01 / len(rows), int(line["trials"]), 0.05) / int(line["trials"])
        if max(checked) > bar:
            found.append(line)
    return found


def picture(rows, path):
    """Power over the planted difference, a curve per number of seeds, a panel per number of images; one loss and ten."""
    figure = Figure(figsize=(3.2 * len(IMAGES), 6.2), layout="constrained")
    grid = figure.subplots(2, len(IMAGES), sharex=True, sharey=True)
    name = next(iter(SETS))
    for line, losses in zip(grid, (1, 10), strict=True):
        for axes, images in zip(line, IMAGES, strict=True):
            for seeds in SEEDS:
                curve = [(100 * float(r["planted"]), float(r["better"])) for r in rows if r["part"] == "variances"
                         and (r["set"], r["seeds"], r["images"], r["losses"]) == (name, seeds, images, losses)]  # fmt: skip
                axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=f"{seeds} seeds")
            axes.axhline(0.8, color="grey", linestyle=":", linewidth=1)
            axes.set_title(f"{images} images, {losses} loss{'es' * (losses > 1)}", fontsize=10)
            axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("planted difference, AP points")
    for axes in grid[:, 0]:
        axes.set_ylabel("called better")
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(f"Which difference is found? ({name}; dotted: 8 of 10 cases)", fontsize=11)
    figure.savefig(path, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000, help="of each row with variances")
    parser.add_argument(
        "--whole", type=int, default=200, help="of each row with equal made detectors, a fourth of it for others"
    )
    parser.add_argument("--out", default="benchmarks/verdict.csv")
    args = parser.parse_args(argv)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = []
    cases = list(itertools.product(SETS.items(), LOSSES, IMAGES, SEEDS, EFFECTS))
    for place, ((name, components), losses, images, seeds, effect) in enumerate(tqdm(cases, file=sys.stderr)):
        rng = np.random.default_rng(place)
        found = rates(rng, args.trials, components, seeds, images, losses, effect)
        rows.append(row("variances", name, seeds, images, losses, effect, args.trials, found))
    for seeds, shift in itertools.product((3, 5), (0.0, 0.03)) if args.whole else ():
        trials = args.whole if shift == 0 else -(-args.whole // 4)
        effect, found = whole(trials, 80, seeds, shift)
        rows.append(row("whole", "made detectors", seeds, 80, 1, effect if shift else 0.0, trials, found))
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "commit"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**line, "commit": commit} for line in rows)
    picture(rows, Path(args.out).with_suffix(".png"))
    wrong = faults(rows)
    for line in wrong:
        print("above 5%:", line)
    print(f"{len(rows)} rows, {len(wrong)} with an error rate above 5%")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
