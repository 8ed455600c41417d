#!/usr/bin/env python3
"""Default losses against stock on a device: the loss terms and all gradients of one step, in fp32, fp16 and bf16.

    python benchmarks/defaults.py --device cuda      # writes benchmarks/defaults.csv
    python benchmarks/defaults.py --device cpu

The same step is taken twice by stock: what differs there is the device's own noise. Kit and stock may differ by ten times
that noise, and by 1e-4 (relative) where a device adds up in another order from call to call. On a CPU in fp32 they have to
be equal bit for bit. Exit status 1 when they are not.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import torch
from tabulate import tabulate
from yolox.exp import get_exp

import yolox_loss_patch as ylp

CSV = Path(__file__).resolve().with_suffix(".csv")
TYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
ALLOWED = 1e-4


def batch(device, images=4, size=416, boxes=20):
    """Noise as images ``(B, 3, H, W)``, and labels ``(B, boxes + 4, 5)``."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(images, boxes + 4, 5)
    labels[:, :boxes, 0] = torch.randint(0, 80, (images, boxes), generator=generator).float()
    labels[:, :boxes, 1:3] = torch.rand(images, boxes, 2, generator=generator) * size
    labels[:, :boxes, 3:] = 5 + torch.rand(images, boxes, 2, generator=generator) ** 2 * size / 2
    pictures = 255 * torch.rand(images, 3, size, size, generator=generator)
    return pictures.to(device), labels.to(device)


def step(model, data, dtype):
    """Loss terms and gradients of one step, in fp32."""
    model.zero_grad()
    device = data[0].device.type
    with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        outputs = model(*data)
    outputs["total_loss"].backward()
    terms = [torch.as_tensor(value).detach().float().cpu().reshape(1) for value in outputs.values()]
    return torch.cat(terms), [p.grad.float().cpu() for p in model.parameters() if p.grad is not None]


def difference(ours, stock):
    """The largest relative difference of a term, and of a gradient against the largest of its tensor."""
    terms = ((ours[0] - stock[0]).abs() / stock[0].abs().clamp(min=1e-12)).max()
    pairs = zip(ours[1], stock[1], strict=True)
    gradients = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs]
    return max(float(terms), *gradients)


def main():
    parser = argparse.ArgumentParser(description="Default losses against stock on a device.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    where = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    rows, failed = [], False
    # A CPU is slow, and its bits do not depend on the size.
    models, size = (["yolox-nano"], 160) if device.type == "cpu" else (["yolox-nano", "yolox-s"], 416)
    for name in models:
        torch.manual_seed(0)
        model = get_exp(None, name).get_model().to(device).train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0  # the same step twice
        model.head.use_l1 = True
        data = batch(device, size=size)
        for kind, dtype in TYPES.items():
            if dtype is not None and device.type == "cpu":  # half precision is slow there, and proves nothing of a GPU
                continue
            stock, again = step(model, data, dtype), step(model, data, dtype)
            ylp.patch_model(model, ylp.LossConfig())
            ours = step(model, data, dtype)
            ylp.unpatch_model(model)
            noise, found = difference(again, stock), difference(ours, stock)
            exact = device.type == "cpu" and kind == "fp32"
            fine = found == 0 if exact else found <= max(10 * noise, ALLOWED)
            failed |= not fine
            rows.append({
                "commit": commit.stdout.strip(), "torch": torch.__version__, "device": where, "model": name, "type": kind,
                "stock_twice": f"{noise:.3g}", "kit_against_stock": f"{found:.3g}", "fine": "yes" if fine else "NO",
            })  # fmt: skip
    print(tabulate(rows, "keys", tablefmt="github"))
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
