"""Time and peak memory of each loss, forward and backward, beside its twin in torchvision.ops where it has one.

    python scripts/bench_losses.py --out benchmarks/losses.csv [--device cpu] [--repeats 30] [--only giou,focal]

The two of a pair alternate in one run, so that whatever else the machine does hits both. A row is the median of the
repeats; memory is the peak of what the allocator hands out between the input and the gradient.
"""

import argparse
import csv
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

import yolox_loss_patch as ylp

LOGITS = {"8x8400": (8 * 8400, 1)}
BOXES = {"1k": 1_000, "10k": 10_000, "100k": 100_000}
TWINS = {
    "focal": "sigmoid_focal_loss",
    "giou": "generalized_box_iou_loss",
    "diou": "distance_box_iou_loss",
    "ciou": "complete_box_iou_loss",
}
FAMILY = ("focal", "varifocal", "quality_focal")  # all held against torchvision's focal
KNOBS = {"mpdiou": {"image_size": (640, 640)}}


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
    loss = ylp.build_loss(term, {"type": name, **KNOBS.get(name, {})})
    return lambda pred, target: loss(pred, target, avg_factor=None)


def theirs(name):
    ops = __import__("torchvision.ops", fromlist=["ops"])
    if name in FAMILY:
        return lambda pred, target: ops.sigmoid_focal_loss(pred, target, reduction="mean")
    function = getattr(ops, TWINS[name])
    # YOLOX's boxes are centre and size: whoever uses torchvision's loss converts them
    return lambda pred, target: function(xyxy(pred), xyxy(target), reduction="mean")


def step(loss, pred, target):
    pred = pred.detach().requires_grad_()
    loss(pred, target).backward()
    return pred.grad


def seconds(loss, pred, target, device):
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(loss, pred, target)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="benchmarks/losses.csv")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--only", help="names, with commas")
    args = parser.parse_args()
    device = args.device
    where = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)"
    rows = []
    for term, sizes in (("obj", LOGITS), ("iou", BOXES)):
        for name in ylp.available_losses()[term]:
            if args.only and name not in args.only.split(","):
                continue
            for label, size in sizes.items():
                pred, target = inputs(term, size, device)
                losses = {"ours": ours(term, name)}
                if name in TWINS or name in FAMILY:
                    losses["torchvision"] = theirs(name)
                times = {who: [] for who in losses}
                for repeat in range(args.repeats + 3):
                    for who, loss in losses.items():
                        took = seconds(loss, pred, target, device)
                        if repeat >= 3:  # the first ones warm up
                            times[who].append(took)
                row = {"loss": name, "term": term, "size": label, "device": where, "torch": torch.__version__}
                for who, loss in losses.items():
                    row[f"{who}_ms"] = f"{statistics.median(times[who]) * 1e3:.3f}"
                    row[f"{who}_MiB"] = f"{peak(loss, pred, target, device) / 2**20:.3f}"
                if "torchvision" in losses:
                    row["time_ratio"] = f"{statistics.median(times['ours']) / statistics.median(times['torchvision']):.2f}"
                    row["memory_ratio"] = f"{float(row['ours_MiB']) / float(row['torchvision_MiB']):.2f}"
                rows.append(row)
                print("  ".join(f"{key}={value}" for key, value in row.items() if key not in ("device", "torch")), flush=True)
    columns = ["loss", "term", "size", "ours_ms", "torchvision_ms", "time_ratio", "ours_MiB", "torchvision_MiB",
               "memory_ratio", "device", "torch"]  # fmt: skip
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
