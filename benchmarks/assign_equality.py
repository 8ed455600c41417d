#!/usr/bin/env python3
"""Compare the fast label assignment with the installed YOLOX's own on random images; the result goes to a CSV file.

    python benchmarks/assign_equality.py                       10,000 images, some minutes
    python benchmarks/assign_equality.py --images 200 --seed 7 --output ""

An image is a mismatch unless foreground mask, matched boxes, classes and the bits of the IoUs are all equal. The images
have 1 to 300 boxes (tiny, huge, outside, duplicate, without area), 1 to 80 classes, 96 to 640 pixels a side, and
predictions of an untrained, a half-trained, a wild, a saturated and a constant network. Where the host stops with an
error because no anchor is near any box, the image counts as refused, and ours must match nothing.

The exit status is 0 if there was no mismatch.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import math
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from yolox_loss_patch.head import hosts
from yolox_loss_patch.head.assign import RULE_0_3_0, RULE_MAIN, Assignment, Rule, fast_assign, host_assign

ROOT = Path(__file__).resolve().parent.parent
STRIDES = (8, 16, 32)
NETWORKS = ("untrained", "trained", "wild", "saturated", "constant")
BOXES = ("any", "tiny", "huge", "outside", "duplicate", "empty")
USUAL_WORK = 1_000_000  # boxes x anchors x classes: what the host walks through for an image
LARGE_WORK = 30_000_000  # one image in 200


def random_scene(seed: int, images: int = 1, device: str = "cpu") -> dict[str, Tensor]:
    """A random batch of images of one size as the arguments of `fast_assign`; the same seed gives the same batch."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def log_integer(low: int, high: int) -> int:
        return int(low * (high / low + 0.5 / low) ** float(uniform(1)))

    def pick(names: tuple[str, ...]) -> str:
        return names[int(uniform(1) * len(names))]

    work = LARGE_WORK if float(uniform(1)) < 0.005 else USUAL_WORK
    while True:
        height, width = 32 * log_integer(3, 20), 32 * log_integer(3, 20)
        classes, most = log_integer(1, 80), log_integer(1, 300)
        anchors = sum((height // s) * (width // s) for s in STRIDES)
        if anchors * classes * most <= work:
            break

    grids = [torch.meshgrid(torch.arange(height // s), torch.arange(width // s), indexing="ij") for s in STRIDES]
    x = torch.cat([grid[1].flatten() for grid in grids]).float()
    y = torch.cat([grid[0].flatten() for grid in grids]).float()
    stride = torch.cat([torch.full((grid[0].numel(),), float(s)) for grid, s in zip(grids, STRIDES, strict=True)])
    centre = torch.stack([(x + 0.5) * stride, (y + 0.5) * stride], 1)

    labels = torch.zeros(images, most + 2, 5)
    outputs = torch.empty(images, anchors, 5 + classes)
    for i in range(images):
        kind, network = pick(BOXES), pick(NETWORKS)
        number = most if i == 0 else log_integer(1, most)
        size = torch.tensor([width, height])
        low, high = {"tiny": (1.0, 12.0), "huge": (100.0, 2000.0)}.get(kind, (4.0, 0.7 * max(width, height)))
        wh = torch.exp(math.log(low) + uniform(number, 2) * math.log(high / low))
        cxcy = uniform(number, 2) * size
        if kind == "outside":
            cxcy = (uniform(number, 2) * 1.4 - 0.2) * size
        elif kind == "empty":
            wh = wh * (uniform(number, 2) < 0.7)
        if float(uniform(1)) < 0.5:
            wh, cxcy = wh.round(), cxcy.round()
        boxes = torch.cat([torch.floor(uniform(number, 1) * classes), cxcy, wh], 1)
        if kind == "duplicate":
            copied = uniform(number) < 0.5
            source = (uniform(number) * number).long()
            start = 1 if float(uniform(1)) < 0.5 else 0  # of another class, or entirely alike
            boxes[copied, start:] = boxes[source[copied], start:]
        labels[i, :number] = boxes

        spread = {"untrained": 0.1, "trained": 0.4, "wild": 1.5, "saturated": 0.5, "constant": 0.0}[network]
        offset = normal(anchors, 4) * spread
        pred = torch.cat(
            [(torch.stack([x, y], 1) + offset[:, :2]) * stride[:, None], offset[:, 2:].exp() * stride[:, None]], 1
        )
        logits = normal(anchors, 1 + classes) * {"wild": 5.0, "saturated": 40.0}.get(network, spread) - 4.6
        if network in ("trained", "saturated"):
            # an anchor near a box predicts that box, more or less
            distance = ((centre[:, None] - boxes[:, 1:3]) / boxes[:, 3:5].clamp(min=8)).abs().amax(2)
            closest, which = distance.min(1)
            near = closest < 0.6
            target = boxes[which, 1:5]
            jitter = normal(anchors, 4) * 0.15
            guess = torch.cat(
                [target[:, :2] + jitter[:, :2] * target[:, 2:], (target[:, 2:] * jitter[:, 2:].exp()).clamp(min=0.1)], 1
            )
            pred[near] = guess[near]
            logits[near, 0] += 6 * uniform(anchors)[near]
            logits[near, 1 + boxes[which, 0].long()[near]] += 8 * uniform(anchors)[near]
        outputs[i] = torch.cat([pred, logits], 1)
    outputs = outputs.to(device)
    return {
        "bbox_preds": outputs[:, :, :4],
        "obj_preds": outputs[:, :, 4:5],
        "cls_preds": outputs[:, :, 5:],
        "labels": labels.to(device),
        "x_shifts": x.unsqueeze(0).to(device),
        "y_shifts": y.unsqueeze(0).to(device),
        "expanded_strides": stride.unsqueeze(0).to(device),
    }


def same(a: Assignment, b: Assignment) -> bool:
    """Equal in every match and in every bit of the IoUs."""
    if (a.num_fg, a.num_gt) != (b.num_fg, b.num_gt):
        return False
    names = ("fg_mask", "image", "matched_gt", "classes", "ious", "boxes")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def host_rule(head: Any) -> Rule:
    """The rule of a head by the signature of its `get_assignments`."""
    old = "total_num_anchors" in inspect.signature(head.get_assignments).parameters
    return RULE_0_3_0 if old else RULE_MAIN


def compare(head: Any, scene: dict[str, Tensor], rule: Rule) -> str:
    """ "equal", "mismatch" or "refused" (the host stopped with an error and ours matched nothing)."""
    head.num_classes = scene["cls_preds"].shape[2]
    ours = fast_assign(**scene, rule=rule)
    try:
        theirs = host_assign(head, **scene)
    except (RuntimeError, IndexError):  # no candidate at all
        return "refused" if ours.num_fg == 0 else "mismatch"
    return "equal" if same(ours, theirs) else "mismatch"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed, one an image (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to compare (default: %(default)s)")
    parser.add_argument(
        "--output",
        default=str(ROOT / "benchmarks" / "assign_equality.csv"),
        help="CSV file to append a row to, empty for none (default: benchmarks/assign_equality.csv)",
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    head = hosts.head_class()(80, width=0.125)
    rule = host_rule(head)

    seen: Counter[str] = Counter()
    boxes = 0
    begin = time.perf_counter()
    bar = tqdm(range(args.seed, args.seed + args.images), unit="image")
    for seed in bar:
        scene = random_scene(seed, device=args.device)
        result = compare(head, scene, rule)
        seen[result] += 1
        boxes += int((scene["labels"].sum(2) > 0).sum())
        if result == "mismatch":
            tqdm.write(f"mismatch: seed {seed}")
            bar.set_postfix(mismatches=seen["mismatch"])
    device = args.device if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    row = {
        "host": hosts.describe()["name"],
        "torch": torch.__version__,
        "device": device,
        "seeds": f"{args.seed}-{args.seed + args.images - 1}",
        "images": args.images,
        "boxes": boxes,
        "refused_by_host": seen["refused"],
        "mismatches": seen["mismatch"],
        "seconds": round(time.perf_counter() - begin),
    }
    print(", ".join(f"{key} {value}" for key, value in row.items()))
    if args.output:
        path = Path(args.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
    return 1 if seen["mismatch"] else 0


if __name__ == "__main__":
    sys.exit(main())
