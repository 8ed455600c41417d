"""The fast way for accelerators: fixed shapes, and the host waits once."""

from __future__ import annotations

import torch
from torch import Tensor

from .rule import EPS, IOU_WEIGHT, LOG_FLOOR, TOP_IOUS, Assignment
from .scene import Scene, boxes_per_image, log_complement, pairwise_iou, sides_of


def assign_dense(scene: Scene) -> Assignment:
    """The same rule on [images, boxes, anchors] tensors: no shape depends on the data but the last one.

    For devices on which waiting for a number costs more than computing some too many, and for anchors without a grid.
    There is no second look at near ties: two candidates whose costs agree to six digits may swap. Of exact ties the k
    cheapest are those that `torch.topk` takes on the device (true of the host as well); an anchor claimed by several boxes
    goes to the first of the cheapest.
    """
    batch, anchors, width = scene.batch, scene.anchors, scene.labels.shape[1]
    counts = boxes_per_image(scene.labels)
    # on its way while the rest is computed; `nonzero` below waits for it too
    num_gt = counts.sum().to("cpu", non_blocking=True)
    # about six [boxes, anchors] tensors and three [anchors, classes] tensors live at a time
    one = anchors * (6 * width + 3 * scene.cls.shape[1]) * torch.finfo(scene.dtype).bits // 8
    step = max(1, scene.budget // max(one, 1))
    owner = torch.cat([_dense_owner(scene, i, min(i + step, batch), counts) for i in range(0, batch, step)] or [counts])
    fg_mask = owner >= 0
    fg = fg_mask.nonzero().squeeze(1)
    image = torch.div(fg, max(anchors, 1), rounding_mode="floor")
    slot = owner[fg]
    gts = scene.labels[image, slot]
    boxes = gts[:, 1:5].to(scene.dtype)
    return Assignment(
        fg_mask=fg_mask,
        image=image,
        matched_gt=slot,
        classes=gts[:, 0].to(torch.int64),
        ious=pairwise_iou(sides_of(boxes), sides_of(scene.boxes[fg].to(scene.dtype))),
        boxes=boxes,
        num_fg=len(fg),
        num_gt=int(num_gt),
    )


def _dense_owner(scene: Scene, begin: int, end: int, counts: Tensor) -> Tensor:
    """((end - begin) * A,) which box of its image owns each anchor of these images, -1 for background."""
    rule, anchors, width = scene.rule, scene.anchors, scene.labels.shape[1]
    device = scene.labels.device
    if not width:
        return torch.full(((end - begin) * anchors,), -1, device=device)
    gts = scene.labels[begin:end]
    real = (torch.arange(width, device=device) < counts[begin:end, None]).unsqueeze(2)  # (b, M, 1)
    boxes = gts[:, :, 1:5].to(scene.dtype)

    stride = scene.stride
    x, y = scene.x * stride + 0.5 * stride, scene.y * stride + 0.5 * stride
    cx, cy, w, h = boxes.unsqueeze(3).unbind(2)  # (b, M, 1) each
    reach = rule.radius * stride
    free = (x > cx - reach) & (x < cx + reach) & (y > cy - reach) & (y < cy + reach) & real
    anywhere = free
    if rule.in_box:
        inside = (x > cx - 0.5 * w) & (x < cx + 0.5 * w) & (y > cy - 0.5 * h) & (y < cy + 0.5 * h) & real
        anywhere = free | inside
        free = free & inside
        del inside
    candidate = anywhere.any(dim=1, keepdim=True)  # (b, 1, A)
    barred = ~(candidate & real)

    flat = slice(begin * anchors, end * anchors)
    pred = sides_of(scene.boxes[flat].to(scene.dtype).view(-1, 1, anchors, 4))
    iou = pairwise_iou(sides_of(boxes.unsqueeze(2)), pred).masked_fill_(barred, 0.0)
    most = min(TOP_IOUS, anchors)
    k = iou.topk(most, dim=2).values.sum(2, keepdim=True).to(torch.int64).clamp(min=1, max=most)

    logits = scene.cls[flat].to(scene.dtype).view(end - begin, anchors, -1)
    odds = scene.obj[flat].to(scene.dtype).sigmoid().view(end - begin, anchors, 1)
    classes = gts[:, :, 0].to(torch.int64).unsqueeze(1).expand(-1, anchors, -1)
    own = logits.gather(2, classes).sigmoid_().mul_(odds).sqrt_().transpose(1, 2)  # (b, M, A)
    sums = log_complement(logits.sigmoid().mul_(odds).sqrt_()).sum(2).unsqueeze(1)  # (b, 1, A)
    cost = own.log().clamp_(min=LOG_FLOOR).add_(sums).neg_()
    cost += log_complement(own)
    cost -= iou.add_(EPS).log_().mul_(IOU_WEIGHT)
    cost += (~free).to(scene.dtype) * rule.penalty
    cost.masked_fill_(barred, float("inf"))

    best, order = cost.topk(most, dim=2, largest=False)
    taken = (torch.arange(most, device=device) < k) & (best < float("inf"))
    claimed = torch.zeros_like(barred).scatter_(2, order, taken)
    claims = claimed.sum(1)  # (b, A)
    # an anchor claimed by several boxes goes to the box for which it is cheapest, the first of equals
    owner = torch.where(claims > 1, cost.argmin(1), claimed.to(torch.uint8).argmax(1))
    return owner.masked_fill_(claims == 0, -1).flatten()
