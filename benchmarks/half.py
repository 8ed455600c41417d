"""Train every loss in half precision on boxes of 1 to 2000 px, and see that it stays finite.

    python benchmarks/half.py                       # bf16 on the CPU: a quarter of an hour
    python benchmarks/half.py --device cuda         # fp16, with loss scaling as in training
    python benchmarks/half.py --losses ciou focal --steps 50

A line a loss; exit status 1 when a loss or a gradient was not finite.
"""

import argparse
import sys
import time

import torch
from torch import nn
from yolox.models import YOLOXHead

import yolox_loss_patch as ylp
from yolox_loss_patch.head.half import decode_in_fp32, half_dtype

HEIGHT, WIDTH, CHANNELS, CLASSES = 256, 2048, 16, 3
STRIDES = (8, 16, 32)


def flat_head(seed=0):
    """A YOLOX head of its last layers only: their outputs, the decoding and the losses are what half precision is about."""
    torch.manual_seed(seed)
    head = YOLOXHead(CLASSES, width=CHANNELS / 256)
    head.initialize_biases(1e-2)
    for layers in (head.stems, head.cls_convs, head.reg_convs):
        for number in range(len(layers)):
            layers[number] = nn.Identity()
    head.use_l1 = True
    return head.train()


def scene(images=2, boxes=12, seed=0):
    """Features of the three levels, labels with sides of 1 to 2000 px, and images of 256 x 2048 px."""
    generator = torch.Generator().manual_seed(seed)
    features = [
        torch.randn(images, CHANNELS, HEIGHT // stride, WIDTH // stride, generator=generator) for stride in STRIDES
    ]
    labels = torch.zeros(images, boxes + 2, 5)
    shape = (images, boxes)
    labels[:, :boxes, 0] = torch.randint(0, CLASSES, shape, generator=generator).float()
    labels[:, :boxes, 1] = torch.rand(shape, generator=generator) * WIDTH
    labels[:, :boxes, 2] = torch.rand(shape, generator=generator) * HEIGHT
    labels[:, :boxes, 3:] = 2000 ** torch.rand(*shape, 2, generator=generator)
    return features, labels, torch.zeros(images, 3, HEIGHT, WIDTH)


def train(term, name, steps, device):
    """The total loss at every step; in fp16 the number of steps that the scaler left out, too.

    The features are trained as well, so that the predictions do grow to boxes of 2000 px.
    """
    device = torch.device(device)
    head = flat_head()
    ylp.patch_model(head, {f"loss_{term}": name})
    decode_in_fp32(head)
    head.to(device)
    features, labels, images = scene()
    labels, images = labels.to(device), images.to(device)
    features = [nn.Parameter(feature.to(device)) for feature in features]
    weights = [*head.parameters(), *features]
    optimizer = torch.optim.SGD(weights, lr=0.001, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    totals, left_out = [], 0
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=half_dtype(device)):
            outputs = head(features, labels, images)
        losses = [float(torch.as_tensor(value).detach()) for value in outputs[:5]]
        if not all(torch.isfinite(torch.tensor(losses))):
            raise FloatingPointError(f"step {step}: total, iou, obj, cls, l1 = {losses}")
        totals.append(losses[0])
        scaler.scale(outputs[0]).backward()
        scaler.unscale_(optimizer)
        finite = all(bool(torch.isfinite(weight.grad).all()) for weight in weights if weight.grad is not None)
        if not finite and not scaler.is_enabled():
            raise FloatingPointError(f"step {step}: the loss is finite, its gradient is not")
        left_out += not finite  # a scale that was too large: the scaler skips the step and takes a smaller one
        scaler.step(optimizer)
        scaler.update()
    return totals, left_out


def main():
    parser = argparse.ArgumentParser(description="Train every loss in half precision on boxes of 1 to 2000 px.")
    parser.add_argument("--device", default="cpu", help="cpu (bf16) or cuda (fp16) [%(default)s]")
    parser.add_argument("--steps", type=int, default=500, help="[%(default)s]")
    parser.add_argument("--losses", nargs="*", metavar="NAME", help="these only [all]")
    args = parser.parse_args()
    failed = 0
    for term, names in ylp.available_losses().items():
        for name in names:
            if args.losses and name not in args.losses:
                continue
            started = time.perf_counter()
            try:
                totals, left_out = train(term, name, args.steps, args.device)
                answer = f"finite; total {totals[0]:.4g} -> {totals[-1]:.4g}; {left_out} steps left out"
                if left_out > args.steps // 10:
                    answer, failed = f"FAILED: the scaler left out {left_out} steps", failed + 1
            except FloatingPointError as error:
                answer, failed = f"FAILED: {error}", failed + 1
            print(f"{term:4} {name:16} {answer}  ({time.perf_counter() - started:.1f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
