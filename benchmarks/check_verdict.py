"""How often `compare` says "different": of groups that do not differ, and of groups with a planted difference.

    python benchmarks/verdict.py [--trials 1000] [--out benchmarks/verdict.csv]

A made detector stands for a training: it finds the boxes of made images with an error of its own, drawn from its seed, and
adds false alarms. Its detections go the whole way: hotcoco's metrics, the interval over seeds, the bootstrap over images, the
verdict. "Same" draws both groups from one distribution; "planted" moves the second group by several times the seed noise.
"""

import argparse
import csv
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from yolox_loss_patch.compare.detections import Truth
from yolox_loss_patch.compare.statistics import seed_difference, verdict

NOISE = 0.006  # of a training's placement error, as a share of a box's side: one or two hundredths of AP


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


def trial(truth, folder, shift, seeds, rng):
    """The verdict on two groups of trainings, the second with ``shift`` less placement error."""
    files, values = [], []
    for group in (0, 1):
        files.append([])
        values.append({})
        for number in range(seeds):
            error = max(0.12 + rng.normal(0, NOISE) - group * shift, 0.01)
            file = Path(folder) / f"{group}_{number}.json.gz"
            file.write_bytes(
                gzip.compress(json.dumps(detect(truth, error, rng.integers(2**32))).encode(), compresslevel=1)
            )
            files[-1].append(file)
            values[-1][f"seed {number}"] = truth.diagnose(file).metrics["AP"]
    seeds_apart = seed_difference(values[1], values[0])
    # Where seeds alone leave it open the images cannot decide it, and their bootstrap is what takes the time.
    decided = seeds_apart.interval is not None and seeds_apart.interval.sign != 0
    images = truth.image_interval(files[1], files[0], "AP") if decided else None
    return seeds_apart, verdict(seeds_apart, images)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--trials", type=int, default=1000, help="of equal groups; a tenth of it with a planted difference"
    )
    parser.add_argument("--out", default="benchmarks/verdict.csv")
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        truth = Truth(make_truth(folder))
        for name, shift, trials in (("same", 0.0, args.trials), ("planted", 0.04, -(-args.trials // 10))):
            for seeds in (3, 5):
                rng = np.random.default_rng(seeds)
                said, size = {}, []
                for _ in tqdm(range(trials), desc=f"{name}, {seeds} seeds", file=sys.stderr):
                    difference, word = trial(truth, folder, shift, seeds, rng)
                    said[word] = said.get(word, 0) + 1
                    size.append(difference.mean)
                called = (said.get("better", 0) + said.get("worse", 0)) / trials
                row = {"groups": name, "seeds": seeds, "trials": trials, "mean_difference": f"{np.mean(size):.4f}",
                       "better": said.get("better", 0), "worse": said.get("worse", 0), "called_different": f"{called:.3f}",
                       "commit": commit}  # fmt: skip
                rows.append(row)
                print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
