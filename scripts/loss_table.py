#!/usr/bin/env python3
"""The table of docs/which_loss.md: every loss on every data set, from benchmarks/SET/comparison.csv as `compare` writes it.

    yolox-loss compare 'bccd_nano-*' --out benchmarks/bccd
    python scripts/loss_table.py

The last column is the newest measurement in benchmarks/stage.csv (scripts/bench_stage.py; 20 boxes an image).
"""

import csv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETS = {
    "bccd_finetune": "Blood cells (BCCD), from a trained network",
    "digits_finetune": "Digits, from a trained network",
    "bccd": "Blood cells (BCCD), from scratch",
    "digits": "Digits, from scratch",
}
HEADER = (
    "losses", "seeds", "AP", "difference to stock", "95% over seeds", "95% over images", "verdict",
    "AP50", "AP75", "AP90", "AP small", "AP medium", "AP large", "time of the loss stage, YOLOX's = 1",
)  # fmt: skip


def number(text, form="{:.3f}"):
    """COCO's -1, and nothing, is a dash: no box of that size."""
    return "-" if not text or float(text) < -0.99 else form.format(float(text))


def times():
    """Group of a comparison -> time of the loss stage against that of the YOLOX it patches."""
    with (ROOT / "benchmarks" / "stage.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["boxes"] == "20" and row["host"].startswith("yolox 0.3.0")]
    return {row["losses"].removeprefix("loss_").replace("=", " "): row["ratio"] for row in found}


def rows(path):
    """The cells of a comparison, stock first and then by AP."""
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    stage = times()
    found.sort(key=lambda row: (row["AP_verdict"] != "baseline", -float(row["AP_last"])))
    for row in found:
        spread = f" ± {(float(row['AP_last_high']) - float(row['AP_last'])):.3f}" if row["AP_last_high"] else ""
        intervals = [
            f"[{number(row[f'AP_{kind}_low'], '{:+.3f}')}, {number(row[f'AP_{kind}_high'], '{:+.3f}')}]"
            if row[f"AP_{kind}_low"] else "-" for kind in ("seeds", "images")
        ]  # fmt: skip
        yield [
            row["group"], row["runs"], number(row["AP_last"]) + spread, number(row["AP_difference"], "{:+.3f}"), *intervals,
            row["AP_verdict"],
            *(number(row[f"{name}_last"]) for name in ("AP50", "AP75", "AP90", "AP_small", "AP_medium", "AP_large")),
            number(stage.get(row["group"])),
        ]  # fmt: skip


def markdown():
    """All tables."""
    parts = []
    for folder, title in SETS.items():
        lines = [HEADER, ["---"] * len(HEADER), *rows(ROOT / "benchmarks" / folder / "comparison.csv")]
        parts.append(f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(markdown())
