"""Time and peak memory of each loss, forward and backward, beside the same loss in torchvision.ops and in ultralytics.

    python benchmarks/losses.py --out benchmarks/losses.csv [--device cpu] [--repeats 100] [--only giou,focal]

ultralytics is compared with when it is found; it is no dependency. To have it aside, and not touch the environment:

    pip install --no-deps --target PEER ultralytics pyyaml requests urllib3 idna certifi charset-normalizer
    python benchmarks/losses.py --peer-path PEER

Those of a row alternate in one run, in a new order each time, so that whatever else the machine does hits all of them; and
they have to give the same number. A row is the fastest of the repeats, because others only add. With one thread on the CPU
the time is the thread's own, which stands still while other processes have the processor; else it is that of the clock.
Memory is the peak of what the allocator hands out between the input and the gradient. A ratio is ours by theirs: below 1,
ours takes less.
"""

import argparse
import csv
import importlib.metadata
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from torch.profiler import ProfilerActivity, profile

import yolox_loss_patch as ylp

LOGITS = {"8x8400": (8 * 8400, 1)}
BOXES = {"1k": 1_000, "10k": 10_000, "100k": 100_000}
FAMILY = ("varifocal", "quality_focal")  # not in torchvision: held against its focal
KNOBS = {"mpdiou": {"image_size": (640, 640)}}
COLUMNS = ("loss", "term", "size", "ours_ms", "torchvision_ms", "time_ratio", "ours_MiB", "torchvision_MiB",
           "memory_ratio", "peer", "peer_ms", "peer_time_ratio", "peer_MiB", "peer_memory_ratio", "device", "torch",
           "torchvision", "commit")  # fmt: skip


def xyxy(boxes):
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


def inputs(term, size, device):
    g = torch.Generator().manual_seed(0)
    if term == "obj":
        pred = torch.randn(size, generator=g) * 2 - 4.6
        target = (torch.rand(size, generator=g) < 0.003).float()
    else:
        target = torch.rand(size, 4, generator=g) * 200 + 20
        pred = target * (1 + 0.2 * torch.randn(size, 4, generator=g))
    return pred.to(device), target.to(device)


def ours(term, name):
    return ylp.build_loss(term, {"type": name, **KNOBS.get(name, {})})


def in_torchvision():
    """The same losses, by name. YOLOX's boxes are centre and size: whoever uses torchvision's converts them."""
    ops = torchvision.ops

    def boxes(function):
        return lambda pred, target: function(xyxy(pred), xyxy(target), reduction="mean")

    def focal(pred, target):
        return ops.sigmoid_focal_loss(pred, target, reduction="mean")

    twins = {
        "giou": boxes(ops.generalized_box_iou_loss),
        "diou": boxes(ops.distance_box_iou_loss),
        "ciou": boxes(ops.complete_box_iou_loss),
    }
    return {**twins, **dict.fromkeys(("focal", *FAMILY), focal)}


def in_ultralytics(path):
    """The same losses, by name, and what to call them; nothing where ultralytics is not installed."""
    if path:
        sys.path.append(str(Path(path).resolve()))  # behind the environment's own packages
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())  # it writes settings when it is imported
    try:
        from ultralytics.utils.loss import FocalLoss, VarifocalLoss
        from ultralytics.utils.metrics import bbox_iou
    except ImportError as error:
        if path:
            sys.exit(f"--peer-path {path}: {error}. This script's docstring says what to install there.")
        return {}, ""
    focal, varifocal = FocalLoss(gamma=2.0, alpha=0.25), VarifocalLoss(gamma=2.0, alpha=0.75)
    twins = {
        "focal": lambda pred, target: focal(pred, target) / len(pred),
        "varifocal": lambda pred, target: varifocal(pred, target, (target > 0).float()) / len(pred),
        "iou": lambda pred, target: (1 - bbox_iou(pred, target) ** 2).mean(),
        "giou": lambda pred, target: (1 - bbox_iou(pred, target, GIoU=True)).mean(),
        "diou": lambda pred, target: (1 - bbox_iou(pred, target, DIoU=True)).mean(),
        "ciou": lambda pred, target: (1 - bbox_iou(pred, target, CIoU=True)).mean(),
    }
    return twins, f"ultralytics {importlib.metadata.version('ultralytics')}"


def step(loss, pred, target):
    pred = pred.detach().requires_grad_()
    loss(pred, target).backward()
    return pred.grad


def seconds(loss, pred, target, device):
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    step(loss, pred, target)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def peak(loss, pred, target, device):
    """Bytes at the highest point of a step, over what stood before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, pred, target)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        step(loss, pred, target)
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    highest = level = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest


def measure(losses, pred, target, device, repeats):
    """The fewest seconds and the peak bytes of each of ``losses``."""
    times = {who: [] for who in losses}
    order = random.Random(0)
    for repeat in range(repeats + 3):
        for who, loss in order.sample(list(losses.items()), len(losses)):
            took = seconds(loss, pred, target, device)
            if repeat >= 3:  # the first ones warm up
                times[who].append(took)
    return {who: (min(times[who]), peak(loss, pred, target, device)) for who, loss in losses.items()}


def check_same(name, losses, pred, target):
    """A race between different losses would mean nothing."""
    for who in losses.keys() - {"ours"}:
        if not (who == "torchvision" and name in FAMILY):
            want, loss = losses["ours"](pred, target), losses[who]
            torch.testing.assert_close(loss(pred, target), want, rtol=1e-3, atol=0, msg=f"{name}: {who} differs")


def commit():
    """The commit that is measured."""
    here = Path(__file__).resolve().parent

    def git(*words):
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+dirty" if git("status", "--porcelain", "-uno") else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="benchmarks/losses.csv")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--only", help="names, with commas")
    parser.add_argument("--peer-path", help="folder with ultralytics, see the docstring")
    args = parser.parse_args()
    device = args.device
    twins = in_torchvision()
    peers, peer = in_ultralytics(args.peer_path)
    where = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)"
    fixed = {
        "device": where,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": commit(),
    }
    rows = []
    for term, sizes in (("obj", LOGITS), ("iou", BOXES)):
        for name in ylp.available_losses()[term]:
            if args.only and name not in args.only.split(","):
                continue
            for label, size in sizes.items():
                pred, target = inputs(term, size, device)
                others = {"torchvision": twins.get(name), "peer": peers.get(name)}
                losses = {"ours": ours(term, name), **{who: loss for who, loss in others.items() if loss}}
                check_same(name, losses, pred, target)
                got = measure(losses, pred, target, device, args.repeats)
                row = {"loss": name, "term": term, "size": label}
                for who, (took, held) in got.items():
                    row[f"{who}_ms"] = f"{took * 1e3:.3f}"
                    row[f"{who}_MiB"] = f"{held / 2**20:.3f}"
                    if who != "ours":
                        ratio = "" if who == "torchvision" else "peer_"
                        row[f"{ratio}time_ratio"] = f"{got['ours'][0] / took:.2f}"
                        row[f"{ratio}memory_ratio"] = f"{got['ours'][1] / held:.2f}"
                print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
                rows.append({**row, **({"peer": peer} if "peer" in got else {}), **fixed})
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
