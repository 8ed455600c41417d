#!/usr/bin/env python3
"""Time and memory of a whole training step, stock against the kit: forward, backward, optimizer on batches that are ready.

    python benchmarks/step.py --device cuda      # nano, s, x at 5, 20, 100, 300 boxes; adds to benchmarks/step.csv
    python benchmarks/step.py --device cpu --models yolox-nano --boxes 20 --batch 4 --size 320

Stock and kit alternate in one run. A row has the median of the steps. On CUDA in fp16 as `--fp16` trains, elsewhere in fp32.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm
from yolox.exp import get_exp

import yolox_loss_patch as ylp

CSV = Path(__file__).resolve().with_suffix(".csv")


def batch(args, boxes, device):
    """Noise as images, and ``boxes`` boxes per image as labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(args.batch, boxes, 5)
    labels[..., 0] = torch.randint(0, 80, (args.batch, boxes), generator=generator).float()
    labels[..., 1:3] = torch.rand(args.batch, boxes, 2, generator=generator) * args.size
    labels[..., 3:] = 5 + torch.rand(args.batch, boxes, 2, generator=generator) ** 2 * args.size / 2
    images = 255 * torch.rand(args.batch, 3, args.size, args.size, generator=generator)
    return images.to(device), labels.to(device)


class Training:
    """A model with its optimizer, as YOLOX trains it."""

    def __init__(self, name, device, assign):
        exp = get_exp(None, name)
        self.model = exp.get_model().to(device).train()
        if assign is not None:
            ylp.patch_model(self.model, ylp.LossConfig(loss_assign=assign))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
        self.is_half = device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.is_half)

    def step(self, data):
        """Seconds of one step."""
        device = data[0].device
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.float16, enabled=self.is_half):
            loss = self.model(*data)["total_loss"]
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description="Time and memory of a whole training step, stock against the kit.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", default=["yolox-nano", "yolox-s", "yolox-x"])
    parser.add_argument("--boxes", type=int, nargs="*", default=[5, 20, 100, 300])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--assign", default="fast", choices=("auto", "fast", "host"))
    args = parser.parse_args()
    device = torch.device(args.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    rows = []
    for name in args.models:
        sides = {"stock": Training(name, device, None), "kit": Training(name, device, args.assign)}
        for boxes in tqdm(args.boxes, desc=name, mininterval=10):
            data = batch(args, boxes, device)
            times, peaks = {side: [] for side in sides}, {}
            for number in range(args.steps + 2):
                for side, training in sides.items():
                    if device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    seconds = training.step(data)
                    if number >= 2:
                        times[side].append(seconds)
                    if device.type == "cuda":
                        peaks[side] = torch.cuda.max_memory_allocated() / 2**20
            stock, kit = (1000 * statistics.median(times[side]) for side in ("stock", "kit"))
            rows.append({
                "commit": commit.stdout.strip(), "torch": torch.__version__, "device": where, "model": name,
                "batch": args.batch, "size": args.size, "boxes": boxes, "assign": args.assign, "stock_ms": round(stock, 1),
                "kit_ms": round(kit, 1), "ratio": round(kit / stock, 3),
                "stock_peak_mib": round(peaks["stock"]) if peaks else "", "kit_peak_mib": round(peaks["kit"]) if peaks else "",
            })  # fmt: skip
    print(tabulate(rows, "keys", tablefmt="github"))
    with CSV.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
