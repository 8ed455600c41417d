#!/usr/bin/env python3
"""Make a small object detection data set in COCO format from real handwritten digits.

The digits are scikit-learn's ``load_digits`` (8x8 scans of digits that people wrote, shipped inside the package, so
nothing is fetched). Each is upscaled smoothly, turned and sheared a little, coloured, and pasted with a longer side of
12-64 px on a cluttered background. The set is meant to behave like a small real one: classes are unbalanced, about one
image in twenty is empty, some strokes are not digits, and train and val share no scan.

    python scripts/make_digits.py --out datasets/digits

    datasets/digits/
      train2017/000000000001.jpg ...      annotations/instances_train2017.json
      val2017/000000100001.jpg ...        annotations/instances_val2017.json
      digits.json                         the arguments that made it; the same call again makes nothing

Three faults of real data sets can be put into the training set; the validation set stays what it is without them:

    --rare      two digits are fifty times rarer relative to the others
    --crowd     half of the images have a heap of digits without labels under one box with iscrowd: 1
    --noisy     a tenth of the labels name another digit; every box has a score, the confidence of its annotator

The same arguments and the same versions of the libraries give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

#: Raised when the drawing changes, so that an older data set is made anew.
RECIPE = 1
RECORD = "digits.json"

NUM_CLASSES = 10
#: How often each digit occurs, relative to the others: "0" is five times as frequent as "4".
CLASS_WEIGHTS = (1.0, 0.55, 0.80, 0.30, 0.20, 0.65, 0.25, 0.90, 0.36, 0.45)
MIN_SIDE, MAX_SIDE = 12, 64  # longer side of a box, pixels
MIN_PER_IMAGE, MAX_PER_IMAGE = 2, 9  # of the images that are not empty
EMPTY_FRACTION = 0.05
MAX_OVERLAP = 0.05  # of the smaller box
VAL_SCANS = 0.3  # share of the scans that only val uses

FAULTS = ("rare", "crowd", "noisy")
RARE_DIGITS = (0, 7)  # the two most frequent, so that a few boxes of them are left
RARER = 50
HEAP_FRACTION = 0.5  # of the images
HEAP_MIN_DIGITS, HEAP_MAX_DIGITS = 5, 9
HEAP_MIN_SIDE, HEAP_MAX_SIDE = 36, 64  # longer side of a heap, pixels
HEAP_DIGIT_MAX_SIDE = 28  # longer side of its digits, from MIN_SIDE on, pixels
HEAP_MAX_OVERLAP = 0.4  # of the smaller of two digits of a heap
WRONG_FRACTION = 0.1
# The annotator's confidence is lower where the label is wrong, but no threshold tells the wrong ones.
RIGHT_SCORES, WRONG_SCORES = (0.5, 1.0), (0.2, 0.8)


def make(
    out: str | Path = "datasets/digits",
    train: int = 480,
    val: int = 80,
    size: int = 160,
    seed: int = 0,
    force: bool = False,
    faults: tuple[str, ...] = (),
) -> bool:
    """Make the data set in ``out``.

    Args:
        out: folder of the data set. A folder with other files in it than an earlier data set of this script is refused.
        train: number of training images.
        val: number of validation images.
        size: side of the square images in pixels, at least 96.
        seed: seed of everything that is drawn.
        force: make it also where the same data set exists.
        faults: of the training set, any of ``rare``, ``crowd`` and ``noisy``.

    Returns:
        True when files were written, False when the same data set was there already.

    Raises:
        ValueError: for counts or a size out of range, or a fault that does not exist.
        FileExistsError: when ``out`` holds something that this script did not make.
    """
    if train < 2 or val < 2:
        raise ValueError(f"train and val must be at least 2 images, got {train} and {val}")
    if size < 96:
        raise ValueError(f"size must be at least 96 px for digits of up to {MAX_SIDE} px, got {size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    for fault in faults:
        if fault not in FAULTS:
            raise ValueError(f"a fault is one of {', '.join(FAULTS)}; got {fault!r}")

    out = Path(out)
    record: dict[str, Any] = {"recipe": RECIPE, "train": train, "val": val, "size": size, "seed": seed}
    if faults:
        record["faults"] = sorted(faults)
    found = read_record(out)
    if found is None and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty and was not made by this script; choose another --out or empty it")
    if not force and found == record and is_complete(out, record):
        return False

    # The record is written last: an interrupted call leaves none, and the empty one put first marks the folder as ours.
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD).write_text("{}\n")
    scans = load_scans(seed)
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        here = faults if split == "train" else ()
        make_split(out, split, count, size, scans[split], [seed, number], 100_000 * number, here)
    (out / RECORD).write_text(json.dumps(record) + "\n")
    return True


def read_record(out: Path) -> dict[str, Any] | None:
    """The arguments that made the data set in ``out``; None when there is no such data set."""
    try:
        found = json.loads((out / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_complete(out: Path, record: dict[str, Any]) -> bool:
    """Whether the annotation files and as many images as the record says are there."""
    return all(
        (out / "annotations" / f"instances_{split}2017.json").is_file()
        and len(list((out / f"{split}2017").glob("*.jpg"))) == record[split]
        for split in ("train", "val")
    )


def load_scans(seed: int) -> dict[str, list[np.ndarray]]:
    """The scans of each class, split: ``{"train": [class 0: (n, 8, 8), ...], "val": [...]}``, values in [0, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)
    rng = np.random.default_rng([seed, 99])
    scans: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for label in range(NUM_CLASSES):
        order = rng.permutation(np.flatnonzero(digits.target == label))
        cut = round(len(order) * VAL_SCANS)
        scans["val"].append(images[order[:cut]])
        scans["train"].append(images[order[cut:]])
    return scans


def make_split(
    out: Path,
    split: str,
    count: int,
    size: int,
    scans: list[np.ndarray],
    seeds: list[int],
    first_id: int,
    faults: tuple[str, ...],
) -> None:
    """Write the images and the annotation file of one split."""
    rng = np.random.default_rng(seeds)
    # The faults have streams of their own, so that they leave everything else as it is drawn without them.
    heap_rng, noise_rng = (np.random.default_rng([*seeds, number]) for number in (1, 2))
    folder = out / f"{split}2017"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    (out / "annotations").mkdir(exist_ok=True)

    per_image = draw_counts(count, rng)
    labels = iter(draw_labels(int(per_image.sum()), rng, RARE_DIGITS if "rare" in faults else ()))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, digits_here in enumerate(per_image):
        image_id = first_id + index + 1
        name = f"{image_id:012d}.jpg"
        picture, boxes = draw_image(size, [next(labels) for _ in range(digits_here)], scans, rng)
        heap = draw_heap(picture, [box for _, box in boxes], scans, heap_rng) if "crowd" in faults else None
        if not cv2.imwrite(str(folder / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(f"could not write {folder / name}")
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
        for label, (x, y, w, h) in boxes if heap is None else [*boxes, heap]:
            annotations.append(
                {
                    "id": first_id * 10 + len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        if heap is not None:
            annotations[-1]["iscrowd"] = 1
    if "noisy" in faults:
        add_noise([item for item in annotations if not item["iscrowd"]], noise_rng)
    coco = {
        "info": {"description": "handwritten digits on clutter", "version": str(RECIPE)},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label)} for label in range(NUM_CLASSES)],
    }
    (out / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(coco))


def draw_counts(count: int, rng: np.random.Generator) -> np.ndarray:
    """How many digits each image has: ~5 % of the images none, the others 2 to 9."""
    empty = max(1, round(count * EMPTY_FRACTION))
    counts = np.concatenate([np.zeros(empty, int), rng.integers(MIN_PER_IMAGE, MAX_PER_IMAGE + 1, count - empty)])
    return rng.permutation(counts)


def draw_labels(total: int, rng: np.random.Generator, rare: tuple[int, ...]) -> list[int]:
    """Classes in the wanted proportions, shuffled. By quota, not by chance, so that a small val has every class."""
    weights = np.asarray(CLASS_WEIGHTS)
    weights[list(rare)] /= RARER
    share = weights / sum(weights)
    quota = np.maximum(1, np.floor(share * total)).astype(int)
    labels = np.repeat(np.arange(NUM_CLASSES), quota)
    missing = max(0, total - len(labels))
    labels = np.concatenate([labels, np.argsort(-share)[np.arange(missing) % NUM_CLASSES]])
    return [int(label) for label in rng.permutation(labels)[:total]]


def draw_image(
    size: int, labels: list[int], scans: list[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """One picture and its boxes: a ``(size, size, 3)`` uint8 array and ``[(label, (x, y, w, h)), ...]`` in pixels."""
    picture = draw_background(size, rng)
    boxes: list[tuple[int, tuple[int, int, int, int]]] = []
    for label in labels:
        scan = scans[label][rng.integers(len(scans[label]))]
        for attempt in range(60):
            # Small ones are as frequent as large ones on a log scale; a full picture takes ever smaller ones.
            side = float(np.exp(rng.uniform(np.log(MIN_SIDE), np.log(MAX_SIDE))))
            side = max(MIN_SIDE, side * 0.96**attempt)
            ink = draw_digit(scan, round(side), rng)
            height, width = ink.shape
            box = (int(rng.integers(1, size - width)), int(rng.integers(1, size - height)), width, height)
            if all(overlap(box, other) <= MAX_OVERLAP for _, other in boxes):
                paste(picture, ink, box, rng)
                boxes.append((label, box))
                break
    return picture, boxes


def draw_heap(
    picture: np.ndarray, boxes: list[tuple[int, int, int, int]], scans: list[np.ndarray], rng: np.random.Generator
) -> tuple[int, tuple[int, int, int, int]] | None:
    """Paste a heap of one digit into the picture, where it covers no labelled box.

    Returns:
        The digit and the box around the heap, (x, y, w, h) in pixels; None where the picture gets no heap.
    """
    if rng.random() >= HEAP_FRACTION:
        return None
    size = picture.shape[0]
    label = int(rng.choice(NUM_CLASSES, p=np.asarray(CLASS_WEIGHTS) / sum(CLASS_WEIGHTS)))
    for _ in range(60):
        width, height = (int(side) for side in rng.integers(HEAP_MIN_SIDE, HEAP_MAX_SIDE + 1, 2))
        x, y = int(rng.integers(1, size - width)), int(rng.integers(1, size - height))
        if any(overlap((x, y, width, height), box) > 0 for box in boxes):
            continue
        heap: list[tuple[int, int, int, int]] = []
        for _ in range(rng.integers(HEAP_MIN_DIGITS, HEAP_MAX_DIGITS + 1)):
            scan = scans[label][rng.integers(len(scans[label]))]
            for _ in range(20):
                ink = draw_digit(scan, int(rng.integers(MIN_SIDE, HEAP_DIGIT_MAX_SIDE + 1)), rng)
                high, wide = ink.shape
                place = (x + int(rng.integers(width - wide + 1)), y + int(rng.integers(height - high + 1)), wide, high)
                if all(overlap(place, other) <= HEAP_MAX_OVERLAP for other in heap):
                    paste(picture, ink, place, rng)
                    heap.append(place)
                    break
        left, top = (min(place[axis] for place in heap) for axis in (0, 1))
        right, bottom = (max(place[axis] + place[axis + 2] for place in heap) for axis in (0, 1))
        return label, (left, top, right - left, bottom - top)
    return None


def add_noise(annotations: list[dict[str, Any]], rng: np.random.Generator) -> None:
    """Give a tenth of the annotations another digit, and each a ``score`` in (0, 1]."""
    wrong = set(rng.permutation(len(annotations))[: round(WRONG_FRACTION * len(annotations))].tolist())
    for number, item in enumerate(annotations):
        if number in wrong:
            item["category_id"] = (item["category_id"] - 1 + int(rng.integers(1, NUM_CLASSES))) % NUM_CLASSES + 1
        item["score"] = round(float(rng.uniform(*(WRONG_SCORES if number in wrong else RIGHT_SCORES))), 3)


def draw_digit(scan: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Ink of one digit in [0, 1], cropped tight to the visible stroke, its longer side ``side`` pixels."""
    scale = 16
    big = cv2.resize(np.pad(scan, 3), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    centre = (big.shape[0] - 1) / 2
    angle, shear, stretch = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15), rng.uniform(0.85, 1.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([1.0, stretch])
    shift = centre - turn @ np.array([centre, centre])
    big = cv2.warpAffine(big, np.column_stack([turn, shift]), big.shape[::-1], flags=cv2.INTER_LINEAR)
    ink = np.clip((big - 0.30) / 0.25, 0.0, 1.0)

    ys, xs = np.nonzero(ink > 0.5)
    ink = ink[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    factor = side / max(ink.shape)
    width, height = (max(3, round(length * factor)) for length in (ink.shape[1], ink.shape[0]))
    shrink = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.clip(cv2.resize(ink, (width, height), interpolation=shrink), 0.0, 1.0)


def paste(picture: np.ndarray, ink: np.ndarray, box: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    """Blend one digit into the picture, in a random colour that stands out from what lies below it."""
    x, y, width, height = box
    below = picture[y : y + height, x : x + width].astype(np.float32)
    ground = float((below @ np.array([0.114, 0.587, 0.299], np.float32)).mean())
    darkest_ink = 15.0 if ground > 127 else min(235.0, ground + 110)
    lightest_ink = max(20.0, ground - 110) if ground > 127 else 245.0
    colour = random_colour(rng, darkest_ink, max(darkest_ink, lightest_ink))
    alpha = ink[..., None]
    picture[y : y + height, x : x + width] = np.round(below * (1 - alpha) + colour * alpha).astype(np.uint8)


def draw_background(size: int, rng: np.random.Generator) -> np.ndarray:
    """A gradient with blotches, lines, boxes, ellipses, strokes that are no digits, and noise."""
    dark, light = (30, 120) if rng.random() < 0.5 else (120, 215)
    start, end = random_colour(rng, dark, light), random_colour(rng, dark, light)
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    ramp = np.clip(0.5 + xs * np.cos(angle) + ys * np.sin(angle), 0, 1)[..., None]
    canvas = start * (1 - ramp) + end * ramp
    cells = int(rng.integers(3, 10))
    blotches = rng.normal(0, rng.uniform(4, 16), (cells, cells, 3)).astype(np.float32)
    canvas = canvas + cv2.resize(blotches, (size, size), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(canvas, 0, 255).astype(np.uint8)

    for _ in range(rng.integers(3, 10)):
        layer = picture.copy()
        draw_clutter(layer, random_colour(rng, dark - 20, light + 20), rng)
        weight = float(rng.uniform(0.25, 0.8))
        picture = cv2.addWeighted(layer, weight, picture, 1 - weight, 0)
    for _ in range(rng.integers(0, 4)):
        draw_distractor(picture, random_colour(rng, 20, 240), rng)

    noisy = picture + rng.normal(0, rng.uniform(2, 9), picture.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def draw_clutter(layer: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    """One line, rectangle or ellipse, larger than most digits."""
    size = layer.shape[0]
    paint = [float(channel) for channel in colour]
    (x1, y1), (x2, y2) = (tuple(int(value) for value in rng.integers(-size // 8, size + size // 8, 2)) for _ in "ab")
    kind = rng.integers(3)
    if kind == 0:
        cv2.line(layer, (x1, y1), (x2, y2), paint, int(rng.integers(1, 6)), cv2.LINE_AA)
    elif kind == 1:
        cv2.rectangle(layer, (x1, y1), (x2, y2), paint, int(rng.choice([-1, 1, 2])), cv2.LINE_AA)
    else:
        axes = (int(rng.integers(size // 10, size // 2)), int(rng.integers(size // 10, size // 2)))
        thickness = int(rng.choice([-1, 1, 2]))
        cv2.ellipse(layer, (x1, y1), axes, float(rng.uniform(0, 180)), 0, 360, paint, thickness, cv2.LINE_AA)


def draw_distractor(picture: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    """A stroke as dark and thick as a digit's that is none: a zigzag or a cross."""
    size = picture.shape[0]
    paint = [float(channel) for channel in colour]
    side = float(rng.uniform(MIN_SIDE, MAX_SIDE))
    centre = rng.uniform(0, size, 2)
    thickness = max(1, round(side / 8))
    if rng.random() < 0.5:
        steps = int(rng.integers(4, 7))
        xs = np.linspace(-0.7, 0.7, steps)
        strokes = [np.column_stack([xs, np.where(np.arange(steps) % 2, 0.3, -0.3)])]
    else:
        strokes = [np.array([[-0.5, -0.5], [0.5, 0.5]]), np.array([[-0.5, 0.5], [0.5, -0.5]])]
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = [np.round(stroke * side @ turn + centre).astype(np.int32) for stroke in strokes]
    cv2.polylines(picture, points, False, paint, thickness, cv2.LINE_AA)


def random_colour(rng: np.random.Generator, darkest: float, lightest: float) -> np.ndarray:
    """A BGR colour, float32, with a luminance in the range; moderately saturated, so that the luminance holds."""
    luminance = rng.uniform(darkest, lightest)
    tint = rng.uniform(-60, 60, 3)
    tint -= tint @ np.array([0.114, 0.587, 0.299])
    return np.clip(luminance + tint, 0, 255).astype(np.float32)


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over the smaller area of two (x, y, w, h) boxes, each grown by a pixel on every side."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]) + 2
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) + 2
    return max(0, width) * max(0, height) / min(a[2] * a[3], b[2] * b[3])


def fingerprint(out: str | Path) -> str:
    """SHA-256 over the names and contents of all files of a data set."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(out).rglob("*") if path.is_file()):
        digest.update(path.relative_to(out).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make a COCO data set of handwritten digits on clutter.")
    parser.add_argument("--out", type=Path, default=Path("datasets/digits"), help="folder to make [%(default)s]")
    parser.add_argument("--train", type=int, default=480, metavar="N", help="training images [%(default)s]")
    parser.add_argument("--val", type=int, default=80, metavar="N", help="validation images [%(default)s]")
    parser.add_argument("--size", type=int, default=160, metavar="PX", help="side of the images [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn [%(default)s]")
    for fault, text in (
        (
            "rare",
            f"make two digits {RARER} times rarer relative to the others in the training set",
        ),
        ("crowd", "put heaps of digits without labels, under boxes with iscrowd: 1, into the training set"),
        ("noisy", "make a tenth of the training labels wrong, and give each box a score"),
    ):
        parser.add_argument(f"--{fault}", action="append_const", dest="faults", const=fault, help=text)
    parser.add_argument("--force", action="store_true", help="make it anew even where the same data set exists")
    args = parser.parse_args(argv)
    try:
        made = make(args.out, args.train, args.val, args.size, args.seed, args.force, tuple(args.faults or ()))
    except (ValueError, OSError) as error:
        print(f"make_digits: {error}", file=sys.stderr)
        return 1
    counts = f"{args.train} training and {args.val} validation images of {args.size}x{args.size}"
    print(f"{args.out}: {counts}, {'made' if made else 'there already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
