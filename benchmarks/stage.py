#!/usr/bin/env python3
"""Time and memory of YOLOX's loss stage, stock against the kit's: forward and backward of ``get_losses``.

    python benchmarks/stage.py                     # boxes per image, then every loss; appends to benchmarks/stage.csv
    python benchmarks/stage.py --boxes 20 --losses none
    python benchmarks/stage.py --plot              # draws benchmarks/stage.png from the CSV

Stock and kit alternate within one process, so that a machine whose speed drifts slows both; what counts is the ratio of
the medians. Memory is the growth of the process's peak during one call (Linux), or of the allocator's on CUDA.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import statistics
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm
from yolox.models import YOLOXHead

import yolox_loss_patch as ylp
from yolox_loss_patch.head import hosts

ROOT = Path(__file__).resolve().parent.parent
CSV = ROOT / "benchmarks" / "stage.csv"
COLUMNS = (
    "commit", "device", "threads", "torch", "host", "batch", "size", "classes", "boxes", "losses", "assign",
    "stock_ms", "ours_ms", "ratio", "stock_mb", "ours_mb", "memory_ratio",
)  # fmt: skip
STRIDES = (8, 16, 32)


def scene(batch: int, size: int, classes: int, boxes: int, device: torch.device) -> tuple[Any, ...]:
    """The arguments of ``get_losses``: a model that has learnt a little, and random boxes of 8 px to half the image."""
    generator = torch.Generator().manual_seed(boxes)
    levels = [(size // stride, stride) for stride in STRIDES]
    grids = [torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij") for n, _ in levels]
    x_shifts = [x.reshape(1, -1).float().to(device) for _, x in grids]
    y_shifts = [y.reshape(1, -1).float().to(device) for y, _ in grids]
    strides = [torch.full((1, n * n), float(stride), device=device) for n, stride in levels]
    raw = torch.randn(batch, sum(n * n for n, _ in levels), 5 + classes, generator=generator).to(device)
    x, y, stride = (torch.cat(parts, 1).unsqueeze(-1) for parts in (x_shifts, y_shifts, strides))
    centres = (raw[..., :2] * 0.5 + torch.cat((x, y), -1)) * stride
    sides = torch.exp(raw[..., 2:4] * 0.5 + 0.7) * stride
    outputs = torch.cat((centres, sides, raw[..., 4:5] - 4, raw[..., 5:] - 3), -1)
    labels = torch.zeros(batch, max(boxes, 120), 5)
    labels[:, :boxes, 0] = torch.randint(0, classes, (batch, boxes), generator=generator).float()
    labels[:, :boxes, 1:3] = torch.rand(batch, boxes, 2, generator=generator) * size
    labels[:, :boxes, 3:] = 8 * (size / 16) ** torch.rand(batch, boxes, 2, generator=generator)
    images = torch.zeros(batch, 3, 1, 1, device=device)
    return images, x_shifts, y_shifts, strides, labels.to(device), outputs, [], torch.float32


def call(head: Any, arguments: tuple[Any, ...]) -> float:
    """Seconds of one forward and backward."""
    outputs = arguments[5].detach().requires_grad_()
    if outputs.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    head.get_losses(*arguments[:5], outputs, *arguments[6:])[0].backward()
    if outputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return float("nan")


def peak(head: Any, arguments: tuple[Any, ...]) -> float:
    """MiB that one call needs on top of what was there."""
    if arguments[5].is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call(head, arguments)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later would hide what the call needs
    clear.write_text("5")  # sets the peak back to what is in use
    before = _status("VmRSS")
    call(head, arguments)
    return _status("VmHWM") - before


def measure(args: argparse.Namespace, boxes: int, specs: dict[str, Any], rounds: int) -> dict[str, Any]:
    """One row of the table."""
    device = torch.device(args.device)
    stock, ours = (YOLOXHead(args.classes, width=0.25).to(device).train() for _ in range(2))
    ylp.patch_model(ours, {"loss_assign": args.assign, **specs})
    arguments = scene(args.batch, args.size, args.classes, boxes, device)
    heads = {"ours": ours, "stock": stock}
    memory = {name: peak(head, arguments) for name, head in heads.items()}
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(rounds):
        for name, head in heads.items():
            times[name].append(1000 * call(head, arguments))
    stock_ms, ours_ms = (statistics.median(times[name]) for name in ("stock", "ours"))
    losses = " ".join(f"{key}={value}" for key, value in specs.items()) or "stock"
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "host": hosts.describe()["name"],
        "batch": args.batch,
        "size": args.size,
        "classes": args.classes,
        "boxes": boxes,
        "losses": losses,
        "assign": args.assign,
        "stock_ms": round(stock_ms, 2),
        "ours_ms": round(ours_ms, 2),
        "ratio": round(ours_ms / stock_ms, 4),
        "stock_mb": round(memory["stock"], 1),
        "ours_mb": round(memory["ours"], 1),
        "memory_ratio": round(memory["ours"] / memory["stock"], 4) if memory["stock"] > 0 else float("nan"),
    }


def plot(path: Path) -> None:
    """Time against boxes per image, from the newest commit in the CSV, a colour per host."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with CSV.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["losses"] == "stock"]
    rows = sorted((row for row in rows if row["commit"] == rows[-1]["commit"]), key=lambda row: int(row["boxes"]))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for index, host in enumerate(sorted({row["host"] for row in rows})):
        points = [row for row in rows if row["host"] == host]
        boxes = [int(row["boxes"]) for row in points]
        for column, style, label in (("stock_ms", "--", host), ("ours_ms", "-", f"this kit, same matches as {host}")):
            times = [float(row[column]) for row in points]
            axes.plot(boxes, times, style, color=f"C{index}", marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="boxes per image", ylabel="ms, forward + backward")
    last = rows[-1]
    axes.set_title(
        f"Loss stage: batch {last['batch']}, {last['size']} px, {last['classes']} classes, "
        f"{last['device']} ({last['threads']} threads)",
        fontsize=9,
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, nargs="*", default=[5, 10, 20, 50, 100, 300])
    parser.add_argument("--losses", choices=("all", "none"), default="all", help="every loss at 20 boxes besides")
    parser.add_argument("--assign", choices=("fast", "host"), default="fast")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls a row; a quarter from 100 boxes on")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--plot", action="store_true", help="draw the CSV, measure nothing")
    args = parser.parse_args()
    if args.plot:
        plot(CSV.with_suffix(".png"))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    jobs: list[tuple[int, dict[str, Any]]] = [(boxes, {}) for boxes in args.boxes]
    if args.losses == "all":
        for term, names in ylp.available_losses().items():
            jobs += [(20, {f"loss_{term}": name}) for name in names if term != "l1"]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = []
    for boxes, specs in tqdm(jobs):
        rounds = args.rounds if boxes < 100 else max(args.rounds // 4, 2)
        rows.append({"commit": commit, **measure(args, boxes, specs, rounds)})
    shown = ("boxes", "losses", "stock_ms", "ours_ms", "ratio", "stock_mb", "ours_mb", "memory_ratio")
    print(tabulate([[row[key] for key in shown] for row in rows], shown, tablefmt="github"))
    new = not CSV.exists()
    CSV.parent.mkdir(exist_ok=True)
    with CSV.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
