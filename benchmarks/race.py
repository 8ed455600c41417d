"""How often the verdicts of a race are wrong, and how many trainings it saves: seeds and images are drawn anew in every trial.

    python benchmarks/race.py [--trials 2000] [--out benchmarks/race.csv]

The model of the runs is that of verdict.py. A race takes looks after 3, 5, 8 and 12 seeds; the full grid trains 12 seeds of every
loss and looks once. ``planted`` is the difference of one loss, the others have none; or "catalogue": the losses differ as the
catalogue's did on that data. ``trainings`` is the share of the full grid's trainings that the race took, ``agree`` the share of
losses with the full grid's verdict, ``contradict`` the share that is better in one and worse in the other.
"""

import argparse
import csv
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from verdict import KURTOSIS, SETS, holm, p_values

from yolox_loss_patch.compare.statistics import MARGIN
from yolox_loss_patch.sweep.race import LOOKS

IMAGES, LOSSES, EFFECTS = (80, 1000), (1, 10), (0.0, 0.0025, 0.005, 0.01, 0.02)
CATALOGUES = {"digits, trained start": "digits_catalogue", "cells, trained start": "bccd_catalogue"}


def draw(rng, trials, components, images, effects):
    """Per-seed differences (trials x losses x seeds), and a function that gives both variance parts after so many seeds."""
    ratio, losses, seeds = components.number / images, len(effects), LOOKS[-1]
    of_seeds = rng.normal(0, (components.seeds / 2) ** 0.5, (trials, losses + 1, seeds))
    of_both = rng.normal(0, (components.both * ratio / 2) ** 0.5, (trials, losses + 1, seeds))
    of_images = rng.normal(0, (components.images * ratio / 2) ** 0.5, (trials, losses + 1, 1))
    runs = of_seeds + of_both + of_images
    apart = runs[:, 1:] - runs[:, :1] + np.asarray(effects)[:, None]
    df = 2 * (images - 1) / (KURTOSIS - 1)
    luck = rng.chisquare(df, (trials, losses + 1)) / df

    def parts(look):
        within = (components.images + components.both / look) * ratio / 2 * luck
        return apart[:, :, :look].var(axis=2, ddof=1) / look, within[:, 1:] + within[:, :1]

    return apart, parts


def verdicts(mean, by_seeds, by_images, look, images, looks):
    """p, whether the difference lies within the margin, and whether nothing more is to be had from further seeds.

    That is so when it is shown not to be better by the margin, and when no verdict is to be expected at the last look.
    """
    p = np.minimum(1, looks * p_values(np.abs(mean), by_seeds, by_images, look - 1, images - 1))
    level = [stats.t.isf(0.05 / looks, df) ** 2 for df in (look - 1, images - 1)]
    reach = np.sqrt(level[0] * by_seeds + level[1] * by_images)
    last = LOOKS[-1]
    between = by_seeds * look  # of one seed
    level, level90 = ([stats.t.isf(share / looks, df) ** 2 for df in (last - 1, images - 1)] for share in (0.025, 0.05))
    end, end90 = (np.sqrt(each[0] * between / last + each[1] * by_images) for each in (level, level90))
    move = 2 * np.sqrt(between * (1 / look - 1 / last))
    nearest, farthest = np.maximum(0, np.abs(mean) - move), np.abs(mean) + move
    hopeless = (farthest < end) & (nearest + end90 >= MARGIN) & (mean - move + end90 >= MARGIN)
    return p, np.abs(mean) + reach < MARGIN, (mean + reach < MARGIN) | hopeless


def full_grid(apart, parts, images):
    """1 better, -1 worse, 2 equal, 0 unclear, of every loss after all seeds."""
    look = LOOKS[-1]
    mean = apart.mean(axis=2)
    p, inside, _ = verdicts(mean, *parts(look), look, images, 1)
    called = (holm(p) < 0.05) * np.sign(mean)
    return np.where(called != 0, called, 2 * inside)


def race(apart, parts, images):
    """The same verdicts by a race, and how many trainings it took in each trial."""
    trials, losses, _ = apart.shape
    p = np.ones((trials, losses))
    sign, equal = np.zeros((trials, losses)), np.zeros((trials, losses), dtype=bool)
    active = np.ones((trials, losses), dtype=bool)
    trainings = np.zeros(trials)
    for number, look in enumerate(LOOKS):
        new = look - (LOOKS[number - 1] if number else 0)
        trainings += new * (active.sum(axis=1) + active.any(axis=1))  # the baseline goes on as long as any loss
        mean = apart[:, :, :look].mean(axis=2)
        here, inside, is_over = verdicts(mean, *parts(look), look, images, len(LOOKS))
        kept = np.where(np.sign(mean) == sign, np.minimum(p, here), here)  # another sign before is no evidence
        p, sign = np.where(active, kept, p), np.where(active, np.sign(mean), sign)
        equal |= active & inside
        called = holm(p) < 0.05
        active &= ~(called | equal | is_over)
    called = (holm(p) < 0.05) * sign
    return np.where(called != 0, called, 2 * equal), trainings


def rates(rng, trials, components, images, effects):
    """The shares of a row."""
    apart, parts = draw(rng, trials, components, images, effects)
    grid = full_grid(apart, parts, images)
    told, trainings = race(apart, parts, images)
    true = np.asarray(effects)
    none = true == 0
    false = (told == 1) & (true <= 0) | (told == -1) & (true >= 0)
    return {
        "better": (told[:, 0] == 1).mean(),
        "equal": (told[:, 0] == 2).mean(),
        "any_false": false.any(axis=1).mean(),
        "false_equal": (told[:, ~none & (np.abs(true) >= MARGIN)] == 2).mean()
        if (np.abs(true) >= MARGIN).any()
        else 0.0,
        "agree": (told == grid).mean(),
        "contradict": (told * grid == -1).mean(),
        "trainings": trainings.mean() / ((len(effects) + 1) * LOOKS[-1]),
    }


def catalogue(name):
    """The differences that the losses of a catalogue showed."""
    path = Path(__file__).parent / name / "comparison.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row["AP_difference"]) for row in rows if row["AP_difference"]]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000, help="of each row; a tenth of it with a catalogue")
    parser.add_argument("--out", default="benchmarks/race.csv")
    args = parser.parse_args(argv)
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    cases = [
        (name, images, losses, f"{effect:g}", [effect, *[0.0] * (losses - 1)], args.trials)
        for name, images, losses, effect in itertools.product(SETS, IMAGES, LOSSES, EFFECTS)
    ]
    for name, folder in CATALOGUES.items():
        effects = catalogue(folder)
        cases += [(name, images, len(effects), "catalogue", effects, -(-args.trials // 10)) for images in IMAGES]
    rows = []
    for place, (name, images, losses, planted, effects, trials) in enumerate(tqdm(cases, file=sys.stderr)):
        found = rates(np.random.default_rng(place), trials, SETS[name], images, effects)
        noise = 2 * (0.05 * 0.95 / trials) ** 0.5
        case = {"set": name, "images": images, "losses": losses, "planted": planted, "trials": trials}
        told = {key: f"{value:.4f}" for key, value in {**found, "noise": noise}.items()}
        rows.append({**case, **told, "commit": commit})
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            *(f"{key} {row[key]}" for key in ("set", "images", "losses", "planted", "any_false", "agree", "trainings")),
            sep=", ",
        )


if __name__ == "__main__":
    main()
