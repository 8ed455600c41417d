#!/usr/bin/env python3
"""How long importing the kit takes after torch, and how long ``yolox-loss --help`` takes; writes startup.csv.

    .venv/bin/python benchmarks/startup.py [--repeats 15] [--out benchmarks/startup.csv]

Every number is the median over fresh processes. Run this on a machine that does nothing else.
"""

import argparse
import csv
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What is measured -> the code that prints seconds, or the command whose whole process is timed.
IMPORT = "import time, torch; start = time.perf_counter(); import yolox_loss_patch; print(time.perf_counter() - start)"
MEASURED = {
    "import yolox_loss_patch after torch": ["-c", IMPORT],
    "yolox-loss --help": ["-m", "yolox_loss_patch", "--help"],
}
# The longest allowed on an idle core, in seconds.
LIMITS = {"import yolox_loss_patch after torch": 0.02, "yolox-loss --help": 0.4}


def seconds(words):
    """Seconds that a fresh process reports, or that the process took where it reports none."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    took = time.perf_counter() - start
    return float(done.stdout) if words[0] == "-c" else took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="processes per number (15)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "startup.csv")
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    rows = []
    for name, words in MEASURED.items():
        seconds(words)  # compiles the modules and fills the file cache
        rows.append({"commit": commit, "python": platform.python_version(), "torch": metadata.version("torch"), "what": name,
                     "seconds": f"{statistics.median(seconds(words) for _ in range(args.repeats)):.4f}"})  # fmt: skip
        print(f"{name}: {rows[-1]['seconds']} s (at most {LIMITS[name]} s)")
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 0 if all(float(row["seconds"]) <= LIMITS[row["what"]] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
