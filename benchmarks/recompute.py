"""Keep the detections behind a comparison, and hold its verdicts against those that they give; see recompute.sh.

    python benchmarks/recompute.py FOLDER COMPARISON.csv
    python benchmarks/recompute.py --keep FOLDER RUN...

FOLDER has the annotations, ``truth.json``, and the detections of each run, ``GROUP/SEED.json.gz``; ``groups.json`` names the
groups in the order of the table, the baseline first.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

from yolox_loss_patch.compare.comparison import analyse


def keep(folder, words):
    """Copy what the last evaluation of each run detected, and the annotations."""
    comparison = analyse(words)
    shutil.rmtree(folder, ignore_errors=True)
    names = {}
    for place, result in enumerate(comparison.results):
        names[f"group{place}"] = result.label
        (folder / f"group{place}").mkdir(parents=True)
        for run in result.group.runs:
            shutil.copy(run.predictions(), folder / f"group{place}" / f"{run.seed}.json.gz")
    (folder / "groups.json").write_text(json.dumps(names, indent=1) + "\n")
    truth = json.loads(Path(comparison.runs[0].record["data"]["val"]["file"]).read_text())
    (folder / "truth.json").write_text(json.dumps(truth, separators=(",", ":")) + "\n")


def check(folder, table):
    """Compute the verdicts again; 1 where one is not that of the table."""
    groups = json.loads((folder / "groups.json").read_text())
    words = [f"{short}={','.join(map(str, sorted((folder / short).glob('*.json.gz'))))}" for short in groups]
    comparison = analyse(words, truth=str(folder / "truth.json"))
    with open(table, newline="") as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    wrong = 0
    for result in comparison.results[1:]:
        row, found = rows[groups[result.label]], result.difference
        told = [found.mean, found.interval.low, found.interval.high]
        kept = [float(row[f"AP_{name}"]) for name in ("difference", "low", "high")]
        same = row["AP_verdict"] == result.verdict and max(abs(a - b) for a, b in zip(told, kept, strict=True)) < 1e-6
        wrong += not same
        other = "" if same else f", but the table has {kept} {row['AP_verdict']}"
        print(
            f"{folder.name}, {groups[result.label]}: {told[0]:+.4f} [{told[1]:+.4f}, {told[2]:+.4f}] {result.verdict}{other}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1] == "--keep":
        keep(Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(check(Path(sys.argv[1]), sys.argv[2]))
