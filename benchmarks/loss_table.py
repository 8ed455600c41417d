#!/usr/bin/env python3
"""The tables of docs/which_loss.md and docs/from_scratch.md and the picture of the former: every loss on every data set,
from benchmarks/SET/comparison.csv as `compare` writes it.

    yolox-loss compare 'bccd_nano-*' --out benchmarks/bccd
    python benchmarks/loss_table.py

The last column is the newest measurement in benchmarks/stage.csv (benchmarks/stage.py; 20 boxes per image).
"""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "which_loss": {
        "bccd_finetune": "Blood cells (BCCD), from a trained network",
        "bccd_catalogue": "Blood cells (BCCD), from another trained network",
        "bccd_scores": "Blood cells (BCCD), losses of a score, from a third trained network",
        "digits_finetune": "Digits, from a trained network",
        "digits_catalogue": "Digits, from another trained network",
        "digits_scores": "Digits, losses of a score, from a third trained network",
        "digits_newcls": "Digits, from a trained network, classes anew",
        "digits_one": "Digits, one class, one size, from a trained network",
        "bccd_one": "Blood cells (BCCD), one class, one size, from a trained network",
        "digits_one_multi": "Digits, one class, many sizes, from a trained network",
        "digits_fixed": "Digits, ten classes, one size, from a trained network",
    },
    "from_scratch": {
        "bccd": "Blood cells (BCCD), from scratch",
        "digits": "Digits, from scratch",
        "bccd_scratch": "Blood cells (BCCD), losses of a score, from scratch",
        "digits_scratch": "Digits, box losses, from scratch",
        "digits_pair": "Digits, varifocal and CIoU, from scratch",
    },
}
LIMITS = (-0.03, 0.03)
TICKS = (-0.02, -0.01, 0, 0.01, 0.02)
# A loss that is in several sets of a column is drawn as the last of them has it.
DRAWN = {
    "Blood cells (BCCD)": ("bccd_finetune", "bccd_catalogue", "bccd_scores"),
    "Digits": ("digits_finetune", "digits_catalogue", "digits_scores"),
}
TERMS = ("obj", "cls", "iou", "l1")
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
    return {row["losses"].removeprefix("loss_").replace("=", " ", 1): row["ratio"] for row in found}


def comparison(folder):
    """The rows that `compare` wrote."""
    with (ROOT / "benchmarks" / folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rows(found):
    """The cells of a comparison, stock first and then by AP."""
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


def tables(page):
    """Heading -> table, of a page."""
    found = {}
    for folder, title in PAGES[page].items():
        lines = [HEADER, ["---"] * len(HEADER), *rows(comparison(folder))]
        found[f"### {title}"] = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return found


def written(text, page):
    """The page's text with the tables of today: under each heading the first table is replaced."""
    for heading, table in tables(page).items():
        before, found, after = text.partition(f"{heading}\n")
        if not found:
            raise SystemExit(f"docs/{page}.md has no heading {heading!r}")
        text = (
            before + found + re.sub(r"(?:^\|.*\n)+", lambda _, table=table: table, after, count=1, flags=re.MULTILINE)
        )
    return text


def draw(path):
    """Difference to stock from a trained network: a row a loss, a column a data set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = {
        title: {row["group"]: row for folder in both for row in comparison(folder)} for title, both in DRAWN.items()
    }
    groups = {group for found in sets.values() for group in found if group.split()[0] in TERMS}

    def order(group):
        differences = [float(found[group]["AP_difference"]) for found in sets.values() if group in found]
        return -TERMS.index(group.split()[0]), sum(differences) / len(differences)

    names = sorted(groups, key=order)
    figure, columns = plt.subplots(
        1, len(sets), figsize=(10, 1.2 + 0.19 * len(names)), sharey=True, layout="constrained"
    )
    for axes, (title, found) in zip(columns, sets.items(), strict=True):
        for y, name in enumerate(names):
            if name not in found:
                continue
            row = found[name]
            colour = {"better": "#1a7f37", "worse": "#b3261e"}.get(row["AP_verdict"], "#44546a")
            for kind, width, alpha in (("images", 5, 0.3), ("seeds", 1.3, 1.0)):
                if row[f"AP_{kind}_low"]:
                    axes.plot(
                        [float(row[f"AP_{kind}_low"]), float(row[f"AP_{kind}_high"])], [y, y],
                        color=colour, linewidth=width, alpha=alpha, solid_capstyle="butt",
                    )  # fmt: skip
            axes.plot(float(row["AP_difference"]), y, "o", color=colour, markersize=3 + float(row["runs"]) ** 0.5)
            axes.annotate(row["runs"], (1, y), xycoords=("axes fraction", "data"), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=7)  # fmt: skip
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlim=LIMITS, ylim=(-0.7, len(names) - 0.3), xlabel="AP, difference to stock", xticks=TICKS)
        axes.set_title(f"{title}, from a trained network", fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for above, below in zip(range(1, len(names)), range(len(names)), strict=False):
            if names[above].split()[0] != names[below].split()[0]:
                axes.axhline(below + 0.5, color="grey", linewidth=0.6, linestyle=":")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    for name in PAGES:
        target = ROOT / "docs" / f"{name}.md"
        target.write_text(written(target.read_text(), name))
    draw(ROOT / "docs" / "which_loss.png")
