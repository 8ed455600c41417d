"""What both fast ways share: the inputs, and the host's numbers with the host's bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .rule import LOG_FLOOR, Rule


class Scene(NamedTuple):
    """The inputs of an assignment. A "flat" anchor index counts through the batch: image * A + anchor."""

    boxes: Tensor  # (B * A, 4) cx, cy, w, h in pixels
    obj: Tensor  # (B * A,) logits
    cls: Tensor  # (B * A, C) logits
    labels: Tensor  # (B, M, 5)
    x: Tensor  # (A,) column
    y: Tensor  # (A,) row
    stride: Tensor  # (A,) pixels
    rule: Rule
    dtype: torch.dtype
    batch: int
    anchors: int
    budget: int  # bytes of temporary tensors, on an accelerator


class Sides(NamedTuple):
    """Boxes by their sides in pixels, and their areas. Boxes that are not finite overlap nothing."""

    left: Tensor
    top: Tensor
    right: Tensor
    bottom: Tensor
    area: Tensor

    def at(self, index: Any) -> Sides:
        """The sides of some of the boxes: `index` is applied to each tensor."""
        return Sides(*(side[index] for side in self))


class GroundTruth(NamedTuple):
    """The boxes of all images in one list of N rows, image after image."""

    image: Tensor  # (N,)
    slot: Tensor  # (N,) index within the image
    classes: Tensor  # (N,)
    boxes: Tensor  # (N, 4) cx, cy, w, h in pixels
    sides: Sides
    starts: list[int]  # rows of image i: starts[i] .. starts[i + 1] - 1


def boxes_per_image(labels: Tensor) -> Tensor:
    """(B,) how many boxes each image has, told as the host tells it: rows whose sum is above 0."""
    return (labels.sum(dim=2) > 0).sum(dim=1)


def sides_of(boxes: Tensor) -> Sides:
    """Sides of (..., 4) boxes in (cx, cy, w, h), operation by operation as the host's `bboxes_iou` takes them."""
    cx, cy, w, h = boxes.unbind(-1)
    inf = float("inf")
    return Sides(
        (cx - w / 2).nan_to_num(inf, inf, -inf),
        (cy - h / 2).nan_to_num(inf, inf, -inf),
        (cx + w / 2).nan_to_num(-inf, inf, -inf),
        (cy + h / 2).nan_to_num(-inf, inf, -inf),
        # two boxes without any area would give 0 / 0
        (w * h).nan_to_num(inf, inf, -inf).clamp(min=torch.finfo(boxes.dtype).tiny),
    )


def pairwise_iou(a: Sides, b: Sides) -> Tensor:
    """IoU of boxes that broadcast, with the bits of the host's `bboxes_iou` (and 0 where that has 0 / 0)."""
    width = torch.minimum(a.right, b.right).sub_(torch.maximum(a.left, b.left)).clamp_(min=0)
    height = torch.minimum(a.bottom, b.bottom).sub_(torch.maximum(a.top, b.top)).clamp_(min=0)
    inter = width.mul_(height)
    return inter.div_(torch.add(a.area, b.area).sub_(inter))


def joint_probability(scene: Scene, flat: Tensor) -> Tensor:
    """(n, C) sqrt(class * objectness) of flat anchors."""
    prob = scene.cls.index_select(0, flat).to(scene.dtype).sigmoid_()
    return prob.mul_(scene.obj.index_select(0, flat).to(scene.dtype).sigmoid_().unsqueeze(1)).sqrt_()


def log_complement(prob: Tensor) -> Tensor:
    """log(1 - p) with the floor of F.binary_cross_entropy; the argument is overwritten."""
    return prob.neg_().log1p_().clamp_(min=LOG_FLOOR)
