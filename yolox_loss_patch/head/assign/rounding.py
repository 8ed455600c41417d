"""Whether a match is what rounding may make of the rule: what tells a near tie from a fault."""

from __future__ import annotations

import torch
from torch import Tensor

from .rule import EPS, IOU_WEIGHT, LOG_FLOOR, TOP_IOUS
from .scene import Scene, boxes_per_image, joint_probability, pairwise_iou, sides_of


def within_rounding(scene: Scene, image: int, owner: Tensor) -> Tensor:
    """Which anchors of an image have an owner that the rule could give them, were each number off by its rounding error.

    The probabilities and the IoUs are taken as the host has them, element by element; logarithms and sums are made in
    double precision, and the host's may be off by some units in the last place. A claim is certain, possible or neither,
    according to how many costs of the same box are below it by more than that.

    Args:
        scene: the inputs of the assignment.
        image: the image's index in the batch.
        owner: (A,) int64, the box that owns each anchor, -1 for background.

    Returns:
        (A,) bool.
    """
    rule, dtype, anchors = scene.rule, scene.dtype, scene.anchors
    eps = torch.finfo(dtype).eps
    flat = torch.arange(image * anchors, (image + 1) * anchors, device=owner.device)
    labels = scene.labels[image, : int(boxes_per_image(scene.labels)[image])]
    boxes, classes = labels[:, 1:5].to(dtype), labels[:, 0].to(torch.int64)
    free, candidate = _geometry(scene, boxes)

    iou = pairwise_iou(sides_of(boxes).at((slice(None), None)), sides_of(scene.boxes[flat].to(dtype)))
    iou = iou.masked_fill(~candidate, 0.0).double()
    prob = joint_probability(scene, flat).double()
    log_prob, log_not = prob.log().clamp(min=LOG_FLOOR), (-prob).log1p().clamp(min=LOG_FLOOR)
    total = -log_not.sum(1)
    class_cost = total + (log_not - log_prob).t()[classes]
    iou_cost = -IOU_WEIGHT * (iou + EPS).log()
    penalty = (~free).double() * rule.penalty
    cost = class_cost + iou_cost + penalty
    # A sum of logarithms, each good to a unit or two in the last place, in any order; then two more additions.
    error = eps * (32 * (total + class_cost.abs() + 1) + 4 * iou_cost.abs() + 2 * penalty)
    barred = ~candidate.expand_as(cost)
    low, high = ((cost + sign * error).masked_fill(barred, float("inf")) for sign in (-1, 1))

    top = iou.topk(min(TOP_IOUS, anchors), dim=1).values.sum(1, keepdim=True)
    fewest, most = ((top + sign * 16 * eps * (1 + top)).long().clamp(min=1) for sign in (-1, 1))
    surely_cheaper = torch.searchsorted(high.sort(1).values, low.contiguous())
    perhaps_cheaper = torch.searchsorted(low.sort(1).values, high.contiguous(), right=True) - 1
    possible, certain = (surely_cheaper < most) & ~barred, (perhaps_cheaper < fewest) & ~barred

    certain_claims = certain.sum(0)
    alone = possible & (certain_claims - certain.long() == 0)
    cheapest = (low <= high.min(0).values) & ~barred & (possible.sum(0) > 1)
    owned = (alone | cheapest).gather(0, owner.clamp(min=0).unsqueeze(0)).squeeze(0)
    return torch.where(owner < 0, certain_claims == 0, owned)


def _geometry(scene: Scene, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(M, A) the pairs without penalty, and (A,) the candidates."""
    stride = scene.stride
    x, y = scene.x * stride + 0.5 * stride, scene.y * stride + 0.5 * stride
    cx, cy, w, h = boxes.unsqueeze(2).unbind(1)
    reach = scene.rule.radius * stride
    near = (x > cx - reach) & (x < cx + reach) & (y > cy - reach) & (y < cy + reach)
    if not scene.rule.in_box:
        return near, near.any(0)
    inside = (x > cx - 0.5 * w) & (x < cx + 0.5 * w) & (y > cy - 0.5 * h) & (y < cy + 0.5 * h)
    return near & inside, (near | inside).any(0)
